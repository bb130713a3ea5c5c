"""Ray's side of the ledger: its trials made from the records, its reports written down, its ResultGrid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
from ray.air.constants import (
    EXPR_ERROR_FILE,
    EXPR_ERROR_PICKLE_FILE,
    EXPR_RESULT_FILE,
    TRAINING_ITERATION,
)
from ray.exceptions import RayError, RayTaskError
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint, CheckpointConfig, ExperimentAnalysis
from ray.tune import ResultGrid as ResultGrid
from ray.tune import tune as tune_module
from ray.tune.error import TuneError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import SearchGenerator

from tune_mnist.folder import REPORTS, RunFolder, SavedCheckpoint
from tune_mnist.hyperparameters import METRIC, MODE, TIME_ATTR
from tune_mnist.ledger import CHECKPOINT_NAME, LEDGER, UNENDED, Ledger, TrialRecord, ray_config
from tune_mnist.search import TruthfulOptunaSearch

TRAINABLE = "train_trial"
"""Name under which Ray knows the trainable."""
CHECKPOINTS = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order=MODE)
"""Kept of a trial: the checkpoint with the highest accuracy and, as Ray always does, the newest."""


class SteadfastController(TuneController):
    """Ray Tune's loop, which tries a trial again when its process or node is lost, and only then.

    Ray's own tries again after any error, but not where the loss comes while a trial is being started in the
    process of an earlier one; such a trial it may even end without a word to the searcher.
    """

    def _process_trial_failure(self, trial: Trial, exception: Any) -> None:
        cause = getattr(exception, "cause", None) or exception
        lost = not isinstance(exception, RayTaskError) or isinstance(cause, RayError)
        if not lost:
            trial.max_failures = 0  # its own code has raised, and would again
        line = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        source: Any = self._search_alg
        source.raised(trial.trial_id, line)
        self._resetting_trials.discard(trial)
        if trial.status == Trial.PENDING:
            self._set_trial_status(trial, Trial.RUNNING)  # as Ray does where a new process is lost
        super()._process_trial_failure(trial, exception)

    def _on_trial_reset(self, trial: Trial, success: bool) -> None:
        if success:
            super()._on_trial_reset(trial, success)
        else:
            self._trial_task_failure(trial, TuneError("the process of an earlier trial could not be reused"))

    def _set_trial_status(self, trial: Trial, status: str) -> None:
        super()._set_trial_status(trial, status)
        self._mark_trial_to_checkpoint(trial)  # or Ray's table may keep a lost trial as RUNNING


@contextmanager
def steadfast() -> Iterator[None]:
    """Let `tune.run` use our controller, for a block."""
    with mock.patch.object(tune_module, "TuneController", SteadfastController):
        yield


class TrialSource(SearchGenerator):
    """Hands Ray Tune the trials of the ledger first, each as it stands, and then those of the searcher."""

    def __init__(self, searcher: TruthfulOptunaSearch, folder: RunFolder, ledger: Ledger) -> None:
        super().__init__(searcher)
        self._folder, self._ledger = folder, ledger
        self._checkpoints = folder.checkpoints() if ledger.trials else {}
        self._recorded = sorted(ledger.trials.values(), key=lambda trial: trial.number)

    def next_trial(self) -> Trial | None:
        """Give Ray the next trial, None where there is none for now."""
        if self._recorded:
            self._counter += 1
            return self._restored(self._recorded.pop(0))
        trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
        return trial

    def is_finished(self) -> bool:
        """Tell whether all trials have been handed out."""
        return not self._recorded and bool(super().is_finished())

    def raised(self, trial_id: str, error: str) -> None:
        """Note the first line of what a trial raised, or what it was lost of."""
        self._ledger.raised(trial_id, error)

    def has_checkpoint(self, dirpath: str) -> bool:
        """Tell Ray that it need not restore anything."""
        return False

    def save_to_dir(self, dirpath: str, session_str: str = "", **kwargs: Any) -> None:
        """Save nothing: the ledger has it all."""

    def _restored(self, record: TrialRecord) -> Trial:
        assert self._experiment is not None  # Ray gives it before it asks for trials
        spec = self._experiment.spec
        trial = Trial(
            spec["run"],
            config=ray_config(record),
            trial_id=record.trial_id,
            evaluated_params=record.config,
            experiment_tag=str(self._counter),
            checkpoint_config=spec["checkpoint_config"],
            trial_dirname_creator=spec["trial_dirname_creator"],
            max_failures=spec["max_failures"],
            storage=spec["storage"],
        )
        fill(trial, record, self._folder, self._checkpoints.get(record.directory, []))
        if record.state is None:
            trial.set_status(Trial.PENDING)
        return trial


def kept_checkpoints(
    record: TrialRecord, saved: list[SavedCheckpoint]
) -> list[tuple[SavedCheckpoint, dict[str, Any]]]:
    """List the whole ones of a trial's checkpoints that the ledger knows, each with its report."""
    reports = {epoch[CHECKPOINT_NAME]: epoch for epoch in record.saved}
    return [(one, reports[one.name]) for one in saved if one.whole and one.name in reports]


