"""The samplers: a stream of their own for each trial, and TPE beside Optuna's own."""

import random
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_mnist import samplers
from tune_mnist.samplers import make_sampler, stream
from tune_mnist.spaces import WIDE


def test_neighbouring_trials_have_streams_of_their_own() -> None:
    samplers = [make_sampler("random", seed, number) for seed in (0, 1) for number in range(50)]
    draws = set()
    for sampler in samplers:
        study = optuna.create_study(sampler=sampler)
        draws.add(study.ask({"x": FloatDistribution(0, 1)}).params["x"])
    assert len(draws) == 100


def some_trials(count: int, seed: int) -> list[FrozenTrial]:
    """Trials in every state, with parameters at random, of which some lack one."""
    chance = random.Random(seed)
    drawn = optuna.create_study(sampler=RandomSampler(seed=seed))
    trials = []
    for _ in range(count):
        state = chance.choice(list(TrialState))
        values = {epoch: chance.random() for epoch in range(1, chance.randint(1, 10))}
        params = drawn.ask(dict(WIDE)).params
        if chance.random() < 0.2:
            del params[chance.choice(list(WIDE))]
        trials.append(
            create_trial(
                state=state,
                params=params,
                distributions={name: WIDE[name] for name in params},
                value=chance.random() if state == TrialState.COMPLETE else None,
                intermediate_values=values,
            )
        )
    return trials


@pytest.mark.parametrize("count", [0, 9, 25, 100])
def test_tpe_draws_what_optunas_own_draws_also_from_one_sampler(count: int) -> None:
    for seed in range(5):
        drawn = []
        for sampler in (
            make_sampler("tpe", seed, count),
            TPESampler(seed=stream(seed, count), multivariate=False),
        ):
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.add_trials(some_trials(count, seed))
            study.enqueue_trial({"momentum": 0.7})
            for number in range(20):
                trial = study.ask(dict(WIDE))
                drawn.append(trial.params)
                trial.report(trial.params["momentum"], 99)
                if number % 3:  # the others stay RUNNING
                    study.tell(trial, trial.params["momentum"])
        assert drawn[:20] == drawn[20:]


def test_tpe_splits_the_trials_once_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []

    def split(study: optuna.Study, trials: list[FrozenTrial], n_below: int) -> Any:
        splits.append(len(trials))
        return _split_trials(study, trials, n_below)

    monkeypatch.setattr(samplers, "_split_trials", split)
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", 0, 30))
    for number in range(30):
        study.tell(study.ask(dict(WIDE)), number)
    assert splits == list(range(10, 30))  # the first ten are Optuna's start-up trials
