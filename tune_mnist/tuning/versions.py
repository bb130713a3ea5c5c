"""The versions of Ray and Optuna that the search was tried with, and a line about others."""

from __future__ import annotations

import importlib.metadata

TRIED = {"ray": ((2, 50), (2, 60)), "optuna": ((4, 0), (5, 0))}
"""Oldest and newest minor version of each package; what the README names too."""


def notices() -> list[str]:
    """Say which installed versions lie outside what was tried."""
    lines = []
    for package, (oldest, newest) in TRIED.items():
        version = importlib.metadata.version(package)
        major, minor = (int(part) for part in version.split(".")[:2])
        if not oldest <= (major, minor) <= newest:
            tried = " to ".join(".".join(map(str, bound)) for bound in (oldest, newest))
            lines.append(f"{package} {version} was not tried with this search; {tried} were")
    return lines
