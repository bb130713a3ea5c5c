"""The tested versions of Ray and Optuna, and a warning about others."""

from __future__ import annotations

import importlib.metadata

PAIRS = (("2.50.1", "4.0.0"), ("2.55.1", "4.5.0"), ("2.60.0", "5.0.0"))
"""Ray and Optuna as `make compat` tests them together: oldest, in between, and those of constraints.txt."""


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


TRIED = {
    package: (_minor(oldest), _minor(newest))
    for package, oldest, newest in zip(("ray", "optuna"), PAIRS[0], PAIRS[-1], strict=True)
}
"""Oldest and newest tested minor version of each package."""


def notices() -> list[str]:
    """Return a line about each installed version outside the tested range."""
    lines = []
    for package, (oldest, newest) in TRIED.items():
        version = importlib.metadata.version(package)
        if not oldest <= _minor(version) <= newest:
            tried = " to ".join(".".join(map(str, bound)) for bound in (oldest, newest))
            lines.append(f"{package} {version} was not tested with this search; {tried} were")
    return lines
