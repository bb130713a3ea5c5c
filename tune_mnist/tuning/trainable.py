"""One attempt at a trial, as run by Ray: resumes from a checkpoint, trains, and reports every epoch."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from ray.tune import report as report_to_ray  # bound here: `tune_session` replaces that of ray.tune

from tune_mnist.run.records import ATTEMPT, EPOCH, OPTUNA_NUMBER
from tune_mnist.run.saved import TrialStorage
from tune_mnist.run.words import first_line
from tune_mnist.task import DivergedError, Objective, Save, Train, Trial
from tune_mnist.tuning.device import (
    DeviceMemoryError,
    device_memory_errors,
    prepare_gpu,
    release_memory,
    use_threads,
)

SAVED = "saved"
"""Key of a report: the name of the checkpoint that was written with it."""
_BEGUN = itertools.count(1)
"Counts the trials of this process."
FAILURE, TRACEBACK = "failure", "traceback"
"""Keys of a trial's last report if training failed: why, in one line, and where. Its metric is NaN."""


def train_trial(
    config: dict[str, Any],
    *,
    train: Train,
    data: Any,
    objective: Objective,
    fs: Any,
    run: str,
    seed: int,
    max_epochs: int,
    rungs: Collection[int],
    checkpoint_seconds: float,
    target: float | None,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> None:
    """Train one configuration, reporting what its task reports after each epoch.

    An error in the training's own code is a result too: the last report then has FAILURE, there is no retry,
    and the process is free for the next trial. What this function raises counts as a lost attempt.

    Args:
        config: the configuration, the number of the trial in the run, and the attempt.
        train: the task's function.
        data: what the task has loaded; its arrays are read-only memory shared with other trials.
        objective: the task's objective.
        fs: the pyarrow file system of the run folder.
        run: path of the run folder on it.
        seed: the search's seed; each trial adds its number.
        max_epochs: most epochs of a trial.
        rungs: epochs with a checkpoint because ASHA may stop the trial there.
        checkpoint_seconds: longest time without a checkpoint, checked at epoch ends.
        target: the metric that ends the search; an epoch that reaches it gets a checkpoint.
        cpus: CPU cores of the trial: the number of threads it uses.
        gpus: GPUs of the trial; a fraction also limits its memory.

    Raises:
        DeviceMemoryError: if the GPU's memory is too small; the text names the fraction to ask for.
        OSError: if a checkpoint cannot be written or read.
        RuntimeError: if the trial has a GPU and torch sees none.
    """
    _set_aside_what_stays()
    config = dict(config)
    number, attempt = config.pop(OPTUNA_NUMBER, 0), config.pop(ATTEMPT)
    storage = TrialStorage(fs=fs, path=f"{run}/{attempt['directory']}")
    device = "cuda" if gpus else "cpu"
    trial = Trial(seed=seed + number, max_epochs=max_epochs, device=device, cpus=cpus, gpus=gpus)
    use_threads(cpus)
    epoch = 0
    try:
        with device_memory_errors(gpus):
            prepare_gpu(gpus)
            saved_at = time.monotonic()
            for report, reports, save in _reports(train, config, data, trial, storage, attempt, objective):
                epoch = report[EPOCH]
                value = report[objective.metric]
                reached = target is not None and objective.sign * (value - target) >= 0
                if (
                    epoch in rungs
                    or epoch >= max_epochs
                    or epoch == config.get("epochs")
                    or reached
                    or time.monotonic() - saved_at > checkpoint_seconds
                ) and save is not None:
                    saved_at = time.monotonic()
                    report[SAVED] = storage.write(epoch, save, reports)
                report_to_ray(report)
    except (OSError, DeviceMemoryError):  # an OSError means that storage is temporarily unavailable
        raise
    except Exception as error:
        if gpus and not isinstance(error, DivergedError):
            raise  # after most CUDA errors a process can no longer use the GPU
        failure = {FAILURE: first_line(error), TRACEBACK: traceback.format_exc(), objective.metric: math.nan}
        report_to_ray({**failure, EPOCH: epoch + 1})
    finally:
        # The next trial may run in this process: free the memory of this one.
        gc.collect()
        release_memory()


def _set_aside_what_stays() -> None:
    """Exclude torch and Ray, 400,000 objects, and the first trial's imports from garbage collection."""
    begun = next(_BEGUN)
    if begun == 2:
        gc.collect()  # do not freeze what is left of the first trial
    if begun <= 2:
        gc.freeze()


def _reports(
    train: Train,
    config: dict[str, Any],
    data: Any,
    trial: Trial,
    storage: TrialStorage,
    attempt: Mapping[str, Any],
    objective: Objective,
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], Save | None]]:
    """Yield each report of the training, all reports up to there, and its `Save`."""
    reports: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if attempt["resume_from"]:
            checkpoint, reports = stack.enter_context(storage.read(attempt["resume_from"]))
            trial = dataclasses.replace(trial, checkpoint=checkpoint, epoch=reports[-1][EPOCH])
        started = time.perf_counter()
        for place, (metrics, save) in enumerate(train(config, data, trial), trial.epoch + 1):
            seconds = time.perf_counter() - started
            report = {
                EPOCH: int(metrics.get(objective.time_attr, place)),
                "epoch_seconds": seconds,
                **metrics,
            }
            if not math.isfinite(report[objective.metric]):
                raise DivergedError(f"{objective.metric} is not finite after epoch {report[EPOCH]}")
            reports.append({**report, "timestamp": time.time()})
            yield report, reports, save
            started = time.perf_counter()
