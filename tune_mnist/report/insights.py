"""Facts about a run: its size and pace, its best trial, its baseline, which ranges to widen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optuna.distributions import FloatDistribution, IntDistribution

from tune_mnist.report.timeline import stretches
from tune_mnist.report.view import STATES, View
from tune_mnist.run.records import EPOCH, UNENDED, TrialRecord
from tune_mnist.run.space import LENGTH
from tune_mnist.run.words import count, duration, short_value
from tune_mnist.task import Objective
from tune_mnist.tuning.tuner import FINISHED, Outcome
from tune_mnist.tuning.warm_start import describe_inherited

EDGE = 0.05
"""Share of a range, at either end, in which a best value says that the range may be too narrow."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line about a run."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A value of the best trial that lies at the edge of its range."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it as advice: widen lr: 0.0098 of 0.001..0.01."""
        low, high = short_value(self.low), short_value(self.high)
        return f"widen {self.name}: {short_value(self.value)} of {low}..{high}"


def count_states(view: View) -> str:
    """Count the trials of each state: 7 COMPLETE, 13 PRUNED, 0 FAIL."""
    counts = {state: len(view.of_state(state)) for state in STATES}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n or state != UNENDED)


def say_how_it_ended(outcome: Outcome) -> str:
    """Say that a search has finished, or what ended it, or that it has not ended."""
    words = {None: "it runs, or was killed", FINISHED: "finished"}
    return words.get(outcome.ended_by, f"ended by {outcome.ended_by}")


def count_epochs(view: View) -> tuple[int, str]:
    """Count the epochs that were trained; say how many were planned, and what ASHA saved of those."""
    planned = sum(trial.epochs_planned for trial in view.trials)
    cut = [trial for trial in view.trials if trial.state == "PRUNED"]
    saved = sum(trial.epochs_planned - trial.epoch for trial in cut)
    return sum(trial.epoch for trial in view.trials), f"of {planned:,} planned; ASHA saved {saved:,}"


def facts(view: View) -> list[Fact]:
    """Tell a run in some ten lines."""
    outcome, settings, ledger, trials = view.outcome, view.settings, view.ledger, view.trials
    trained, of_planned = count_epochs(view)
    data = view.task.data or str(settings.options.get("dataset", view.task.name))
    side_by_side = len({stretch.worker for stretch in stretches(ledger)})
    hours = max(outcome.seconds, 1e-9) / 3600
    over = len(trials) - len(view.of_state(UNENDED))
    return [
        Fact(
            label="Search",
            value=f"{settings.sampler} in space {settings.space}",
            note=f"seed {settings.seed}; {data}; {say_how_it_ended(outcome)}",
        ),
        Fact(label="Trials", value=f"{len(trials)} of {settings.num_samples}", note=count_states(view)),
        Fact(label="Epochs", value=f"{trained:,}", note=of_planned),
        Fact(
            label="Wall time",
            value=duration(outcome.seconds),
            note=f"{count(len(ledger.sessions), 'session')}"
            + (f"; at most {count(side_by_side, 'trial')} in parallel" if side_by_side else ""),
        ),
        Fact(
            label="Pace",
            value=f"{over / hours:.0f} trials an hour",
            note=f"{trained / hours:.0f} epochs an hour",
        ),
        *([known] if (known := known_before(view)) else []),
        *_best_facts(view),
    ]


def known_before(view: View) -> Fact | None:
    """Tell the trials of earlier runs, next to which the best of this run's own is put; None without any."""
    inherited = view.ledger.inherited
    if not inherited:
        return None
    runs = ", ".join(dict.fromkeys(trial.run for trial in inherited))
    objective = view.objective
    note = f"of {runs} ({describe_inherited(inherited, objective)}), counted nowhere else"
    ended = [trial.last[view.metric] for trial in view.trials if trial.epochs and trial.shown_state != "FAIL"]
    best, theirs = objective.best(ended), objective.best(trial.value for trial in inherited)
    if best is not None and theirs is not None:
        note += f"; the best of this run's own, {objective.write(best)}, is {objective.compare(best, theirs)}"
    return Fact(label="Known before", value=count(len(inherited), "trial"), note=note)


def compare_with_baseline(view: View) -> Fact | None:
    """Tell the baseline's trial: of one that was pruned, next to the best trial at that epoch.

    None where there is no such trial, or it is the best itself.
    """
    best, baseline = view.best, next((trial for trial in view.trials if trial.hand_set), None)
    if best is None or baseline is None or baseline is best or not baseline.epochs:
        return None
    objective = view.objective
    then, value = best.find(baseline.epoch), baseline.last[view.metric]
    if baseline.shown_state == "COMPLETE" or then is None:
        note = f"epoch {baseline.epoch}; the best is {objective.compare(best_score(view, best)[0], value)}"
    else:
        best_then = objective.write(then[view.metric])
        note = f"stopped at epoch {baseline.epoch}, where the best trial had {best_then}"
    return Fact(label="Baseline", value=objective.write(value), note=note)


def best_score(view: View, best: TrialRecord) -> tuple[float, int]:
    """Give the metric of the best trial and its epoch: those of the winner, once there is one."""
    if winner := view.outcome.winner:
        return winner.value, winner.epoch
    report = view.best_epoch(best)
    return report[view.metric], report[EPOCH]


def _best_facts(view: View) -> list[Fact]:
    best, winner, objective = view.best, view.outcome.winner, view.objective
    if best is None:
        return [Fact(label="Best", value="none yet", note="no trial has reported an epoch")]
    value, epoch = best_score(view, best)
    n = view.task.validation_examples
    where = f"trial {best.number} at epoch {epoch} of {best.epochs_planned}"
    note = where + note_of_error(objective, value, n, before="; ")
    found = [Fact(label="Best, validation", value=objective.write_with_error(value, n), note=note)]
    found += [baseline] if (baseline := compare_with_baseline(view)) else []
    if winner and objective.metric in winner.test:
        test, n = winner.test[objective.metric], winner.test_n
        shown = objective.write_with_error(test, n)
        found.append(Fact(label="Winner, test", value=shown, note=note_of_error(objective, test, n)))
    return found


def note_of_error(objective: Objective, value: float, n: int | None, *, before: str = "") -> str:
    """Say of how many examples a value is, and what stands behind its ±; "" where nothing is known."""
    words = ([f"n = {n:,}"] if n else []) + (["± standard error"] if objective.error_of(value, n) else [])
    return before + ", ".join(words) if words else ""


def edges(view: View) -> list[Edge]:
    """List the values of the best trial that lie at the edge of a range which could be wider."""
    best, found = view.best, []
    if best is None:
        return []
    for name, value in best.params.items():
        one = view.space.get(name)
        if not isinstance(one, FloatDistribution | IntDistribution) or one.low == one.high:
            continue
        if name == LENGTH and best.state != "COMPLETE":
            continue  # its length has made no difference yet
        scale = math.log if one.log else float
        position = (scale(value) - scale(one.low)) / (scale(one.high) - scale(one.low))
        could_be_wider = view.task.wider.get(name, (True, True))[position > 0.5]
        if not EDGE < position < 1 - EDGE and could_be_wider:
            found.append(Edge(name=name, value=value, low=one.low, high=one.high))
    return found
