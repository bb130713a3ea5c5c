"""Ray's ResultGrid of a run, made from its ledger instead of Ray's files, which a kill leaves behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import pandas as pd
from ray.train._internal.storage import StorageContext
from ray.tune import CheckpointConfig, ExperimentAnalysis, Result
from ray.tune import ResultGrid as ResultGrid
from ray.tune.experiment import Trial

from tune_mnist.folder import RunFolder, SavedCheckpoint
from tune_mnist.hyperparameters import METRIC, MODE
from tune_mnist.ledger import LEDGER, UNENDED, Ledger, TrialRecord, ray_config
from tune_mnist.trials import fill, kept_checkpoints

TRAINABLE = "train_trial"
"""Name under which Ray knows the trainable."""


class StoredRun(StorageContext):
    """Where a run is stored, for trials that are only looked at: Ray's own writes a file there to try it."""

    def __init__(self, folder: RunFolder, directory: str) -> None:
        self.storage_filesystem, self.custom_fs_provided = folder.fs, False
        self.storage_fs_path, _, self.experiment_dir_name = folder.path.rpartition("/")
        self.trial_dir_name, self.current_checkpoint_index = directory, -1


class LedgerAnalysis(ExperimentAnalysis):
    """Ray's analysis of a run, made from its ledger instead of Ray's files, which a kill leaves behind it."""

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        self.default_metric, self.default_mode = METRIC, MODE
        self.folder, self.ledger, self.checkpoints = folder, ledger, folder.checkpoints()
        self._fs, self._experiment_fs_path = folder.fs, folder.path
        self._experiment_json_fs_path = f"{folder.path}/{LEDGER}"
        records = sorted(ledger.trials.values(), key=lambda record: record.number)
        self.trials = [self._trial(record) for record in records]
        self._trial_dataframes = _Frames(ledger)  # type: ignore[assignment]
        self._configs = self.get_all_configs()

    def get_best_trial(self, *args: Any, **kwargs: Any) -> Trial | None:
        """Do what Ray's does, by the maxima, minima and averages of what each trial has reported.

        Ray keeps those up to date with each report; here they are made when they are first asked for.
        """
        for trial in self.trials:
            if not trial.metric_analysis:
                for step, report in enumerate(self.ledger.trials[trial.trial_id].epochs, start=1):
                    for name, value in report.items():
                        if isinstance(value, Number):
                            trial.run_metadata.update_metric(name, value, step)
        return super().get_best_trial(*args, **kwargs)

    def _trial(self, record: TrialRecord) -> Trial:
        trial = Trial(
            TRAINABLE,
            config=ray_config(record),
            trial_id=record.trial_id,
            storage=StoredRun(self.folder, record.directory),
            checkpoint_config=CheckpointConfig(),  # it keeps all: a limit would delete files of the run
            stub=True,
        )
        fill(trial, record, self.folder, self.checkpoints.get(record.directory, []))
        if record.shown_state == UNENDED:
            trial.set_status(Trial.RUNNING)  # type: ignore[no-untyped-call]
        return trial


class LedgerGrid(ResultGrid):
    """Ray's grid, whose results are made when one is looked at: each has a table, which takes 1 ms."""

    def __init__(self, analysis: LedgerAnalysis) -> None:
        self._experiment_analysis = analysis
        self._results = _Results(self)  # type: ignore[assignment]


class _Results(Sequence[Result]):
    def __init__(self, grid: LedgerGrid) -> None:
        self.grid, self.trials = grid, grid._experiment_analysis.trials

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self.grid._trial_to_result(trial) for trial in self.trials[place]]
        return self.grid._trial_to_result(self.trials[place])


class _Frames(Mapping[str, pd.DataFrame]):
    """What each trial has reported, by its id."""

    def __init__(self, ledger: Ledger) -> None:
        self.records = ledger.trials

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __getitem__(self, trial_id: str) -> pd.DataFrame:
        record = self.records[trial_id]
        extra = {"trial_id": record.trial_id, "config": ray_config(record)}
        return pd.json_normalize([{**epoch, **extra} for epoch in record.epochs], sep="/")


def load_grid(path: str | Path | RunFolder) -> ResultGrid:
    """Read the trials of a run: finished, stopped, killed or still running; a folder or a URI.

    Raises:
        FolderError: if ``path`` is not the folder of a run.
    """
    folder = path if isinstance(path, RunFolder) else RunFolder(path)
    return LedgerGrid(LedgerAnalysis(folder, folder.ledger()))


def records(grid: ResultGrid) -> list[TrialRecord]:
    """Give what the ledger says of each trial of a grid from `load_grid`, in the order of the study."""
    return sorted(_analysis(grid).ledger.trials.values(), key=lambda record: record.number)


def saved_epochs(grid: ResultGrid) -> list[tuple[TrialRecord, SavedCheckpoint, dict[str, Any]]]:
    """List the checkpoints of such a grid, each with its trial and its report, in the order of the study."""
    found = _analysis(grid).checkpoints
    return [
        (record, *one)
        for record in records(grid)
        for one in kept_checkpoints(record, found.get(record.directory, []))
    ]


def ledger_of(grid: ResultGrid) -> Ledger:
    """Give the ledger that such a grid was made from."""
    return _analysis(grid).ledger


def _analysis(grid: ResultGrid) -> LedgerAnalysis:
    analysis = grid._experiment_analysis
    assert isinstance(analysis, LedgerAnalysis), "this grid was not read by load_grid"
    return analysis
