"""Makes a search's winner one that can be trusted: trains the best again, chooses, then tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from tune_mnist.cluster import connection as cluster
from tune_mnist.cluster.resources import Resources, fit_resources
from tune_mnist.finalize.card import write_card
from tune_mnist.finalize.protocol import (
    TRAINING,
    UNION,
    Candidate,
    FinalsSettings,
    Job,
    Verdict,
    candidates,
    canonical,
    choose,
    difference,
    fresh_seeds,
    scores_of,
)
from tune_mnist.finalize.trainings import FINALS, FinalsFile, JobResult, quiet_ray, run_jobs
from tune_mnist.results.winner import BEST, CARD, HYPERPARAMETERS
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.saved import CHECKPOINT
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import baseline_point, planned_epochs, to_config
from tune_mnist.task import Task
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.retrain import Step
from tune_mnist.tuning.stop import StopRequest
from tune_mnist.tuning.tasks import find_task, make_options, resumable_options
from tune_mnist.tuning.tuner import input_errors


class AllDivergedError(RuntimeError):
    """There is no model to write: every training diverged; the text is one line."""


class Listener(Protocol):
    """Whoever wants to show a finalization while it runs."""

    def on_message(self, text: str) -> None:
        """Take notice of something worth a line."""

    def on_phase(self, title: str, names: dict[Job, str], to_do: list[Job]) -> None:
        """Take notice of a phase: its trainings, each with a name, and those that are still to be done."""

    def on_step(self, job: Job, step: Step, outcome: str) -> None:
        """Take notice that a training has come further; ``outcome`` is its result in words, at its end."""


@dataclass(frozen=True)
class _Session:
    """What a finalization needs, once all of it is known to be there."""

    settings: Settings
    task: Task
    options: Any
    protocol: FinalsSettings
    resources: Resources
    file: FinalsFile
    listener: Listener

    @property
    def data(self) -> str:
        """Give all but the configuration that decides the result of a training, as a `Job` has it."""
        options = dataclasses.asdict(self.options) if self.options else {}
        decisive = {name: options[name] for name in options if name not in resumable_options(self.task)}
        return canonical({"task": self.task.name, "seed": self.settings.seed, **decisive})

    def jobs(self, config: Mapping[str, Any], epochs: int, part: str, seeds: Iterable[int]) -> list[Job]:
        """List the trainings of a configuration."""
        text = canonical(config)
        return [Job(config=text, seed=seed, part=part, epochs=epochs, data=self.data) for seed in seeds]


def finalize(
    run: str, protocol: FinalsSettings, changes: dict[str, Any], listener: Listener, *, command: str
) -> Verdict:
    """Train the best configurations of a run again, choose one, test it, and write best/.

    Call it from the main thread. Each ended training is kept in ``finals.jsonl``; what is there already is
    not done again.

    Args:
        run: its folder or URI.
        protocol: how many configurations and seeds.
        changes: settings of the run, and options of its task, that differ on this machine.
        listener: whom to tell.
        command: that this was started with, for the card.

    Raises:
        AllDivergedError: if every training of all candidates, or of the chosen one, diverged.
        FolderError: if the storage is lost on the way.
        InputError: before anything is changed, if there is no such run, it is being searched, no trial of
            it is COMPLETE, its task can't be finalized, or the settings can't be met here.
        SystemExit: with 130 or 143, on a signal.
        TrainingError: if a training can't be done.
    """
    with ExitStack() as stack:
        stack.enter_context(quiet_ray())
        with input_errors():
            folder = RunFolder(run)
            folder.ledger()  # or there is no run to lock
            stack.enter_context(folder.locked())
            ledger, settings = folder.ledger(), read_settings(folder)
            task = find_task(settings)
            check_abilities(task)
            found = candidates(ledger.trials.values(), protocol.top_k, task.objective)
            if not found:
                raise ValueError(f"{folder.uri} has no COMPLETE trial, but must have one to make final")
            own = {name: changes.pop(name) for name in resumable_options(task) if name in changes}
            options = make_options(task, {**settings.options, **own})
            settings = dataclasses.replace(settings, **changes)
            file = FinalsFile(folder)
            stop = stack.enter_context(StopRequest(settings))
            data = task.load(options, settings.seed) if task.load else None
            with stop.deferred():
                stack.enter_context(cluster.connected(settings.address))
            resources = fit_resources(
                settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent_trials
            )
            session = _Session(settings, task, options, protocol, resources, file, listener)
        if file.lost_lines:
            listener.on_message(f"{FINALS} has {file.lost_lines} lines that can't be read: done again")
        if len(found) < protocol.top_k:
            listener.on_message(
                f"finished configurations to choose among: {len(found)}, of {protocol.top_k} asked for"
            )
        verdict, model = _decide(session, found, data)
        return _write(folder, session, verdict, model, command)


def check_abilities(task: Task) -> None:
    """Raise ValueError if a task lacks what a finalization needs."""
    missing = [name for name in ("load_all", "test") if getattr(task, name) is None]
    if missing:
        raise ValueError(f"task is {task.name}, but must have {' and '.join(missing)} to be finalized")


def _decide(session: _Session, found: list[Candidate], data: Any) -> tuple[Verdict, bytes]:
    """Choose on validation, then test what was chosen next to the baseline; give its checkpoint too."""
    settings, task, file = session.settings, session.task, session.file
    choosing_seeds, final_seeds = fresh_seeds(settings.seed, session.protocol.seeds)

    trials = {one: session.jobs(one.config, one.epochs, TRAINING, choosing_seeds) for one in found}
    names = {job: f"trial {one.number}" for one, jobs in trials.items() for job in jobs}
    _train(session, "choosing", names, data)
    scores = {one: scores_of(_by_seed(file, trials[one])) for one in found}
    winner = choose(scores, task.objective)
    if winner is None:
        raise AllDivergedError(f"all {len(found)} configurations diverged with every seed")

    finals = session.jobs(winner.config, winner.epochs, UNION, final_seeds)
    names = dict.fromkeys(finals, f"trial {winner.number}")
    baseline = _baseline(task, settings.max_epochs)
    other: list[Job] = []
    if baseline is not None and {**task.defaults, **baseline} != {**task.defaults, **winner.config}:
        epochs = planned_epochs(baseline, settings.max_epochs)
        other = session.jobs(baseline, epochs, UNION, final_seeds)
        names |= dict.fromkeys(other, "baseline")
    everything = task.load_all(session.options, settings.seed) if task.load_all else None
    _train(session, "testing", names, everything, keep_model=finals[0])
    ended = [job for job in finals if file.results[job].error is None]
    if not ended:
        raise AllDivergedError(f"trial {winner.number} diverged with every seed on training + validation")
    if ended[0] != finals[0]:  # the first seed diverged
        _train(session, "model", {ended[0]: names[ended[0]]}, everything, keep_model=ended[0])
    model, result = file.checkpoint(ended[0]), file.results[ended[0]]
    assert model is not None and result.value is not None
    by_seed, other_by_seed = _by_seed(file, finals), _by_seed(file, other)
    return Verdict(
        objective=task.objective,
        data=task.describe(session.options) if task.describe else task.name,
        usage=task.usage,
        seed=settings.seed,
        protocol=session.protocol,
        validation=scores,
        winner=winner,
        winner_test=scores_of(by_seed),
        baseline=baseline,
        baseline_test=scores_of(other_by_seed) if other else None,
        difference=difference(by_seed, other_by_seed) if other else None,
        model_seed=ended[0].seed,
        model_test=result.value,
        choosing_seeds=choosing_seeds,
        final_seeds=final_seeds,
        defaults=task.defaults,
        validation_n=_validation_n(session),
        test_n=result.n,
    ), model


def _baseline(task: Task, max_epochs: int) -> dict[str, Any] | None:
    """Give the configuration of a task's baseline, in the terms of its default space."""
    point = baseline_point(task, next(iter(task.spaces.values())), max_epochs)
    return None if point is None else to_config(task, point, max_epochs)


