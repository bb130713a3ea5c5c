"""Reads Ray's own record of a run, and hands its trials on as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray.tune import Checkpoint, ExperimentAnalysis
from ray.tune import ResultGrid as ResultGrid

from tune_mnist.hyperparameters import METRIC, MODE, OPTUNA_NUMBER, TIME_ATTR
from tune_mnist.search import trial_state

TRIALS_TABLE = "trials.parquet"
"""Name of a table in the run folder: it is written last, so a run that has it has ended."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as plain values, for the tables."""

    trial_id: str
    number: int
    state: str
    config: dict[str, Any]
    last_result: dict[str, Any]
    epochs: list[dict[str, Any]]
    checkpoint: Checkpoint | None
    "Of those saved, the one with the highest validation accuracy."
    checkpoint_accuracy: float | None
    error_file: Path | None


def load(path: str | Path) -> ResultGrid:
    """Read the trials of a run, finished or not.

    Raises:
        ValueError: if ``path`` is not the folder of a run.
    """
    path = Path(path).absolute()  # pyarrow takes a relative one for a URI
    if not list(path.glob("experiment_state-*.json")):
        raise ValueError(f"{path} is not the folder of a run: it has no experiment_state-*.json")
    grid = ResultGrid(ExperimentAnalysis(str(path), default_metric=METRIC, default_mode=MODE))
    if (path / TRIALS_TABLE).exists():
        mark_ended(grid)
    return grid


def trial_records(grid: ResultGrid) -> list[TrialRecord]:
    """Give each trial of a grid as plain values, in the order of the study.

    The state is RUNNING for a trial that has not ended: the search runs, or was interrupted there.
    """
    analysis = grid._experiment_analysis
    records = []
    for trial in analysis.trials:
        frame = analysis.trial_dataframes.get(trial.trial_id)
        rows = [] if frame is None else cast("list[dict[str, Any]]", frame.to_dict("records"))
        # From the reports themselves: Ray's snapshot of the trials on disk can be seconds behind them.
        last = rows[-1] if rows else {}
        epochs = last.get(TIME_ATTR, 0)
        failed = trial.status == "ERROR"
        ended = failed or trial.status == "TERMINATED"
        saved = trial.run_metadata.checkpoint_manager
        best = saved.best_checkpoint_result if saved else None
        records.append(
            TrialRecord(
                trial_id=trial.trial_id,
                number=trial.config[OPTUNA_NUMBER],
                state=trial_state(epochs, trial.config["epochs"], failed=failed) if ended else "RUNNING",
                config={key: value for key, value in trial.config.items() if key != OPTUNA_NUMBER},
                last_result=last,
                epochs=rows,
                checkpoint=cast("Checkpoint", best.checkpoint) if best else None,
                checkpoint_accuracy=best.metrics[METRIC] if best else None,
                error_file=Path(trial.path) / "error.txt" if failed and trial.path else None,
            )
        )
    return sorted(records, key=lambda record: record.number)


def mark_ended(grid: ResultGrid) -> None:
    """Mark what an interrupt left waiting as ended; on disk Ray keeps it as it was, ready to go on."""
    for trial in grid._experiment_analysis.trials:
        if trial.status not in ("TERMINATED", "ERROR"):
            trial.set_status("TERMINATED")  # type: ignore[no-untyped-call]
