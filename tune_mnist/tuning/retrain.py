"""One training outside a search, as a generator of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tune_mnist.run.saved import CHECKPOINT
from tune_mnist.task import DivergedError, Objective, Train, Trial
from tune_mnist.tuning.device import device_memory_errors, prepare_gpu, release_memory, use_threads


@dataclass(frozen=True, kw_only=True)
class Step:
    """Progress of a training; the last step has its result."""

    epoch: int
    "Epochs trained."
    ended: bool = False
    value: float | None = None
    "The metric of that epoch; None if it diverged."
    seconds: float = 0.0
    "Wall time of the whole training."
    error: str | None = None
    "Why it diverged."
    checkpoint: bytes | None = None
    "What the task saved after the last epoch, if asked for."


def retrain(
    train: Train,
    data: Any,
    config: dict[str, Any],
    trial: Trial,
    *,
    objective: Objective,
    epochs: int,
    keep: bool = False,
) -> Iterator[Step]:
    """Train all epochs of a configuration; yield a step for each, and one for the end.

    Args:
        train: the task's function.
        data: what the task has loaded; its arrays are read-only memory shared with other trainings.
        config: the configuration.
        trial: where to train, and with which seed.
        objective: its last value is the result.
        epochs: number of epochs to train.
        keep: whether the last step has a checkpoint.

    Raises:
        DeviceMemoryError: if the GPU's memory is too small; the text names the fraction to ask for.
        RuntimeError: if the trial has a GPU and torch sees none, or no checkpoint could be kept.
    """
    started, epoch, value, checkpoint = time.perf_counter(), 0, math.nan, None
    use_threads(trial.cpus)
    try:
        with device_memory_errors(trial.gpus), TemporaryDirectory() as folder:
            prepare_gpu(trial.gpus)
            for place, (report, save) in enumerate(train(config, data, trial), 1):
                epoch, value = int(report.get(objective.time_attr, place)), float(report[objective.metric])
                if not math.isfinite(value):
                    raise DivergedError(f"{objective.metric} is not finite after epoch {epoch}")
                if keep and epoch >= epochs and save is not None:
                    save(Path(folder) / CHECKPOINT)
                    checkpoint = (Path(folder) / CHECKPOINT).read_bytes()
                yield Step(epoch=epoch, value=value)
                if epoch >= epochs:
                    break
    except DivergedError as error:
        yield Step(epoch=epoch, ended=True, error=str(error), seconds=time.perf_counter() - started)
        return
    finally:
        release_memory()
    if keep and checkpoint is None:
        raise RuntimeError(f"it yielded no checkpoint after epoch {epochs}, the last of its training")
    seconds = time.perf_counter() - started
    yield Step(epoch=epoch, ended=True, value=value, seconds=seconds, checkpoint=checkpoint)
