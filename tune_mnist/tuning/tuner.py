"""Runs or resumes a search, from its settings to its winner and a complete run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from tune_mnist.cluster.address import ClusterError
from tune_mnist.results.frames import TRIALS_TABLE, write_tables
from tune_mnist.results.grid import LedgerGrid, load_grid
from tune_mnist.results.winner import ScoringError, Winner, read_winner, score_winner
from tune_mnist.run.checkpoints import take_in_checkpoints
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import TaskFacts
from tune_mnist.run.resuming import ResumeRequest
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import checked_space, wider_ends
from tune_mnist.task import Task
from tune_mnist.tuning import dashboard, versions
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.changes import check_unchanged, describe_changes
from tune_mnist.tuning.points import first_points, read_points
from tune_mnist.tuning.preflight import SETTINGS, check_readable, fit_to_cluster, name_run, read_settings
from tune_mnist.tuning.progress import Listener
from tune_mnist.tuning.rounds import Session, ray_log, run_trials, storage_error
from tune_mnist.tuning.samplers import make_sampler
from tune_mnist.tuning.stop import REACHED, StopRequest
from tune_mnist.tuning.study import TrialStudy
from tune_mnist.tuning.tasks import find_task as find_task
from tune_mnist.tuning.tasks import load_space, make_options, resumable_options
from tune_mnist.tuning.tasks import option_names as option_names
from tune_mnist.tuning.trackers.chosen import check_trackers, make_trackers
from tune_mnist.tuning.warm_start import known_again, read_earlier_runs

RAY_LOG = "ray_tune.log"
"""Name of the file in the run folder with what Ray Tune would print."""

ABOUT_FUNCTIONS = (
    "A Ray Tune function chooses its own seeds; a lost trial resumes from the newest checkpoint that it has "
    "reported, and starts over without one"
)
FINISHED = "finished"
"""Stop reason of a search that was neither stopped nor out of time."""


class InputError(ValueError):
    """The settings cannot be met here; the text is one line (for data, a few) for the user."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a search."""

    settings: Settings
    folder: RunFolder
    grid: LedgerGrid
    stop_reason: str | None
    "FINISHED, or what stopped it; None while it runs, or if it was killed."
    seconds: float
    "Wall time, including earlier sessions."
    winner: Winner | None


def run(settings: Settings, listener: Listener | None = None, task: Task | None = None) -> Outcome:
    """Search, then score the winner on the test set. Call it from the main thread.

    The run folder ``storage_path/name`` gets the ledger, the study's journal, the tables, ``settings.json``,
    ``best/``, and Ray's experiment. Ctrl-C and SIGTERM end the search cleanly, with the results so far.

    Raises:
        InputError: before there is a run folder, if the settings cannot be met: no such cluster, data, space,
            folder, earlier run or point, or more CPUs or GPUs per trial than any node has.
        FolderError: if the storage is lost during the search.
        ScoringError: if the task's test of the winner raises something.
        SystemExit: with 130 or 143, on a signal before the first trial, or on a second signal.
    """
    listener = listener or Listener()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(settings))
        with input_errors():
            if settings.open_dashboard:
                dashboard.check_installed()
            check_trackers(settings)
            task = task or find_task(settings)
            options = make_options(task, settings.options)
            settings = dataclasses.replace(settings, options=dataclasses.asdict(options) if options else {})
            settings, space = load_space(settings, task)
            make_sampler(settings.sampler, settings.seed, 0, space)  # fails, if at all, before there is a run
            facts = describe_task(task, options, space, settings.max_epochs)
            if task.objective.standard_error == "binomial" and not 0 < (settings.target or 1) <= 1:
                raise ValueError(f"target is {settings.target:g}, but must be above 0 and at most 1")
            given = read_points(settings.points, space) if settings.points else []
            earlier = read_earlier_runs(settings, facts, space)
            points = first_points(settings, task, space, given, [trial.params for trial in earlier.trials])
            settings, folder = name_run(settings, getattr(options, "dataset", task.name), stack)
            data = task.load(options, settings.seed) if task.load else None
            settings, slots, connection = fit_to_cluster(settings, task, folder, stop, stack, listener)
            with folder.created() as beginning:
                (beginning / SETTINGS).write_text(settings.to_json())
                ledger = Ledger.open(beginning / LEDGER)
                ledger.begin({name: distribution_to_json(part) for name, part in space.items()}, facts)
                ledger.inherit(earlier.trials)
                ledger.plan(points)
        ledger = Ledger.open(folder.local / LEDGER)
        settings = dataclasses.replace(settings, max_concurrent_trials=slots)
        session = Session(
            *(settings, task, options, space, folder, ledger, data, connection, listener, stop),
            [*earlier.remarks, *([ABOUT_FUNCTIONS] if settings.trainable else [])],
        )
        return _search(session, stack)


