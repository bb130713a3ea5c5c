"""Training on MNIST as a task has it: a generator of reports, which a trial imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tune_mnist.mnist.data import Split
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.training import Training, fit
from tune_mnist.task import Save, Trial


def train(
    config: dict[str, Any], data: Mapping[str, Any], trial: Trial
) -> Iterator[tuple[dict[str, Any], Save]]:
    """Train one configuration, giving the fields of an `EpochResult` after each epoch.

    Args:
        config: the keywords of `Hyperparameters`.
        data: from `tune_mnist.mnist.task.load`.
        trial: where to train, with which seed, and from which checkpoint on.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        DivergedError: if the loss is not finite.
        GraphCaptureError: if the GPU cannot record a step as a CUDA graph.
    """
    training = Training(
        Hyperparameters(**config), seed=trial.seed, device=trial.device, precision=data["precision"]
    )
    if trial.checkpoint:
        training.restore(trial.checkpoint)
    splits = (Split.from_arrays(**data[name]) for name in ("train", "validation"))
    for result in fit(training, *splits, cuda_graph=data["cuda_graph"] == "on"):
        yield dataclasses.asdict(result), training.save
