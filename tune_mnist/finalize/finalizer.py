"""Makes a search's winner one that can be trusted: trains the best again, chooses, then tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from tune_mnist.cluster import connection as cluster
from tune_mnist.cluster.resources import Resources, fit_resources
from tune_mnist.finalize.card import write_card
from tune_mnist.finalize.finals import FINALS, FinalsFile, JobResult
from tune_mnist.finalize.pool import quiet_ray, run_jobs
from tune_mnist.finalize.protocol import (
    TRAINING,
    UNION,
    Candidate,
    FinalsSettings,
    Job,
    Verdict,
    candidates,
    choose,
    fresh_seeds,
)
from tune_mnist.finalize.scores import difference, scores_of
from tune_mnist.mnist import data
from tune_mnist.mnist.data import Split
from tune_mnist.mnist.export import export_model
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.precision import resolve_precision
from tune_mnist.mnist.retraining import Step, join
from tune_mnist.mnist.task import TASK, Options, splits
from tune_mnist.results.winner import BEST, CARD, EXPORTED, HYPERPARAMETERS, MODEL
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.stop import StopRequest
from tune_mnist.tuning.tasks import make_options
from tune_mnist.tuning.tuner import input_errors


class AllDivergedError(RuntimeError):
    """There is no model to write: every training diverged; the text is one line."""


class Listener(Protocol):
    """Whoever wants to show a finalization while it runs."""

    def on_message(self, text: str) -> None:
        """Take notice of something worth a line."""

    def on_phase(self, title: str, names: dict[Job, str], to_do: list[Job]) -> None:
        """Take notice of a phase: its trainings, each with a name, and those that are still to be done."""

    def on_step(self, job: Job, step: Step) -> None:
        """Take notice that a training has come further."""


@dataclass(frozen=True)
class _Session:
    """What a finalization needs, once all of it is known to be there."""

    settings: Settings
    options: Options
    protocol: FinalsSettings
    folder: RunFolder
    resources: Resources
    file: FinalsFile
    listener: Listener


def finalize(
    run: str, protocol: FinalsSettings, changes: dict[str, Any], listener: Listener, *, command: str
) -> Verdict:
    """Train the best configurations of a run again, choose one, test it, and write best/.

    Call it from the main thread. Each ended training is kept in ``finals.jsonl``; what is there already is
    not done again.

    Args:
        run: its folder or URI.
        protocol: how many configurations and seeds.
        changes: settings of the run that differ on this machine, as data_dir or gpus_per_trial.
        listener: whom to tell.
        command: that this was started with, for the card.

    Raises:
        AllDivergedError: if every training of all candidates, or of the chosen one, diverged.
        FolderError: if the storage is lost on the way.
        InputError: before anything is changed, if there is no such run, it is being searched, no trial of
            it is COMPLETE, or the settings can't be met here.
        SystemExit: with 130 or 143, on a signal.
        TrainingError: if a training can't be done.
    """
    with ExitStack() as stack:
        stack.enter_context(quiet_ray())
        with input_errors():
            folder = RunFolder(run)
            folder.ledger()  # or there is no run to lock
            stack.enter_context(folder.locked())
            found = candidates(folder.ledger().trials.values(), protocol.top_k)
            settings = read_settings(folder)
            if settings.task != TASK.name or settings.trainable:
                raise ValueError(f"{folder.uri} is of another task than mnist, which alone can be finalized")
            own: dict[str, Any] = {
                name: changes.pop(name) for name in ("data_dir", "cuda_graph") if name in changes
            }
            options = make_options(TASK, {**settings.options, **own})
            settings = dataclasses.replace(settings, **changes)
            if not found:
                raise ValueError(f"{folder.uri} has no COMPLETE trial, but must have one to make final")
            file = FinalsFile(folder)
            stop = stack.enter_context(StopRequest(settings))
            train, validation = splits(options, settings.seed)
            resources = _connect(settings, options, stop, stack)
            session = _Session(settings, options, protocol, folder, resources, file, listener)
        if file.lost_lines:
            listener.on_message(f"{FINALS} has {file.lost_lines} lines that can't be read: done again")
        if len(found) < protocol.top_k:
            listener.on_message(
                f"{len(found)} finished configurations are there, of {protocol.top_k} asked for"
            )
        verdict, weights = _decide(session, found, train, validation)
        _write(folder, verdict, weights, command)
        return verdict


def _decide(
    session: _Session, found: list[Candidate], train: Split, validation: Split
) -> tuple[Verdict, bytes]:
    """Choose on validation, then test what was chosen, beside the blog's; give the model's weights too."""
    settings, options, file = session.settings, session.options, session.file
    choosing_seeds, final_seeds = fresh_seeds(settings.seed, session.protocol.seeds)

    def jobs(hyperparameters: Hyperparameters, part: str, seeds: list[int]) -> list[Job]:
        common: dict[str, Any] = {
            **{"dataset": options.dataset, "split_seed": settings.seed, "precision": options.precision},
            **{"train_size": len(train), "val_size": len(validation)},
        }
        return [Job(hyperparameters=hyperparameters, seed=seed, part=part, **common) for seed in seeds]

    trials = {one: jobs(one.hyperparameters, TRAINING, choosing_seeds) for one in found}
    _train(
        session,
        "choosing",
        {job: f"trial {one.number}" for one, each in trials.items() for job in each},
        train,
        validation,
    )
    accuracies = {one: scores_of(_by_seed(file, trials[one])) for one in found}
    winner = choose(accuracies)
    if winner is None:
        raise AllDivergedError(f"all {len(found)} configurations diverged with every seed")

    test = data.load_test(options.dataset, options.data_dir)
    finals = jobs(winner.hyperparameters, UNION, final_seeds)
    blog = jobs(Hyperparameters(), UNION, final_seeds)
    union = join(train, validation)
    names = dict.fromkeys(finals, f"trial {winner.number}")
    names |= {job: "the blog's" for job in blog if job not in names}
    _train(session, "testing", names, union, test, keep_model=finals[0])
    ended = [job for job in finals if file.results[job].error is None]
    if not ended:
        raise AllDivergedError(f"trial {winner.number} diverged with every seed on training + validation")
    if ended[0] != finals[0]:  # the first seed diverged
        _train(session, "model", {ended[0]: names[ended[0]]}, union, test, keep_model=ended[0])
    weights = file.model(ended[0])
    assert weights is not None
    by_seed, blog_by_seed = _by_seed(file, finals), _by_seed(file, blog)
    same = finals == blog
    return Verdict(
        settings=settings,
        options=options,
        protocol=session.protocol,
        validation=accuracies,
        winner=winner,
        winner_test=scores_of(by_seed),
        blog_test=None if same else scores_of(blog_by_seed),
        difference=None if same else difference(by_seed, blog_by_seed),
        model_seed=ended[0].seed,
        model_test=file.results[ended[0]].accuracy or 0.0,
        choosing_seeds=choosing_seeds,
        final_seeds=final_seeds,
        train_size=len(train),
        val_size=len(validation),
        test_size=len(test),
    ), weights


def _train(
    session: _Session,
    title: str,
    jobs: dict[Job, str],
    train: Split,
    scored: Split,
    keep_model: Job | None = None,
) -> None:
    """Do those of the trainings that the file lacks, and add them to it."""
    file, listener = session.file, session.listener

    def is_done(job: Job) -> bool:
        result = file.results.get(job)
        needs_model = job == keep_model and file.model(job) is None
        return result is not None and (result.error is not None or not needs_model)

    to_do = [job for job in jobs if not is_done(job)]
    listener.on_phase(title, jobs, to_do)
    for job, step in run_jobs(
        to_do,
        train.arrays(),
        scored.arrays(),
        resources=session.resources,
        cuda_graph=session.options.cuda_graph,
        max_failures=session.settings.max_failures,
        keep_model=keep_model,
    ):
        if step.ended:
            result = JobResult(
                accuracy=step.accuracy, images=len(scored), seconds=step.seconds, error=step.error
            )
            file.add(job, result, step.model)
        listener.on_step(job, step)


def _by_seed(file: FinalsFile, jobs: Iterable[Job]) -> dict[int, float | None]:
    return {job.seed: file.results[job].accuracy for job in jobs}


def _write(folder: RunFolder, verdict: Verdict, weights: bytes, command: str) -> None:
    """Write the model into best/, the card last: it speaks of what lies beside it."""
    hyperparameters = verdict.winner.hyperparameters
    folder.remove(f"{BEST}/{CARD}")
    folder.put(f"{BEST}/{MODEL}", weights)
    values = json.dumps(dataclasses.asdict(hyperparameters), indent=2)
    folder.put(f"{BEST}/{HYPERPARAMETERS}", f"{values}\n".encode())
    folder.put(f"{BEST}/{EXPORTED}", export_model(hyperparameters, weights))
    folder.put(f"{BEST}/{CARD}", write_card(verdict, name=folder.name, command=command).encode())


def _connect(settings: Settings, options: Options, stop: StopRequest, stack: ExitStack) -> Resources:
    """Join or start the cluster for ``stack``, and settle a training's share."""
    with stop.deferred():
        connection = stack.enter_context(cluster.connected(settings.address))
    resources = fit_resources(
        settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent_trials
    )
    if connection.embedded and not resources.gpus:
        resolve_precision(options.precision, "cpu")
    return resources
