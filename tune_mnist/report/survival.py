"""Which trials outlived which rung, by hyper-parameter; and why a trial stopped where it did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from optuna.distributions import CategoricalDistribution

from tune_mnist.report.view import View
from tune_mnist.run.records import RUNNING, TrialRecord
from tune_mnist.run.words import count, short_value
from tune_mnist.tuning.asha import Judgement, rungs


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The trials with one choice of a parameter, or in one quartile of its values."""

    name: str
    values: str
    "A choice, or 0.001..0.0018."
    trials: Sequence[TrialRecord]


def groups(view: View) -> list[Group]:
    """Group the trials by each hyper-parameter that can vary: by choices, and numbers by quartiles."""
    return [group for name in view.variable for group in _groups(view, name)]


def choices(view: View) -> list[Group]:
    """List only the groups of a choice."""
    names = [name for name in view.variable if isinstance(view.space[name], CategoricalDistribution)]
    return [group for name in names for group in _groups(view, name)]


def _groups(view: View, name: str) -> list[Group]:
    distribution, trials = view.space[name], [trial for trial in view.trials if name in trial.params]
    if isinstance(distribution, CategoricalDistribution):
        parts = [(short_value(c), [t for t in trials if t.params[name] == c]) for c in distribution.choices]
    else:
        parts = []
        for some in _quarters(trials, name):
            low, high = (short_value(end(trial.params[name] for trial in some)) for end in (min, max))
            parts.append((low if low == high else f"{low}..{high}", some))
    return [Group(name=name, values=values, trials=some) for values, some in parts if some]


def _quarters(trials: Sequence[TrialRecord], name: str) -> list[list[TrialRecord]]:
    """Divide trials by the quartiles of a number; equal values stay together."""
    values = pd.Series([float(trial.params[name]) for trial in trials], dtype="float64")
    few = values.nunique() <= 4
    codes = values.rank(method="dense") if few else pd.qcut(values, 4, labels=False, duplicates="drop")
    return [[trials[place] for place in some.index] for _, some in values.groupby(codes)]


def has_passed(view: View, trial: TrialRecord, rung: int) -> bool:
    """Return whether a trial continued after a rung, or finished at it."""
    if trial.epoch != rung:
        return trial.epoch > rung
    # For an unfinished trial exactly at the rung, ASHA's verdict counts.
    return trial.state == "COMPLETE" or (trial.state is None and trial.trial_id not in view.asha.stopped)


def judged_rungs(view: View) -> list[int]:
    """List the rungs that a trial has reached."""
    most = max((trial.epoch for trial in view.trials), default=0)
    return [rung for rung in rungs(view.settings) if rung <= most]


def survival_frame(view: View) -> pd.DataFrame:
    """Count the trials that reached and passed each rung: one row per group of `groups` and rung.

    Columns: ``parameter``, ``values`` (a choice, or the ends of a quartile), ``trials`` of the group,
    ``rung`` (epochs), ``reached``, ``passed``. Empty if no trial can be stopped early.
    """
    rows = [
        {
            "parameter": group.name,
            "values": group.values,
            "trials": len(group.trials),
            "rung": rung,
            "reached": sum(trial.epoch >= rung for trial in group.trials),
            "passed": sum(has_passed(view, trial, rung) for trial in group.trials),
        }
        for group in groups(view)
        for rung in judged_rungs(view)
    ]
    types = {"parameter": "string", "values": "string", "trials": "int64", "rung": "int64"}
    types |= {"reached": "int64", "passed": "int64"}
    return pd.DataFrame(rows, columns=list(types), dtype=object).astype(types)


def judgements_of(view: View, trial: TrialRecord) -> list[Judgement]:
    """List ASHA's judgements of a trial at the rungs that it reached."""
    return view.tried("the replay of ASHA", lambda: view.asha.judgements.get(trial.trial_id, []), [])


def why_it_stopped(view: View, trial: TrialRecord) -> str:
    """Explain in a sentence why a trial ended where it did, or state that it has not ended."""
    judgements = judgements_of(view, trial)
    of_planned = f"{trial.epoch} of {count(trial.epochs_planned, 'epoch')}"
    if trial.shown_state == RUNNING:
        return f"It has not ended: {of_planned} so far."
    if trial.shown_state == "FAIL":
        return f"It failed after {of_planned}: {trial.error or 'the reason is not known'}."
    if trial.shown_state == "COMPLETE":
        return f"It finished: {of_planned}."
    if judgements and judgements[-1].stopped and trial.epoch >= judgements[-1].rung:
        return f"ASHA stopped it at {describe_judgement(view, judgements[-1])}."
    if trial.stopped_by:
        return f"The run was ended ({trial.stopped_by}) after {of_planned}; ASHA had not stopped it."
    return f"It ended after {of_planned}; according to the reports in the ledger, ASHA did not stop it."


def describe_judgement(view: View, judgement: Judgement) -> str:
    """Describe a trial at a rung: epoch 1 with 11.62%: rank 5 of the 5 judged there so far; ..."""
    write = view.objective.write
    start = f"epoch {judgement.rung} with {write(judgement.value)}"
    if judgement.cutoff is None:
        return f"{start}: it was the first there, so there was no cut-off"
    side = "at least" if view.objective.mode == "max" else "at most"
    needed = write(judgement.cutoff) if math.isfinite(judgement.cutoff) else "a finite value"
    return (
        f"{start}: rank {judgement.rank} of the {judgement.before + 1} judged there so far; it needed {side} "
        f"{needed}"
    )
