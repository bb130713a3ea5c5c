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
MODEL, HYPERPARAMETERS, METRICS = "model.pt", "hyperparameters.json", "metrics.json"
"""Names of its files: the weights as a plain state dict, what they were trained with, the search's winner."""
EXPORTED, CARD = "model.pt2", "card.md"
"""Names of those that a finalization adds, beside a model.pt and hyperparameters.json of its own."""


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
    for stale in (CARD, EXPORTED):  # of a finalization before more trials brought a new winner
        folder.remove(f"{BEST}/{stale}")
    test = data.load_test(settings.dataset, settings.data_dir)
    with Checkpoint(saved.path, folder.fs).as_directory() as directory:
        epoch, test_accuracy, test_loss = score_checkpoint(
            Path(directory) / CHECKPOINT, hyperparameters, test, save_model=best_dir / MODEL
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
    hyperparameters_json = json.dumps(values["hyperparameters"], indent=2)
    (best_dir / HYPERPARAMETERS).write_text(hyperparameters_json + "\n")
    (best_dir / METRICS).write_text(json.dumps(values, indent=2) + "\n")
    return winner


def read_winner(folder: RunFolder) -> Winner | None:
    """Read the search's winner as a session has left it in best/, None where that is not whole."""
    content, drawn = (folder.read(f"{BEST}/{name}") for name in (METRICS, HYPERPARAMETERS))
    if content is None or drawn is None:
        return None
    try:
        metrics = json.loads(content)
        # A finalization may have put another configuration beside it. (Before there were any, metrics.json
        # had none.)
        hyperparameters = Hyperparameters(**metrics.pop("hyperparameters", None) or json.loads(drawn))
        if not all(isinstance(value, int | float) for name, value in metrics.items() if name != "trial_id"):
            return None
        return Winner(hyperparameters=hyperparameters, **metrics)
    except (ValueError, TypeError, AttributeError):
        return None
