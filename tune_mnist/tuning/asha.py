"""ASHA: which reports a trial does not outlive, by the rungs that the whole run has filled.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020. The verdicts are those of Ray's
`ASHAScheduler`, to the last bit, which a test holds. Ray's own keys the rungs by the ids of Ray's trials, of
which a trial has a new one for each attempt, and forgets a verdict when the process of the trial dies.
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
    """What a trial met with at a rung."""

    rung: int
    "Epochs at which it judges."
    value: float
    cutoff: float | None
    "The value that was needed at that moment; None for the first trial at a rung."
    rank: int
    "Place of the value among those before and itself, 1 for the best; of NaN the last."
    before: int
    "Trials that had been judged at the rung before."
    stopped: bool


class ASHA:
    """Judges reports; a verdict stands, also where the trial is lost before its end and run again."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        """Start with the rungs as the reports in a ledger, judged in their order, have filled them."""
        self._max_epochs, self._reduction_factor = settings.max_epochs, settings.reduction_factor
        self._sign = ledger.objective.sign
        self._rungs = [(milestone, _Rung()) for milestone in reversed(_milestones(settings))]
        self.stopped: dict[str, int] = {}
        "Epoch of the verdict by trial."
        self.judgements: dict[str, list[Judgement]] = {}
        "What each trial met with at the rungs that it reached, in order."
        for trial_id, epoch in ledger.order:
            report = ledger.trials[trial_id].find(epoch)
            assert report is not None  # it is the line that the order was made from
            self.stops(trial_id, epoch, report[ledger.objective.metric])

    def stops(self, trial_id: str, epoch: int, value: float) -> bool:
        """Tell whether a trial ends with this report."""
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
    """The trials that have reached a rung, and their values in order."""

    def __init__(self) -> None:
        self.trials: set[str] = set()
        self.values: list[float] = []

    def add(self, trial_id: str, value: float) -> None:
        self.trials.add(trial_id)
        if not math.isnan(value):
            insort(self.values, value)

    def cutoff(self, reduction_factor: float) -> float | None:
        """Give the value below which a trial is stopped, None for the first trial at a rung.

        To the last bit that of ``np.nanpercentile(values, (1 - 1 / reduction_factor) * 100)``, at a cost that
        does not grow with the trials.
        """
        values = self.values
        if not values:
            return None
        # Times 100, as Ray does, and back, as NumPy does: it is not the same float.
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
    # Ray's own count, with its rounding: a test holds this against ASHAScheduler.
    count = int(math.log(ratio) / math.log(settings.reduction_factor) + 1)
    return [settings.grace_period * settings.reduction_factor**k for k in range(count)]
