"""The scale on which an objective is drawn: linear, logarithmic, or nines.

On the scale of nines 98 % and 99 % lie as far apart as 80 % and 90 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tune_mnist.task import Objective

SMALLEST = 1e-12
"""Drawn in place of a value that has no logarithm."""


@dataclass(frozen=True)
class Scale:
    """Turns values of an objective into places on an axis, and marks the axis."""

    objective: Objective

    def place(self, value: float) -> float:
        """Return the place of a value."""
        if self.objective.axis == "nines":
            return nines(value)
        return math.log10(max(value, SMALLEST)) if self.objective.axis == "log" else value

    def value(self, place: float) -> float:
        """Return the value at a place."""
        if self.objective.axis == "nines":
            return 1.0 - math.pow(10.0, -place)
        return math.pow(10.0, place) if self.objective.axis == "log" else place

    def write(self, place: float) -> str:
        """Write the value at a place."""
        return self.objective.write(self.value(place))

    def room(self, values: Sequence[float]) -> tuple[float, float]:
        """Return an axis range with room around the places of values; more at the bottom, for ticks."""
        places = [self.place(value) for value in values]
        low, high = min(places, default=1.0), max(places, default=2.0)
        least = 0.3 if self.objective.axis == "nines" else 1e-3 * max(abs(low), abs(high), 1e-9)
        pad = max(high - low, least)
        return low - 0.14 * pad, high + 0.06 * pad

    def ticks(self, low: float, high: float) -> tuple[list[float], list[str]]:
        """Choose the places to mark between two places, and what to write there: about four to ten."""
        if self.objective.axis == "nines":
            values = accuracy_ticks(low, high)
            texts = [f"{100 * value:.6g}%" for value in values]
        elif self.objective.axis == "log" and high - low > 0.7:
            values = _decade_ticks(low, high)
            texts = [f"{value:g}" for value in values]
        else:
            values = _even_ticks(self.value(low), self.value(high))
            per_cent = self.objective.format.endswith("%")
            texts = [f"{100 * value:.6g}%" if per_cent else f"{value:.6g}" for value in values]
        return [self.place(value) for value in values], texts


def nines(accuracy: float) -> float:
    """Count the nines of an accuracy (0..1): -log10(1 - accuracy).

    An accuracy of 1 counts as six, since an infinite value has no place in a plot.
    """
    return -math.log10(max(1.0 - accuracy, 1e-6))


def _decade_ticks(low: float, high: float) -> list[float]:
    decades, ticks = range(math.floor(low), math.ceil(high) + 1), []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        values = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        ticks = [value for value in values if low <= math.log10(value) <= high]
        if len(ticks) >= 4:
            break
    return ticks


def _even_ticks(low: float, high: float) -> list[float]:
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(step for step in (power, 2 * power, 5 * power) if step <= (high - low) / 4)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Choose accuracies to mark on an axis from ``low`` to ``high``, both in `nines`: about four to ten."""
    ticks: list[float] = []
    tenths, hundredths = ([n / per for n in range(per, 10 * per)] for per in (10, 100))
    for mantissas in ((1,), (1, 5), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tenths, hundredths):
        errors = sorted({m * 10.0**-decade for m in mantissas for decade in range(7)}, reverse=True)
        ticks = []
        for accuracy in (1 - error for error in errors if error <= 1):
            place = nines(accuracy)
            apart = not ticks or place - nines(ticks[-1]) >= (high - low) / 9
            if low <= place <= high and apart:
                ticks.append(round(accuracy, 8))
        places = [low, *map(nines, ticks), high]
        even = max(b - a for a, b in pairwise(places)) <= (high - low) / 2.9
        # The best values are at the top.
        if len(ticks) >= 4 and even and places[-1] - places[-2] <= (high - low) / 6:
            break
    return ticks
