"""The trackers that a search was asked to log to."""

from __future__ import annotations

import importlib.util

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.trackers.feed import Tracker
from tune_mnist.tuning.trackers.mlflow_runs import MlflowRuns
from tune_mnist.tuning.trackers.wandb_runs import WandbRuns

KINDS: dict[str, type[MlflowRuns] | type[WandbRuns]] = {"mlflow": MlflowRuns, "wandb": WandbRuns}
"""Trackers by their names in the settings, which are those of their packages."""


def check_trackers(settings: Settings) -> None:
    """Check that the trackers are installed and can be logged to.

    Raises:
        ValueError: if one of them cannot.
    """
    for name in settings.log:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # W&B writes offline runs to a folder named wandb
            raise ValueError(
                f"log is {name}, but must be left out: {KINDS[name].title} is not installed "
                f"(pip install 'tune-mnist[{name}]')"
            )
        KINDS[name].check()


def make_trackers(settings: Settings, ledger: Ledger, folder: RunFolder) -> list[Tracker]:
    """Make the trackers of the run in ``folder``."""
    return [KINDS[name](settings.name or folder.name, ledger.task, folder) for name in settings.log]
