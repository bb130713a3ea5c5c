"""How things are written for people: shares, durations, configurations, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_mnist.hyperparameters import HYPERPARAMETER_NAMES


def describe(config: Mapping[str, Any]) -> str:
    """Write a configuration in a few words, in the order of the fields of `Hyperparameters`."""
    names = [name for name in HYPERPARAMETER_NAMES if name in config]
    return " ".join(f"{name}={short_value(config[name])}" for name in names)


def short_value(value: Any) -> str:
    """Write a hyper-parameter's value: of a float three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_path(path: Path) -> Path:
    """Write a path from the working folder on, where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def duration(seconds: float) -> str:
    """Write seconds as a person would: 42 s, 3 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def count(n: int, noun: str) -> str:
    """Write a number of things: 1 trial, 2 trials."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Write an error in one line: the first of its own, or its name where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def ahead(value: float, other: float) -> str:
    """Write by how much a share is above another: 0.52 points above it; equal to it."""
    points = f"{100 * abs(value - other):.2f}"
    return f"{points} points {'above' if value > other else 'below'} it" if float(points) else "equal to it"


def share(value: float, n: int) -> str:
    """Write a share of n images with its standard error: 98.86% ± 0.15%."""
    return f"{value:.2%} ± {standard_error(value, n):.2%}"


def standard_error(share: float, n: int) -> float:
    """Standard error of a share of n independent images: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / n)
