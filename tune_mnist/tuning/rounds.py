"""The rounds of a search: calls of Ray Tune's loop, again where it breaks or nothing moves any more."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from ray import tune

from tune_mnist.cluster import autoscaler
from tune_mnist.cluster.address import ClusterError
from tune_mnist.cluster.connection import Connection
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import ATTEMPT, OPTUNA_NUMBER
from tune_mnist.run.settings import Settings
from tune_mnist.run.words import first_line
from tune_mnist.task import Task
from tune_mnist.tuning.asha import ASHA, rungs
from tune_mnist.tuning.attempts import Attempts
from tune_mnist.tuning.progress import Listener, Progress, ProgressKeeper
from tune_mnist.tuning.ray_parts import AttemptCallback, AttemptScheduler, AttemptSearcher, AttemptStopper
from tune_mnist.tuning.stop import StopRequest
from tune_mnist.tuning.study import TrialStudy
from tune_mnist.tuning.tasks import send_by_value
from tune_mnist.tuning.trackers.feed import Feed, Tracker
from tune_mnist.tuning.trainable import train_trial
from tune_mnist.tuning.trouble import has_place

RAY_FOLDER = "ray"
"""Name of the folder in the run folder that is Ray Tune's own, and that nobody reads."""
ROUNDS = 5
"""Calls of Ray's loop without a single report after which a search gives up."""
LOGGER = logging.getLogger("ray.tune.rounds")


@dataclass(frozen=True)
class Session:
    """What a search needs, new or resumed, once all of it is known to be there."""

    settings: Settings
    task: Task
    options: Any
    space: dict[str, BaseDistribution]
    folder: RunFolder
    ledger: Ledger
    data: Any
    "What the task has loaded."
    connection: Connection
    listener: Listener
    stop: StopRequest
    remarks: list[str]
    "What is to be told before the first trial."


def _waiting_for(folder: RunFolder, idle: bool) -> str:
    """Say what the search waits for: storage that does not answer, nodes that start, room, a worker."""
    if folder.mirror.error:
        return f"waiting for {folder.uri}: {folder.mirror.error}"
    nodes = autoscaler.pending_nodes()
    words = [f"{count} node{'s' * (count > 1)} of type {name}" for name, count in nodes.items()]
    if words:
        return f"waiting for {', '.join(words)}"
    if not idle:
        return ""
    return "waiting for a worker to start" if has_place() else "waiting for a node that has room"


def storage_error(error: BaseException | None) -> Exception | None:
    """Find what says that the storage is lost: Ray makes an error of its own of what its callbacks raise."""
    while error is not None:
        if isinstance(error, OSError | FolderError):
            return error
        error = error.__cause__ or error.__context__
    return None


def run_trials(session: Session, study: TrialStudy, trackers: Sequence[Tracker] = ()) -> None:
    """Let Ray Tune run the trials; again, where its loop breaks or hears of nothing any more.

    Raises:
        ClusterError: if no trial reports anything, however often that is tried, or can be imported.
    """
    ledger, stop, listener = session.ledger, session.stop, session.listener
    feeds = [Feed(tracker, listener.on_message) for tracker in trackers]
    progress = ProgressKeeper(
        Progress(num_samples=session.settings.num_samples, objective=ledger.objective),
        ledger,
        listener,
        partial(_waiting_for, session.folder),
        feeds,
    )
    attempts = Attempts(
        *(session.settings, session.folder, study, ASHA(session.settings, ledger), progress, stop),
        session.connection.session,
    )
    rounds, known, trouble = 0, -1, ""
    try:
        while attempts.unfinished and not stop.reason:
            if attempts.hopeless:
                raise ClusterError(f"{attempts.hopeless} (--resume {session.folder.uri} continues)")
            if rounds:  # Ray may take this process for one that has ended, and would not say so
                listener.on_message(f"nothing moves: connecting to Ray again ({trouble})")
                with stop.deferred():
                    session.connection.reconnect()
            if known < len(ledger.order):
                rounds, known = 0, len(ledger.order)
            elif rounds >= ROUNDS:
                raise ClusterError(f"Ray has run no trial in {rounds} attempts: {trouble}")
            rounds += 1
            trouble = "no trial gives a sign of life"
            attempts.begin_round()
            try:
                _run_round(session, attempts)
            except Exception as error:
                if ledger.failure or storage_error(error):
                    raise
                LOGGER.exception("Ray's loop has broken")
                trouble = first_line(error)
                ledger.broke(trouble)
    finally:
        attempts.close()
        for feed in feeds:
            feed.close()


def _run_round(session: Session, attempts: Attempts) -> None:
    """Call Ray Tune once; it returns when all trials have ended, or there is no use in going on."""
    settings, folder = session.settings, session.folder
    send_by_value(session.task.train)
    trainable = tune.with_parameters(
        train_trial,
        train=session.task.train,
        data=session.data,
        objective=session.task.objective,
        fs=folder.fs,
        run=folder.path,
        seed=settings.seed,
        max_epochs=settings.max_epochs,
        rungs=rungs(settings),
        checkpoint_seconds=settings.checkpoint_seconds,
        target=settings.target,
        cpus=settings.cpus_per_trial,
        gpus=settings.gpus_per_trial or 0.0,
    )
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # our files are of trials, Ray's of attempts
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints its banner even with verbose=0
    # The searcher holds the number of concurrent trials; left to itself, Ray would hold it to one pending.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(settings.max_concurrent_trials)
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial or 0}),
        tune_config=tune.TuneConfig(
            search_alg=AttemptSearcher(attempts),
            scheduler=AttemptScheduler(attempts),
            num_samples=-1,  # a number would be one of attempts
            # Not max_concurrent_trials: it loses a slot with each attempt that ends without a word.
            reuse_actors=not settings.fresh_actors,
            trial_dirname_creator=_attempt_directory,
        ),
        run_config=tune.RunConfig(
            name=RAY_FOLDER,
            storage_path=folder.uri,
            stop=AttemptStopper(attempts),
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[AttemptCallback(attempts)],
            progress_reporter=_Silence(),
            verbose=0,
        ),
    ).fit()


class _Silence(tune.ProgressReporter):
    """Reports nothing, and leaves the output of a notebook's cell alone, which Ray's own reporter clears."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None:
        """Report nothing."""


def _attempt_directory(trial: Any) -> str:
    return f"{trial.config[OPTUNA_NUMBER]:05d}_{trial.config[ATTEMPT]['number']}_{trial.trial_id}"


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short without a word: the search says itself that it can't write."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Close the file, with or without what is still to be written."""
        with suppress(OSError):
            super().close()


@contextmanager
def ray_log(path: Path) -> Iterator[None]:
    """Send what Ray Tune and Optuna log to a file of the run instead of the console."""
    handler = _LogFile(path)
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
