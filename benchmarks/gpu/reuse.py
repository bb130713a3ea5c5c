"""Step `reuse`: trials in one process leak no memory; checkpoints resume on another device."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.gpu.loop import LEARNING_RATES
from benchmarks.gpu.step import Setup, StepError
from tune_mnist.mnist.data import Split, load_train_val
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.training import Training, evaluate, fit
from tune_mnist.tuning.device import release_memory

OPTIMIZERS = tuple(LEARNING_RATES)
TRIALS = 12
SETTLED = 4
"""Trials after which memory must be flat: by then each optimizer has had its turn."""
GROWTH_MB = {"cuda": 32.0, "cpu": 100.0}
"""Most that may be added from then on: to a GPU's memory, and to a process's, which is noisier."""
ACCURACY_TOLERANCE = 0.01
"""Between the accuracies of the same weights on two devices."""


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield memory after each trial, then how a checkpoint resumes on the other device.

    Raises:
        StepError: if memory grows, or a resumed training is not the saved one.
    """
    images, val_images = (6400, 1000) if setup.on_gpu else (256, 200)
    train, validation = load_train_val("mnist", setup.data_dir, val_size=val_images, train_size=images)
    faults = []
    memory: list[float] = []
    for number in range(TRIALS):
        _train_one(setup, number, train, validation)
        memory.append(_megabytes(setup))
        yield {"MB after each trial": [round(one, 1) for one in memory]}
    growth = max(memory[SETTLED:]) - memory[SETTLED - 1]
    yield {"growth MB": growth}
    if growth > GROWTH_MB[setup.device]:
        faults.append(f"memory grows by {growth:.0f} MB from trial {SETTLED} to {TRIALS}")
    other = "cpu"
    for source, target in ((setup.device, other), (other, setup.device)):
        for optimizer in OPTIMIZERS:
            fault = _resume(source, target, optimizer, train, validation)
            yield {f"{optimizer}, {source} to {target}": fault or "resumes"}
            if fault:
                faults.append(f"{optimizer}, {source} to {target}: {fault}")
    if faults:
        raise StepError("; ".join(faults))


def _train_one(setup: Setup, number: int, train: Split, validation: Split) -> None:
    """Train as a trial does, leaving behind what it leaves to the next one in its process."""
    hyperparameters = Hyperparameters(epochs=2, optimizer=OPTIMIZERS[number % len(OPTIMIZERS)])
    training = Training(hyperparameters, seed=number, device=setup.device)
    for _ in fit(training, train, validation):
        pass
    del training
    gc.collect()
    release_memory()


def _megabytes(setup: Setup) -> float:
    """Measure the memory of the GPU, context and graphs included (nothing else runs), or of this process."""
    if setup.on_gpu:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6
    return float(psutil.Process().memory_info().rss / 1e6)


def _resume(source: str, target: str, optimizer: str, train: Split, validation: Split) -> str:
    """Train an epoch on one device and the next on another; return what went wrong, if anything."""
    train = Split(images=train.images[:1280], labels=train.labels[:1280])
    lr = LEARNING_RATES[optimizer]
    hyperparameters = Hyperparameters(epochs=2, optimizer=optimizer, lr=lr, lr_end_factor=0.5)
    training = Training(hyperparameters, seed=0, device=source, precision="fp32")
    before = next(fit(training, train, validation))
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder) / "checkpoint.pt")
        resumed = Training(hyperparameters, seed=0, device=target, precision="fp32")
        resumed.restore(Path(folder) / "checkpoint.pt")
    accuracy, _ = evaluate(resumed.model, validation)
    if abs(accuracy - before.accuracy) > ACCURACY_TOLERANCE:
        return f"accuracy was {before.accuracy:.3f} and is {accuracy:.3f} after the resume"
    after = list(fit(resumed, train, validation))
    if [result.epoch for result in after] != [2]:
        return f"epochs {[result.epoch for result in after]} follow epoch 1"
    if not (math.isfinite(after[0].train_loss) and after[0].train_loss < before.train_loss):
        return f"the loss was {before.train_loss:.3f} and is {after[0].train_loss:.3f} an epoch later"
    return ""
