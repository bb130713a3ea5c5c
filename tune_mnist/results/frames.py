"""The outcome of a run as tidy, typed pandas frames, and as Parquet files next to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from tune_mnist.results.grid import LedgerGrid
from tune_mnist.run.records import EPOCH, TRIAL_COLUMNS

TRIALS_TABLE, EPOCHS_TABLE = "trials.parquet", "epochs.parquet"
"""Names of the tables in the run folder."""

BOOKKEEPING = {
    *("checkpoint_dir_name", "training_iteration", "done", "trial_id", "date", "time_this_iter_s", "pid"),
    *("time_total_s", "hostname", "node_ip", "time_since_restore", "iterations_since_restore", "timestamp"),
    *("experiment_tag", "config", "experiment_id", "auto"),
}
"""Keys of a report that are Ray's or the search's, not the training's."""


def trials_frame(grid: LedgerGrid) -> pd.DataFrame:
    """Return one row per trial, in the order of the study.

    ``state`` is COMPLETE, PRUNED or FAIL as in the study, or RUNNING in a run that has not ended; the metric
    and the task's other values are those of the last epoch, NaN before the first; ``seconds`` is training
    time; ``node`` is the host name. Each hyper-parameter has its own column, with its default if the search
    did not draw it.
    """
    task = grid.ledger.task
    values = (task.objective.metric, *task.tables)
    rows: list[dict[str, object]] = [
        {
            "trial_id": record.trial_id,
            "number": record.number,
            "state": record.shown_state,
            **{name: record.last.get(name) for name in values},
            "epochs_trained": record.epoch,
            "epochs_planned": record.epochs_planned,
            "seconds": sum(epoch.get("epoch_seconds", 0.0) for epoch in record.epochs),
            "node": record.last.get("hostname"),
            **task.defaults,
            **record.config,
        }
        for record in grid.records
    ]
    names = list(TRIAL_COLUMNS)
    names[3:3] = values
    fixed = {name: TRIAL_COLUMNS.get(name, "float64") for name in names}
    return _frame(rows, fixed, hyperparameter_names(grid))


def hyperparameter_names(grid: LedgerGrid) -> list[str]:
    """List the columns of `trials_frame` that are hyper-parameters."""
    drawn = (name for record in grid.records for name in record.config)
    return list(dict.fromkeys([*grid.ledger.task.defaults, *drawn]))


def epochs_frame(grid: LedgerGrid) -> pd.DataFrame:
    """Return one row per trial and epoch: what the training reported, and when (``timestamp``, UTC)."""
    metric = grid.ledger.objective.metric
    rows: list[dict[str, object]] = []
    reported: dict[str, None] = {EPOCH: None, metric: None}
    for record in grid.records:
        for epoch in record.epochs:
            values = {name: value for name, value in epoch.items() if name not in BOOKKEEPING}
            stamp = pd.Timestamp(epoch["timestamp"], unit="s")
            rows.append({**values, "trial_id": record.trial_id, "number": record.number, "timestamp": stamp})
            reported.update(dict.fromkeys(values))
    fixed = {"trial_id": "string", "number": "int64", EPOCH: "int64", metric: "float64"}
    frame = _frame(rows, fixed, [name for name in [*reported, "timestamp"] if name not in fixed])
    return frame.astype({"timestamp": "datetime64[ms]"})


def _frame(rows: list[dict[str, object]], fixed: dict[str, str], others: list[str]) -> pd.DataFrame:
    """Make a frame from columns with fixed types, and others whose types are inferred from their values."""
    frame = pd.DataFrame(rows, columns=[*fixed, *others], dtype=object)
    return frame.astype({str(name): fixed.get(str(name)) or _dtype(frame[name]) for name in frame})


def _dtype(values: pd.Series[Any]) -> str:
    """Return the pandas type of values that may be missing; string for mixed types."""
    kinds = set(map(type, values.dropna()))
    if kinds == {pd.Timestamp}:
        return "datetime64[ms]"
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64" if values.hasnans else "int64"
    return "float64" if kinds <= {int, float} else "string"


def write_tables(grid: LedgerGrid, put: Callable[[str, bytes], None], *, csv: bool = False) -> list[str]:
    """Write ``trials.parquet`` and ``epochs.parquet``; if asked for, also as CSV.

    Args:
        grid: of the run.
        put: is called with each file's name and content.
        csv: whether to write ``trials.csv`` and ``epochs.csv`` too.

    Returns:
        The files' names.
    """
    names = []
    for name, frame in ((EPOCHS_TABLE, epochs_frame(grid)), (TRIALS_TABLE, trials_frame(grid))):
        content: bytes = frame.to_parquet(index=False)
        put(name, content)
        names.append(name)
        if csv:
            names.append(f"{name.partition('.')[0]}.csv")
            put(names[-1], frame.to_csv(index=False).encode())
    return names
