"""What a run has learned, in a few plain sentences computed from its numbers."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune_mnist.report.importance import Importance, Share
from tune_mnist.report.insights import edges, span
from tune_mnist.report.noise import lead_level, lead_sentence, noise_at, write_amount
from tune_mnist.report.survival import Group, choices, has_passed, judged_rungs
from tune_mnist.report.view import View
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.words import capital, count, short_value
from tune_mnist.tuning.tuner import FINISHED

MOST, MOST_DEAD = 6, 2
"""Limits on the sentences in all, and on those about choices that never survived."""
CHANCE = 0.05
"""Highest chance, over all choices of the space, at which a choice is said to never survive."""
MIN_STUCK = 3
"""Trials that must have stayed at the same value to be called stuck."""
SURE = 0.85
"""Fraction of the resamples in which a hyper-parameter must be the largest to be called so."""
GOOD = 0.25
"""Fraction of the trials whose values say where a hyper-parameter was good."""
MIN_GOOD = 3
"""Fewest such trials."""
MIN_MIDDLE = 8
"""Such trials from which only the range of their middle half is reported."""
NARROW = 0.5
"""Fraction of the tried range that the good values must stay below for advice to narrow it."""
MIN_HALF = 4
"""Trials that each half of a search needs at a level to judge whether more of them are likely to pay off."""


@dataclass(frozen=True, kw_only=True)
class Dead:
    """A choice none of whose trials outlived a rung that others outlived."""

    group: Group
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a run has learned, and what to do next."""

    sentences: Sequence[str]
    next: str
    "more: further trials; confirm: train the best ones again; resume: continue it; wait: until it has ended."


def learned(view: View) -> Learned:
    """Describe in three to six sentences what a run has learned, each with its number of trials."""
    return view.tried("what it learned", lambda: _learned(view), Learned(sentences=[], next="wait"))


def _learned(view: View) -> Learned:
    pays, why = more_trials(view)
    over = sum(trial.state is not None for trial in view.trials)
    note = (
        f"The search has not ended: this covers the {over} of {view.settings.num_samples} trials that have."
    )
    sentences = [
        note if view.outcome.stop_reason is None else "",
        *[dead.sentence for dead in dead_choices(view)][:MOST_DEAD],
        stuck_sentence(view),
        matter_sentence(view),
        range_sentence(view),
        lead_sentence(view),
        why,
    ]
    step = {None: "wait", FINISHED: "more" if pays else "confirm"}.get(view.outcome.stop_reason, "resume")
    return Learned(sentences=[sentence for sentence in sentences if sentence][:MOST], next=step)


def dead_choices(view: View) -> list[Dead]:
    """Find the choices that never survived: less likely by chance than CHANCE, or not training at all."""
    parts, found = choices(view), []
    for group in parts:
        own = {trial.number for trial in group.trials}
        trained = [trial for trial in group.trials if trial.epochs]
        others = [trial for trial in view.trials if trial.number not in own and trial.epochs]
        if not trained:
            continue
        last = max(trial.epoch for trial in trained)
        values = [view.best_epoch(trial)[view.metric] for trial in trained]
        best = view.objective.write(view.objective.best(values))
        start = f"{group.name} {group.values}: {count(len(trained), 'trial')}, none past epoch"
        if len(trained) > 1 and len(_values(view, trained)) == 1 and _is_worst(view, trained[0], others):
            found.append(Dead(group=group, sentence=f"{start} {last}, all at {best}: it did not train."))
            continue
        others_passed = (
            (rung, sum(has_passed(view, trial, rung) for trial in others))
            for rung in judged_rungs(view)
            if not any(has_passed(view, trial, rung) for trial in trained)
        )
        rung, passed = next(((rung, n) for rung, n in others_passed if n), (0, 0))
        # The chance that none of the group is among those that passed, if these were drawn from all trials.
        chance = math.comb(len(others), passed) / math.comb(len(trained) + len(others), passed)
        if chance <= CHANCE / len(parts):
            end = f"at best {best}; by chance that happens in {chance:.2g} of cases."
            found.append(Dead(group=group, sentence=f"{start} {min(rung, last)}, {end}"))
    return found


def _values(view: View, trials: Sequence[TrialRecord]) -> set[str]:
    """Collect the values of all epochs of some trials, as text."""
    return {view.objective.write(epoch[view.metric]) for trial in trials for epoch in trial.epochs}


def _is_worst(view: View, trial: TrialRecord, others: Sequence[TrialRecord]) -> bool:
    """Return whether a trial's last value is worse than the median of the others' last values."""
    scores = [view.objective.score(other.last) for other in others]
    return bool(scores) and view.objective.score(trial.last) < statistics.median(scores)