def resume(
    request: ResumeRequest, listener: Listener | None = None, task: Task | None = None
) -> Outcome | None:
    """Resume a run, however it ended. Call it from the main thread.

    Trials that have ended stay as they are, the others resume from their newest checkpoints, and those still
    missing to ``num_samples`` follow. A time budget starts again.

    Returns:
        The outcome of the whole run; None if there was nothing left to do, and nothing was changed.

    Raises:
        InputError: before anything is changed, if there is no such run, it is being run, or a change of its
            settings is not allowed or cannot be met.
        FolderError: as in ``run``.
        SystemExit: as in ``run``.
    """
    listener = listener or Listener()
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
            space = {name: json_to_distribution(text) for name, text in known.distributions.items()}
            checked_space(task, f"of {folder.uri}", space, settings.max_epochs)
            if settings.open_dashboard:
                dashboard.check_installed()
            check_trackers(settings)
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
        session = Session(
            *(settings, task, options, space, folder, ledger, data, connection, listener, stop),
            [*known_again(ledger), *filter(None, [describe_changes(known, task)])],
        )
        return _search(session, stack)


def load_run(run: str) -> Outcome:
    """Read the outcome of a run so far from its folder or URI, without changing anything.

    Raises:
        FolderError: if there is no such run.
    """
    folder = RunFolder(run)
    grid = load_grid(folder)
    settings, ledger = read_settings(folder), grid.ledger
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
        stop_reason=ledger.stop_reason,
        seconds=ledger.seconds(),
        winner=read_winner(folder, ledger.task),
    )


def _search(session: Session, stack: ExitStack) -> Outcome:
    """Run the trials that are missing from the ledger, and write the outcome."""
    settings, folder, ledger, stop = session.settings, session.folder, session.ledger, session.stop
    stack.enter_context(ray_log(folder.local / RAY_LOG))
    try:
        tell = session.listener.on_message
        study = TrialStudy(settings, session.task, session.space, ledger, folder, tell)
        folder.push(wait=True)
        trackers = make_trackers(settings, ledger, folder)
        _tell_where_to_look(session, stack, [tracker.where for tracker in trackers])
        stop.begin()
        run_trials(session, study, trackers)
        study.close(stop.reason or FINISHED)
        folder.push(wait=True)
        grid = load_grid(folder)
        write_tables(grid, folder.write)
        folder.push(wait=True)
        winner = score_winner(session.task, session.options, grid, folder)
        folder.push(wait=True)
    except ScoringError as error:
        raise ScoringError(f"{error} (the rest is written; --resume {folder.uri} scores it again)") from error
    except Exception as error:
        cause = ledger.failure or storage_error(error)
        if cause is None:
            raise
        kept = f"what was not copied is in {folder.local}; " if folder.remote else ""
        then = f"{kept}--resume {folder.uri} continues when it can"
        raise FolderError(f"{folder.uri} can't be written any more: {cause} ({then})") from error
    stack.callback(folder.drop_working_copy)
    return Outcome(
        settings=settings,
        folder=folder,
        grid=grid,
        stop_reason=stop.reason or FINISHED,
        seconds=ledger.seconds(),
        winner=winner,
    )


def _tell_where_to_look(session: Session, stack: ExitStack, tracked: list[str]) -> None:
    """Show the remarks, where the search writes and how to watch it; open the dashboard if asked."""
    lines = [*versions.notices(), *session.remarks, *dashboard.ways_to_watch(session.folder), *tracked]
    if session.settings.open_dashboard:
        url = stack.enter_context(dashboard.served(session.folder.local / JOURNAL))
        lines.append(f"optuna-dashboard: {url or 'it could not be started'}")
        if url:
            dashboard.open_browser(url)
    for line in lines:
        session.listener.on_message(line)


def describe_task(task: Task, options: Any, space: dict[str, BaseDistribution], max_epochs: int) -> TaskFacts:
    """Return what the ledger keeps of a task."""
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
    """Turn errors about settings that cannot be met, raised in a block, into an `InputError`."""
    try:
        yield
    except (ClusterError, ValueError, OSError) as error:
        raise InputError(str(error)) from error


def _is_finished(folder: RunFolder, ledger: Ledger, before: Settings, settings: Settings) -> bool:
    """Return whether a resume would have nothing to do.

    Raises:
        ValueError: if more trials are asked of a run that has reached its target, which would end it at once.
    """
    if ledger.stop_reason in REACHED and settings.num_samples > before.num_samples:
        raise ValueError(
            f"num_samples is {settings.num_samples}, but must be left out: the run has reached its target, "
            f"{settings.target:g}, and keeps it"
        )
    all_ended = len(ledger.trials) >= settings.num_samples and not ledger.unfinished()
    # scripts/analyse.py writes the tables of unfinished runs too. So the ledger must say that the run was
    # closed, and the winner proves that no kill came after that.
    closed = ledger.stop_reason is not None and folder.read(TRIALS_TABLE) is not None
    scored = closed and (read_winner(folder, ledger.task) is not None or not load_grid(folder).saved_epochs())
    return (all_ended or ledger.stop_reason in REACHED) and scored
