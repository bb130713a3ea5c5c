"""Facts about a run: its size and pace, its best trial, its baseline, which ranges to widen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from optuna.distributions import FloatDistribution, IntDistribution

from tune_mnist.report.timeline import stretches
from tune_mnist.report.view import STATES, View
from tune_mnist.run.ledger import LEDGER
from tune_mnist.run.records import EPOCH, RUNNING, TrialRecord
from tune_mnist.run.space import LENGTH
from tune_mnist.run.words import count, duration, short_value
from tune_mnist.task import Objective
from tune_mnist.tuning.tuner import FINISHED, Outcome
from tune_mnist.tuning.warm_start import describe_inherited

EDGE = 0.05
"""Fraction of a range, at either end, in which a best value suggests that the range is too narrow."""


class Fact(NamedTuple):
    """One line about a run."""

    label: str
    value: str
    note: str = ""


def count_states(view: View) -> str:
    """Count the trials of each state: 7 COMPLETE, 13 PRUNED, 0 FAIL."""
    counts = {state: len(view.of_state(state)) for state in STATES}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n or state != RUNNING)


def say_how_it_ended(outcome: Outcome) -> str:
    """Describe how a search ended: it finished, something ended it, or it has not ended."""
    words = {None: "it is running, or was killed", FINISHED: "finished"}
    return words.get(outcome.stop_reason, f"ended by {outcome.stop_reason}")


def count_epochs(view: View) -> tuple[int, str]:
    """Count the epochs that were trained; describe how many were planned, and how many ASHA saved."""
    planned = sum(trial.epochs_planned for trial in view.trials)
    pruned = [trial for trial in view.trials if trial.state == "PRUNED"]
    saved = sum(trial.epochs_planned - trial.epoch for trial in pruned)
    return sum(trial.epoch for trial in view.trials), f"of {planned:,} planned; ASHA saved {saved:,}"


def losses(view: View) -> str:
    """Describe what is unreadable in a ledger; "" if it is intact."""
    lost = view.ledger.lost_lines
    return f"{LEDGER} has {count(lost, 'line')} that can't be read; what they said is lost" if lost else ""


def facts(view: View) -> list[Fact]:
    """Summarise a run in about ten lines."""
    outcome, settings = view.outcome, view.settings
    trained, of_planned = count_epochs(view)
    data = view.task.data or str(settings.options.get("dataset", view.task.name))
    sessions = count(len(view.ledger.sessions), "session")
    concurrent = len({stretch.worker for stretch in stretches(view.ledger)})
    most = f"; at most {count(concurrent, 'trial')} in parallel" if concurrent else ""
    hours = max(outcome.seconds, 1e-9) / 3600
    over = len(view.trials) - len(view.of_state(RUNNING))
    how = f"seed {settings.seed}; {data}; {say_how_it_ended(outcome)}"
    return [
        Fact("Search", f"{settings.sampler} in space {settings.space}", how),
        Fact("Trials", f"{len(view.trials)} of {settings.num_samples}", count_states(view)),
        Fact("Epochs", f"{trained:,}", of_planned),
        Fact("Wall time", duration(outcome.seconds), sessions + most),
        Fact("Pace", f"{over / hours:,.0f} trials an hour", f"{trained / hours:,.0f} epochs an hour"),
        *filter(None, [known_before(view)]),
        *_best_facts(view),
    ]


def known_before(view: View) -> Fact | None:
    """Describe the trials of earlier runs, compared with the best of this run; None without any."""
    inherited = view.ledger.inherited
    if not inherited:
        return None
    runs = ", ".join(dict.fromkeys(trial.run for trial in inherited))
    objective = view.objective
    note = f"of {runs} ({describe_inherited(inherited, objective)}), counted nowhere else"
    ended = [trial.last[view.metric] for trial in view.trials if trial.epochs and trial.shown_state != "FAIL"]
    best, earlier = objective.best(ended), objective.best(trial.value for trial in inherited)
    if best is not None and earlier is not None:
        note += f"; this run's own best, {objective.write(best)}, is {objective.compare(best, earlier)}"
    return Fact("Known before", count(len(inherited), "trial"), note)


def compare_with_baseline(view: View) -> Fact | None:
    """Describe the baseline's trial; a pruned one is compared with the best trial at that epoch.

    None if there is no such trial, or it is the best itself.
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
    return Fact("Baseline", objective.write(value), note)


def best_score(view: View, best: TrialRecord) -> tuple[float, int]:
    """Return the metric of the best trial and its epoch: those of the winner, once there is one."""
    if winner := view.outcome.winner:
        return winner.value, winner.epoch
    report = view.best_epoch(best)
    return report[view.metric], report[EPOCH]


def _best_facts(view: View) -> list[Fact]:
    best, winner, objective = view.best, view.outcome.winner, view.objective
    if best is None:
        return [Fact("Best", "none yet", "no trial has reported an epoch")]
    value, epoch = best_score(view, best)
    where = f"trial {best.number} at epoch {epoch} of {best.epochs_planned}"
    found = [_score(objective, "Best, validation", value, view.task.validation_examples, where)]
    found += filter(None, [compare_with_baseline(view)])
    if winner and objective.metric in winner.test:
        found.append(_score(objective, "Winner, test", winner.test[objective.metric], winner.test_n))
    return found


def _score(objective: Objective, label: str, value: float, n: int | None, where: str = "") -> Fact:
    """Describe a value: where it was reached, on how many examples, and what its ± is."""
    words = ([f"n = {n:,}"] if n else []) + (["± standard error"] if objective.error_of(value, n) else [])
    note = "; ".join(filter(None, [where, ", ".join(words)]))
    return Fact(label, objective.write_with_error(value, n), note)


def edges(view: View) -> dict[str, str]:
    """List the parameters whose best value lies at the edge of a range that could be wider, with advice.

    The advice: widen lr: 0.0098 of 0.001..0.01.
    """
    best, found = view.best, {}
    for name, value in best.params.items() if best else ():
        distribution = view.space.get(name)
        if not isinstance(distribution, FloatDistribution | IntDistribution):
            continue
        low, high = distribution.low, distribution.high
        if low == high:
            continue
        if name == LENGTH and best and best.state != "COMPLETE":
            continue  # its length has made no difference yet
        scale = math.log if distribution.log else float
        position = (scale(value) - scale(low)) / (scale(high) - scale(low))
        could_be_wider = view.task.wider.get(name, (True, True))[position > 0.5]
        if not EDGE < position < 1 - EDGE and could_be_wider:
            found[name] = f"widen {name}: {short_value(value)} of {span([low, high])}"
    return found


def span(values: Sequence[float]) -> str:
    """Write the range of some values: 0.001..0.01."""
    return f"{short_value(min(values))}..{short_value(max(values))}"
