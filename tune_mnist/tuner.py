"""Runs a search from its settings to its winner, or goes on with one, and leaves the run folder behind."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from ray import tune
from ray.tune.logger import TBXLoggerCallback

from tune_mnist import cluster, data
from tune_mnist.folder import FolderError, RunFolder
from tune_mnist.hyperparameters import OPTUNA_NUMBER
from tune_mnist.ledger import LEDGER, Ledger, trial_directory
from tune_mnist.progress import Listener, Progress, ProgressCallback
from tune_mnist.results import TRIALS_TABLE, write_tables
from tune_mnist.search import SteadfastASHA, TruthfulOptunaSearch, rungs
from tune_mnist.settings import ResumeRequest, Settings
from tune_mnist.shared import check_shared
from tune_mnist.spaces import load_space
from tune_mnist.stop import TARGET, StopRequest
from tune_mnist.trainable import train_trial
from tune_mnist.training import resolve_precision
from tune_mnist.trials import (
    CHECKPOINTS,
    RecordCallback,
    ResultGrid,
    TrialSource,
    load_grid,
    steadfast,
    take_in_checkpoints,
)
from tune_mnist.winner import Winner, read_winner, score_winner

SETTINGS = "settings.json"
"""Name of the file in the run folder that has the settings, as they were resolved."""
RAY_LOG = "ray_tune.log"
"""Name of the file in the run folder that takes what Ray Tune would print."""

FINISHED = "finished"
"""Why a search ended that was neither stopped nor out of time."""


class InputError(ValueError):
    """The settings can't be met here; the text is one line (for data, a few) for the person who gave them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search came to."""

    settings: Settings
    folder: RunFolder
    grid: ResultGrid
    ended_by: str | None
    "FINISHED, or what stopped it; None while it runs, or where it was killed."
    seconds: float
    "Wall time, that of earlier sessions included."
    winner: Winner | None


