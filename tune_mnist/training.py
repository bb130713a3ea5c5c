"""The training loop, free of Ray: ``fit`` yields each epoch's outcome; its caller decides to go on."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F

from tune_mnist.data import Split
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.model import Network
from tune_mnist.steps import DivergedError as DivergedError
from tune_mnist.steps import Steps, autocast, make_optimizer
from tune_mnist.words import first_line

PRECISIONS = ("auto", "fp32", "bf16")
EVALUATION_BATCH = {"cpu": 100, "cuda": 250}
"""Images a step of evaluation: on a CPU 100 run 1.2 to 1.5 times as fast as 250, which outgrow its caches."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one epoch came to."""

    epoch: int
    "Epochs trained so far, from 1."
    accuracy: float
    "Share of the validation images classified rightly, 0..1."
    val_loss: float
    "Mean negative log-likelihood of the validation images, nats."
    train_loss: float
    "Mean loss of the epoch's training steps (dropout on, weights moving), nats."
    epoch_seconds: float
    "Wall time of training and validation, seconds."
    images_per_second: float
    "Training images over the training part of that time."


class CheckpointError(RuntimeError):
    """A checkpoint can't be read."""


class DeviceMemoryError(RuntimeError):
    """The GPU has not the memory that the training needs."""


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
            ValueError: for a precision that is unknown or that the device has not.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                "this trial was given a GPU, but torch sees no CUDA device; it won't train on the CPU"
            )
        if device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where the precision is fp32
        self.hyperparameters = hyperparameters
        self.seed = seed
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, device)
        torch.manual_seed(seed)
        self.model = Network(hyperparameters).to(self.device)
        self.optimizer = make_optimizer(self.model, hyperparameters)
        self.epoch = 0

    def save(self, path: Path) -> None:
        """Write everything that going on from here needs: model, optimizer, epoch and random states."""
        random_states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state()
        state = {"epoch": self.epoch, "random_states": random_states}
        torch.save(
            {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **state}, path
        )

    def restore(self, path: Path) -> None:
        """Go on from what ``save`` wrote; on the CPU bit for bit as if never interrupted.

        Raises:
            CheckpointError: if it is spoilt, or of another network.
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
    """Give a model the weights in a checkpoint; return all that ``Training.save`` wrote there."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"the checkpoint {path.name} can't be read: {first_line(error)}") from error
    return state


def fit(
    training: Training, train: Split, validation: Split, *, cuda_graph: bool = True
) -> Iterator[EpochResult]:
    """Train epoch by epoch up to ``hyperparameters.epochs``, from wherever ``training`` stands.

    The order of the images and their shifts depend on (seed, epoch) alone. The splits are only read.

    Raises:
        DivergedError: at the step (on a GPU: at the end of the epoch) whose loss is not finite. ASHA can't
            see such a trial, as ``nan < cutoff`` is False.
    """
    train, validation = train.to(training.device), validation.to(training.device)
    steps = Steps(
        training.model,
        training.optimizer,
        train,
        training.hyperparameters,
        precision=training.precision,
        cuda_graph=cuda_graph,
    )
    while training.epoch < training.hyperparameters.epochs:
        started = time.perf_counter()
        epoch = training.epoch + 1
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
        )


def evaluate(model: Network, split: Split, *, precision: str = "fp32") -> tuple[float, float]:
    """Classify a split without dropout; return accuracy (0..1) and mean negative log-likelihood (nats)."""
    device = next(model.parameters()).device
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    batch = EVALUATION_BATCH[device.type]
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        for images, labels in zip(
            torch.split(split.images, batch),
            torch.split(split.labels, batch),
            strict=True,
        ):
            labels = labels.to(device)
            log_probabilities = model(images.to(device))
            right += (log_probabilities.argmax(dim=1) == labels).sum()
            loss += F.nll_loss(log_probabilities, labels, reduction="sum")
    return right.item() / len(split), loss.item() / len(split)


def resolve_precision(precision: str, device: str) -> str:
    """Choose fp32 or bf16: ``auto`` takes bf16 where the device multiplies it natively.

    Raises:
        ValueError: for an unknown precision, or bf16 where it would be emulated.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}, but must be one of {', '.join(PRECISIONS)}")
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    if precision == "bf16" and not native:
        raise ValueError(
            f"precision is bf16, but must be fp32 or auto here: this {device} does not multiply bf16"
        )
    return "bf16" if native and precision != "fp32" else "fp32"


@contextmanager
def device_memory_errors(share: float) -> Iterator[None]:
    """Turn the ways in which CUDA says that its memory is used up into one sentence with a cure, for a block.

    Args:
        share: of a GPU that this process has been given; above 1, GPUs.

    Raises:
        DeviceMemoryError: in place of CUDA's own errors.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is what cuBLAS and cuDNN raise
        if not re.search(r"out of memory|ALLOC_FAILED", str(error)):
            raise
        cure = f"--gpus-per-trial {min(1.0, 2 * share):g}" if share < 1 else "a space with smaller batch_size"
        raise DeviceMemoryError(
            f"the GPU has no memory left for this trial, whose share is {share:g}: ask for {cure}"
        ) from error


def use_threads(cpus: float) -> None:
    """Let torch use a thread for each of so many cores: Ray's OMP_NUM_THREADS comes after torch is loaded."""
    torch.set_num_threads(max(1, int(cpus)))


def release_device_memory() -> None:
    """Give the memory that torch caches on a GPU back, for whatever trains next in this process."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def score_checkpoint(
    path: Path, hyperparameters: Hyperparameters, split: Split, *, save_model: Path
) -> tuple[int, float, float]:
    """Evaluate a checkpoint in fp32 on the CPU and write its weights as a plain state dict.

    Raises:
        CheckpointError: if it can't be read.

    Returns:
        The epoch of the checkpoint, the accuracy (0..1) and the mean negative log-likelihood
        (nats) on ``split``.
    """
    model = Network(hyperparameters)  # no Training: its optimizer would import torch._dynamo, for 1 s
    epoch = _load(path, model)["epoch"]
    torch.save(model.state_dict(), save_model)
    return epoch, *evaluate(model, split)
