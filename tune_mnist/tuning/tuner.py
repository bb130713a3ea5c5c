"""Runs a search from its settings to its winner, or goes on with one, and leaves the run folder behind."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from ray import tune

from tune_mnist.cluster import connection as cluster
from tune_mnist.results.frames import TRIALS_TABLE, write_tables
from tune_mnist.results.grid import ResultGrid, ledger_of, load_grid, saved_epochs
from tune_mnist.results.winner import Winner, read_winner, score_winner
from tune_mnist.run.checkpoints import take_in_checkpoints
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.run.ledger import LEDGER, OPTUNA_NUMBER, Ledger, TaskFacts
from tune_mnist.run.settings import ResumeRequest, Settings
from tune_mnist.run.space import checked_space, wider_ends
from tune_mnist.run.words import first_line
from tune_mnist.task import Task
from tune_mnist.tuning import dashboard, versions
from tune_mnist.tuning.asha import ASHA, rungs
from tune_mnist.tuning.attempts import (
    AttemptCallback,
    Attempts,
    AttemptScheduler,
    AttemptSearcher,
    AttemptStopper,
)
from tune_mnist.tuning.changes import check_unchanged, describe_changes
from tune_mnist.tuning.live import ways_to_watch
from tune_mnist.tuning.points import first_points, read_points
from tune_mnist.tuning.preflight import (
    SETTINGS,
    check_readable,
    fit_to_cluster,
    name_is_taken,
    name_run,
    read_settings,
)
from tune_mnist.tuning.progress import Listener, Progress, ProgressKeeper
from tune_mnist.tuning.samplers import make_sampler
from tune_mnist.tuning.stop import REACHED, StopRequest
from tune_mnist.tuning.study import TrialStudy
from tune_mnist.tuning.tasks import find_task as find_task
from tune_mnist.tuning.tasks import load_space, make_options, resumable_options
from tune_mnist.tuning.tasks import option_names as option_names
from tune_mnist.tuning.trainable import ATTEMPT, train_trial
from tune_mnist.tuning.warm_start import known_again, read_earlier_runs

RAY_LOG = "ray_tune.log"
"""Name of the file in the run folder that takes what Ray Tune would print."""
RAY_FOLDER = "ray"
"""Name of the folder in it that is Ray Tune's own: a folder an attempt, and a state that nobody reads."""
ROUNDS = 5
"""Calls of Ray's loop without a single report after which a search gives up."""

LOGGER = logging.getLogger("ray.tune.rounds")
FINISHED = "finished"
"""Why a search ended that was neither stopped nor out of time."""


class InputError(ValueError):
    """The settings can't be met here; the text is one line (for data, a few) for the person who gave them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a search."""

    settings: Settings
    folder: RunFolder
    grid: ResultGrid
    ended_by: str | None
    "FINISHED, or what stopped it; None while it runs, or where it was killed."
    seconds: float
    "Wall time, that of earlier sessions included."
    winner: Winner | None


