"""Optuna's samplers, with a random stream of its own for each trial."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial


def make_sampler(
    name: str, seed: int, number: int, space: Mapping[str, BaseDistribution] | None = None
) -> BaseSampler:
    """Make the sampler that draws trial ``number``: one of Optuna's, with Optuna's defaults.

    Where all trials of the study have the same ``space``, say so: TPE then need not find it out anew.

    Each trial has a random stream of its own, made of seed and number, so that a resumed run draws what it
    would have drawn. TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011; multivariate
    and with constant liar by default since Optuna 5, so that concurrent trials don't crowd.
    """
    if name == "tpe":
        seeded = stream(seed, number)
        return TPESampler(seed=seeded) if space is None else FixedSpaceTPESampler(seeded, space)
    if name == "random":
        return RandomSampler(seed=stream(seed, number))
    if name == "qmc":
        return NumberedQMCSampler(seed, stream(seed, number), number)
    raise ValueError(f"sampler is {name}, but must be one of tpe, random, qmc")


def stream(seed: int, number: int) -> int:
    """Give the seed of the random stream of trial ``number``."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


class FixedSpaceTPESampler(TPESampler):
    """Optuna's TPE for a study all of whose trials have one space: it draws the same, in less time.

    Optuna's finds the parameters that all trials have in common, once a sampler and then for new trials only;
    here each trial has a sampler of its own. Of 10,000 trials with 10 parameters that takes 0.11 s.
    """

    def __init__(self, stream: int, space: Mapping[str, BaseDistribution]) -> None:
        super().__init__(seed=stream)
        self.space = {name: one for name, one in sorted(space.items()) if not one.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Give the space; with too few trials to learn from, TPE draws at random whatever it is."""
        return self.space


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
