"""The training loop, free of Ray: ``fit`` yields each epoch's outcome; its caller decides to go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_mnist.data import Split
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.model import Network

PRECISIONS = ("auto", "fp32", "bf16")
EVALUATION_BATCH = 250
"""Images a step of evaluation: on a CPU 250 run 1.7 times as fast as 1000, which outgrow its caches."""


class DivergedError(RuntimeError):
    """The training loss became NaN or infinite."""


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
        self.hyperparameters = hyperparameters
        self.seed = seed
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, device)
        torch.manual_seed(seed)
        self.model = Network(hyperparameters).to(self.device)
        self.optimizer = _optimizer(self.model, hyperparameters)
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
        """Go on from what ``save`` wrote; on the CPU bit for bit as if never interrupted."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]
        torch.set_rng_state(state["random_states"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random_states"]:
            torch.cuda.set_rng_state(state["random_states"]["cuda"])


def fit(
    training: Training, train: Split, validation: Split, *, cuda_graph: bool = True
) -> Iterator[EpochResult]:
    """Train epoch by epoch up to ``hyperparameters.epochs``, from wherever ``training`` stands.

    The order of the images depends on (seed, epoch) alone. ``train`` and ``validation`` are only read.

    Raises:
        DivergedError: at the step (on a GPU: at the end of the epoch) whose loss is not finite. ASHA can't
            see such a trial, as ``nan < cutoff`` is False.
    """
    train, validation = train.to(training.device), validation.to(training.device)
    steps = _Steps(training, train, cuda_graph=cuda_graph)
    while training.epoch < training.hyperparameters.epochs:
        started = time.perf_counter()
        epoch = training.epoch + 1
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        order = torch.randperm(len(train), generator=generator).to(training.device)
        train_loss = steps.run(order, epoch)
        trained = time.perf_counter()
        accuracy, val_loss = evaluate(training.model, validation, precision=training.precision)
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
    model.eval()
    with torch.inference_mode(), _autocast(device, precision):
        for images, labels in zip(
            torch.split(split.images, EVALUATION_BATCH),
            torch.split(split.labels, EVALUATION_BATCH),
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


class _Steps:
    """Runs the optimisation steps of an epoch; on a GPU it replays one CUDA graph for every full batch.

    At batch 64 the launches of the step's kernels take longer than the kernels, and a graph launches them
    all at once.
    """

    WARM_UP = 3

    def __init__(self, training: Training, train: Split, *, cuda_graph: bool) -> None:
        self.training, self.train = training, train
        self.batch_size = training.hyperparameters.batch_size
        self.loss_sum = torch.zeros((), device=training.device)
        self.steps_finite = torch.zeros((), dtype=torch.int64, device=training.device)
        self.finite = torch.ones((), dtype=torch.bool, device=training.device)
        self.index = torch.zeros(self.batch_size, dtype=torch.int64, device=training.device)
        self.replay: Callable[[], None] | None = None
        self.capture_after = self.WARM_UP if cuda_graph and training.device.type == "cuda" else None

    def run(self, order: Tensor, epoch: int) -> float:
        """Take one step for each batch of ``order`` (int64 [n]); return the mean loss of an image."""
        self.training.model.train()
        self.loss_sum.zero_()
        self.steps_finite.zero_()
        self.finite.fill_(True)
        on_cpu = self.training.device.type == "cpu"
        for index in torch.split(order, self.batch_size):
            self._step(index)
            if (
                on_cpu and not self.finite
            ):  # reading the flag is free here; on a GPU it would stall every step
                break
        if not self.finite.item():
            raise DivergedError(
                f"the loss is not finite at step {self.steps_finite.item() + 1} of epoch {epoch}"
            )
        return self.loss_sum.item() / len(order)

    def _step(self, index: Tensor) -> None:
        if len(index) < self.batch_size or (self.replay is None and self.capture_after is None):
            self._eager(index)
        elif self.replay is not None:
            self.index.copy_(index)
            self.replay()
        else:
            self._warm_up_and_capture(index)

    def _eager(self, index: Tensor) -> None:
        training = self.training
        # Under capture a cached cast of the weights would be replayed stale, so autocast must not keep any.
        with _autocast(training.device, training.precision):
            loss = F.nll_loss(training.model(self.train.images[index]), self.train.labels[index])
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
        loss = loss.detach()
        self.finite.logical_and_(torch.isfinite(loss))
        self.steps_finite.add_(self.finite)
        self.loss_sum.add_(loss, alpha=len(index))

    def _warm_up_and_capture(self, index: Tensor) -> None:
        """Take the first steps on a side stream, as capture wants it, then record the graph for the rest."""
        assert self.capture_after is not None
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._eager(index)
        torch.cuda.current_stream().wait_stream(stream)
        self.capture_after -= 1
        if self.capture_after == 0:
            self.capture_after = None
            with contextlib.suppress(RuntimeError):  # a step that can't be captured goes on step by step
                graph = torch.cuda.CUDAGraph()
                self.training.optimizer.zero_grad(set_to_none=True)
                with torch.cuda.graph(graph):
                    self._eager(self.index)
                self.replay = graph.replay


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def _optimizer(model: Network, hyperparameters: Hyperparameters) -> torch.optim.Optimizer:
    """Build the optimizer; on a GPU one whose step can be captured in a CUDA graph."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    common: dict[str, Any] = {"lr": hyperparameters.lr, "weight_decay": hyperparameters.weight_decay}
    parameters, momentum = model.parameters(), hyperparameters.momentum
    if hyperparameters.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=momentum, fused=True, **common)
    if hyperparameters.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, momentum=momentum, capturable=on_gpu, foreach=True, **common)
    adam = torch.optim.AdamW if hyperparameters.optimizer == "adamw" else torch.optim.Adam
    return adam(parameters, betas=(momentum, 0.999), capturable=on_gpu, fused=True, **common)


def release_device_memory() -> None:
    """Give the memory that torch caches on a GPU back, for whatever trains next in this process."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def score_checkpoint(
    path: Path, hyperparameters: Hyperparameters, split: Split, *, save_model: Path
) -> tuple[int, float, float]:
    """Evaluate a checkpoint in fp32 on the CPU and write its weights as a plain state dict.

    Returns:
        The epoch of the checkpoint, the accuracy (0..1) and the mean negative log-likelihood
        (nats) on ``split``.
    """
    training = Training(hyperparameters, seed=0, precision="fp32")
    training.restore(path)
    torch.save(training.model.state_dict(), save_model)
    return training.epoch, *evaluate(training.model, split)