def run(settings: Settings, listener: Listener | None = None, task: Task | None = None) -> Outcome:
    """Search, then score the winner on the test set. Call it from the main thread.

    The run folder ``storage_path/name`` gets the ledger, the study's journal, the tables, ``settings.json``,
    ``best/``, and Ray's experiment. Ctrl-C and SIGTERM end the search in order: what there is, is written.

    Raises:
        InputError: before there is a run folder, if the settings can't be met: no such cluster, data, space,
            folder, earlier run or point, or a share that no node has.
        FolderError: if the storage is lost on the way.
        SystemExit: with 130 or 143, on a signal that comes before the first trial or is the second one.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(settings))
        with input_errors():
            if settings.open_dashboard:
                dashboard.check_installed()
            task = task or find_task(settings)
            options = make_options(task, settings.options)
            settings = dataclasses.replace(settings, options=dataclasses.asdict(options) if options else {})
            settings, space = load_space(settings, task)
            make_sampler(settings.sampler, settings.seed, 0, space)  # or say why not, before there is a run
            facts = describe_task(task, options, space, settings.max_epochs)
            if task.objective.standard_error == "binomial" and not 0 < (settings.target or 1) <= 1:
                raise ValueError(f"target is {settings.target:g}, but must be above 0 and at most 1")
            given = read_points(settings.points, space) if settings.points else []
            earlier = read_earlier_runs(settings, facts, space)
            points = first_points(settings, task, space, given, [trial.params for trial in earlier.trials])
            settings, folder = name_run(settings, getattr(options, "dataset", task.name))
            stack.enter_context(folder.locked())
            if folder.exists():
                raise name_is_taken(folder)
            data = task.load(options, settings.seed) if task.load else None
            settings, slots, connection = fit_to_cluster(settings, task, folder, stop, stack, listener)
            with folder.created() as beginning:
                (beginning / SETTINGS).write_text(settings.to_json())
                ledger = Ledger.open(beginning / LEDGER)
                ledger.begin({name: distribution_to_json(one) for name, one in space.items()}, facts)
                ledger.inherit(earlier.trials)
                ledger.plan(points)
        ledger = Ledger.open(folder.local / LEDGER)
        settings = dataclasses.replace(settings, max_concurrent_trials=slots)
        session = _Session(
            *(settings, task, options, space, folder, ledger, data, connection, listener, stop),
            earlier.remarks,
        )
        return _search(session, stack)


def resume(
    request: ResumeRequest, listener: Listener | None = None, task: Task | None = None
) -> Outcome | None:
    """Go on with a run, whatever has ended it. Call it from the main thread.

    Trials that have ended stay as they are, the others go on from their newest checkpoints, and those that
    lack to ``num_samples`` follow. A time budget counts anew.

    Returns:
        What the whole run came to; None if there was nothing left to do, and nothing was changed.

    Raises:
        InputError: before anything is changed, if there is no such run, it is being run, or a change of its
            settings is not allowed or can't be met.
        FolderError: as in ``run``.
        SystemExit: as in ``run``.
    """
    with ExitStack() as stack:
        with input_errors():
            folder = RunFolder(request.run)
            folder.ledger()  # or there is no run to lock
            stack.enter_context(folder.locked())
            known = folder.ledger()
            check_readable(folder, known)
            before = read_settings(folder)
            task = task or find_task(before)
            settings = request.settings_of(before, resumable_options(task))
            options = make_options(task, settings.options)
            if _is_finished(folder, known, before, settings):
                return None
            check_unchanged(known, task, folder.uri)
            space = {name: json_to_distribution(one) for name, one in known.distributions.items()}
            checked_space(task, f"of {folder.uri}", space, settings.max_epochs)
            if settings.open_dashboard:
                dashboard.check_installed()
            stop = stack.enter_context(StopRequest(settings))
            data = task.load(options, settings.seed) if task.load else None
            settings, slots, connection = fit_to_cluster(settings, task, folder, stop, stack, listener)
            folder.pull()
            ledger = Ledger.open(folder.local / LEDGER)
        folder.remove(TRIALS_TABLE)
        folder.write(SETTINGS, settings.to_json())
        ledger.begin(ledger.distributions, describe_task(task, options, space, settings.max_epochs))
        take_in_checkpoints(folder, ledger)
        ledger.end_what_was_over(ASHA(settings, ledger).stopped)
        settings = dataclasses.replace(settings, max_concurrent_trials=slots)
        session = _Session(
            *(settings, task, options, space, folder, ledger, data, connection, listener, stop),
            [*known_again(ledger), *filter(None, [describe_changes(known, task)])],
        )
        return _search(session, stack)


def load_run(run: str) -> Outcome:
    """Read what a run has come to so far, without changing anything: a folder or a URI.

    Raises:
        FolderError: if there is no such run.
    """
    folder = RunFolder(run)
    settings, grid = read_settings(folder), load_grid(folder)
    ledger = ledger_of(grid)
    if ledger.facts is None:  # of an older version
        with suppress(ValueError):
            task = find_task(settings)
            space = {name: json_to_distribution(text) for name, text in ledger.distributions.items()}
            options = make_options(task, settings.options)
            ledger.facts = describe_task(task, options, space, settings.max_epochs)
    return Outcome(
        settings=settings,
        folder=folder,
        grid=grid,
        ended_by=ledger.closed_by,
        seconds=ledger.seconds(),
        winner=read_winner(folder, ledger.task),
    )


@dataclass(frozen=True)
class _Session:
    """What a search needs, new or resumed, once all of it is known to be there."""

    settings: Settings
    task: Task
    options: Any
    space: dict[str, BaseDistribution]
    folder: RunFolder
    ledger: Ledger
    data: Any
    "What the task has loaded."
    connection: cluster.Connection
    listener: Listener | None
    stop: StopRequest
    remarks: list[str]
    "What is to be told before the first trial."


def _search(session: _Session, stack: ExitStack) -> Outcome:
    """Run the trials that the ledger lacks, from wherever it stands, and write down what came of it."""
    settings, folder, ledger, stop = session.settings, session.folder, session.ledger, session.stop
    stack.enter_context(_ray_log(folder.local / RAY_LOG))
    try:
        study = TrialStudy(settings, session.task, session.space, ledger, folder)
        folder.push(wait=True)
        _tell_where_to_look(session, stack)
        stop.begin()
        _run_trials(session, study)
        study.close(stop.reason or FINISHED)
        folder.push(wait=True)
        grid = load_grid(folder)
        write_tables(grid, folder.write)
        folder.push(wait=True)
        winner = score_winner(session.task, session.options, grid, folder)
        folder.push(wait=True)
    except Exception as error:
        cause = ledger.failure or _storage_error(error)
        if cause is None:
            raise
        kept = f"; what had not been copied is in {folder.local}" if folder.remote else ""
        raise FolderError(f"{folder.uri} can't be written any more: {cause}{kept}") from error
    stack.callback(folder.drop_working_copy)
    return Outcome(
        settings=settings,
        folder=folder,
        grid=grid,
        ended_by=stop.reason or FINISHED,
        seconds=ledger.seconds(),
        winner=winner,
    )


def _tell_where_to_look(session: _Session, stack: ExitStack) -> None:
    """Say what the search begins with, where it writes, how to watch it; open the dashboard on request."""
    lines = [*versions.notices(), *session.remarks, *ways_to_watch(session.folder)]
    if session.settings.open_dashboard:
        url = stack.enter_context(dashboard.served(session.folder.local / JOURNAL))
        lines.append(f"optuna-dashboard: {url or 'it could not be started'}")
        if url:
            dashboard.open_browser(url)
    if session.listener:
        for line in lines:
            session.listener.on_message(line)


def describe_task(task: Task, options: Any, space: dict[str, BaseDistribution], max_epochs: int) -> TaskFacts:
    """Give what the ledger keeps of a task."""
    return TaskFacts(
        name=task.name,
        objective=task.objective,
        data=task.describe(options) if task.describe else "",
        validation_examples=task.validation_examples(options) if task.validation_examples else None,
        tables=task.tables,
        defaults=task.defaults,
        wider=wider_ends(task, space, max_epochs),
    )


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what settings that can't be met raise in a block into an `InputError`."""
    try:
        yield
    except (cluster.ClusterError, ValueError, OSError) as error:
        raise InputError(str(error)) from error


