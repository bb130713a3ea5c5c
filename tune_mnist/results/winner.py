"""Finds the winner of a search, tests it once, and writes ``best/``."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Checkpoint

from tune_mnist.results.grid import ResultGrid, ledger_of, saved_epochs
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import EPOCH, TaskFacts, TrialRecord
from tune_mnist.run.saved import CHECKPOINT, SavedCheckpoint, is_intact
from tune_mnist.run.words import first_line
from tune_mnist.task import CheckpointError, Task

LOGGER = logging.getLogger("ray.tune.winner")
BEST = "best"
"""Name of the winner's folder in the run folder."""
HYPERPARAMETERS, METRICS, CARD = "hyperparameters.json", "metrics.json", "card.md"
"""Names of its files, besides the model's: what was trained; the search's winner; of a finalization."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best checkpoint; where the task has a test set, scored on it, which nothing else has seen."""

    trial_id: str
    number: int
    config: dict[str, Any]
    epoch: int
    value: float
    "Its metric in the search."
    n: int | None
    "Examples that the metric was measured on."
    test: dict[str, float] = dataclasses.field(default_factory=dict)
    "Its metrics on the test set; {} where the task has none."
    test_n: int | None = None
    "Examples in the test set."


class ScoringError(RuntimeError):
    """A task's own test of the winner has raised something; the text is one line."""


def score_winner(task: Task, options: Any, grid: ResultGrid, folder: RunFolder) -> Winner | None:
    """Take the best checkpoint, test it, write best/.

    Where the winner of an earlier session is still the winner, the test set is left alone. A checkpoint that
    cannot be read makes way for the next best one.

    Raises:
        OSError: if the storage cannot be read or written.
        ScoringError: if the task's own test raises something.
    """
    facts = ledger_of(grid).task
    kept = [one for one in saved_epochs(grid) if one[0].shown_state != "FAIL"]
    before = read_winner(folder, facts)
    # Of equals the first trial: the sort is stable.
    for trial, saved, report in sorted(kept, key=lambda one: -facts.objective.score(one[2])):
        if before and (before.trial_id, before.epoch) == (trial.trial_id, report[EPOCH]):
            return before
        try:
            return _score(task, options, folder, trial, saved, report, facts)
        except CheckpointError as error:
            LOGGER.error("%s/%s: %s", trial.directory, saved.name, error)
    return None


def _score(
    task: Task,
    options: Any,
    folder: RunFolder,
    trial: TrialRecord,
    saved: SavedCheckpoint,
    report: dict[str, Any],
    facts: TaskFacts,
) -> Winner:
    if not is_intact(folder, saved):
        raise CheckpointError("it is not what was written")
    best_dir = folder.local / BEST
    folder.remove_folder(BEST)  # of an earlier winner, or of its finalization
    best_dir.mkdir()
    with Checkpoint(saved.path, folder.fs).as_directory() as directory:
        checkpoint = Path(directory) / CHECKPOINT
        if task.test:
            try:
                scores = task.test(trial.config, checkpoint, options)
            except CheckpointError:
                raise
            except Exception as error:  # the code is the user's, and may raise anything
                cause = f"{type(error).__name__}: {first_line(error)}"
                raise ScoringError(
                    f"task {task.name}: its test of trial {trial.number} raised {cause}"
                ) from error
            test, test_n, files = dict(scores.metrics), scores.n, scores.files
        else:
            test, test_n, files = {}, None, {CHECKPOINT: checkpoint.read_bytes()}
    winner = Winner(
        trial_id=trial.trial_id,
        number=trial.number,
        config={**facts.defaults, **trial.config},
        epoch=report[EPOCH],
        value=report[facts.objective.metric],
        n=facts.validation_examples,
        test=test,
        test_n=test_n,
    )
    for name, content in files.items():
        (best_dir / name).write_bytes(content)
    (best_dir / HYPERPARAMETERS).write_text(json.dumps(winner.config, indent=2) + "\n")
    (best_dir / METRICS).write_text(json.dumps(_to_json(winner, facts), indent=2) + "\n")
    return winner


def _to_json(winner: Winner, facts: TaskFacts) -> dict[str, Any]:
    return {
        "trial_id": winner.trial_id,
        "number": winner.number,
        "hyperparameters": winner.config,
        "epoch": winner.epoch,
        facts.objective.metric: winner.value,
        "val_size": winner.n,
        **{f"test_{name}": value for name, value in winner.test.items()},
        "test_size": winner.test_n,
    }


def read_winner(folder: RunFolder, facts: TaskFacts) -> Winner | None:
    """Read the search's winner as a session has left it in best/, None where that is not whole."""
    content, drawn = (folder.read(f"{BEST}/{name}") for name in (METRICS, HYPERPARAMETERS))
    if content is None or drawn is None:
        return None
    try:
        metrics = json.loads(content)
        # A finalization may have put another configuration next to it. (Before there were any, metrics.json
        # had none.)
        config = metrics.pop("hyperparameters", None) or json.loads(drawn)
        names = ("number", "epoch", facts.objective.metric)
        if not all(isinstance(metrics[name], int | float) for name in names):
            return None
        test_n = metrics.pop("test_size", None)
        return Winner(
            trial_id=metrics["trial_id"],
            number=metrics["number"],
            config=config,
            epoch=metrics["epoch"],
            value=metrics[facts.objective.metric],
            n=metrics.get("val_size"),
            test={name[5:]: float(value) for name, value in metrics.items() if name.startswith("test_")},
            test_n=test_n,
        )
    except (ValueError, TypeError, AttributeError, LookupError):
        return None
