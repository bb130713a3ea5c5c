"""Optuna's samplers, with a random stream of its own for each trial."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

KNOWN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""States of the trials that TPE learns from; of the running ones it learns where not to draw."""


def make_sampler(name: str, seed: int, number: int) -> BaseSampler:
    """Make the sampler that draws trial ``number``: one of Optuna's, with Optuna's defaults, but for TPE.

    Each trial has a random stream of its own, made of seed and number, so that a resumed run draws what it
    would have drawn. TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011, with Optuna's
    constant liar, so that concurrent trials don't crowd.
    """
    if name == "tpe":
        return SplitOnceTPESampler(stream(seed, number))
    if name == "random":
        return RandomSampler(seed=stream(seed, number))
    if name == "qmc":
        return NumberedQMCSampler(seed, stream(seed, number), number)
    raise ValueError(f"sampler is {name}, but must be one of tpe, random, qmc")


def stream(seed: int, number: int) -> int:
    """Give the seed of the random stream of trial ``number``."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


class SplitOnceTPESampler(TPESampler):
    """Optuna's TPE, each parameter by itself, that splits a study's trials once a suggestion.

    Optuna 5.0 does it once a parameter. The draws are the same, which a test holds.
    """

    def __init__(self, seed: int) -> None:
        # Each parameter by itself, and not all jointly as Optuna 5 does by default: on recorded curves
        # (benchmarks/README.md) the regret is a fifth lower, 0.06 ± 0.02 points over 30 seeds.
        super().__init__(seed=seed, multivariate=False)
        self._better_and_others: tuple[list[FrozenTrial], list[FrozenTrial]] | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forget how the trials were split for the last suggestion."""
        super().before_trial(study, trial)
        self._better_and_others = None

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._better_and_others is None:
            known = study.get_trials(deepcopy=False, states=KNOWN)
            trials = [one for one in known if one.number != trial.number]
            ended = sum(one.state != TrialState.RUNNING for one in trials)
            self._better_and_others = _split_trials(study, trials, default_gamma(ended))
        better, others = self._better_and_others
        below = self._build_parzen_estimator(study, search_space, better, handle_below=True)
        above = self._build_parzen_estimator(study, search_space, others, handle_below=False)
        candidates = below.sample(self._rng.rng, self._n_ei_candidates)
        drawn = self._compare(candidates, self._compute_acquisition_func(candidates, below, above))
        return {name: space.to_external_repr(drawn[name]) for name, space in search_space.items()}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, npt.NDArray[np.float64]]:
        # Optuna's, without what it asks of each trial for the sake of multivariate TPE.
        params = [one.params for one in trials]
        return {
            name: np.array([space.to_internal_repr(known[name]) for known in params if name in known])
            for name, space in search_space.items()
        }


class NumberedQMCSampler(QMCSampler):
    """Optuna's scrambled Sobol sequence, of which a trial gets the point with its own number.

    Optuna counts the points in an attribute of the study, which is not a trial's and so not in the ledger.
    """

    def __init__(self, seed: int, stream: int, number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Its other warnings are about samplers in several processes, and about the first trial, which is
            # drawn at random; here only the driver samples.
            super().__init__(
                seed=seed,
                scramble=True,
                independent_sampler=RandomSampler(seed=stream),
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )
        self.number = number

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self.number
