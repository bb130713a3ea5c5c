"""Searches the hyper-parameters of a PyTorch training loop with Ray Tune, Optuna and ASHA.

The public names: `search`, `resume` and `load_run` return a `Run`; `Task`, `Objective`, `Trial`, `Save`,
`TestSet`, `option`, `DivergedError` and `CheckpointError` are for writing a task.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tune_mnist.task import (
    CheckpointError,
    DivergedError,
    Objective,
    Save,
    Space,
    Task,
    TestSet,
    Trial,
    option,
)

if TYPE_CHECKING:
    from tune_mnist.cli.notebook import Run, load_run, resume, search

__all__ = [
    "CheckpointError",
    "DivergedError",
    "Objective",
    "Run",
    "Save",
    "Space",
    "Task",
    "TestSet",
    "Trial",
    "load_run",
    "option",
    "resume",
    "search",
]


def __getattr__(name: str) -> Any:
    """Import what drives a search on first use: trials import this package and do not need it."""
    if name in ("Run", "load_run", "resume", "search"):
        # In a notebook Ray asks for ipywidgets, which are not needed here.
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
        from tune_mnist.cli import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