def fill(trial: Trial, record: TrialRecord, folder: RunFolder, saved: list[SavedCheckpoint]) -> None:
    """Bring a Ray trial to where the ledger has it: folder, checkpoints, last report, status."""
    run: Any = trial.run_metadata  # Any: Ray's attributes are set to None first, which is all that mypy sees
    storage: Any = trial.storage
    raw: Any = trial
    raw.relative_logdir = storage.trial_dir_name = record.directory
    for one, report in kept_checkpoints(record, saved):
        checkpoint = Checkpoint(path=one.path, filesystem=folder.fs)
        metrics = {**report, "trial_id": record.trial_id, "config": trial.config}
        run.checkpoint_manager.register_checkpoint(_TrainingResult(checkpoint=checkpoint, metrics=metrics))
    if saved:
        storage.current_checkpoint_index = saved[-1].index
    if record.epochs:
        run.last_result = {**record.last, "trial_id": record.trial_id, "config": trial.config}
    raw.set_status(Trial.ERROR if record.state == "FAIL" else Trial.TERMINATED)
    if record.state == "FAIL":
        run.error_filename = EXPR_ERROR_FILE
        run.pickled_error_filename = EXPR_ERROR_PICKLE_FILE


def take_in_checkpoints(folder: RunFolder, ledger: Ledger) -> None:
    """Let the checkpoints of unended trials tell what the ledger does not know, and remove torn ones.

    A checkpoint can be ahead of the ledger: a worker saves it before the driver hears of it.
    """
    found = folder.checkpoints()
    for trial in ledger.unended():
        for saved in found.get(trial.directory, []):
            content = folder.read(f"{trial.directory}/{saved.name}/{REPORTS}")
            if not (saved.whole and content):
                folder.fs.delete_dir(saved.path)
                continue
            reports = json.loads(content)
            reports[-1] |= {CHECKPOINT_NAME: saved.name, TRAINING_ITERATION: reports[-1][TIME_ATTR]}
            for report in reports:
                ledger.reported(trial.trial_id, report)


class RecordCallback(JsonLoggerCallback):
    """Writes each report into the ledger, and from there into the trial's ``result.json``."""

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder, self._ledger = folder, ledger
        self._lines: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Keep nothing: Ray pickles the callbacks into the run folder, and these belong to this process."""
        return {}

    def log_trial_start(self, trial: Trial) -> None:
        """Begin the file with what the ledger knows: after a resume or a retry that is not nothing."""
        self.log_trial_end(trial)
        trial.init_local_path()  # type: ignore[no-untyped-call]
        self.update_config(trial, trial.config)
        path = Path(trial.local_path or "", EXPR_RESULT_FILE)
        self._trial_files[trial] = path.open("wt")
        self._lines[trial.trial_id] = 0
        self._write_new(trial)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Take a report down; of an epoch that is known already, nothing is written."""
        self._ledger.reported(trial.trial_id, result)
        self._write_new(trial)
        self._folder.push()

    def _write_new(self, trial: Trial) -> None:
        epochs, file = self._ledger.trials[trial.trial_id].epochs, self._trial_files[trial]
        for epoch in epochs[self._lines[trial.trial_id] :]:
            file.write(json.dumps({**epoch, "trial_id": trial.trial_id, "config": trial.config}) + "\n")
        file.flush()
        self._lines[trial.trial_id] = len(epochs)


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
        self._trial_dataframes = {record.trial_id: self._frame(record) for record in records}
        self._configs = self.get_all_configs()

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

    def _frame(self, record: TrialRecord) -> pd.DataFrame:
        extra = {"trial_id": record.trial_id, "config": ray_config(record)}
        return pd.json_normalize([{**epoch, **extra} for epoch in record.epochs], sep="/")


def load_grid(path: str | Path | RunFolder) -> ResultGrid:
    """Read the trials of a run: finished, stopped, killed or still running; a folder or a URI.

    Raises:
        FolderError: if ``path`` is not the folder of a run.
    """
    folder = path if isinstance(path, RunFolder) else RunFolder(path)
    return ResultGrid(LedgerAnalysis(folder, folder.ledger()))


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


def lost_lines(grid: ResultGrid) -> int:
    """Count the lines of the ledger that could not be read."""
    return _analysis(grid).ledger.lost_lines


def _analysis(grid: ResultGrid) -> LedgerAnalysis:
    analysis = grid._experiment_analysis
    assert isinstance(analysis, LedgerAnalysis), "this grid was not read by load_grid"
    return analysis
