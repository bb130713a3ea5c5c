"""The scale on which accuracies are drawn: nines, where 98 % and 99 % lie as far apart as 80 % and 90 %."""

from __future__ import annotations

import math
from collections.abc import Sequence


def nines(accuracy: float) -> float:
    """Count the nines of an accuracy (0..1): -log10(1 - accuracy).

    An accuracy of 1 counts as six, since an infinite value has no place in a plot.
    """
    return -math.log10(max(1.0 - accuracy, 1e-6))


def accuracy_of(value: float) -> float:
    """Give the accuracy that has so many nines."""
    return 1.0 - math.pow(10.0, -value)


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Write the accuracies of ticks with no more digits than they need: 99%, 99.5%."""
    return [f"{100 * tick:.6g}%" for tick in ticks]


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Choose accuracies to mark on an axis from ``low`` to ``high``, both in `nines`: some four to ten."""
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
        if len(ticks) >= 4:
            break
    return ticks
