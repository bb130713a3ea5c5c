"""Finds the winner of a search, tests it once, and writes ``best/``."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ray.tune import Checkpoint

from tune_mnist import data
from tune_mnist.folder import CHECKPOINT, RunFolder, SavedCheckpoint
from tune_mnist.grid import ResultGrid, saved_epochs
from tune_mnist.hyperparameters import METRIC, TIME_ATTR, Hyperparameters
from tune_mnist.ledger import TrialRecord
from tune_mnist.settings import Settings
from tune_mnist.training import CheckpointError, score_checkpoint

LOGGER = logging.getLogger("ray.tune.winner")
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

    Where the winner of an earlier session is still the winner, the test set is left alone. A checkpoint that
    can't be read makes way for the next best one.

    Raises:
        OSError: if the storage can't be read or written.
    """
    kept = [one for one in saved_epochs(grid) if one[0].shown_state != "FAIL"]
    before = read_winner(folder)
    # Of equals the first trial: the sort is stable.
    for trial, saved, report in sorted(kept, key=lambda one: -float(one[2][METRIC])):
        if before and (before.trial_id, before.epoch) == (trial.trial_id, report[TIME_ATTR]):
            return before
        try:
            return _score(settings, folder, trial, saved, accuracy=report[METRIC])
        except CheckpointError as error:
            LOGGER.error("%s/%s: %s", trial.directory, saved.name, error)
    return None


def _score(
    settings: Settings, folder: RunFolder, trial: TrialRecord, saved: SavedCheckpoint, *, accuracy: float
) -> Winner:
    hyperparameters = Hyperparameters(**trial.config)
    best_dir = folder.local / BEST
    best_dir.mkdir(exist_ok=True)
    test = data.load_test(settings.dataset, settings.data_dir)
    with Checkpoint(saved.path, folder.fs).as_directory() as directory:
        epoch, test_accuracy, test_loss = score_checkpoint(
            Path(directory) / CHECKPOINT, hyperparameters, test, save_model=best_dir / "model.pt"
        )
    winner = Winner(
        trial_id=trial.trial_id,
        number=trial.number,
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
        if not all(isinstance(value, int | float) for name, value in metrics.items() if name != "trial_id"):
            return None
        return Winner(hyperparameters=Hyperparameters(**hyperparameters), **metrics)
    except (ValueError, TypeError, AttributeError):
        return None
