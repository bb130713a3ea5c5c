"""The rounds of a search: calls of Ray Tune's loop, repeated if it breaks or makes no progress."""

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
"""Name of Ray Tune's folder in the run folder, which nothing reads."""
ROUNDS = 5
"""Calls of Ray's loop without a single report after which a search gives up."""
LOGGER = logging.getLogger("ray.tune.rounds")


@dataclass(frozen=True)
class Session:
    """What a search needs, new or resumed, once all of it has been checked."""

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
    "What to show before the first trial."


def _waiting_for(folder: RunFolder, idle: bool) -> str:
    """Describe what the search waits for: storage that does not answer, starting nodes, room, a worker."""
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
    """Find the error of lost storage in a chain: Ray wraps what its callbacks raise in its own errors."""
    while error is not None:
        if isinstance(error, OSError | FolderError):
            return error
        error = error.__cause__ or error.__context__
    return None


def run_trials(session: Session, study: TrialStudy, trackers: Sequence[Tracker] = ()) -> None:
    """Let Ray Tune run the trials; restart its loop if it breaks or makes no progress.

    Raises:
        ClusterError: if no trial reports anything after several rounds, or none can be imported.
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
            if rounds:  # Ray may take this process for dead, without saying so
                listener.on_message(f"no progress: connecting to Ray again ({trouble})")
                with stop.deferred():
                    session.connection.reconnect()
            if known < len(ledger.order):
                rounds, known = 0, len(ledger.order)
            elif rounds >= ROUNDS:
                raise ClusterError(f"Ray has run no trial in {rounds} attempts: {trouble}")
            rounds += 1
            trouble = "no trial responds"
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
    """Call Ray Tune once; it returns when all trials have ended, or it is pointless to continue."""
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
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # our files are per trial, Ray's per attempt
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints its banner even with verbose=0
    # The searcher limits the concurrent trials; by default, Ray would allow only one pending.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(settings.max_concurrent_trials)
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial or 0}),
        tune_config=tune.TuneConfig(
            search_alg=AttemptSearcher(attempts),
            scheduler=AttemptScheduler(attempts),
            num_samples=-1,  # Ray would count attempts
            # Not max_concurrent_trials: it loses a slot with each attempt that ends silently.
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
    """Reports nothing; Ray's own reporter would clear the output of a notebook's cell."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Return False."""
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: Any) -> None:
        """Report nothing."""


def _attempt_directory(trial: Any) -> str:
    return f"{trial.config[OPTUNA_NUMBER]:05d}_{trial.config[ATTEMPT]['number']}_{trial.trial_id}"


class _LogFile(logging.FileHandler):
    """A log that a full disk truncates silently: the search itself reports that it cannot write."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Close the file, even if the rest cannot be written."""
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
