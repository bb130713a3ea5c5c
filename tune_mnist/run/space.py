"""Search spaces: checks and describes them, and turns drawn points into configurations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from tune_mnist.run.records import ATTEMPT, OPTUNA_NUMBER, TRIAL_COLUMNS
from tune_mnist.task import Space, Task

LENGTH = "epochs"
"""Name of the parameter that, if a space has it, is a trial's number of epochs."""


def checked_space(task: Task, name: str, space: Any, max_epochs: int) -> dict[str, BaseDistribution]:
    """Check a space, and limit its parameter ``epochs``, if any, to ``max_epochs``.

    The task checks both ends of each range and every choice before any trial runs.

    Raises:
        ValueError: for anything but distributions, a parameter that the task does not have, a value that it
            cannot train, or a name that the tables need.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            f"space {name} is {space!r}, but must be a dict of optuna.distributions with at least one entry"
        )
    for parameter, distribution in space.items():
        if not isinstance(distribution, BaseDistribution):
            raise ValueError(
                f"space {name}: {parameter} is {distribution!r}, but must be one of optuna.distributions"
            )
    checked: dict[str, BaseDistribution] = dict(space)
    epochs = checked.get(LENGTH)
    if isinstance(epochs, IntDistribution) and epochs.high > max_epochs:
        checked[LENGTH] = IntDistribution(min(epochs.low, max_epochs), max_epochs)
    first = {parameter: _ends(distribution)[0] for parameter, distribution in checked.items()}
    points = [
        first,
        *({**first, parameter: end} for parameter in checked for end in _ends(checked[parameter])[1:]),
    ]
    for point in points:
        try:
            _check_config(task, {**task.defaults, **to_config(task, point, max_epochs)})
        except (ValueError, TypeError) as error:
            raise ValueError(f"space {name}: {error}") from error
    return checked


def _check_config(task: Task, config: Mapping[str, Any]) -> None:
    taken = {*TRIAL_COLUMNS, ATTEMPT, OPTUNA_NUMBER, task.objective.metric, *task.tables}
    for name, value in config.items():
        if name in taken:
            raise ValueError(
                f"parameter {name} must have another name: the tables or the search need that one"
            )
        if not isinstance(value, bool | int | float | str | None):
            try:
                json.dumps(value)
            except TypeError as error:
                rule = "must be a bool, int, float, str or None, or a list or dict of such"
                raise ValueError(f"{name} is {value!r}, but {rule}") from error


def to_config(task: Task, parameters: Mapping[str, Any], max_epochs: int) -> dict[str, Any]:
    """Turn drawn parameters into the configuration to train.

    Raises:
        ValueError: for one that the task cannot train.
    """
    config = dict(parameters)
    return task.complete(config, max_epochs) if task.complete else config


def planned_epochs(config: Mapping[str, Any], max_epochs: int) -> int:
    """Return the epochs to train a configuration: an integer ``epochs`` in it, or the maximum."""
    epochs = config.get(LENGTH)
    return min(epochs, max_epochs) if type(epochs) is int else max_epochs


def baseline_point(task: Task, space: Space, max_epochs: int) -> dict[str, Any] | None:
    """Return a task's baseline in the terms of a space; None if the space does not contain it."""
    baseline = task.baseline(space, max_epochs) if callable(task.baseline) else task.baseline
    if baseline is None:
        return None
    point = {name: baseline[name] for name in space if name in baseline}
    fits = all(contains(space[name], value) for name, value in point.items())
    return point if point and fits else None


def wider_ends(task: Task, space: Space, max_epochs: int) -> dict[str, list[bool]]:
    """Return for each range whether values below its low end and above its high end are trainable."""
    first = {parameter: _ends(distribution)[0] for parameter, distribution in space.items()}
    return {
        name: [
            _trains(task, {**first, name: _beyond(distribution, up=up)}, max_epochs) for up in (False, True)
        ]
        for name, distribution in space.items()
        if isinstance(distribution, FloatDistribution | IntDistribution)
    }


def _beyond(distribution: FloatDistribution | IntDistribution, *, up: bool) -> float:
    step = distribution.step or (distribution.high - distribution.low) / 100
    if distribution.log:
        value: float = distribution.high * 1.1 if up else distribution.low / 1.1
    else:
        value = distribution.high + step if up else distribution.low - step
    if isinstance(distribution, IntDistribution):
        return math.ceil(value) if up else math.floor(value)
    return value


def _trains(task: Task, point: dict[str, Any], max_epochs: int) -> bool:
    try:
        to_config(task, point, max(max_epochs, int(point.get("epochs", 1))))
    except (ValueError, TypeError):
        return False
    return True


def _ends(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return (distribution.low, distribution.high)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a distribution can draw a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    try:
        create_trial(value=0.0, params={"x": value}, distributions={"x": distribution})
    except ValueError:
        return False
    return True


def is_within(narrow: BaseDistribution, wide: BaseDistribution) -> bool:
    """Return whether ``wide`` can draw all that ``narrow`` can, in the same terms.

    That is: they have the same kind, scale and step, and ``wide``'s range or choices include ``narrow``'s.
    """
    if isinstance(narrow, CategoricalDistribution) and isinstance(wide, CategoricalDistribution):
        return set(narrow.choices) <= set(wide.choices)
    for kind in (FloatDistribution, IntDistribution):
        if isinstance(narrow, kind) and isinstance(wide, kind):
            same = (narrow.log, narrow.step) == (wide.log, wide.step)
            return same and contains(wide, narrow.low) and contains(wide, narrow.high)
    return False


def describe_range(distribution: BaseDistribution) -> str:
    """Describe a distribution: "0.001 to 0.01 (log)", "32 to 256 (step 32)", "sgd or rmsprop"."""
    if isinstance(distribution, CategoricalDistribution):
        return " or ".join(map(str, distribution.choices))
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return repr(distribution)
    kinds = ["log"] if distribution.log else []
    if distribution.step not in (None, int(isinstance(distribution, IntDistribution))):
        kinds.append(f"step {distribution.step}")
    return f"{distribution.low} to {distribution.high}" + (f" ({', '.join(kinds)})" if kinds else "")
