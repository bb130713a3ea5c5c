"""The files in the folders of trials: their reports, their errors, their curves for TensorBoard.

A trial has one of each, however many attempts it takes. Ray's loggers write per attempt, and count the steps
of each from 1 again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import EPOCH, TrialRecord, ray_config

REPORTS_FILE, ERROR_FILE = "result.json", "error.txt"
"""Names of files in a trial's folder: its reports, one per line, and what training or an attempt raised."""
LEFT_OUT = ("pid", "timestamp", "training_iteration", "done", "iterations_since_restore")
"""Reported numbers that are not plotted."""


class TrialFiles:
    """Writes what trials report, in the form that Ray and TensorBoard read."""

    def __init__(self, folder: RunFolder, metric: str) -> None:
        self._folder, self._metric = folder, metric
        self._writers: dict[str, Any] = {}

    def begin(self, trial: TrialRecord) -> None:
        """Begin a trial's reports with those in the ledger, as after a resume or a loss."""
        if trial.epochs:
            lines = "".join(f"{_line(trial, epoch)}\n" for epoch in trial.epochs)
            self._file(trial, REPORTS_FILE).write_text(lines)

    def reported(self, trial: TrialRecord) -> None:
        """Write a trial's last report."""
        epoch = trial.epochs[-1]
        self._append(trial, REPORTS_FILE, _line(trial, epoch))
        writer = self._writer(trial)
        for name, value in numbers(epoch).items():
            writer.add_scalar(f"ray/tune/{name}", value, global_step=epoch[EPOCH])
        writer.file_writer.flush()

    def raised(self, trial: TrialRecord, text: str) -> None:
        """Write what training or an attempt raised."""
        self._append(trial, ERROR_FILE, text)

    def ended(self, trial: TrialRecord) -> None:
        """Write a trial's hyper-parameters for TensorBoard, and close its curves."""
        if not trial.epochs:
            return
        from tensorboardX.summary import hparams

        writer = self._writer(trial)
        for summary in hparams(hparam_dict=ray_config(trial), metric_dict={f"ray/tune/{self._metric}": 0.0}):
            writer.file_writer.add_summary(summary)
        writer.close()
        del self._writers[trial.trial_id]

    def close(self) -> None:
        """Close all curves."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, trial: TrialRecord) -> Any:
        if trial.trial_id not in self._writers:
            # Imported here because it imports boto3, if installed: 0.8 s, while the first trial trains.
            from tensorboardX import SummaryWriter

            path = self._folder.local / trial.directory
            self._writers[trial.trial_id] = SummaryWriter(str(path), flush_secs=30)
        return self._writers[trial.trial_id]

    def _append(self, trial: TrialRecord, name: str, text: str) -> None:
        with self._file(trial, name).open("a") as file:
            file.write(f"{text.rstrip()}\n")

    def _file(self, trial: TrialRecord, name: str) -> Path:
        path = self._folder.local / trial.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def numbers(epoch: dict[str, Any]) -> dict[str, float]:
    """Return an epoch's reported numbers that are plotted."""
    kept = ((name, value) for name, value in epoch.items() if name not in LEFT_OUT)
    return {
        name: value for name, value in kept if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _line(trial: TrialRecord, epoch: dict[str, Any]) -> str:
    return json.dumps({**epoch, "trial_id": trial.trial_id, "config": ray_config(trial)})
