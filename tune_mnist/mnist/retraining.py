"""One training of a finalization: all epochs of a configuration with a seed, scored once at the end."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tune_mnist.mnist.data import Split
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.precision import full_fp32
from tune_mnist.mnist.training import DivergedError, Training, evaluate, fit
from tune_mnist.tuning.device import device_memory_errors, prepare_gpu, release_memory

WATCHED = 250
"""Images looked at after each epoch, to notice a training that has just diverged."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a training is; the last one says what it came to."""

    epoch: int
    "Epochs trained."
    ended: bool = False
    accuracy: float | None = None
    "Share of the scored images classified rightly, 0..1; None before the end, or where it diverged."
    seconds: float = 0.0
    "Wall time of the whole training with its scoring."
    error: str | None = None
    "Why it diverged."
    model: bytes | None = None
    "Its weights, as the bytes of a plain state dict, where they were asked for."


def retrain(
    hyperparameters: Hyperparameters,
    train: Mapping[str, Any],
    scored: Mapping[str, Any],
    *,
    seed: int,
    device: str,
    precision: str,
    cuda_graph: str,
    gpus: float,
    keep_model: bool,
) -> Iterator[Step]:
    """Train all epochs, then score once, in fp32 without TF32, as the model that is written will run.

    Args:
        hyperparameters: the configuration.
        train: arrays of the images to train on, read-only memory shared with other trainings.
        scored: arrays of the images to score on, likewise; no epoch sees them.
        seed: of weights, dropout and the order of the images.
        device: cpu or cuda.
        precision: auto, fp32 or bf16.
        cuda_graph: on or off: whether a GPU replays the steps from CUDA graphs.
        gpus: GPUs of the training; a fraction is a limit of its memory.
        keep_model: whether the last step brings the weights.

    Raises:
        DeviceMemoryError: if the GPU's memory is too small; the text names the fraction to ask for.
        GraphCaptureError: if the GPU cannot record a step as a CUDA graph.
        RuntimeError: if ``device`` is cuda and there is none.
    """
    started = time.perf_counter()
    images = Split.from_arrays(**train)
    watched = Split(images=images.images[:WATCHED], labels=images.labels[:WATCHED])
    epoch = 0
    try:
        with device_memory_errors(gpus):
            training = Training(hyperparameters, seed=seed, device=device, precision=precision)
            prepare_gpu(gpus)
            for result in fit(training, images, watched, cuda_graph=cuda_graph == "on"):
                epoch = result.epoch
                yield Step(epoch=epoch)
            with full_fp32():
                accuracy, _ = evaluate(training.model, Split.from_arrays(**scored))
    except DivergedError as error:
        yield Step(epoch=epoch, ended=True, error=str(error), seconds=time.perf_counter() - started)
        return
    finally:
        release_memory()
    weights = io.BytesIO()
    torch.save(training.model.cpu().state_dict(), weights)
    yield Step(
        epoch=epoch,
        ended=True,
        accuracy=accuracy,
        seconds=time.perf_counter() - started,
        model=weights.getvalue() if keep_model else None,
    )


def join(one: Split, other: Split) -> Split:
    """Put two splits behind each other."""
    return Split(images=torch.cat([one.images, other.images]), labels=torch.cat([one.labels, other.labels]))