def run(settings: Settings, listener: Listener | None = None) -> Outcome:
    """Search, then score the winner on the test set. Call it from the main thread.

    The run folder ``storage_path/name`` gets the ledger, the study's journal, the tables, ``settings.json``,
    ``best/``, and Ray's experiment. Ctrl-C and SIGTERM end the search in order: what there is, is written.

    Raises:
        InputError: before there is a run folder, if the settings can't be met: no such cluster, data, space
            or folder, or a share that no node has.
        FolderError: if the storage is lost on the way; the driver's own files are then on its disk.
        SystemExit: with 130 or 143, on a signal that comes before the first trial or is the second one.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(settings))
        with _input_errors():
            space = load_space(settings.space, settings.max_epochs)
            settings, folder = _name_run(settings)
            stack.enter_context(folder.locked())
            if folder.exists():
                raise _name_is_taken(folder)
            settings, slots = _fit_to_cluster(settings, folder, stop, stack, listener)
            splits = _load(settings)
            with folder.created() as beginning:
                (beginning / SETTINGS).write_text(settings.to_json())
                Ledger.open(beginning / LEDGER).begin(
                    {name: distribution_to_json(one) for name, one in space.items()}
                )
        ledger = Ledger.open(folder.local / LEDGER)
        settings = dataclasses.replace(settings, max_concurrent_trials=slots)
        return _search(_Session(settings, space, folder, ledger, splits, listener, stop), stack)


def resume(request: ResumeRequest, listener: Listener | None = None) -> Outcome | None:
    """Go on with a run, whatever has ended it. Call it from the main thread.

    Trials that have ended stay as they are, the others go on from their newest checkpoints, and those that
    lack to ``num_samples`` follow. A time budget counts anew.

    Returns:
        What the whole run came to; None if there was nothing left to do, and nothing was changed.

    Raises:
        InputError: before anything is changed, if there is no such run, it is being run, or a change of its
            settings is not allowed or can't be met.
        SystemExit: as in ``run``.
    """
    with ExitStack() as stack:
        with _input_errors():
            folder = RunFolder(request.run)
            known = folder.ledger()  # the first look, which changes nothing
            settings = request.settings_of(_read_settings(folder))
            if _is_finished(folder, known, settings):
                return None
            stop = stack.enter_context(StopRequest(settings))
            stack.enter_context(folder.locked())
            settings, slots = _fit_to_cluster(settings, folder, stop, stack, listener)
            splits = _load(settings)
            folder.pull()
            ledger = Ledger.open(folder.local / LEDGER)
            space = {name: json_to_distribution(one) for name, one in ledger.distributions.items()}
            _check_numbers(folder, ledger)
        (folder.local / TRIALS_TABLE).unlink(missing_ok=True)  # a run that has it has ended
        (folder.local / SETTINGS).write_text(settings.to_json())
        settings = dataclasses.replace(settings, max_concurrent_trials=slots)
        ledger.begin(ledger.distributions)
        take_in_checkpoints(folder, ledger)
        ledger.end_what_was_over(SteadfastASHA(settings, ledger).stopped)
        return _search(_Session(settings, space, folder, ledger, splits, listener, stop), stack)


def look(run: str) -> Outcome:
    """Read what a run has come to so far, without changing anything: a folder or a URI.

    Raises:
        FolderError: if there is no such run.
    """
    folder = RunFolder(run)
    ledger = folder.ledger()
    return Outcome(
        settings=_read_settings(folder),
        folder=folder,
        grid=load_grid(folder),
        ended_by=ledger.closed_by,
        seconds=ledger.seconds(),
        winner=read_winner(folder),
    )


@dataclass(frozen=True)
class _Session:
    """What a search needs, new or resumed, once all of it is known to be there."""

    settings: Settings
    space: dict[str, BaseDistribution]
    folder: RunFolder
    ledger: Ledger
    splits: tuple[data.Split, data.Split]
    listener: Listener | None
    stop: StopRequest


def _search(session: _Session, stack: ExitStack) -> Outcome:
    """Run the trials that the ledger lacks, from wherever it stands, and write down what came of it."""
    settings, folder, ledger, stop = session.settings, session.folder, session.ledger, session.stop
    stack.enter_context(_ray_log(folder.local / RAY_LOG))
    searcher = TruthfulOptunaSearch(settings, session.space, ledger, folder)
    folder.push(wait=True)
    stop.begin()
    with steadfast():
        _run_trials(session, searcher)
    searcher.close(stop.reason or FINISHED)
    folder.push(wait=True)
    grid = load_grid(folder)
    winner = score_winner(settings, grid, folder)
    write_tables(grid, folder.local)
    folder.push(wait=True)
    stack.callback(folder.drop_working_copy)
    return Outcome(
        settings=settings,
        folder=folder,
        grid=grid,
        ended_by=stop.reason or FINISHED,
        seconds=ledger.seconds(),
        winner=winner,
    )


@contextmanager
def _input_errors() -> Iterator[None]:
    try:
        yield
    except (cluster.ClusterError, ValueError, OSError) as error:
        raise InputError(str(error)) from error


def _name_run(settings: Settings) -> tuple[Settings, RunFolder]:
    """Settle the run's name and folder, and find out now whether they do."""
    name = settings.name or f"{settings.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    storage_path = settings.storage_path.rstrip("/")
    if "://" not in storage_path:
        storage_path = str(Path(storage_path).expanduser().absolute())
    folder = RunFolder(f"{storage_path}/{name}")
    if folder.exists():
        raise _name_is_taken(folder)
    folder.check_writable()
    return dataclasses.replace(settings, name=name, storage_path=storage_path), folder


def _name_is_taken(folder: RunFolder) -> ValueError:
    return ValueError(
        f"name is {folder.name}, but must be a new one: {folder.uri} exists "
        f"(--resume {folder.uri} goes on with it)"
    )


