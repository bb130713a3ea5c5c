"""A trial of an earlier run, as the ledger of a new one keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class InheritedTrial:
    """What a search knows from an earlier run, which may be gone by now."""

    run: str
    "Name of that run."
    number: int
    "Of the trial there, from 0."
    state: str
    "COMPLETE or PRUNED."
    params: Mapping[str, Any]
    "Parameters drawn, in the terms of the search space."
    epochs: Sequence[tuple[int, float]]
    "Epoch, from 1, and validation accuracy, 0..1, in order; one at least."
    started: float
    "Seconds since 1970, as the next one."
    ended: float

    @property
    def value(self) -> float:
        """Its validation accuracy, 0..1: that of its last epoch."""
        return self.epochs[-1][1]


def describe_inherited(trials: Sequence[InheritedTrial]) -> str:
    """Count trials by state and name the best value: "7 COMPLETE, 13 PRUNED; best 98.86%"."""
    counts = [f"{sum(trial.state == state for trial in trials)} {state}" for state in ("COMPLETE", "PRUNED")]
    return f"{', '.join(counts)}; best {max(trial.value for trial in trials):.2%}"
