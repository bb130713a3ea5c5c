"""The outcome of a run as tidy, typed pandas frames, and as Parquet files beside it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from tune_mnist.grid import ResultGrid, records
from tune_mnist.grid import load_grid as load
from tune_mnist.hyperparameters import METRIC, TIME_ATTR, Hyperparameters
from tune_mnist.ledger import TrialRecord

__all__ = ["EPOCHS_TABLE", "TRIALS_TABLE", "epochs_frame", "load", "trials_frame", "write_tables"]

TRIALS_TABLE, EPOCHS_TABLE = "trials.parquet", "epochs.parquet"
"""Names of the tables in the run folder."""

TRIAL_DTYPES = {
    "trial_id": "string",
    "number": "int64",
    "state": "string",
    METRIC: "float64",
    "val_loss": "float64",
    "epochs_trained": "int64",
    "epochs_planned": "int64",
    "seconds": "float64",
    "node": "string",
}
"""Columns of `trials_frame` before the hyper-parameters, in the pandas types they have."""

EPOCH_DTYPES = {
    "trial_id": "string",
    "number": "int64",
    TIME_ATTR: "int64",
    METRIC: "float64",
    "val_loss": "float64",
    "train_loss": "float64",
    "epoch_seconds": "float64",
    "images_per_second": "float64",
    "cuda_graph": "boolean",
    "timestamp": "datetime64[ms]",
}
"""Columns of `epochs_frame`, in the pandas types they have."""


def trials_frame(grid: ResultGrid) -> pd.DataFrame:
    """One row a trial, in the order of the study.

    ``state`` is COMPLETE, PRUNED or FAIL as in the study, or RUNNING in a run that has not ended;
    ``accuracy`` and ``val_loss`` are of the last epoch, on the validation split, NaN before the first;
    ``seconds`` is training time; ``node`` the host name. Each hyper-parameter has a column of its own, with
    its default where the search did not draw it.
    """
    hyperparameter_dtypes = {
        name: {int: "int64", float: "float64", str: "string"}[type(value)]
        for name, value in vars(Hyperparameters()).items()
    }
    dtypes = TRIAL_DTYPES | hyperparameter_dtypes
    rows = [_trial_row(record) for record in records(grid)]
    return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)


def epochs_frame(grid: ResultGrid) -> pd.DataFrame:
    """One row a trial and epoch: the fields of an `EpochResult`, and when it was reported (UTC)."""
    rows = []
    for record in records(grid):
        for epoch in record.epochs:
            row = {name: epoch.get(name) for name in EPOCH_DTYPES}
            stamp = pd.Timestamp(epoch["timestamp"], unit="s")
            rows.append({**row, "trial_id": record.trial_id, "number": record.number, "timestamp": stamp})
    return pd.DataFrame(rows, columns=list(EPOCH_DTYPES)).astype(EPOCH_DTYPES)


def write_tables(grid: ResultGrid, put: Callable[[str, bytes], None], *, csv: bool = False) -> list[str]:
    """Write ``trials.parquet`` and ``epochs.parquet``; where asked for, the same as CSV.

    Args:
        grid: from `load`.
        put: takes each file's name and content.
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


def _trial_row(record: TrialRecord) -> dict[str, object]:
    last = record.last
    return {
        "trial_id": record.trial_id,
        "number": record.number,
        "state": record.shown_state,
        METRIC: last.get(METRIC),
        "val_loss": last.get("val_loss"),
        "epochs_trained": record.epoch,
        "epochs_planned": record.epochs_planned,
        "seconds": sum(epoch["epoch_seconds"] for epoch in record.epochs),
        "node": last.get("hostname"),
        **vars(Hyperparameters(**record.config)),
    }
