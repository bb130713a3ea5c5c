"""Finalizes a search: trains its best configurations again, chooses one, then tests it."""

from __future__ import annotations

import dataclasses
import json
import os
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
    FinalsSettings,
    Job,
    Scores,
    Verdict,
    candidates,
    canonical,
    choose,
    fresh_seeds,
)
from tune_mnist.finalize.trainings import FINALS, FinalsFile, JobResult, run_jobs
from tune_mnist.results.winner import BEST, CARD, HYPERPARAMETERS
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import TaskFacts, TrialRecord
from tune_mnist.run.saved import CHECKPOINT
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import baseline_point, planned_epochs, to_config
from tune_mnist.task import Task
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.retrain import Step
from tune_mnist.tuning.rounds import ray_log
from tune_mnist.tuning.stop import StopRequest
from tune_mnist.tuning.tasks import find_task, make_options, resumable_options
from tune_mnist.tuning.tuner import describe_task, input_errors


class AllDivergedError(RuntimeError):
    """There is no model to write: every training diverged; the text is one line."""


class Listener(Protocol):
    """What shows a finalization while it runs."""

    def on_message(self, text: str) -> None:
        """Show a message of one line."""

    def on_phase(self, title: str, names: dict[Job, str], to_do: list[Job]) -> None:
        """Show a phase: its trainings, each with a name, and those that are still to be done."""

    def on_step(self, job: Job, step: Step, outcome: str) -> None:
        """Show a training's progress; ``outcome`` is its result in words, once it has ended."""


@dataclass(frozen=True)
class _Session:
    """What a finalization needs, all of it checked."""

    settings: Settings
    task: Task
    options: Any
    facts: TaskFacts
    protocol: FinalsSettings
    resources: Resources
    file: FinalsFile
    listener: Listener

    def jobs(self, config: Mapping[str, Any], epochs: int, part: str, seeds: Iterable[int]) -> list[Job]:
        """List the trainings of a configuration."""
        options = dataclasses.asdict(self.options) if self.options else {}
        decisive = {name: options[name] for name in options if name not in resumable_options(self.task)}
        data = canonical({"task": self.task.name, "seed": self.settings.seed, **decisive})
        text = canonical(config)
        return [Job(config=text, seed=seed, part=part, epochs=epochs, data=data) for seed in seeds]

    def scores(self, jobs: Iterable[Job]) -> Scores:
        """Collect the results of trainings that have ended."""
        return Scores(by_seed={job.seed: self.file.results[job].value for job in jobs})


def finalize(
    run: str, protocol: FinalsSettings, changes: dict[str, Any], listener: Listener, *, command: str
) -> Verdict:
    """Train the best configurations of a run again, choose one, test it, and write best/.

    Call it from the main thread. Each ended training is kept in ``finals.jsonl``, and not repeated if it is
    already there.

    Args:
        run: its folder or URI.
        protocol: how many configurations and seeds.
        changes: settings of the run, and options of its task, that differ on this machine.
        listener: shows the progress.
        command: the command line, for the card.

    Raises:
        AllDivergedError: if every training of all candidates, or of the chosen one, diverged.
        FolderError: if the storage is lost in between.
        InputError: before anything is changed, if there is no such run, it is being searched, none of its
            trials is COMPLETE, its task cannot be finalized, or the settings cannot be met here.
        SystemExit: with 130 or 143, on a signal.
        TrainingError: if a training fails for another reason than divergence.
    """
    with ExitStack() as stack:
        stack.enter_context(ray_log(Path(os.devnull)))  # it reports lost workers, whose tasks restart
        with input_errors():
            folder = RunFolder(run)
            folder.ledger()  # fails if there is no run to lock
            stack.enter_context(folder.locked())
            ledger, settings = folder.ledger(), read_settings(folder)
            task = find_task(settings)
            if missing := [name for name in ("load_all", "test") if getattr(task, name) is None]:
                must = f"must have {' and '.join(missing)} to be finalized"
                raise ValueError(f"task is {task.name}, but {must}")
            best = candidates(ledger.trials.values(), protocol.top_k, task.objective)
            if not best:
                raise ValueError(f"{folder.uri} has no COMPLETE trial, but must have one to be finalized")
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
            facts = describe_task(task, options, {}, settings.max_epochs)
            session = _Session(settings, task, options, facts, protocol, resources, file, listener)
        if file.lost_lines:
            listener.on_message(
                f"{FINALS} has {file.lost_lines} lines that can't be read: their trainings are repeated"
            )
        if len(best) < protocol.top_k:
            listener.on_message(
                f"finished configurations to choose from: {len(best)}, of {protocol.top_k} asked for"
            )
        verdict = _decide(session, best, data)
        values = json.dumps(verdict.full(verdict.winner.config), indent=2) + "\n"
        card = write_card(verdict, name=folder.name, command=command)
        folder.remove(f"{BEST}/{CARD}")  # it describes the files next to it, so it is written last
        files = {**verdict.files, HYPERPARAMETERS: values.encode(), CARD: card.encode()}
        for name, content in files.items():
            folder.put(f"{BEST}/{name}", content)
        return verdict


