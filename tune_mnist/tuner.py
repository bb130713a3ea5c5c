"""Runs a search from its settings to its winner, and leaves the run folder behind."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from ray import tune
from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback

from tune_mnist import cluster, data
from tune_mnist.hyperparameters import METRIC, MODE, OPTUNA_NUMBER, Hyperparameters
from tune_mnist.progress import Listener, Progress, ProgressCallback
from tune_mnist.records import ResultGrid, mark_ended, trial_records
from tune_mnist.search import TruthfulOptunaSearch, make_scheduler, rungs
from tune_mnist.settings import Settings
from tune_mnist.spaces import blog_point, load_space
from tune_mnist.stop import StopRequest
from tune_mnist.trainable import CHECKPOINT, train_trial
from tune_mnist.training import resolve_precision, score_checkpoint

RAY_LOG = "ray_tune.log"
"""Name of the file in the run folder that takes what Ray Tune would print."""

FINISHED = "finished"
"""Why a search ended that was neither stopped nor out of time."""


class InputError(ValueError):
    """The settings can't be met here; the text is one line (for data, a few) for the person who gave them."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best checkpoint, scored on the test set, which nothing else has seen."""

    trial_id: str
    number: int
    hyperparameters: Hyperparameters
    epoch: int
    accuracy: float
    val_size: int
    test_accuracy: float
    test_loss: float
    test_size: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search came to."""

    settings: Settings
    run_dir: Path
    grid: ResultGrid
    ended_by: str
    hand_set_first: bool
    "Whether trial 0 is the blog's hand-set configuration: the space may not hold it."
    seconds: float
    winner: Winner | None


def run(settings: Settings, listener: Listener | None = None) -> Outcome:
    """Search, then score the winner on the test set. Call it from the main thread.

    The run folder ``storage_path/name`` gets Ray's experiment, ``study.journal``, ``settings.json`` and
    ``best/``. Ctrl-C and SIGTERM end the search in order: what there is, is written.

    Raises:
        InputError: before there is a run folder, if the settings can't be met: no such cluster, data, space
            or folder, or a share that no node has.
        SystemExit: with 130 or 143, on a signal that comes before the first trial or is the second one.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(settings))
        with _input_errors():
            settings, run_dir = _name_run(settings)
            with stop.deferred():
                stack.enter_context(cluster.connected(settings.address))
            settings = _fit_to_cluster(settings)
            train, validation = data.load_train_val(
                settings.dataset,
                settings.data_dir,
                val_size=settings.val_size,
                train_size=settings.train_size,
                seed=settings.seed,
            )
            _make_run_dir(run_dir)
        (run_dir / "settings.json").write_text(settings.to_json())
        stack.enter_context(_ray_log(run_dir / RAY_LOG))
        searcher = TruthfulOptunaSearch(settings, run_dir)
        tuner = _tuner(settings, train, validation, searcher, listener, stop)
        stop.begin()
        grid = tuner.fit()
        seconds = stop.seconds()
        searcher.close(stop.reason or FINISHED)
        mark_ended(grid)
        winner = _score_winner(settings, grid, run_dir / "best")
        return Outcome(
            settings=settings,
            run_dir=run_dir,
            grid=grid,
            ended_by=stop.reason or FINISHED,
            hand_set_first=blog_point(load_space(settings.space, settings.max_epochs), settings.max_epochs)
            is not None,
            seconds=seconds,
            winner=winner,
        )


@contextmanager
def _input_errors() -> Iterator[None]:
    try:
        yield
    except (cluster.ClusterError, ValueError, OSError) as error:
        raise InputError(str(error)) from error


def _name_run(settings: Settings) -> tuple[Settings, Path]:
    """Settle the run's name and folder, and find out now whether they do."""
    load_space(settings.space, settings.max_epochs)
    name = settings.name or f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    storage_path = settings.storage_path.absolute()
    run_dir = storage_path / name
    if run_dir.exists():
        raise _name_is_taken(run_dir)
    try:
        storage_path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=storage_path):
            pass
    except OSError as error:
        rule = f"must be a folder that can be written ({error.strerror})"
        raise ValueError(f"storage_path is {storage_path}, but {rule}") from error
    return dataclasses.replace(settings, name=name, storage_path=storage_path), run_dir


