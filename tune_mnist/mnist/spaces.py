"""The search spaces: dicts of Optuna distributions, and the baseline's point in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tune_mnist.mnist.hyperparameters import ACTIVATIONS, HYPERPARAMETER_NAMES, Hyperparameters
from tune_mnist.task import Space

REFERENCE_LR = {"sgd": 0.1, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}
"""Learning rate at which each optimizer trains well without momentum: the unit of ``lr_scale``."""

BLOG: Space = {
    "lr": FloatDistribution(1e-3, 1e-2, log=True),
    "momentum": FloatDistribution(0.4, 0.99),
    "optimizer": CategoricalDistribution(("sgd", "rmsprop")),
    "epochs": IntDistribution(3, 5),
}

# Without epochs: ASHA decides here how long a trial trains, up to max_epochs.
WIDE: Space = {
    "lr_scale": FloatDistribution(0.01, 5.0, log=True),
    "momentum": FloatDistribution(0.4, 0.98),
    "optimizer": CategoricalDistribution(("sgd", "rmsprop", "adam", "adamw")),
    "batch_size": IntDistribution(32, 256, step=32),
    "activation": CategoricalDistribution(ACTIVATIONS),
    "dropout_conv": FloatDistribution(0.0, 0.5, step=0.05),
    "dropout_dense": FloatDistribution(0.0, 0.7, step=0.05),
    "weight_decay": FloatDistribution(1e-6, 1e-3, log=True),
    "lr_end_factor": FloatDistribution(0.01, 1.0, log=True),
    "shift": IntDistribution(0, 3),
}

SPACES: Mapping[str, Space] = {"blog": BLOG, "wide": WIDE}


def to_config(parameters: dict[str, Any], max_epochs: int) -> dict[str, Any]:
    """Turn drawn parameters into the keywords of `Hyperparameters`.

    ``lr_scale`` becomes ``lr`` in decoupled form: in units of the optimizer's reference rate and, as momentum
    adds up to 1 / (1 - momentum) steps, times (1 - momentum) for sgd and rmsprop. So each can be tuned alone.

    Raises:
        ValueError: for an unknown parameter, or a value out of range.
    """
    known = (*HYPERPARAMETER_NAMES, "lr_scale")
    for name in parameters:
        if name not in known:
            raise ValueError(f"it has the parameter {name!r}, but must only have {', '.join(known)}")
    if "lr" in parameters and "lr_scale" in parameters:
        raise ValueError("it has both lr and lr_scale, but must have one of them")
    config = dict(parameters)
    if "lr_scale" in config:
        config["lr"] = config.pop("lr_scale") * _lr_unit(config)
    config["epochs"] = min(config.get("epochs", max_epochs), max_epochs)
    Hyperparameters(**config)
    return {name: config[name] for name in HYPERPARAMETER_NAMES if name in config}


def baseline(space: Space, max_epochs: int) -> dict[str, Any]:
    """Return the baseline in the terms of a space."""
    hand_set = Hyperparameters()
    point: dict[str, Any] = {name: getattr(hand_set, name) for name in space if name != "lr_scale"}
    if "lr_scale" in space:
        point["lr_scale"] = hand_set.lr / _lr_unit(
            {"optimizer": hand_set.optimizer, "momentum": hand_set.momentum, **point}
        )
    if "epochs" in space:
        point["epochs"] = min(point["epochs"], max_epochs)
    if "weight_decay" in space and isinstance(space["weight_decay"], FloatDistribution):
        point["weight_decay"] = max(point["weight_decay"], space["weight_decay"].low)  # 0 has no logarithm
    return point


def _lr_unit(config: Mapping[str, Any]) -> float:
    optimizer = config.get("optimizer", Hyperparameters.optimizer)
    momentum = config.get("momentum", Hyperparameters.momentum) if optimizer in ("sgd", "rmsprop") else 0.0
    return float(REFERENCE_LR[optimizer] * (1 - momentum))
