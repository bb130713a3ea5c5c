"""Formats values for people: configurations, durations, counts, errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe(config: Mapping[str, Any]) -> str:
    """Format a configuration on one line."""
    return " ".join(f"{name}={short_value(value)}" for name, value in config.items())


def short_value(value: Any) -> str:
    """Format a hyper-parameter's value; floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_path(path: Path) -> Path:
    """Return a path relative to the working folder, if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def count(n: int, noun: str) -> str:
    """Format a number of things: 1 trial, 2 trials."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if there is no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def without_password(text: str) -> str:
    """Remove users and passwords from the URIs in a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def capital(text: str) -> str:
    """Capitalise the first letter of a text."""
    return text[:1].upper() + text[1:]
