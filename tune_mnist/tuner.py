"""Runs a search from its settings to its winner, and leaves the run folder behind."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from ray import tune
from ray.tune import ExperimentAnalysis
from ray.tune import ResultGrid as ResultGrid
from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback

from tune_mnist import cluster, data
from tune_mnist.hyperparameters import METRIC, MODE, OPTUNA_NUMBER, TIME_ATTR, Hyperparameters
from tune_mnist.progress import Listener, Progress, ProgressCallback
from tune_mnist.search import TruthfulOptunaSearch, make_scheduler, rungs, trial_state
from tune_mnist.settings import Settings
from tune_mnist.spaces import load_space
from tune_mnist.trainable import CHECKPOINT, train_trial
from tune_mnist.training import resolve_precision, score_checkpoint

RAY_LOG = "ray_tune.log"
"""Name of the file in the run folder that takes what Ray Tune would print."""

FINISHED = "finished"
"""Why a search ended that was neither stopped nor out of time."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as plain values, for the tables."""

    trial_id: str
    number: int
    state: str
    config: dict[str, Any]
    last_result: dict[str, Any]
    epochs: list[dict[str, Any]]
    checkpoint: tune.Checkpoint | None
    error_file: Path | None


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best trial, scored on the test set, which nothing else has seen."""

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
    seconds: float
    winner: Winner | None


def run(settings: Settings, listener: Listener | None = None) -> Outcome:
    """Search, then score the winner on the test set. Call it from the main thread.

    The run folder ``storage_path/name`` gets Ray's experiment, ``study.journal``, ``settings.json`` and
    ``best/``. Ctrl-C and SIGTERM end the search in order: what there is, is written.

    Raises:
        ClusterError: if there is no cluster, or none that can hold a trial.
        DataError: if the data can't be had.
        ValueError: for a space, size or name that does not do.
        OSError: if the run folder can't be written.
    """
    load_space(settings.space, settings.max_epochs)
    name = settings.name or f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    settings = dataclasses.replace(settings, name=name, storage_path=settings.storage_path.absolute())
    run_dir = settings.storage_path / name
    if run_dir.exists():
        raise ValueError(f"name is {name}, but must be a new one: {run_dir} exists")
    _check_writable(settings.storage_path)
    with cluster.connected(settings.address):
        resources = cluster.fit_resources(
            settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent_trials
        )
        settings = dataclasses.replace(
            settings, gpus_per_trial=resources.gpus, max_concurrent_trials=resources.slots
        )
        if not settings.address and not resources.gpus:
            resolve_precision(settings.precision, "cpu")
        train, validation = data.load_train_val(
            settings.dataset,
            settings.data_dir,
            val_size=settings.val_size,
            train_size=settings.train_size,
            seed=settings.seed,
        )
        run_dir.mkdir(parents=True)
        (run_dir / "settings.json").write_text(settings.to_json())
        started = time.monotonic()
        with _StopRequest(settings) as stop, _ray_log(run_dir / RAY_LOG):
            searcher = TruthfulOptunaSearch(settings, run_dir)
            grid = _tuner(settings, train, validation, searcher, listener, stop).fit()
            searcher.close(stop.reason or FINISHED)
            seconds = time.monotonic() - started
            winner = _score_winner(settings, grid, run_dir / "best")
        return Outcome(
            settings=settings,
            run_dir=run_dir,
            grid=grid,
            ended_by=stop.reason or FINISHED,
            seconds=seconds,
            winner=winner,
        )


def load(path: str | Path) -> ResultGrid:
    """Read the trials of a run, finished or not.

    Raises:
        ValueError: if ``path`` is not the folder of a run.
    """
    path = Path(path).absolute()  # pyarrow takes a relative one for a URI
    if not list(path.glob("experiment_state-*.json")):
        raise ValueError(f"{path} is not the folder of a run: it has no experiment_state-*.json")
    return ResultGrid(ExperimentAnalysis(str(path), default_metric=METRIC, default_mode=MODE))


def trial_records(grid: ResultGrid) -> list[TrialRecord]:
    """Give each trial of a grid as plain values, in the order of the study.

    The state is RUNNING for a trial that has not ended: the search runs, or was interrupted there.
    """
    analysis = grid._experiment_analysis
    records = []
    for trial in analysis.trials:
        last = trial.last_result or {}
        epochs = last.get(TIME_ATTR, 0)
        failed = trial.status == "ERROR"
        ended = failed or trial.status == "TERMINATED"
        frame = analysis.trial_dataframes.get(trial.trial_id)
        records.append(
            TrialRecord(
                trial_id=trial.trial_id,
                number=trial.config[OPTUNA_NUMBER],
                state=trial_state(epochs, trial.config["epochs"], failed=failed) if ended else "RUNNING",
                config={key: value for key, value in trial.config.items() if key != OPTUNA_NUMBER},
                last_result=last,
                epochs=[] if frame is None else [dict(row) for _, row in frame.iterrows()],
                checkpoint=trial.checkpoint,
                error_file=Path(trial.path) / "error.txt" if failed and trial.path else None,
            )
        )
    return sorted(records, key=lambda record: record.number)


class _StopRequest:
    """Ends a search in order, once, on a signal, when its time is up, or when it has reached its target."""

    def __init__(self, settings: Settings) -> None:
        self.reason: str | None = None
        self.target = settings.target_accuracy
        self.deadline = time.monotonic() + settings.time_budget if settings.time_budget else None
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _StopRequest:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a search must be run from the main thread, where its stop signals arrive")
        # Ray's own SIGINT handler returns from fit() as if the search were done, and it has none for SIGTERM.
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        self.previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def check(self, progress: Progress) -> None:
        """End the search when its target or its deadline is reached."""
        best = progress.best_saved_accuracy  # a winner needs its checkpoint
        if self.target is not None and best is not None and best >= self.target:
            self.request("target accuracy")
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self.request("time budget")

    def request(self, reason: str) -> None:
        """Ask Ray Tune to stop and write its state, with the signal that it offers for that."""
        if self.reason is None:
            self.reason = reason
            signal.raise_signal(signal.SIGUSR1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason in ("SIGINT", "SIGTERM"):
            raise SystemExit(128 + number)  # a second one: at once
        self.reason = self.reason or signal.Signals(number).name
        signal.raise_signal(signal.SIGUSR1)


def _tuner(
    settings: Settings,
    train: data.Split,
    validation: data.Split,
    searcher: TruthfulOptunaSearch,
    listener: Listener | None,
    stop: _StopRequest,
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
    progress = Progress(num_samples=settings.num_samples, max_epochs=settings.max_epochs)
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
    """Take the trial with the highest last accuracy, test its newest checkpoint, write best/."""
    records = [record for record in trial_records(grid) if record.state != "FAIL" and record.checkpoint]
    if not records:
        return None
    best = max(records, key=lambda record: float(record.last_result[METRIC]))
    hyperparameters = Hyperparameters(**best.config)
    best_dir.mkdir()
    test = data.load_test(settings.dataset, settings.data_dir)
    assert best.checkpoint is not None  # those without are left out above
    with best.checkpoint.as_directory() as folder:
        epoch, test_accuracy, test_loss = score_checkpoint(
            Path(folder) / CHECKPOINT, hyperparameters, test, save_model=best_dir / "model.pt"
        )
    winner = Winner(
        trial_id=best.trial_id,
        number=best.number,
        hyperparameters=hyperparameters,
        epoch=epoch,
        # An interrupted trial's newest checkpoint may be older than its last report.
        accuracy=next(float(row[METRIC]) for row in best.epochs if row[TIME_ATTR] == epoch),
        val_size=settings.val_size,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        test_size=len(test),
    )
    values = dataclasses.asdict(winner)
    (best_dir / "hyperparameters.json").write_text(json.dumps(values.pop("hyperparameters"), indent=2) + "\n")
    (best_dir / "metrics.json").write_text(json.dumps(values, indent=2) + "\n")
    return winner


def _check_writable(storage_path: Path) -> None:
    """Find out now, not after the first trial."""
    storage_path.mkdir(parents=True, exist_ok=True)
    probe = storage_path / f".write-{os.getpid()}"
    probe.touch()
    probe.unlink()


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
