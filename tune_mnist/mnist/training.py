"""The training loop, free of Ray: ``fit`` yields each epoch's result; its caller decides whether to continue.

``train`` is the same in the form that a task needs and a trial imports.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F

from tune_mnist.mnist.data import Split
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.model import Network
from tune_mnist.mnist.precision import allow_tf32, autocast, resolve_precision
from tune_mnist.mnist.steps import GraphCaptureError as GraphCaptureError
from tune_mnist.mnist.steps import Steps, capture_graph, make_optimizer
from tune_mnist.run.words import first_line
from tune_mnist.task import CheckpointError, Save, Trial
from tune_mnist.task import DivergedError as DivergedError

EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}
"""Images per evaluation step: on a CPU 100 run 1.2 to 1.5 times as fast as 250, which outgrow its caches."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The result of one epoch."""

    epoch: int
    "Epochs trained so far, from 1."
    accuracy: float
    "Fraction of the validation images classified correctly, 0..1."
    val_loss: float
    "Mean negative log-likelihood of the validation images, nats."
    train_loss: float
    "Mean loss of the epoch's training steps (dropout on, weights moving), nats."
    epoch_seconds: float
    "Wall time of training and validation, seconds."
    images_per_second: float
    "Training images over the training part of that time."
    cuda_graph: bool
    "Whether steps were replayed from a CUDA graph."


class Training:
    """One network in training: its weights, its optimizer, the epochs done and the random state.

    Attributes:
        model: the network, on ``device``.
        optimizer: its optimizer.
        epoch: epochs done.
    """

    def __init__(
        self, hyperparameters: Hyperparameters, *, seed: int, device: str = "cpu", precision: str = "auto"
    ) -> None:
        """Seed torch and draw the initial weights.

        Raises:
            RuntimeError: if ``device`` is cuda and no CUDA device is visible.
            ValueError: for a precision that is unknown or that the device does not have.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                "this trial was given a GPU, but torch sees no CUDA device; it won't train on the CPU"
            )
        if device == "cuda":
            allow_tf32()
        self.hyperparameters, self.seed, self.epoch = hyperparameters, seed, 0
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, device)
        torch.manual_seed(seed)
        self.model = Network(hyperparameters).to(self.device)
        self.optimizer = make_optimizer(self.model, hyperparameters)

    def save(self, path: Path) -> None:
        """Write everything needed to continue from here: model, optimizer, epoch and random states."""
        random_states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state()
        state = {"epoch": self.epoch, "random_states": random_states}
        torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **state}, path
        )

    def restore(self, path: Path) -> None:
        """Continue from what ``save`` wrote; on the CPU bit for bit as if never interrupted.

        Raises:
            CheckpointError: if it is corrupt, or of another network.
        """
        state = _load(path, self.model)
        # Not the saved groups: a GPU's hold `capturable` and perhaps lr as a tensor, a CPU's don't.
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**own, "state": state["optimizer"]["state"]})
        self.epoch = state["epoch"]
        torch.set_rng_state(state["random_states"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random_states"]:
            torch.cuda.set_rng_state(state["random_states"]["cuda"])


def _load(path: Path, model: Network) -> dict[str, Any]:
    """Load the weights in a checkpoint into a model; return all that ``Training.save`` wrote there."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"the checkpoint {path.name} can't be read: {first_line(error)}") from error
    return state


def fit(
    training: Training, train: Split, validation: Split, *, cuda_graph: bool = True
) -> Iterator[EpochResult]:
    """Train epoch by epoch up to ``hyperparameters.epochs``, from the epoch where ``training`` stands.

    The order of the images and their shifts depend on (seed, epoch) alone. The splits are only read. With
    ``cuda_graph`` a GPU replays the steps from CUDA graphs.

    Raises:
        DivergedError: at the step (on a GPU: at the end of the epoch) whose loss is not finite. ASHA would
            not stop such a trial, as ``nan < cutoff`` is False.
        GraphCaptureError: if the GPU cannot record a step as a CUDA graph.
    """
    train, validation = train.to(training.device), validation.to(training.device)
    on_gpu = training.device.type == "cuda"
    steps = Steps(training, train, capture=capture_graph if cuda_graph and on_gpu else None)
    for epoch in range(training.epoch + 1, training.hyperparameters.epochs + 1):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        order = torch.randperm(len(train), generator=generator).to(training.device)
        moves = torch.randint(2 * training.hyperparameters.shift + 1, (2, len(train)), generator=generator)
        train_loss = steps.run(order, moves.to(training.device), epoch)
        trained = time.perf_counter()
        accuracy, val_loss = evaluate(training.model, validation, precision=training.precision)
        if not math.isfinite(val_loss):  # the last step's loss was finite, its gradient was not
            raise DivergedError(f"the loss is not finite after epoch {epoch}")
        training.epoch = epoch
        yield EpochResult(
            epoch=epoch,
            accuracy=accuracy,
            val_loss=val_loss,
            train_loss=train_loss,
            epoch_seconds=time.perf_counter() - started,
            images_per_second=len(train) / (trained - started),
            cuda_graph=steps.replayed > 0,
        )


def evaluate(model: Network, split: Split, *, precision: str = "fp32") -> tuple[float, float]:
    """Classify a split without dropout; return accuracy (0..1) and mean negative log-likelihood (nats)."""
    device = next(model.parameters()).device
    split = split.to(device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    batch = EVALUATION_BATCH[device.type]
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        batches = (torch.split(part, batch) for part in (split.images, split.labels))
        for images, labels in zip(*batches, strict=True):
            log_probabilities = model(images)
            right += (log_probabilities.argmax(dim=1) == labels).sum()
            loss += F.nll_loss(log_probabilities, labels, reduction="sum")
    return right.item() / len(split), loss.item() / len(split)


def load_network(path: Path, hyperparameters: Hyperparameters) -> Network:
    """Load the network of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: if it cannot be read.
    """
    model = Network(hyperparameters)  # no Training: its optimizer would import torch._dynamo, for 1 s
    _load(path, model)
    return model.eval()


def train(
    config: dict[str, Any], data: Mapping[str, Any], trial: Trial
) -> Iterator[tuple[dict[str, Any], Save]]:
    """Train one configuration, yielding the fields of an `EpochResult` after each epoch.

    Args:
        config: the keywords of `Hyperparameters`.
        data: from `tune_mnist.mnist.task.load`.
        trial: where to train, with which seed, and from which checkpoint.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        DivergedError, GraphCaptureError: as `fit`.
    """
    training = Training(
        Hyperparameters(**config), seed=trial.seed, device=trial.device, precision=data["precision"]
    )
    if trial.checkpoint:
        training.restore(trial.checkpoint)
    splits = (Split.from_arrays(**data[name]) for name in ("train", "validation"))
    for result in fit(training, *splits, cuda_graph=data["cuda_graph"] == "on"):
        yield dataclasses.asdict(result), training.save
