"""One attempt at a trial, as Ray runs it: resumes from a checkpoint, trains, and reports every epoch."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
import traceback
from collections.abc import Collection, Mapping
from typing import Any

from ray import tune

from tune_mnist.checkpoints import TrialStorage
from tune_mnist.data import Split
from tune_mnist.device import (
    DeviceMemoryError,
    device_memory_errors,
    limit_memory,
    release_memory,
    use_threads,
)
from tune_mnist.hyperparameters import (
    ATTEMPT,
    FAILURE,
    METRIC,
    OPTUNA_NUMBER,
    SAVED,
    TIME_ATTR,
    Hyperparameters,
)
from tune_mnist.training import DivergedError, Training, fit

TRACEBACK = "traceback"
"""Key of a report with FAILURE: where it was raised."""


def train_trial(
    config: dict[str, Any],
    *,
    train: Mapping[str, Any],
    validation: Mapping[str, Any],
    fs: Any,
    run: str,
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

    What the training's own code raises is a result too: the last report then has FAILURE, nothing is tried
    again, and the process is there for the next trial. What is raised from here is taken for a lost attempt.

    Args:
        config: the keywords of `Hyperparameters`, the number of the trial in the study, and the attempt.
        train: arrays of the training split, read-only memory shared with other trials.
        validation: arrays of the validation split, likewise.
        fs: pyarrow's file system of the run folder.
        run: the run folder on it.
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
        OSError: if a checkpoint can't be written or read.
        RuntimeError: if ``device`` is cuda and there is none.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # torch and Ray, whose 400,000 objects the collection below would walk through each time
    config = dict(config)
    number, attempt = config.pop(OPTUNA_NUMBER, 0), config.pop(ATTEMPT)
    storage = TrialStorage(fs=fs, path=f"{run}/{attempt['directory']}")
    use_threads(cpus)
    training = None
    try:
        with device_memory_errors(gpus):
            training = Training(
                Hyperparameters(**config), seed=seed + number, device=device, precision=precision
            )
            limit_memory(gpus)
            reports: list[dict[str, Any]] = []
            if attempt["resume_from"]:
                with storage.read(attempt["resume_from"]) as (file, reports):
                    training.restore(file)
            saved_at = time.monotonic()
            splits = Split.from_arrays(**train), Split.from_arrays(**validation)
            for result in fit(training, *splits, cuda_graph=cuda_graph == "on"):
                metrics = dataclasses.asdict(result)
                reports.append({**metrics, "timestamp": time.time()})
                due = (
                    result.epoch in rungs
                    or result.epoch == training.hyperparameters.epochs
                    or (target_accuracy is not None and metrics[METRIC] >= target_accuracy)
                    or time.monotonic() - saved_at > checkpoint_seconds
                )
                if due:
                    saved_at = time.monotonic()
                    metrics[SAVED] = storage.write(result.epoch, training.save, reports)
                tune.report(metrics)
    except (OSError, DeviceMemoryError):  # an OSError is of storage that is away for a moment
        raise
    except Exception as error:
        if device == "cuda" and not isinstance(error, DivergedError):
            raise  # after most errors of CUDA a process can't use the GPU any more
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        epoch = training.epoch + 1 if training else 1
        tune.report({FAILURE: text, TRACEBACK: traceback.format_exc(), METRIC: math.nan, TIME_ATTR: epoch})
    finally:
        # The next trial may run in this process: leave it no memory of this one.
        del training
        gc.collect()
        release_memory()
