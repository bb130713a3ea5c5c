"""The search spaces: dicts of Optuna distributions, and the blog's own point in them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial

from tune_mnist.hyperparameters import ACTIVATIONS, HYPERPARAMETER_NAMES, Hyperparameters

Space = Mapping[str, BaseDistribution]

REFERENCE_LR = {"sgd": 0.1, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}
"""Learning rate at which each optimizer trains well without momentum: the unit of ``lr_scale``."""

BLOG: Space = {
    "lr": FloatDistribution(1e-3, 1e-2, log=True),
    "momentum": FloatDistribution(0.4, 0.99),
    "optimizer": CategoricalDistribution(("sgd", "rmsprop")),
    "epochs": IntDistribution(3, 5),
}

# Without epochs: how long a trial trains is ASHA's decision here, up to max_epochs.
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


def load_space(name: str, max_epochs: int) -> dict[str, BaseDistribution]:
    """Find a space by name or as ``package.module:NAME``, its ``epochs`` cut to ``max_epochs``.

    Raises:
        ValueError: for an unknown name, a parameter that is no hyper-parameter, or an empty range.
    """
    space = SPACES[name] if name in SPACES else _import_space(name)
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            f"space {name} is {space!r}, but must be a dict of optuna.distributions with an entry or more"
        )
    known = (*HYPERPARAMETER_NAMES, "lr_scale")
    for parameter, distribution in space.items():
        if parameter not in known:
            raise ValueError(
                f"space {name} has the parameter {parameter!r}, but must only have {', '.join(known)}"
            )
        if not isinstance(distribution, BaseDistribution):
            raise ValueError(
                f"space {name}: {parameter} is {distribution!r}, but must be one of optuna.distributions"
            )
    if "lr" in space and "lr_scale" in space:
        raise ValueError(f"space {name} has both lr and lr_scale, but must have one of them")
    space = dict(space)
    epochs = space.get("epochs")
    if isinstance(epochs, IntDistribution) and epochs.high > max_epochs:
        space["epochs"] = IntDistribution(min(epochs.low, max_epochs), max_epochs)
    _check_ends(name, space, max_epochs)
    return space


def to_config(parameters: Mapping[str, Any], max_epochs: int) -> dict[str, Any]:
    """Turn drawn parameters into the keywords of `Hyperparameters`.

    ``lr_scale`` becomes ``lr`` in decoupled form: in units of the optimizer's reference rate and, as momentum
    adds up to 1 / (1 - momentum) steps, times (1 - momentum) for sgd and rmsprop. So each can be tuned alone.
    """
    config = dict(parameters)
    if "lr_scale" in config:
        config["lr"] = config.pop("lr_scale") * _lr_unit(config)
    config["epochs"] = min(config.get("epochs", max_epochs), max_epochs)
    return config


def blog_point(space: Space, max_epochs: int) -> dict[str, Any] | None:
    """Give the blog's hand-set configuration in the terms of a space, or None where the space lacks it."""
    blog = Hyperparameters()
    point: dict[str, Any] = {name: getattr(blog, name) for name in space if name != "lr_scale"}
    if "lr_scale" in space:
        point["lr_scale"] = blog.lr / _lr_unit(
            {"optimizer": blog.optimizer, "momentum": blog.momentum, **point}
        )
    if "epochs" in space:
        point["epochs"] = min(point["epochs"], max_epochs)
    if "weight_decay" in space and isinstance(space["weight_decay"], FloatDistribution):
        point["weight_decay"] = max(point["weight_decay"], space["weight_decay"].low)  # 0 has no logarithm
    if all(contains(space[name], value) for name, value in point.items()):
        return point
    return None


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Tell whether a distribution can draw a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    try:
        create_trial(value=0.0, params={"x": value}, distributions={"x": distribution})
    except ValueError:
        return False
    return True


def is_within(narrow: BaseDistribution, wide: BaseDistribution) -> bool:
    """Tell whether all that one distribution draws can be drawn, in the same terms, by another.

    That is: both are of one kind, scale and step, and the range or choices of the second hold the first's.
    """
    if isinstance(narrow, CategoricalDistribution) and isinstance(wide, CategoricalDistribution):
        return set(narrow.choices) <= set(wide.choices)
    for kind in (FloatDistribution, IntDistribution):
        if isinstance(narrow, kind) and isinstance(wide, kind):
            same = (narrow.log, narrow.step) == (wide.log, wide.step)
            return same and contains(wide, narrow.low) and contains(wide, narrow.high)
    return False


def describe_range(distribution: BaseDistribution) -> str:
    """Write what is drawn from: "0.001 to 0.01 (log)", "32 to 256 (step 32)", "sgd or rmsprop"."""
    if isinstance(distribution, CategoricalDistribution):
        return " or ".join(map(str, distribution.choices))
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return repr(distribution)
    kinds = ["log"] if distribution.log else []
    if distribution.step not in (None, int(isinstance(distribution, IntDistribution))):
        kinds.append(f"step {distribution.step}")
    return f"{distribution.low} to {distribution.high}" + (f" ({', '.join(kinds)})" if kinds else "")


def _lr_unit(config: Mapping[str, Any]) -> float:
    optimizer = config.get("optimizer", Hyperparameters.optimizer)
    momentum = config.get("momentum", Hyperparameters.momentum) if optimizer in ("sgd", "rmsprop") else 0.0
    return float(REFERENCE_LR[optimizer] * (1 - momentum))


def _import_space(name: str) -> Any:
    module, _, attribute = name.partition(":")
    rule = f"space is {name}, but must be {', '.join(SPACES)} or package.module:NAME"
    if not attribute:
        raise ValueError(rule)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's, and may raise anything
        raise ValueError(f"{rule} ({type(error).__name__}: {error})") from error


def _check_ends(name: str, space: Space, max_epochs: int) -> None:
    """Let `Hyperparameters` judge both ends of each range and every choice, before a trial does."""
    for parameter, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            values: tuple[Any, ...] = distribution.choices
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            values = (distribution.low, distribution.high)
        else:
            values = ()
        for value in values:
            try:
                Hyperparameters(**to_config({parameter: value}, max_epochs))
            except (ValueError, TypeError) as error:
                what = "" if isinstance(error, ValueError) else f"{parameter} is {value!r}: "
                raise ValueError(f"space {name}: {what}{error}") from error
