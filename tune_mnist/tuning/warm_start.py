"""Reads the trials of earlier runs, with which a new search begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.distributions import json_to_distribution

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import EPOCH, InheritedTrial, TaskFacts, TrialRecord
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import describe_range, is_within
from tune_mnist.run.words import count
from tune_mnist.task import Objective, Space
from tune_mnist.tuning.preflight import read_settings


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What a search begins with."""

    trials: list[InheritedTrial] = field(default_factory=list)
    "In the order of the runs given, and of their numbers."
    remarks: list[str] = field(default_factory=list)
    "What the user should know about it, in lines."


def read_earlier_runs(settings: Settings, task: TaskFacts, space: Space) -> Inheritance:
    """Read the finished and pruned trials of the runs in ``settings.warm_start``.

    Trials that failed or have not ended are left out, as are those that a run itself inherited.

    Raises:
        FolderError: for a folder or URI that is not a run, or whose storage cannot be read.
        ValueError: for a run with another data set, another space, longer trainings, or no such trial.
    """
    folders = [RunFolder(run) for run in settings.warm_start]
    trials: list[InheritedTrial] = []
    remarks: list[str] = []
    for place, (run, folder) in enumerate(zip(settings.warm_start, folders, strict=True)):
        if folder.uri in [earlier.uri for earlier in folders[:place]]:
            raise ValueError(f"warm_start has {run} twice, but must have each run once")
        ledger, its_settings = folder.ledger(), read_settings(folder)
        _check_task(run, ledger.task, its_settings, task, settings)
        _check_space(run, ledger, space)
        usable = _usable(ledger, space)
        if not usable:
            raise _refusal(run, "must have a trial that is COMPLETE or PRUNED")
        _check_epochs(run, usable, settings)
        inherited = [_inherited(trial, folder.name, task.objective.metric) for trial in usable]
        trials += inherited
        remarks.append(known(run, inherited, task.objective))
        remarks += [f"{run}: {remark}" for remark in _remarks(ledger, its_settings, settings, task, space)]
    return Inheritance(trials=trials, remarks=remarks)


def known(run: str, trials: list[InheritedTrial], objective: Objective) -> str:
    """Describe what the sampler knows of a run."""
    number = len(trials)
    return f"{count(number, 'trial')} of {run} {_are(number)} known ({describe_inherited(trials, objective)})"


def known_again(ledger: Ledger) -> list[str]:
    """Describe what a resumed search knows of earlier runs, by their names."""
    by_run: dict[str, list[InheritedTrial]] = {}
    for trial in ledger.inherited:
        by_run.setdefault(trial.run, []).append(trial)
    return [known(run, trials, ledger.objective) for run, trials in by_run.items()]


def _usable(ledger: Ledger, space: Space) -> list[TrialRecord]:
    """List the trials that ended without failing and whose reports are complete."""
    ended = [trial for trial in ledger.trials.values() if trial.state in ("COMPLETE", "PRUNED")]
    return [
        trial
        for trial in sorted(ended, key=lambda trial: trial.number)
        if trial.params.keys() == space.keys()
        and trial.epochs
        and trial.epoch == len(trial.epochs) * int(trial.epochs[0][EPOCH])  # or lines are lost
        and (trial.state == "PRUNED" or trial.epoch >= trial.epochs_planned)
    ]


def _inherited(trial: TrialRecord, run: str, metric: str) -> InheritedTrial:
    return InheritedTrial(
        run=run,
        number=trial.number,
        state=trial.state or "",
        params=trial.params,
        epochs=[(epoch[EPOCH], epoch[metric]) for epoch in trial.epochs],
        started=trial.started,
        ended=trial.ended or trial.started,
    )


def describe_inherited(trials: Sequence[InheritedTrial], objective: Objective) -> str:
    """Count trials by state and name the best value: "7 COMPLETE, 13 PRUNED; best 98.86%"."""
    counts = [f"{sum(trial.state == state for trial in trials)} {state}" for state in ("COMPLETE", "PRUNED")]
    return f"{', '.join(counts)}; best {objective.write(objective.best(trial.value for trial in trials))}"