def _is_finished(folder: RunFolder, ledger: Ledger, before: Settings, settings: Settings) -> bool:
    """Tell whether a resume would have nothing to do.

    Raises:
        ValueError: for more trials of a run that has reached its target, which would end it at once.
    """
    if ledger.closed_by in REACHED and settings.num_samples > before.num_samples:
        raise ValueError(
            f"num_samples is {settings.num_samples}, but must be left out: the run has reached its target, "
            f"{settings.target:g}, and keeps it"
        )
    all_ended = len(ledger.trials) >= settings.num_samples and not ledger.unended()
    # scripts/analyse.py writes the tables of unfinished runs too: that a run was closed, the ledger says, and
    # that the kill did not come after that, the winner.
    closed = ledger.closed_by is not None and folder.read(TRIALS_TABLE) is not None
    scored = closed and (read_winner(folder, ledger.task) is not None or not saved_epochs(load_grid(folder)))
    return (all_ended or ledger.closed_by in REACHED) and scored


def _waiting_for(folder: RunFolder) -> str:
    """Say what the search waits for: storage that does not answer, or nodes that are to start."""
    if folder.push_error:
        return f"waiting for {folder.uri}: {folder.push_error}"
    nodes = cluster.pending_nodes()
    words = [f"{count} node{'s' * (count > 1)} of type {name}" for name, count in nodes.items()]
    return f"waiting for {', '.join(words)}" if words else ""


def _storage_error(error: BaseException | None) -> Exception | None:
    """Find what says that the storage is lost: Ray makes an error of its own of what its callbacks raise."""
    while error is not None:
        if isinstance(error, OSError | FolderError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _run_trials(session: _Session, study: TrialStudy) -> None:
    """Let Ray Tune run the trials; again, where its loop breaks or hears of nothing any more.

    Raises:
        ClusterError: if no trial reports anything, however often that is tried, or can be imported.
    """
    ledger, stop = session.ledger, session.stop
    progress = ProgressKeeper(
        Progress(num_samples=session.settings.num_samples, objective=ledger.objective),
        ledger,
        session.listener,
        partial(_waiting_for, session.folder),
    )
    attempts = Attempts(
        session.settings, session.folder, study, ASHA(session.settings, ledger), progress, stop
    )
    rounds, known, trouble = 0, -1, ""
    try:
        while attempts.unfinished and not stop.reason:
            if attempts.cannot_load:
                trained = "" if ledger.order else ", and nothing was trained"
                raise cluster.ClusterError(
                    f"no worker can import what a trial needs{trained}: {attempts.load_error} "
                    f"(--resume {session.folder.uri} continues)"
                )
            if rounds:  # Ray may take this process for one that has ended, and would not say so
                progress.tell(f"nothing moves: connecting to Ray again ({trouble})")
                with stop.deferred():
                    session.connection.reconnect()
            if known < len(ledger.order):
                rounds, known = 0, len(ledger.order)
            elif rounds >= ROUNDS:
                raise cluster.ClusterError(f"Ray has run no trial in {rounds} attempts: {trouble}")
            rounds += 1
            trouble = "no trial gives a sign of life"
            attempts.begin_round()
            try:
                _run_round(session, attempts)
            except Exception as error:
                if ledger.failure or _storage_error(error):
                    raise
                LOGGER.exception("Ray's loop has broken")
                trouble = first_line(error)
                ledger.broke(trouble)
    finally:
        attempts.close()


def _run_round(session: _Session, attempts: Attempts) -> None:
    """Call Ray Tune once; it returns when all trials have ended, or there is no use in going on."""
    settings, folder = session.settings, session.folder
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