def _decide(session: _Session, best: list[TrialRecord], data: Any) -> Verdict:
    """Choose on validation, then test the choice next to the baseline."""
    settings, task, file = session.settings, session.task, session.file
    choosing_seeds, final_seeds = fresh_seeds(settings.seed, session.protocol.seeds)

    trials = [
        (trial, session.jobs(trial.config, trial.epochs_planned, TRAINING, choosing_seeds)) for trial in best
    ]
    names = {job: f"trial {trial.number}" for trial, jobs in trials for job in jobs}
    _train(session, "choosing", names, data)
    validation = [(trial, session.scores(jobs)) for trial, jobs in trials]
    winner = choose(validation, task.objective)
    if winner is None:
        raise AllDivergedError(f"all {len(best)} configurations diverged with every seed")

    finals = session.jobs(winner.config, winner.epochs_planned, UNION, final_seeds)
    names = dict.fromkeys(finals, f"trial {winner.number}")
    point = baseline_point(task, next(iter(task.spaces.values())), settings.max_epochs)
    baseline = None if point is None else to_config(task, point, settings.max_epochs)
    others: list[Job] = []
    if baseline is not None and {**task.defaults, **baseline} != {**task.defaults, **winner.config}:
        others = session.jobs(baseline, planned_epochs(baseline, settings.max_epochs), UNION, final_seeds)
        names |= dict.fromkeys(others, "baseline")
    everything = task.load_all(session.options, settings.seed) if task.load_all else None
    _train(session, "testing", names, everything, keep_model=finals[0])
    model = next((job for job in finals if file.results[job].error is None), None)
    if model is None:
        raise AllDivergedError(f"trial {winner.number} diverged with every seed on training + validation")
    if model != finals[0]:  # the first seed diverged
        _train(session, "model", {model: names[model]}, everything, keep_model=model)
    checkpoint = file.checkpoint(model)
    assert checkpoint is not None
    files: Mapping[str, bytes] = {CHECKPOINT: checkpoint}
    if task.export:
        with _as_file(checkpoint) as path:
            files = task.export(dict(winner.config), path, session.options)
    return Verdict(
        facts=session.facts,
        usage=task.usage,
        seed=settings.seed,
        protocol=session.protocol,
        validation=validation,
        winner=winner,
        winner_test=session.scores(finals),
        baseline=baseline,
        baseline_test=session.scores(others) if others else None,
        test_n=file.results[model].n,
        files=files,
    )


def _train(
    session: _Session, title: str, names: dict[Job, str], data: Any, keep_model: Job | None = None
) -> None:
    """Run the trainings that are missing in the file, and add them to it.

    With ``keep_model`` each is scored on the test set, and the checkpoint of that job is kept.
    """
    file, task = session.file, session.task

    def is_done(job: Job) -> bool:
        result = file.results.get(job)
        needs_model = job == keep_model and file.checkpoint(job) is None
        return result is not None and (result.error is not None or not needs_model)

    to_do = [job for job in names if not is_done(job)]
    session.listener.on_phase(title, names, to_do)
    steps = run_jobs(to_do, task, data, session.settings, session.resources, keep=keep_model is not None)
    for job, step in steps:
        outcome = ""
        if step.ended:
            value, n = step.value, session.facts.validation_examples
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
