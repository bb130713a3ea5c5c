"""Runs searches in virtual time on known learning curves, through the project's searcher and scheduler."""

from __future__ import annotations

import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast
from unittest import mock

import numpy as np
import numpy.typing as npt
from optuna.samplers import BaseSampler
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_mnist.mnist.facts import FACTS, OBJECTIVE
from tune_mnist.mnist.task import TASK
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import EPOCH
from tune_mnist.run.settings import Settings
from tune_mnist.tuning import study
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.points import first_points
from tune_mnist.tuning.samplers import make_sampler
from tune_mnist.tuning.study import TrialStudy
from tune_mnist.tuning.tasks import load_space

Ask = Callable[[str], Mapping[str, Any]]
"""Returns the parameters drawn for a new trial, by its id."""
MEMORY = Path("/dev/shm")
"""Where the searcher's journal goes: the searcher waits for the disk, 5 ms per trial on an idle one."""
PACE_SPREAD = 0.1
"""Standard deviation of the logarithm of a trial's time per epoch, whose median is 1."""


class Curves(Protocol):
    """The learning curves that a search sees."""

    def train(self, params: Mapping[str, Any], seed: Sequence[int]) -> tuple[npt.NDArray[np.float64], float]:
        """Return a configuration's accuracy at each epoch, and the last one's mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A search method."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    "What differs from the project's defaults. A grace period of all epochs means no stopping."
    make_sampler: Callable[..., BaseSampler] = make_sampler
    "Makes the sampler of a trial, as `tune_mnist.tuning.samplers.make_sampler` does."
    plain: bool = False
    "Ray's own OptunaSearch and ASHAScheduler, which report stopped trials to Optuna as COMPLETE, too."


@dataclass(frozen=True, kw_only=True)
class Step:
    """The state of a search after one more epoch has been trained."""

    time: float
    "Virtual: an epoch takes about 1."
    epochs: int
    "Trained so far by all workers together; one in progress does not count."
    trial: int
    "Number of the trial that trained it."
    accuracy: float
    "The one it reported."
    stopped: bool
    "Whether the trial was stopped by it, or had trained all its epochs."
    chosen: int
    "Number of the trial with the best validation accuracy so far, which the search would choose."
    truth: float
    "Mean accuracy of that trial's configuration at the last epoch."


def simulate(
    variant: Variant, curves: Curves, *, workers: int, seed: int, budget: int, max_epochs: int
) -> Iterator[Step]:
    """Search asynchronously until ``budget`` epochs have been trained, and yield a step per epoch.

    A worker whose trial has ended begins the next at once. Searcher and scheduler get the same calls for each
    epoch as from Ray Tune, in the same order.
    """
    settings = replace(
        Settings(space="wide", seed=seed, max_epochs=max_epochs, max_concurrent_trials=workers),
        **variant.settings,
    )
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.exists() else None) as folder,
        mock.patch.object(study, "make_sampler", variant.make_sampler),  # not each of them has a setting
    ):
        ask, searcher, scheduler = (_plain if variant.plain else _ours)(settings, Path(folder), variant)
        yield from _steps(ask, searcher, scheduler, curves, settings, budget)


def _steps(
    ask: Ask, searcher: Searcher, scheduler: TrialScheduler, curves: Curves, settings: Settings, budget: int
) -> Iterator[Step]:
    nobody: Any = None
    order, numbers = itertools.count(), itertools.count()
    events: list[tuple[float, int, _Trial]] = []
    best: tuple[float, _Trial] | None = None

    def begin(now: float) -> None:
        trial = _Trial.begin(next(numbers), ask, curves, settings.seed)
        scheduler.on_trial_add(nobody, cast(Any, trial))
        heapq.heappush(events, (now + trial.pace, next(order), trial))

    for _ in range(settings.max_concurrent_trials or 1):
        begin(0.0)
    for epochs in range(1, budget + 1):
        now, _, trial = heapq.heappop(events)
        accuracy = float(trial.accuracies[trial.epoch])
        trial.epoch += 1
        if best is None or accuracy > best[0]:
            best = accuracy, trial
        # Ray's searcher counts Ray's iterations, which are the epochs if nothing is lost.
        result = {EPOCH: trial.epoch, OBJECTIVE.metric: accuracy, "training_iteration": trial.epoch}
        stop = scheduler.on_trial_result(nobody, cast(Any, trial), result) == TrialScheduler.STOP
        if stop:
            searcher.on_trial_complete(trial.trial_id, result)
            begin(now)
        else:
            searcher.on_trial_result(trial.trial_id, result)
            heapq.heappush(events, (now + trial.pace, next(order), trial))
        yield Step(
            time=now,
            epochs=epochs,
            trial=trial.number,
            accuracy=accuracy,
            stopped=stop,
            chosen=best[1].number,
            truth=best[1].truth,
        )


@dataclass
class _Trial:
    """A trial in progress."""

    number: int
    accuracies: npt.NDArray[np.float64]
    truth: float
    pace: float
    "Time per epoch."
    epoch: int = 0

    @property
    def trial_id(self) -> str:
        return str(self.number)

    @classmethod
    def begin(cls, number: int, ask: Ask, curves: Curves, seed: int) -> _Trial:
        params = ask(str(number))
        pace = float(np.exp(np.random.default_rng((seed, number, 1)).normal(0, PACE_SPREAD)))
        return cls(number, *curves.train(params, (seed, number)), pace)


def _ours(settings: Settings, folder: Path, variant: Variant) -> tuple[Ask, Searcher, TrialScheduler]:
    ledger = Ledger.open(folder / LEDGER)
    ledger.begin({}, FACTS)
    settings, space = load_space(settings, TASK)
    trials = TrialStudy(settings, TASK, space, ledger, RunFolder(folder))
    return lambda trial_id: trials.draw(trial_id).params, _Teller(trials), _Judge(ASHA(settings, Ledger()))


class _Teller(Searcher):
    """The project's study, notified of trials as Ray notifies a searcher."""

    def __init__(self, trials: TrialStudy) -> None:
        super().__init__()
        self.trials = trials

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.trials.report(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.trials.report(trial_id, result or {})
        self.trials.end(trial_id)


class _Judge(FIFOScheduler):
    """The project's ASHA, called as Ray calls a scheduler."""

    def __init__(self, asha: ASHA) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asha = asha

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        pass

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stops = self.asha.stops(trial.trial_id, result[EPOCH], result[OBJECTIVE.metric])
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)


def _plain(settings: Settings, folder: Path, variant: Variant) -> tuple[Ask, Searcher, TrialScheduler]:
    """Make what a user of plain Ray would make, with the same first points."""
    settings, space = load_space(settings, TASK)
    searcher = OptunaSearch(
        space,
        metric=OBJECTIVE.metric,
        mode=OBJECTIVE.mode,
        sampler=variant.make_sampler(settings.sampler, settings.seed, 0, space),
        points_to_evaluate=[dict(point.params) for point in first_points(settings, TASK, space)],
    )
    scheduler = ASHAScheduler(
        time_attr=OBJECTIVE.time_attr,
        metric=OBJECTIVE.metric,
        mode=OBJECTIVE.mode,
        max_t=settings.max_epochs,
        grace_period=settings.grace_period,
        reduction_factor=settings.reduction_factor,
    )
    return lambda trial_id: searcher.suggest(trial_id) or {}, searcher, scheduler
