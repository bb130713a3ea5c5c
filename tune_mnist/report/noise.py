"""Whether the difference between two results exceeds the noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise

from tune_mnist.report.rungs import FINAL, Level
from tune_mnist.report.view import View
from tune_mnist.run.words import count
from tune_mnist.task import Objective

CLEAR = 2.0
"""Standard errors of a difference beyond which it is more than noise."""


def write_amount(objective: Objective, difference: float) -> str:
    """Write the difference between two results with its unit."""
    return f"{objective.write_difference(difference)}{objective.unit}"


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The size up to which a difference between two results says nothing."""

    objective: Objective
    amount: float
    "0 if it is not known."
    what: str
    known: bool
    "Whether it is the noise, or only a substitute for it."

    def __str__(self) -> str:
        """2 standard errors of a difference, 0.76 points."""
        return f"{self.what}, {write_amount(self.objective, self.amount)}"

    def judge(self, difference: float) -> str:
        """Write the end of a sentence about a difference: whether it exceeds the noise."""
        if self.known:
            return f": {'more than' if difference > self.amount else 'within'} the noise ({self})"
        if not self.amount:
            return "; the noise is not known"
        return f", {difference / self.amount:.1f} times {self}; the noise is not known"


def error_noise(objective: Objective, *results: tuple[float, int | None]) -> Noise | None:
    """Return CLEAR standard errors of the difference of two independent results, each a value and its n.

    None if the objective has no standard error.
    """
    errors = [error for value, n in results if (error := objective.error_of(value, n)) is not None]
    if len(errors) < 2:
        return None
    what = f"{CLEAR:g} standard errors of a difference"
    return Noise(objective=objective, amount=CLEAR * math.hypot(*errors), what=what, known=True)


def lead_level(view: View) -> Level:
    """Return the level at which the best trials are compared: the end, if two trials finished."""
    final = view.levels[-1]
    return final if final.name == FINAL and len(final.trials) > 1 else view.level


def noise_at(view: View, level: Level) -> Noise:
    """Return the noise of a difference at a level.

    If the objective has no standard error, it is replaced by the median difference between neighbours in
    rank among the better half.
    """
    objective, ranked = view.objective, [value for _, value in view.ranked(level)]
    best = [(value, view.task.validation_examples) for value in ranked[:1]]
    if noise := error_noise(objective, *best, *best):
        return noise
    half = ranked[1 : max(3, (len(ranked) + 1) // 2 + 1)]
    gaps = [abs(a - b) for a, b in pairwise(half)]
    what = "the median difference between neighbours in rank"
    return Noise(objective=objective, amount=statistics.median(gaps) if gaps else 0.0, what=what, known=False)


def lead_sentence(view: View) -> str:
    """Describe whether the best trial's lead exceeds the noise."""
    level = lead_level(view)
    if len(level.trials) < 2:
        return ""
    (best, value), (second, other) = view.ranked(level)[:2]
    objective, lead = view.objective, abs(value - other)
    return (
        f"Of {count(len(level.trials), 'trial')} {level.where}, trial {best.number} "
        f"({objective.write(value)}) leads trial {second.number} by "
        f"{write_amount(objective, lead)}{noise_at(view, level).judge(lead)}."
    )