def _make_run_dir(run_dir: Path) -> None:
    try:
        run_dir.mkdir()
    except FileExistsError as error:  # another run with this name has started since
        raise _name_is_taken(run_dir) from error


def _name_is_taken(run_dir: Path) -> ValueError:
    return ValueError(f"name is {run_dir.name}, but must be a new one: {run_dir} exists")


def _fit_to_cluster(settings: Settings) -> Settings:
    """Settle a trial's share and the number of trials at a time."""
    resources = cluster.fit_resources(
        settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent_trials
    )
    if not settings.address and not resources.gpus:
        resolve_precision(settings.precision, "cpu")
    return dataclasses.replace(settings, gpus_per_trial=resources.gpus, max_concurrent_trials=resources.slots)


def _tuner(
    settings: Settings,
    train: data.Split,
    validation: data.Split,
    searcher: TruthfulOptunaSearch,
    listener: Listener | None,
    stop: StopRequest,
) -> tune.Tuner:
    trainable = tune.with_parameters(
        train_trial,
        train=train.arrays(),
        validation=validation.arrays(),
        seed=settings.seed,
        device="cuda" if settings.gpus_per_trial else "cpu",
        precision=settings.precision,
        rungs=rungs(settings),
        checkpoint_seconds=settings.checkpoint_seconds,
        target_accuracy=settings.target_accuracy,
    )
    progress = Progress(num_samples=settings.num_samples)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # or Ray adds a CSV logger that nobody reads
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints its banner even with verbose=0
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial or 0}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(settings),
            num_samples=settings.num_samples,
            # Always passed on: without it Ray holds a searcher to one pending trial.
            max_concurrent_trials=settings.max_concurrent_trials,
            reuse_actors=not settings.fresh_actors,
            trial_dirname_creator=lambda trial: f"trial_{trial.config[OPTUNA_NUMBER]:05d}_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=settings.name,
            storage_path=str(settings.storage_path),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order=MODE
            ),
            callbacks=[
                ProgressCallback(progress, listener, stop.check),
                JsonLoggerCallback(),  # type: ignore[no-untyped-call]
                TBXLoggerCallback(),  # type: ignore[no-untyped-call]
            ],
        ),
    )


def _score_winner(settings: Settings, grid: ResultGrid, best_dir: Path) -> Winner | None:
    """Take the checkpoint with the highest validation accuracy, test it, write best/."""
    records = [record for record in trial_records(grid) if record.state != "FAIL"]
    best = max(records, key=lambda record: record.checkpoint_accuracy or 0.0, default=None)
    if best is None or best.checkpoint is None or best.checkpoint_accuracy is None:
        return None
    hyperparameters = Hyperparameters(**best.config)
    best_dir.mkdir()
    test = data.load_test(settings.dataset, settings.data_dir)
    with best.checkpoint.as_directory() as folder:
        epoch, test_accuracy, test_loss = score_checkpoint(
            Path(folder) / CHECKPOINT, hyperparameters, test, save_model=best_dir / "model.pt"
        )
    winner = Winner(
        trial_id=best.trial_id,
        number=best.number,
        hyperparameters=hyperparameters,
        epoch=epoch,
        accuracy=best.checkpoint_accuracy,
        val_size=settings.val_size,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        test_size=len(test),
    )
    values = dataclasses.asdict(winner)
    (best_dir / "hyperparameters.json").write_text(json.dumps(values.pop("hyperparameters"), indent=2) + "\n")
    (best_dir / "metrics.json").write_text(json.dumps(values, indent=2) + "\n")
    return winner


@contextmanager
def _ray_log(path: Path) -> Iterator[None]:
    """Send what Ray Tune and Optuna log to a file of the run instead of the console."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    optuna.logging.disable_default_handler()
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air", "optuna")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
        handler.close()
