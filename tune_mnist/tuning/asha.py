"""ASHA: decides which trials to prune, by the rungs that the whole run has filled.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020. The decisions are those of Ray's
`ASHAScheduler` to the last bit, as a test checks. Ray's keys the rungs by the ids of Ray trials, which are
new for each attempt, and forgets a decision when the process of the trial dies.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from dataclasses import dataclass

from tune_mnist.run.ledger import Ledger
from tune_mnist.run.settings import Settings


def rungs(settings: Settings) -> tuple[int, ...]:
    """List the epochs at which ASHA judges a trial: grace_period * reduction_factor^k, up to max_epochs."""
    return tuple(math.ceil(milestone) for milestone in _milestones(settings))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The decision about a trial at a rung."""

    rung: int
    "Epochs at which the rung judges."
    value: float
    cutoff: float | None
    "The value needed at that moment; None for the first trial at a rung."
    rank: int
    "Rank of the value among all so far, including itself; 1 is the best, NaN is last."
    before: int
    "Number of trials judged at the rung before this one."
    stopped: bool


class ASHA:
    """Judges reports; a decision stands even if the trial is lost before its end and run again."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        """Fill the rungs with the reports in a ledger, judged in their order."""
        self._max_epochs, self._reduction_factor = settings.max_epochs, settings.reduction_factor
        self._sign = ledger.objective.sign
        self._rungs = [(milestone, _Rung()) for milestone in reversed(_milestones(settings))]
        self.stopped: dict[str, int] = {}
        "Epoch of the decision to stop, by trial."
        self.judgements: dict[str, list[Judgement]] = {}
        "Decisions about each trial at the rungs that it reached, in order."
        for trial_id, epoch in ledger.order:
            report = ledger.trials[trial_id].find(epoch)
            assert report is not None  # the order was made from the reports
            self.stops(trial_id, epoch, report[ledger.objective.metric])

    def stops(self, trial_id: str, epoch: int, value: float) -> bool:
        """Return whether a trial ends with this report."""
        if epoch >= self.stopped.get(trial_id, math.inf):
            return True
        stops = epoch >= self._max_epochs or self._is_below_cutoff(trial_id, epoch, self._sign * value)
        if stops:
            self.stopped[trial_id] = epoch
        return stops

    def _is_below_cutoff(self, trial_id: str, epoch: int, value: float) -> bool:
        for milestone, rung in self._rungs:
            if epoch >= milestone and trial_id not in rung.trials:
                cutoff = rung.cutoff(self._reduction_factor)
                stops = cutoff is not None and value < cutoff
                as_good_or_worse = 0 if math.isnan(value) else bisect_right(rung.values, value)
                judgement = Judgement(
                    rung=math.ceil(milestone),
                    value=self._sign * value,
                    cutoff=None if cutoff is None else self._sign * cutoff,
                    rank=len(rung.values) - as_good_or_worse + 1,
                    before=len(rung.values),
                    stopped=stops,
                )
                self.judgements.setdefault(trial_id, []).append(judgement)
                rung.add(trial_id, value)
                return stops
        return False


class _Rung:
    """The trials that have reached a rung, and their sorted values."""

    def __init__(self) -> None:
        self.trials: set[str] = set()
        self.values: list[float] = []

    def add(self, trial_id: str, value: float) -> None:
        self.trials.add(trial_id)
        if not math.isnan(value):
            insort(self.values, value)

    def cutoff(self, reduction_factor: float) -> float | None:
        """Return the value below which a trial is stopped; None for the first trial at a rung.

        Equals ``np.nanpercentile(values, (1 - 1 / reduction_factor) * 100)`` to the last bit, at a cost that
        does not grow with the number of trials.
        """
        values = self.values
        if not values:
            return None
        # Times 100 as in Ray, and back as in NumPy: the result is not the same float.
        place = (len(values) - 1) * ((1 - 1 / reduction_factor) * 100 / 100)
        below = math.floor(place)
        low, high = values[below], values[min(below + 1, len(values) - 1)]
        fraction = place - below
        if fraction >= 0.5:
            return high - (high - low) * (1 - fraction)
        return low + (high - low) * fraction


def _milestones(settings: Settings) -> list[float]:
    if settings.scheduler == "none":
        return []
    ratio = settings.max_epochs / settings.grace_period
    # Ray's own count, with its rounding: a test compares this with ASHAScheduler.
    count = int(math.log(ratio) / math.log(settings.reduction_factor) + 1)
    return [settings.grace_period * settings.reduction_factor**k for k in range(count)]
