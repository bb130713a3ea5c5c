"""Finds the winner of a search, tests it once, and writes ``best/``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ray.tune import Checkpoint

from tune_mnist import data
from tune_mnist.folder import CHECKPOINT, RunFolder
from tune_mnist.grid import ResultGrid, saved_epochs
from tune_mnist.hyperparameters import METRIC, TIME_ATTR, Hyperparameters
from tune_mnist.settings import Settings
from tune_mnist.training import score_checkpoint

BEST = "best"
"""Name of the winner's folder in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best checkpoint, scored on the test set, which nothing else has seen."""

    trial_id: str
    number: int
    hyperparameters: Hyperparameters
    epoch: int
    accuracy: float
    val_size: int
    test_accuracy: float
    test_loss: float
    test_size: int


def score_winner(settings: Settings, grid: ResultGrid, folder: RunFolder) -> Winner | None:
    """Take the checkpoint with the highest validation accuracy, test it, write best/.

    Where the winner of an earlier session is still the winner, the test set is left alone.
    """
    kept = [one for one in saved_epochs(grid) if one[0].shown_state != "FAIL"]
    if not kept:
        return None
    best, saved, report = max(kept, key=lambda one: float(one[2][METRIC]))  # of equals, the first trial
    accuracy, epoch = report[METRIC], report[TIME_ATTR]
    before = read_winner(folder)
    if before and (before.trial_id, before.epoch) == (best.trial_id, epoch):
        return before
    hyperparameters = Hyperparameters(**best.config)
    best_dir = folder.local / BEST
    best_dir.mkdir(exist_ok=True)
    test = data.load_test(settings.dataset, settings.data_dir)
    with Checkpoint(saved.path, folder.fs).as_directory() as directory:
        epoch, test_accuracy, test_loss = score_checkpoint(
            Path(directory) / CHECKPOINT, hyperparameters, test, save_model=best_dir / "model.pt"
        )
    winner = Winner(
        trial_id=best.trial_id,
        number=best.number,
        hyperparameters=hyperparameters,
        epoch=epoch,
        accuracy=accuracy,
        val_size=settings.val_size,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        test_size=len(test),
    )
    values = dataclasses.asdict(winner)
    (best_dir / "hyperparameters.json").write_text(json.dumps(values.pop("hyperparameters"), indent=2) + "\n")
    (best_dir / "metrics.json").write_text(json.dumps(values, indent=2) + "\n")
    return winner


def read_winner(folder: RunFolder) -> Winner | None:
    """Read best/ as a session has left it, None where it is not whole."""
    contents = [folder.read(f"{BEST}/{name}.json") for name in ("metrics", "hyperparameters")]
    if None in contents:
        return None
    try:
        metrics, hyperparameters = (json.loads(content or b"") for content in contents)
        return Winner(hyperparameters=Hyperparameters(**hyperparameters), **metrics)
    except (ValueError, TypeError):
        return None
