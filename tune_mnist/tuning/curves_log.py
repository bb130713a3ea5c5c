"""The learning curves of trials for TensorBoard: one run a trial, whatever number of attempts it takes."""

from __future__ import annotations

from numbers import Number
from typing import Any

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import EPOCH, TrialRecord, ray_config

LEFT_OUT = ("pid", "timestamp", "training_iteration", "done", "iterations_since_restore")


class CurvesLog:
    """Writes event files into the folders of trials.

    Ray's `TBXLoggerCallback` does so by attempt, and counts the steps of each from 1 again.
    """

    def __init__(self, folder: RunFolder, metric: str) -> None:
        self._folder, self._metric = folder, metric
        self._writers: dict[str, Any] = {}

    def add(self, trial: TrialRecord, epoch: dict[str, Any]) -> None:
        """Write the values of an epoch, under the names that Ray gives them."""
        writer = self._writer(trial)
        for name, value in epoch.items():
            if isinstance(value, Number) and not isinstance(value, bool) and name not in LEFT_OUT:
                writer.add_scalar(f"ray/tune/{name}", value, global_step=epoch[EPOCH])
        writer.file_writer.flush()

    def end(self, trial: TrialRecord) -> None:
        """Write the hyper-parameters and the last value of a trial, and close its file."""
        if not trial.epochs:
            return
        from tensorboardX.summary import hparams

        writer = self._writer(trial)
        for summary in hparams(hparam_dict=ray_config(trial), metric_dict={f"ray/tune/{self._metric}": 0.0}):
            writer.file_writer.add_summary(summary)
        writer.close()
        del self._writers[trial.trial_id]

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, trial: TrialRecord) -> Any:
        if trial.trial_id not in self._writers:
            # Here, as it imports boto3 where that is installed: 0.8 s, in which the first trial trains.
            from tensorboardX import SummaryWriter

            path = self._folder.local / trial.directory
            self._writers[trial.trial_id] = SummaryWriter(str(path), flush_secs=30)
        return self._writers[trial.trial_id]