def _validation_n(session: _Session) -> int | None:
    count = session.task.validation_examples
    return count(session.options) if count else None


def _train(
    session: _Session, title: str, jobs: dict[Job, str], data: Any, keep_model: Job | None = None
) -> None:
    """Do those of the trainings that the file lacks, and add them to it."""
    file, task = session.file, session.task

    def is_done(job: Job) -> bool:
        result = file.results.get(job)
        needs_model = job == keep_model and file.checkpoint(job) is None
        return result is not None and (result.error is not None or not needs_model)

    to_do = [job for job in jobs if not is_done(job)]
    session.listener.on_phase(title, jobs, to_do)
    for job, step in run_jobs(
        to_do,
        task.train,
        data,
        objective=task.objective,
        max_epochs=session.settings.max_epochs,
        resources=session.resources,
        max_failures=session.settings.max_failures,
        keep=keep_model is not None,
    ):
        outcome = ""
        if step.ended:
            value, n = step.value, _validation_n(session)
            if step.checkpoint is not None and task.test:
                # Here on the driver, as the search tests its winner: nodes need no test set.
                with _as_file(step.checkpoint) as path:
                    tested = task.test(json.loads(job.config), path, session.options)
                value, n = float(tested.metrics[task.objective.metric]), tested.n
            result = JobResult(value=value, n=n, seconds=step.seconds, error=step.error)
            file.add(job, result, step.checkpoint if job == keep_model else None)
            part = "test" if job.part == UNION else "validation"
            outcome = step.error or f"{part} {task.objective.write(value)}"
        session.listener.on_step(job, step, outcome)


@contextmanager
def _as_file(checkpoint: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / CHECKPOINT
        path.write_bytes(checkpoint)
        yield path


def _by_seed(file: FinalsFile, jobs: Iterable[Job]) -> dict[int, float | None]:
    return {job.seed: file.results[job].value for job in jobs}


def _write(folder: RunFolder, session: _Session, verdict: Verdict, model: bytes, command: str) -> Verdict:
    """Write the model into best/, the card last: it speaks of what lies next to it."""
    config, export = dict(verdict.winner.config), session.task.export
    with _as_file(model) as path:
        files = export(config, path, session.options) if export else {CHECKPOINT: model}
    verdict = dataclasses.replace(verdict, files=tuple(files))
    folder.remove(f"{BEST}/{CARD}")
    for name, content in files.items():
        folder.put(f"{BEST}/{name}", content)
    values = json.dumps(verdict.full(config), indent=2)
    folder.put(f"{BEST}/{HYPERPARAMETERS}", f"{values}\n".encode())
    folder.put(f"{BEST}/{CARD}", write_card(verdict, name=folder.name, command=command).encode())
    return verdict
