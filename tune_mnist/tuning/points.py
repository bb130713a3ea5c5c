"""What the first trials of a search try: the task's baseline, and the points in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tune_mnist.run.records import FirstPoint
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import baseline_point, contains, describe_range
from tune_mnist.task import Space, Task


def read_points(path: Path, space: Space) -> list[dict[str, Any]]:
    """Read a JSON list of points, or a single point; each is an object in the terms of the search space.

    A point may leave parameters out; the sampler draws them.

    Raises:
        ValueError: for a file that cannot be read, or a point outside the space; the text is one line.
    """
    rule = "must be a JSON list of objects such as [{"
    rule += ", ".join(f'"{name}": {_example(part)}' for name, part in list(space.items())[:2]) + "}]"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # no file, no text, or no JSON
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"points is {path}, but {rule} ({reason})") from error
    points = [content] if isinstance(content, dict) else content
    if not isinstance(points, list):
        raise ValueError(f"points is {path}, but {rule}: it has {json.dumps(content)[:40]}")
    if not points:
        raise ValueError(f"points is {path}, but must have at least one point")
    return [_checked(point, f"{path}, point {number}", space) for number, point in enumerate(points, 1)]


def first_points(
    settings: Settings,
    task: Task,
    space: Space,
    given: Sequence[Mapping[str, Any]] = (),
    known: Iterable[Mapping[str, Any]] = (),
) -> list[FirstPoint]:
    """List what the first trials try: the task's baseline, then the points given.

    The baseline is left out if it is among those, or among ``known``, the parameters of inherited trials.

    Raises:
        ValueError: if there are more than the search has trials.
    """
    baseline = baseline_point(task, space, settings.max_epochs)
    points = [FirstPoint(params=params) for params in given]
    if baseline is not None and baseline not in [*given, *known]:
        points.insert(0, FirstPoint(params=baseline, hand_set=True))
    room = settings.num_samples - len(points) + len(given)
    if len(given) > room:
        first = ", and the baseline is tried first" if room < settings.num_samples else ""
        raise ValueError(
            f"points is {settings.points} with {len(given)} points, but must have at most {room}: "
            f"num_samples is {settings.num_samples}{first}"
        )
    return points


def _checked(point: Any, where: str, space: Space) -> dict[str, Any]:
    if not isinstance(point, dict) or not point:
        raise ValueError(f"{where}: it is {json.dumps(point)[:40]}, but must be an object with a parameter")
    for name, value in point.items():
        if name not in space:
            rule = f"must be left out: the space has {', '.join(space)}"
            raise ValueError(f"{where}: {name} is {json.dumps(value)}, but {rule}")
    return {name: _value(name, value, space[name], where) for name, value in point.items()}


def _value(name: str, value: Any, distribution: BaseDistribution, where: str) -> Any:
    """Return a value in the type that the space draws."""
    rule = f"must be {_kind(distribution)}{describe_range(distribution)}"
    wrong = ValueError(f"{where}: {name} is {json.dumps(value)}, but {rule}")
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if type(choice) is type(value) and choice == value:
                return choice
        raise wrong
    allowed = (int, float) if isinstance(distribution, FloatDistribution) else int
    if isinstance(value, bool) or not isinstance(value, allowed) or not math.isfinite(value):
        raise wrong
    if isinstance(distribution, FloatDistribution):
        value = float(value)
    if not contains(distribution, value):
        raise wrong
    return value


def _kind(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ""
    return "a number from " if isinstance(distribution, FloatDistribution) else "a whole number from "


def _example(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return json.dumps(distribution.choices[0])
    return json.dumps(getattr(distribution, "low", 0))