def _read_settings(folder: RunFolder) -> Settings:
    """Read the settings of a run, which may have been moved since."""
    text = folder.read(SETTINGS)
    if text is None:
        raise FolderError(f"{folder.uri} is not the folder of a run: it has no {SETTINGS}")
    settings = Settings.from_json(text.decode())
    return dataclasses.replace(settings, name=folder.name, storage_path=folder.uri.rpartition("/")[0])


def _is_finished(folder: RunFolder, ledger: Ledger, settings: Settings) -> bool:
    """Tell whether a resume would have nothing to do."""
    all_ended = len(ledger.trials) >= settings.num_samples and not ledger.unended()
    reached = ledger.closed_by == TARGET and not ledger.lost_lines
    return (all_ended or reached) and folder.read(TRIALS_TABLE) is not None


def _check_numbers(folder: RunFolder, ledger: Ledger) -> None:
    """See that no trial is missing from the ledger, since the numbers of the study would shift."""
    numbers = sorted(trial.number for trial in ledger.trials.values())
    if numbers != list(range(len(numbers))):
        raise FolderError(f"{folder.uri}/{LEDGER} has lost {ledger.lost_lines} lines, and with them a trial")


def _fit_to_cluster(
    settings: Settings, folder: RunFolder, stop: StopRequest, stack: ExitStack, listener: Listener | None
) -> tuple[Settings, int]:
    """Join or start the cluster; settle a trial's share, and find the number of trials at a time."""
    with stop.deferred():
        connection = stack.enter_context(cluster.connected(settings.address, dashboard=settings.dashboard))
    if listener and connection.dashboard:
        listener.told(f"Ray's dashboard: {connection.dashboard}")
    resources = cluster.fit_resources(
        settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent_trials
    )
    if connection.embedded:
        if not resources.gpus:
            resolve_precision(settings.precision, "cpu")
    elif not folder.remote:
        check_shared(folder.local.parent)
    # The number is not kept with the settings: where it was not asked for, a resume takes what fits then.
    return dataclasses.replace(settings, gpus_per_trial=resources.gpus), resources.slots


def _load(settings: Settings) -> tuple[data.Split, data.Split]:
    return data.load_train_val(
        settings.dataset,
        settings.data_dir,
        val_size=settings.val_size,
        train_size=settings.train_size,
        seed=settings.seed,
    )


def _run_trials(session: _Session, searcher: TruthfulOptunaSearch) -> None:
    """Let Ray Tune run the trials."""
    settings, folder, ledger = session.settings, session.folder, session.ledger
    train, validation = session.splits
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
        gpus=settings.gpus_per_trial or 0.0,
    )
    progress = Progress(num_samples=settings.num_samples)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # or Ray adds a CSV logger that nobody reads
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints its banner even with verbose=0
    # The searcher holds the number of trials at a time; left to itself, Ray would hold it to one pending.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(settings.max_concurrent_trials)
    # Not through tune.Tuner, which pickles the searcher, and with it the ledger, into the run folder.
    tune.run(
        tune.with_resources(trainable, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial or 0}),
        name=settings.name,
        storage_path=settings.storage_path,
        search_alg=TrialSource(searcher, folder, ledger),
        scheduler=SteadfastASHA(settings, ledger),
        num_samples=settings.num_samples,
        reuse_actors=not settings.fresh_actors,
        max_failures=settings.max_failures,
        raise_on_failed_trial=False,
        checkpoint_config=CHECKPOINTS,
        trial_dirname_creator=lambda trial: trial_directory(trial.config[OPTUNA_NUMBER], trial.trial_id),
        verbose=0,
        callbacks=[
            RecordCallback(folder, ledger),
            ProgressCallback(progress, ledger, session.listener, session.stop.check, cluster.pending_nodes),
            TBXLoggerCallback(),  # type: ignore[no-untyped-call]
        ],
    )


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