def stuck_sentence(view: View) -> str:
    """Describe the choice that all trials stuck at one bad value share, if other trials with it did train."""
    trained = [trial for trial in view.trials if trial.epochs]
    stayed: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trained:
        values = _values(view, [trial])
        if len(values) == 1:
            stayed[values.pop()].append(trial)
    value, stuck = max(stayed.items(), key=lambda item: len(item[1]), default=("", []))
    if len(stuck) < MIN_STUCK or not _is_worst(view, stuck[0], trained):
        return ""
    parts, numbers, found = choices(view), {trial.number for trial in stuck}, []
    for part in parts:
        own = {trial.number for trial in part.trials if trial.epochs}
        if numbers < own:
            chance = math.comb(len(own), len(numbers)) / math.comb(len(trained), len(numbers))
            found.append((chance, part.name, part.values, len(own)))
    if not found or min(found)[0] > CHANCE / len(parts):
        return ""
    chance, name, choice, n = min(found)
    return (
        f"{name} {choice}: {len(stuck)} of {count(n, 'trial')} stayed at {value}, none of the "
        f"other {len(trained) - n} did; by chance that happens in {chance:.2g} of cases."
    )


def leading(importance: Importance) -> Share | None:
    """Return the hyper-parameter that mattered most, if the resamples agree on it."""
    if len(importance.shares) < 2 or importance.shares[0].first < SURE:
        return None
    return importance.shares[0]


def matter_sentence(view: View) -> str:
    """Describe which hyper-parameter mattered most, and where it was good."""
    level = view.level
    importance = view.importance(level)
    if not importance.shares:
        return f"Which hyper-parameter matters is not known: {importance.why_none(view.variable)}."
    first, n = importance.shares[0], f"n = {count(len(level.trials), 'trial')}"
    if len(importance.shares) == 1:
        found = f"{first.name} is the only hyper-parameter that varies {level.where}, {n}."
    elif leading(importance):
        share = str(first).removeprefix(f"{first.name} ")
        found = f"{first.name} mattered most {level.where}: importance {share}, {n}."
    else:
        first, second = sorted(importance.shares, key=lambda share: -share.first)[:2]
        return (
            f"Which hyper-parameter mattered most is open {level.where}, {n}: {first} is the largest in "
            f"{first.first:.0%} of the resamples, {second.name} in {second.first:.0%}."
        )
    return f"{found} {good_values(view, first.name)}"


def good_trials(view: View) -> list[TrialRecord]:
    """List the best quarter of the trials of the level that is shown first, at least MIN_GOOD."""
    most = max(MIN_GOOD, round(GOOD * len(view.level.trials)))
    return [trial for trial, _ in view.ranked(view.level)[:most]]


def good_values(view: View, name: str) -> str:
    """Describe the values of a hyper-parameter in the best trials."""
    good = [trial.params[name] for trial in good_trials(view) if name in trial.params]
    distribution = view.space[name]
    if isinstance(distribution, CategoricalDistribution):
        counts = Counter(map(short_value, good)).most_common()
        return (
            f"Of the best {len(good)} trials, " + ", ".join(f"{n} had {value}" for value, n in counts) + "."
        )
    if len(good) < MIN_MIDDLE:
        return f"The best {len(good)} trials had {span(good)}."
    low, _, high = statistics.quantiles(good, n=4, method="inclusive")
    middle = [round(low), round(high)] if isinstance(distribution, IntDistribution) else [low, high]
    return f"The middle half of the best {len(good)} trials had {span(middle)}."


def range_sentence(view: View) -> str:
    """Advise which ranges to widen, going by the best trial, and to narrow, going by the best quarter."""
    wide, words = edges(view), []
    if wide and view.best:
        words.append(f"{', '.join(wide.values())} (trial {view.best.number}, the best, is at the edge)")
    first = leading(view.importance(view.level))
    if first and first.name not in wide and (narrow := _narrow(view, first.name)):
        words.append(narrow)
    return f"{capital('; '.join(words))}." if words else ""


def _narrow(view: View, name: str) -> str:
    distribution, good = view.space[name], [trial.params[name] for trial in good_trials(view)]
    if not isinstance(distribution, FloatDistribution | IntDistribution) or len(good) < MIN_GOOD:
        return ""
    scale = math.log if distribution.log else float
    if scale(max(good)) - scale(min(good)) >= NARROW * (scale(distribution.high) - scale(distribution.low)):
        return ""
    return f"narrow {name} to {span(good)} (the best {len(good)} of {count(len(view.level.trials), 'trial')})"


def more_trials(view: View) -> tuple[bool, str]:
    """Return whether more trials are likely to pay off, going by the gain of their second half, and why."""
    numbers = sorted(trial.number for trial in view.trials) or [0]
    middle = numbers[len(numbers) // 2]
    for level in dict.fromkeys((lead_level(view), view.level)):
        halves = [
            [value for trial, value in level.pairs if (trial.number >= middle) == late]
            for late in (False, True)
        ]
        if min(map(len, halves)) < MIN_HALF:
            continue
        before, after = (max(view.objective.sign * value for value in half) for half in halves)
        gain, noise = max(0.0, after - before), noise_at(view, level)
        pays = gain > noise.amount
        return pays, (
            f"More trials are {'likely' if pays else 'unlikely'} to pay off: the later half of the trials "
            f"(n = {len(halves[1])} of {len(level.trials)} {level.where}) improved the best by "
            f"{write_amount(view.objective, gain)}; the rule is more than {noise}."
        )
    return True, (
        f"{count(len(view.trials), 'trial')} cannot show whether more will pay off: "
        f"{MIN_HALF} in each half must get as far."
    )
