"""Finds the winner of a search, tests it once, and writes ``best/``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Checkpoint

from tune_mnist.results.grid import LedgerGrid
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import EPOCH, TaskFacts, TrialRecord
from tune_mnist.run.saved import CHECKPOINT, SavedCheckpoint, is_intact
from tune_mnist.run.words import first_line
from tune_mnist.task import CheckpointError, Task, TestSet

LOGGER = logging.getLogger("ray.tune.winner")
BEST = "best"
"""Name of the winner's folder in the run folder."""
HYPERPARAMETERS, METRICS, CARD = "hyperparameters.json", "metrics.json", "card.md"
"""Names of its files besides the model: what was trained; the search's winner; the card of a final model."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best checkpoint, and its score on the test set, if the task has one; nothing else uses that set."""

    trial_id: str
    number: int
    config: dict[str, Any]
    epoch: int
    value: float
    "Its metric in the search."
    n: int | None
    "Number of examples on which the metric was measured."
    test: dict[str, float] = field(default_factory=dict)
    "Its metrics on the test set; {} if the task has none."
    test_n: int | None = None
    "Examples in the test set."


class ScoringError(RuntimeError):
    """A task's test of the winner raised something; the text is one line."""


def score_winner(task: Task, options: Any, grid: LedgerGrid, folder: RunFolder) -> Winner | None:
    """Take the best checkpoint, test it, and write best/.

    If an earlier session's winner still wins, it is not tested again. A checkpoint that cannot be read is
    skipped for the next best one.

    Raises:
        OSError: if the storage cannot be read or written.
        ScoringError: if the task's test raises something.
    """
    facts = grid.ledger.task
    candidates = [saved for saved in grid.saved_epochs() if saved[0].shown_state != "FAIL"]
    before = read_winner(folder, facts)
    # The sort is stable: of equals, the first trial wins.
    for trial, saved, report in sorted(candidates, key=lambda saved: -facts.objective.score(saved[2])):
        if before and (before.trial_id, before.epoch) == (trial.trial_id, report[EPOCH]):
            return before
        try:
            tested = _test(task, options, folder, trial, saved)
        except CheckpointError as error:
            LOGGER.error("%s/%s: %s", trial.directory, saved.name, error)
            continue
        winner = Winner(
            trial_id=trial.trial_id,
            number=trial.number,
            config={**facts.defaults, **trial.config},
            epoch=report[EPOCH],
            value=report[facts.objective.metric],
            n=facts.validation_examples,
            test=dict(tested.metrics),
            test_n=tested.n,
        )
        _write(folder, winner, facts, tested.files)
        return winner
    return None


def _test(task: Task, options: Any, folder: RunFolder, trial: TrialRecord, saved: SavedCheckpoint) -> TestSet:
    """Score a checkpoint; for a task without a test set, keep the checkpoint itself."""
    if not is_intact(folder, saved):
        raise CheckpointError("it is not what was written")
    folder.remove_folder(BEST)  # of an earlier winner, or of its finalization
    with Checkpoint(saved.path, folder.fs).as_directory() as directory:
        checkpoint = Path(directory) / CHECKPOINT
        if task.test is None:
            return TestSet(metrics={}, files={CHECKPOINT: checkpoint.read_bytes()})
        try:
            return task.test(trial.config, checkpoint, options)
        except CheckpointError:
            raise
        except Exception as error:  # the user's code may raise anything
            cause = f"{type(error).__name__}: {first_line(error)}"
            text = f"task {task.name}: its test of trial {trial.number} raised {cause}"
            raise ScoringError(text) from error


def _write(folder: RunFolder, winner: Winner, facts: TaskFacts, files: Mapping[str, bytes]) -> None:
    metrics = {
        "trial_id": winner.trial_id,
        "number": winner.number,
        "hyperparameters": winner.config,
        "epoch": winner.epoch,
        facts.objective.metric: winner.value,
        "val_size": winner.n,
        **{f"test_{name}": value for name, value in winner.test.items()},
        "test_size": winner.test_n,
    }
    best = folder.local / BEST
    best.mkdir()
    for name, content in files.items():
        (best / name).write_bytes(content)
    for name, values in ((HYPERPARAMETERS, winner.config), (METRICS, metrics)):
        (best / name).write_text(json.dumps(values, indent=2) + "\n")


def read_winner(folder: RunFolder, facts: TaskFacts) -> Winner | None:
    """Read the search's winner from best/, as a session left it; None if that is incomplete."""
    content, drawn = (folder.read(f"{BEST}/{name}") for name in (METRICS, HYPERPARAMETERS))
    if content is None or drawn is None:
        return None
    try:
        metrics = json.loads(content)
        # A finalization may have put another configuration next to it. (Before finalizations existed,
        # metrics.json had no configuration.)
        config = metrics.pop("hyperparameters", None) or json.loads(drawn)
        number, epoch, value = (metrics[name] for name in ("number", "epoch", facts.objective.metric))
        if not all(isinstance(part, int | float) for part in (number, epoch, value)):
            return None
        test_n = metrics.pop("test_size", None)
        return Winner(
            trial_id=metrics["trial_id"],
            number=number,
            config=config,
            epoch=epoch,
            value=value,
            n=metrics.get("val_size"),
            test={name[5:]: float(value) for name, value in metrics.items() if name.startswith("test_")},
            test_n=test_n,
        )
    except (ValueError, TypeError, AttributeError, LookupError):
        return None
