"""How things are written for people: shares, durations, configurations, errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe(config: Mapping[str, Any]) -> str:
    """Write a configuration in a few words."""
    return " ".join(f"{name}={short_value(value)}" for name, value in config.items())


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


def without_password(text: str) -> str:
    """Write the URIs in a text without their users and passwords."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def capital(text: str) -> str:
    """Write a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]