def _check_task(
    run: str, its_task: TaskFacts, its_settings: Settings, task: TaskFacts, settings: Settings
) -> None:
    """Check that the run's values are comparable: of the same task, metric and data set."""
    if its_task.name != task.name:
        raise _refusal(run, f"must be of the task {task.name}: it is of {its_task.name}")
    if (its_task.objective.metric, its_task.objective.mode) != (task.objective.metric, task.objective.mode):
        mode, metric = its_task.objective.mode, its_task.objective.metric
        raise _refusal(run, f"must have the metric {task.objective.metric}: it has the {mode} of {metric}")
    datasets = [part.options.get("dataset", task.name) for part in (its_settings, settings)]
    if datasets[0] != datasets[1]:
        raise _refusal(run, f"must be of the data set {datasets[1]}: it is of {datasets[0]}")


def _check_space(run: str, ledger: Ledger, space: Space) -> None:
    """Check that what the run has drawn could be drawn here, parameter by parameter."""
    if not ledger.distributions:
        raise _refusal(run, f"must have a search space: its lines in {LEDGER} are lost")
    its_space = {name: json_to_distribution(text) for name, text in ledger.distributions.items()}
    for name in {**its_space, **space}:
        there = f"is {describe_range(its_space[name])} there" if name in its_space else "is not drawn there"
        here = f"{describe_range(space[name])} here" if name in space else "not drawn here"
        if name not in its_space or name not in space or not is_within(its_space[name], space[name]):
            raise _refusal(run, f"must have a space that this one includes: {name} {there}, and {here}")


def _check_epochs(run: str, trials: list[TrialRecord], settings: Settings) -> None:
    """Check that no trial was planned for more epochs than this run allows: its result is out of reach."""
    longest = max(trial.epochs_planned for trial in trials)
    if longest > settings.max_epochs:
        rule = f"must be at least {longest}, the epochs planned for trials of {run}"
        raise ValueError(f"max_epochs is {settings.max_epochs}, but {rule}")


def _remarks(
    ledger: Ledger, its_settings: Settings, settings: Settings, task: TaskFacts, space: Space
) -> list[str]:
    """Describe how its trials differ from those of the new run, and which of them are not used."""
    remarks = []
    if ledger.lost_lines:
        remarks.append(
            f"{LEDGER} has {count(ledger.lost_lines, 'line')} that can't be read; the rest is used"
        )
    if number := len(ledger.inherited):
        unused = f"{count(number, 'trial')} that it had inherited {_are(number)} not used"
        remarks.append(f"{unused}; name their runs too")
    if changed := _changed(its_settings, settings):
        remarks.append(f"its values are from other data: {changed}")
    for name, value in ledger.task.defaults.items():
        if name not in space and task.defaults.get(name, value) != value:
            remarks.append(f"{name} is {value} there, {task.defaults[name]} here")
    if "epochs" not in space and its_settings.max_epochs != settings.max_epochs:
        remarks.append(
            f"its trials trained at most {its_settings.max_epochs} epochs, here it is {settings.max_epochs}"
        )
    return remarks


def _changed(its_settings: Settings, settings: Settings) -> str:
    """Describe how the runs differ in numeric options, such as the sizes of splits, and in the seed."""
    pairs = {
        name: (its_settings.options.get(name), settings.options.get(name))
        for name in dict.fromkeys([*its_settings.options, *settings.options])
    }
    pairs["seed"] = (its_settings.seed, settings.seed)
    words = [
        f"{name} {'unset' if there is None else there} there, {'unset' if here is None else here} here"
        for name, (there, here) in pairs.items()
        if there != here and (isinstance(there, int) or isinstance(here, int))
    ]
    return "; ".join(words)


def _refusal(run: str, rule: str) -> ValueError:
    return ValueError(f"warm_start is {run}, but {rule}")


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
