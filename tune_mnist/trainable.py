"""One trial, as Ray runs it: goes on from its newest checkpoint, trains, and reports every epoch."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from tune_mnist.data import Split
from tune_mnist.device import device_memory_errors, limit_memory, release_memory, use_threads
from tune_mnist.folder import CHECKPOINT, REPORTS
from tune_mnist.hyperparameters import FAILURE, METRIC, OPTUNA_NUMBER, TIME_ATTR, Hyperparameters
from tune_mnist.training import DivergedError, Training, fit


def train_trial(
    config: dict[str, Any],
    *,
    train: Mapping[str, Any],
    validation: Mapping[str, Any],
    seed: int,
    device: str,
    precision: str,
    rungs: Collection[int],
    checkpoint_seconds: float,
    target_accuracy: float | None,
    cuda_graph: str = "on",
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> None:
    """Train one configuration, reporting the fields of an `EpochResult` after each epoch.

    Divergence is a result too: the last report then has FAILURE, and the process is there for the next trial.

    Args:
        config: the keywords of `Hyperparameters`, and the number of the trial in the study.
        train: arrays of the training split, read-only memory shared with other trials.
        validation: arrays of the validation split, likewise.
        seed: of the search; each trial adds its number in the study.
        device: cpu or cuda.
        precision: auto, fp32 or bf16.
        rungs: epochs that are written as a checkpoint because ASHA may stop there.
        checkpoint_seconds: longest time without a checkpoint, looked at when an epoch ends.
        target_accuracy: the accuracy that ends the search; an epoch that reaches it is written too.
        cuda_graph: on or off: whether a GPU replays the steps from CUDA graphs.
        cpus: CPU cores of the trial: the number of threads it uses.
        gpus: GPUs of the trial; a fraction is a limit of its memory.

    Raises:
        DeviceMemoryError: if the GPU's memory is too small; the text names the fraction to ask for.
        GraphCaptureError: if the GPU cannot record a step as a CUDA graph.
        RuntimeError: if ``device`` is cuda and there is none.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # torch and Ray, whose 400,000 objects the collection below would walk through each time
    config = dict(config)
    number = config.pop(OPTUNA_NUMBER, 0)
    hyperparameters = Hyperparameters(**config)
    use_threads(cpus)
    with device_memory_errors(gpus):
        training = Training(hyperparameters, seed=seed + number, device=device, precision=precision)
        limit_memory(gpus)
        reports = _restore(training)
        saved_at = time.monotonic()
        try:
            splits = Split.from_arrays(**train), Split.from_arrays(**validation)
            for result in fit(training, *splits, cuda_graph=cuda_graph == "on"):
                metrics = dataclasses.asdict(result)
                reports.append({**metrics, "timestamp": time.time()})
                due = (
                    result.epoch in rungs
                    or result.epoch == hyperparameters.epochs
                    or (target_accuracy is not None and metrics[METRIC] >= target_accuracy)
                    or time.monotonic() - saved_at > checkpoint_seconds
                )
                if due:
                    saved_at = time.monotonic()
                    with tempfile.TemporaryDirectory() as folder:
                        training.save(Path(folder) / CHECKPOINT)
                        (Path(folder) / REPORTS).write_text(json.dumps(reports))
                        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
                else:
                    tune.report(metrics)
        except DivergedError as error:
            tune.report({FAILURE: str(error), METRIC: math.nan, TIME_ATTR: training.epoch + 1})
        finally:
            # The next trial may run in this process: leave it no memory of this one.
            del training
            gc.collect()
            release_memory()


def _restore(training: Training) -> list[dict[str, Any]]:
    """Go on from the trial's newest checkpoint, if it has one, and give what was reported up to there."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        training.restore(Path(folder) / CHECKPOINT)
        reports: list[dict[str, Any]] = json.loads((Path(folder) / REPORTS).read_text())
    return reports
