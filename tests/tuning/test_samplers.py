"""The samplers: a separate random stream for each trial, and points that fill the space."""

import math
from collections import Counter

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from tune_mnist.mnist.spaces import WIDE
from tune_mnist.tuning.samplers import make_sampler


def test_neighbouring_trials_have_streams_of_their_own() -> None:
    samplers = [make_sampler("random", seed, number, WIDE) for seed in (0, 1) for number in range(50)]
    draws = set()
    for sampler in samplers:
        study = optuna.create_study(sampler=sampler)
        draws.add(study.ask({"x": FloatDistribution(0, 1)}).params["x"])
    assert len(draws) == 100


@pytest.mark.parametrize("number", [0, 1, 50])
def test_a_sobol_point_depends_on_seed_and_number_alone(number: int) -> None:
    def draw(seed: int, known: int) -> dict[str, object]:
        study = optuna.create_study(sampler=make_sampler("qmc", seed, number, WIDE))
        earlier = create_trial(value=0, params={"x": 1.0}, distributions={"x": FloatDistribution(0, 1)})
        study.add_trials([earlier] * known)
        return study.ask(dict(WIDE)).params

    assert draw(0, 0) == draw(0, 3) != draw(1, 0)


def test_sobol_points_fill_each_range_evenly() -> None:
    """Of 64 points, each eighth of a parameter's range gets 8; steps and choices get their fraction."""
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(2.0, 4.0),
        "log": FloatDistribution(1e-4, 1.0, log=True),
        "step": FloatDistribution(0.0, 0.75, step=0.25),
        "whole": IntDistribution(1, 4),
        "big": IntDistribution(1, 1000, log=True),
        "kind": CategoricalDistribution(("a", "b")),
    }
    study = optuna.create_study()
    points = []
    for number in range(64):
        study.sampler = make_sampler("qmc", 3, number, space)
        points.append(study.ask(space).params)
    eighths = dict.fromkeys(range(8), 8)
    assert Counter(int((point["x"] - 2) * 4) for point in points) == eighths
    assert Counter(int(math.log(point["log"] / 1e-4) / math.log(1e4) * 8) for point in points) == eighths
    assert Counter(point["step"] for point in points) == dict.fromkeys((0.0, 0.25, 0.5, 0.75), 16)
    assert Counter(point["whole"] for point in points) == dict.fromkeys((1, 2, 3, 4), 16)
    assert Counter(point["kind"] for point in points) == {"a": 32, "b": 32}
    assert {1, 1000} & {point["big"] for point in points} and sum(point["big"] < 32 for point in points) > 24
