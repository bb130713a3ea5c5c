"""The search spaces: what they may hold, and what a draw from them becomes."""

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.made_runs import space_of
from tune_mnist.mnist import spaces
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.spaces import BLOG, SPACES, to_config
from tune_mnist.mnist.task import TASK
from tune_mnist.run.space import baseline_point

OWN: dict[str, object] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "dropout_conv": FloatDistribution(0, 0.5, step=0.1),
}


def test_the_blogs_space_is_the_blogs() -> None:
    assert {
        "lr": FloatDistribution(0.001, 0.01, log=True),
        "momentum": FloatDistribution(0.4, 0.99),
        "optimizer": CategoricalDistribution(("sgd", "rmsprop")),
        "epochs": IntDistribution(3, 5),
    } == BLOG


@pytest.mark.parametrize("name", SPACES)
def test_a_hundred_draws_are_hyperparameters(name: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = space_of(name, max_epochs=4)
    for _ in range(100):
        config = to_config(study.ask(space).params, max_epochs=4)
        assert 1 <= Hyperparameters(**config).epochs <= 4


@pytest.mark.parametrize("name", SPACES)
def test_the_baseline_lies_in_each_space_and_means_the_same_there(name: str) -> None:
    point = baseline_point(TASK, space_of(name), 5)
    assert point is not None
    config = Hyperparameters(**to_config(point, 5))
    blog = Hyperparameters()
    assert config.lr == pytest.approx(blog.lr)
    assert (config.momentum, config.optimizer, config.epochs) == (blog.momentum, blog.optimizer, blog.epochs)
    assert (config.batch_size, config.activation) == (blog.batch_size, blog.activation)
    assert config.weight_decay <= 1e-6


@pytest.mark.parametrize(
    ("parameters", "lr"),
    [
        ({"lr_scale": 1.0, "optimizer": "sgd", "momentum": 0.9}, 0.01),
        ({"lr_scale": 2.0, "optimizer": "rmsprop", "momentum": 0.5}, 0.001),
        ({"lr_scale": 2.0, "optimizer": "adam", "momentum": 0.9}, 0.002),
    ],
)
def test_lr_scale_is_in_units_of_the_optimizer(parameters: dict[str, Any], lr: float) -> None:
    assert to_config(parameters, 5)["lr"] == pytest.approx(lr)


@pytest.mark.parametrize(
    ("max_epochs", "low", "high"), [(5, 3, 5), (9, 3, 5), (4, 3, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1)]
)
def test_epochs_are_cut_to_max_epochs(max_epochs: int, low: int, high: int) -> None:
    assert space_of("blog", max_epochs)["epochs"] == IntDistribution(low, high)


def test_one_s_own_space_trains_max_epochs() -> None:
    assert space_of("tests.mnist.test_spaces:OWN", 7) == OWN
    assert to_config({"lr": 0.01}, 7) == {"lr": 0.01, "epochs": 7}
    assert baseline_point(TASK, space_of("tests.mnist.test_spaces:OWN"), 7) is None  # 0.25: off the 0.1 grid


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        ({"learning_rate": FloatDistribution(0, 1)}, "the parameter 'learning_rate', but must only have lr,"),
        ({"lr": FloatDistribution(0, 1)}, "lr is 0.0, but must be above 0"),
        ({"momentum": FloatDistribution(0, 1)}, "momentum is 1.0, but must be at least 0 and below 1"),
        (
            {"optimizer": CategoricalDistribution(["sgd", "lion"])},
            "optimizer is lion, but must be one of sgd",
        ),
        ({"epochs": IntDistribution(0, 3)}, "epochs is 0, but must be a whole number of at least 1"),
        ({"batch_size": FloatDistribution(32, 64)}, "batch_size is 32.0, but must be a whole number"),
        ({"lr": 0.1}, "lr is 0.1, but must be one of optuna.distributions"),
        ({}, "but must be a dict of optuna.distributions with at least one entry"),
        ([1], "but must be a dict of optuna.distributions"),
    ],
)
def test_a_bad_space_is_named(space: object, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "OWN", space, raising=False)
    with pytest.raises(ValueError, match=r"^space tune_mnist\.mnist\.spaces:OWN") as error:
        space_of("tune_mnist.mnist.spaces:OWN")
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "name", ["blogg", "no.such.module:SPACE", "tune_mnist.mnist.spaces:NOTHING", ":", "a:"]
)
def test_an_unknown_space_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"space is {name}, but must be blog, wide, FILE.py:NAME or"):
        space_of(name)
