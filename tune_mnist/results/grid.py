"""Ray's ResultGrid of a run, made from its ledger: Ray's files hold attempts, and of one session only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.fs import FileSystem
from ray.tune import Checkpoint, Result, ResultGrid

from tune_mnist.run.checkpoints import kept_checkpoints
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import RUNNING, TrialRecord, ray_config
from tune_mnist.run.saved import SavedCheckpoint, list_checkpoints


class TrialError(RuntimeError):
    """Why a trial failed: the first line of its error; ``error.txt`` in its folder has the rest."""


class StoredResult(Result):
    """A trial's result, made from its run's folder and ledger."""

    stored_on: FileSystem

    @property
    def filesystem(self) -> FileSystem:
        """The pyarrow file system of its ``path``."""
        return self.stored_on


class LedgerGrid(ResultGrid):
    """The trials of a run, in the order of their numbers; a result is made when it is accessed.

    Everything that `ResultGrid` offers is implemented here, so its constructor is not called: it takes an
    `ExperimentAnalysis`, which reads Ray's files.

    Attributes:
        ledger: the run's ledger.
        records: its record of each trial.
        checkpoints: all stored ones, by trial folder.
    """

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        self.folder, self.ledger, self.checkpoints = folder, ledger, list_checkpoints(folder)
        self.records = sorted(ledger.trials.values(), key=lambda record: record.number)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Any) -> Any:
        """Return the result at an index, or a list for a slice."""
        if isinstance(place, slice):
            return [self._result(record) for record in self.records[place]]
        return self._result(self.records[place])

    def __iter__(self) -> Iterator[Result]:
        return (self._result(record) for record in self.records)

    def __repr__(self) -> str:
        return f"LedgerGrid({self.folder.uri}: {len(self)} trials)"

    def saved_epochs(self) -> list[tuple[TrialRecord, SavedCheckpoint, dict[str, Any]]]:
        """List the checkpoints that the ledger knows, each with its trial and report."""
        return [(record, *kept) for record in self.records for kept in self._kept(record)]

    def _kept(self, record: TrialRecord) -> list[tuple[SavedCheckpoint, dict[str, Any]]]:
        return kept_checkpoints(record, self.checkpoints.get(record.directory, []))

    @property
    def experiment_path(self) -> str:
        """The run folder: a path, or a URI."""
        return self.folder.uri

    @property
    def filesystem(self) -> FileSystem:
        """The pyarrow file system of the run folder."""
        return self.folder.fs

    @property
    def num_errors(self) -> int:
        """Number of trials that failed."""
        return sum(record.state == "FAIL" for record in self.records)

    @property
    def num_terminated(self) -> int:
        """Number of trials that ended without error; running trials are in neither number."""
        return sum(record.shown_state not in ("FAIL", RUNNING) for record in self.records)

    def get_best_result(
        self,
        metric: str | None = None,
        mode: str | None = None,
        scope: str = "last",
        filter_nan_and_inf: bool = True,
    ) -> Result:
        """Return the best trial by its last report, its best one (``all``) or their mean (``avg``).

        ``last-5-avg`` and ``last-10-avg`` are means of the last reports. Of equals, the first trial wins.

        Raises:
            RuntimeError: if no trial has reported such a value.
            ValueError: for another scope or mode.
        """
        objective = self.ledger.objective
        metric, mode = metric or objective.metric, mode or objective.mode
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode}, but must be max or min")
        if scope not in ("all", "last", "avg", "last-5-avg", "last-10-avg"):
            raise ValueError(f"scope is {scope}, but must be all, last, avg, last-5-avg or last-10-avg")
        scores = []
        for record in self.records:
            values = [float(epoch[metric]) for epoch in record.epochs if metric in epoch]
            if filter_nan_and_inf:
                values = list(filter(math.isfinite, values))
            if values:
                scores.append((_in_scope(values, scope, mode), record))
        if not scores:
            raise RuntimeError(f"no trial has reported {metric}")
        choose = max if mode == "max" else min
        return self._result(choose(scores, key=lambda score: score[0])[1])

    def get_dataframe(self, filter_metric: str | None = None, filter_mode: str | None = None) -> pd.DataFrame:
        """Return a row per trial: its last report, or the best one by a metric, and its config."""
        choose = min if filter_mode == "min" else max
        rows = []
        for record in self.records:
            if record.epochs:
                epoch = record.last
                if filter_metric:
                    epoch = choose(record.epochs, key=lambda report: float(report[filter_metric]))
                rows.append(self._report(record, epoch))
        return pd.json_normalize(rows, sep="/")

    def _report(self, record: TrialRecord, epoch: dict[str, Any]) -> dict[str, Any]:
        return {**epoch, "trial_id": record.trial_id, "config": ray_config(record)}

    def _result(self, record: TrialRecord) -> Result:
        kept = [
            (Checkpoint(path=checkpoint.path, filesystem=self.folder.fs), self._report(record, report))
            for checkpoint, report in self._kept(record)
        ]
        result = StoredResult(
            metrics=self._report(record, record.last),
            checkpoint=kept[-1][0] if kept else None,
            error=TrialError(record.error or "") if record.state == "FAIL" else None,
            path=f"{self.folder.path}/{record.directory}",
            metrics_dataframe=pd.json_normalize(
                [self._report(record, epoch) for epoch in record.epochs], sep="/"
            ),
            best_checkpoints=kept,
        )
        result.stored_on = self.folder.fs
        return result


def _in_scope(values: list[float], scope: str, mode: str) -> float:
    if scope == "last":
        return values[-1]
    if scope == "all":
        return max(values) if mode == "max" else min(values)
    last = values if scope == "avg" else values[-int(scope.split("-")[1]) :]
    return sum(last) / len(last)


def load_grid(path: str | Path | RunFolder) -> LedgerGrid:
    """Read the trials of a run, finished, stopped, killed or still running, from a folder or URI.

    Raises:
        FolderError: if ``path`` is not the folder of a run.
    """
    folder = path if isinstance(path, RunFolder) else RunFolder(path)
    return LedgerGrid(folder, folder.ledger())
