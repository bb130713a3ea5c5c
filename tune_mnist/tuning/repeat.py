"""Reads a trial of a run with everything that its training was given, so that it can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.settings import Settings
from tune_mnist.task import Objective, Task, Trial
from tune_mnist.tuning.changes import describe_changes
from tune_mnist.tuning.device import prepare_gpu
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.retrain import Step, retrain
from tune_mnist.tuning.tasks import find_task, make_options
from tune_mnist.tuning.tuner import InputError, input_errors


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A trial of a run to train again."""

    task: Task
    objective: Objective
    "The objective of the run."
    record: TrialRecord
    "The run's ledger entry of the trial."
    trial: Trial
    "Input of its training; all that decides its values is as it was in the search."
    data: Any
    changes: str
    "How the task's hyper-parameters have changed since the search, in words."

    def train(self) -> Iterator[Step]:
        """Train it for all planned epochs, even if the search stopped it earlier.

        Raises:
            Exception: what the task's own code raises, except DivergedError, which the last step reports.
        """
        return retrain(
            self.task.train,
            self.data,
            dict(self.record.config),
            self.trial,
            objective=self.objective,
            epochs=self.record.epochs_planned,
        )


def load_repeat(run: str, number: int, options: Mapping[str, Any], device: str | None = None) -> Repeat:
    """Read a trial of a run, find its task, and load its data. Nothing is changed, and Ray is not started.

    ``options`` are the task's options that differ on this machine; ``device`` is cpu or cuda, or None for
    that of the search.

    Raises:
        InputError: if there is no such run or trial, or it cannot be trained here.
    """
    with input_errors():
        folder = RunFolder(run)
        ledger, settings = folder.ledger(), read_settings(folder)
        record = _find(ledger, number, folder.uri)
        task = find_task(settings)
        made = make_options(task, {**settings.options, **options})
        trial = _trial(settings, record, device)
        data = task.load(made, settings.seed) if task.load else None
    return Repeat(
        task=task,
        objective=ledger.objective,
        record=record,
        trial=trial,
        data=data,
        changes=describe_changes(ledger, task),
    )


def _find(ledger: Ledger, number: int, uri: str) -> TrialRecord:
    records = {record.number: record for record in ledger.trials.values()}
    if not records:
        raise ValueError(f"{uri} has no trial that could be repeated")
    if not 0 <= number <= max(records):
        raise ValueError(f"trial is {number}, but must be 0 to {max(records)}")
    if number not in records or not records[number].config:
        raise ValueError(f"trial is {number}, but must be one whose configuration is in {uri}/{LEDGER}")
    return records[number]


def _trial(settings: Settings, record: TrialRecord, device: str | None) -> Trial:
    gpus = settings.gpus_per_trial or 0.0
    if device is not None:
        gpus = (gpus or 1.0) if device == "cuda" else 0.0
    try:
        prepare_gpu(gpus)  # also here, before the data is loaded
    except RuntimeError as error:
        raise InputError(f"{error} without --device cpu") from error
    return Trial(
        seed=settings.seed + record.number,
        max_epochs=settings.max_epochs,
        device="cuda" if gpus else "cpu",
        cpus=settings.cpus_per_trial,
        gpus=gpus,
    )
