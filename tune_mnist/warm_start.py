"""Reads what earlier runs have found out, for a new one to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna.distributions import json_to_distribution

from tune_mnist.folder import RunFolder
from tune_mnist.hyperparameters import METRIC, TIME_ATTR
from tune_mnist.inherited import InheritedTrial, describe_inherited
from tune_mnist.ledger import LEDGER, Ledger, TrialRecord
from tune_mnist.preflight import read_settings
from tune_mnist.settings import Settings
from tune_mnist.spaces import Space, describe_range, is_within
from tune_mnist.words import count


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What a search begins with."""

    trials: list[InheritedTrial] = field(default_factory=list)
    "In the order of the runs given, and of their numbers."
    remarks: list[str] = field(default_factory=list)
    "What the person should know of it, in lines."


def read_earlier_runs(settings: Settings, space: Space) -> Inheritance:
    """Read the finished and pruned trials of the runs in ``settings.warm_start``.

    Trials that failed or have not ended are left out, and so are those that a run itself had inherited.

    Raises:
        FolderError: for a folder or URI that is no run, or whose storage can't be read.
        ValueError: for a run with another data set, another space, longer trainings, or without such a trial.
    """
    folders = [RunFolder(run) for run in settings.warm_start]
    trials: list[InheritedTrial] = []
    remarks: list[str] = []
    for place, (run, folder) in enumerate(zip(settings.warm_start, folders, strict=True)):
        if folder.uri in [one.uri for one in folders[:place]]:
            raise ValueError(f"warm_start has {run} twice, but must have each run once")
        ledger, theirs = folder.ledger(), read_settings(folder)
        if theirs.dataset != settings.dataset:
            raise _refusal(run, f"must be of the data set {settings.dataset}: it is of {theirs.dataset}")
        _check_space(run, ledger, space)
        usable = _usable(ledger, space)
        if not usable:
            raise _refusal(run, "must have a trial that is COMPLETE or PRUNED")
        _check_epochs(run, usable, settings)
        found = [_inherited(trial, folder.name) for trial in usable]
        trials += found
        remarks += [known(run, found), *_remarks(run, ledger, theirs, settings, space)]
    return Inheritance(trials=trials, remarks=remarks)


def known(run: str, trials: list[InheritedTrial]) -> str:
    """Say what the sampler knows of a run."""
    number = len(trials)
    return f"{count(number, 'trial')} of {run} {_are(number)} known ({describe_inherited(trials)})"


def known_again(ledger: Ledger) -> list[str]:
    """Say what a resumed search knows of earlier runs, by their names."""
    by_run: dict[str, list[InheritedTrial]] = {}
    for trial in ledger.inherited:
        by_run.setdefault(trial.run, []).append(trial)
    return [known(run, trials) for run, trials in by_run.items()]


def _usable(ledger: Ledger, space: Space) -> list[TrialRecord]:
    """List the trials that ended well, and of whose reports no line is lost."""
    ended = [trial for trial in ledger.trials.values() if trial.state in ("COMPLETE", "PRUNED")]
    return [
        trial
        for trial in sorted(ended, key=lambda trial: trial.number)
        if trial.params.keys() == space.keys()
        and 0 < trial.epoch == len(trial.epochs)
        and (trial.state == "PRUNED" or trial.epoch >= trial.epochs_planned)
    ]


def _inherited(trial: TrialRecord, run: str) -> InheritedTrial:
    return InheritedTrial(
        run=run,
        number=trial.number,
        state=trial.state or "",
        params=trial.params,
        epochs=[(epoch[TIME_ATTR], epoch[METRIC]) for epoch in trial.epochs],
        started=trial.started,
        ended=trial.ended or trial.started,
    )


def _check_space(run: str, ledger: Ledger, space: Space) -> None:
    """See that what the run has drawn could be drawn here, parameter by parameter."""
    if not ledger.distributions:
        raise _refusal(run, f"must have a search space: the lines of its {LEDGER} that say it are lost")
    theirs = {name: json_to_distribution(text) for name, text in ledger.distributions.items()}
    for name in {**theirs, **space}:
        there = f"is {describe_range(theirs[name])} there" if name in theirs else "is not drawn there"
        here = f"{describe_range(space[name])} here" if name in space else "not drawn here"
        if name not in theirs or name not in space or not is_within(theirs[name], space[name]):
            raise _refusal(run, f"must have a space that this one holds: {name} {there}, and {here}")


def _check_epochs(run: str, trials: list[TrialRecord], settings: Settings) -> None:
    """See that no trial was to train longer than this run lets any: its accuracy is out of reach here."""
    longest = max(trial.epochs_planned for trial in trials)
    if longest > settings.max_epochs:
        rule = f"must be at least {longest}: so long were trials of {run} to train"
        raise ValueError(f"max_epochs is {settings.max_epochs}, but {rule}")


def _remarks(run: str, ledger: Ledger, theirs: Settings, ours: Settings, space: Space) -> list[str]:
    """Say in what its trials are not like those of the new run, and what of them is not there."""
    remarks = []
    if ledger.lost_lines:
        lost = count(ledger.lost_lines, "line")
        remarks.append(f"{run}: {LEDGER} has {lost} that can't be read; the rest is taken")
    if ledger.inherited:
        number = len(ledger.inherited)
        theirs_too = f"{count(number, 'trial')} that it had inherited {_are(number)} not taken"
        remarks.append(f"{run}: {theirs_too}; name their runs too")
    changed = _changed({name: (getattr(theirs, name), getattr(ours, name)) for name in IMAGES})
    if changed:
        remarks.append(f"{run}: its accuracies are of other images: {changed}")
    if "epochs" not in space and theirs.max_epochs != ours.max_epochs:
        remarks.append(
            f"{run}: its trials trained at most {theirs.max_epochs} epochs, here it is {ours.max_epochs}"
        )
    return remarks


IMAGES = ("train_size", "val_size", "seed")
"""Settings that decide which images a trial is trained with and scored on."""


def _changed(values: Mapping[str, tuple[int | None, int | None]]) -> str:
    words = [
        f"{name} {'all' if there is None else there} there, {'all' if here is None else here} here"
        for name, (there, here) in values.items()
        if there != here
    ]
    return "; ".join(words)


def _refusal(run: str, rule: str) -> ValueError:
    return ValueError(f"warm_start is {run}, but {rule}")


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
