"""The optimisation steps of an epoch: eager, or on a GPU replayed as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_mnist.data import Split
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.model import Network


class DivergedError(RuntimeError):
    """The training loss became NaN or infinite."""


class Steps:
    """Runs the optimisation steps of an epoch; on a GPU it replays one CUDA graph for every full batch.

    At batch 64 the launches of the step's kernels take longer than the kernels, and a graph launches them
    all at once.
    """

    WARM_UP = 3

    def __init__(
        self,
        model: Network,
        optimizer: torch.optim.Optimizer,
        train: Split,
        hyperparameters: Hyperparameters,
        *,
        precision: str,
        cuda_graph: bool,
    ) -> None:
        """Prepare to train ``model`` on ``train``, which lies on the model's device."""
        self.model, self.optimizer, self.train, self.hyperparameters = (
            model,
            optimizer,
            train,
            hyperparameters,
        )
        self.batch_size, self.precision = hyperparameters.batch_size, precision
        self.device = device = train.images.device
        # Each image at each shift, a view of images with a margin: [n, 2 shift + 1, 2 shift + 1, 28, 28].
        padded = F.pad(train.images, [hyperparameters.shift] * 4) if hyperparameters.shift else train.images
        self.shifted = padded.unfold(1, 28, 1).unfold(2, 28, 1)
        self.moves = torch.zeros(2, len(train), dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.steps_finite = torch.zeros((), dtype=torch.int64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.index = torch.zeros(self.batch_size, dtype=torch.int64, device=device)
        self.replay: Callable[[], None] | None = None
        self.capture_after = self.WARM_UP if cuda_graph and device.type == "cuda" else None
        if hyperparameters.lr_end_factor != 1:
            lr = hyperparameters.lr
            for group in optimizer.param_groups:
                # A number would be part of the graph.
                group["lr"] = torch.tensor(lr, device=device) if device.type == "cuda" else lr

    def run(self, order: Tensor, moves: Tensor, epoch: int) -> float:
        """Take one step for each batch; return the mean loss of an image.

        Args:
            order: the images' indices, int64 [n].
            moves: how far each image is moved down and right, int64 [2, n], 0 to twice the shift.
            epoch: from 1.

        Raises:
            DivergedError: if the loss is not finite; on a CPU at once, on a GPU after the last step.
        """
        self.model.train()
        self.loss_sum.zero_()
        self.steps_finite.zero_()
        self.finite.fill_(True)
        self.moves.copy_(moves)
        on_cpu = self.device.type == "cpu"
        batches = torch.split(order, self.batch_size)
        for number, index in enumerate(batches, start=(epoch - 1) * len(batches)):
            self._set_lr(number / (len(batches) * self.hyperparameters.epochs))
            self._step(index)
            # Reading the flag is free on a CPU; on a GPU it would stall every step.
            if on_cpu and not self.finite:
                break
        if not self.finite.item():
            raise DivergedError(
                f"the loss is not finite at step {self.steps_finite.item() + 1} of epoch {epoch}"
            )
        return self.loss_sum.item() / len(order)

    def _set_lr(self, progress: float) -> None:
        """Let the learning rate fall with the share of the training that is done."""
        fall = 1 - self.hyperparameters.lr_end_factor
        if not fall:
            return
        for group in self.optimizer.param_groups:
            lr = self.hyperparameters.lr * (1 - fall * progress)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _images(self, index: Tensor) -> Tensor:
        if not self.hyperparameters.shift:
            return self.train.images[index]
        down, right = self.moves[:, index]
        return self.shifted[index, down, right]

    def _step(self, index: Tensor) -> None:
        if len(index) < self.batch_size or (self.replay is None and self.capture_after is None):
            self._eager(index)
        elif self.replay is not None:
            self.index.copy_(index)
            self.replay()
        else:
            self._warm_up_and_capture(index)

    def _eager(self, index: Tensor) -> None:
        with autocast(self.device, self.precision):
            loss = F.nll_loss(self.model(self._images(index)), self.train.labels[index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
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
            graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            try:
                with torch.cuda.graph(graph):
                    self._eager(self.index)
            except RuntimeError as error:
                warnings.warn(f"no CUDA graph, going on step by step: {error}", stacklevel=1)
            else:
                self.replay = graph.replay


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Let matrix products run in bf16 where ``precision`` says so."""
    # Under capture a cached cast of the weights would be replayed stale, so no casts are cached.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def make_optimizer(model: Network, hyperparameters: Hyperparameters) -> torch.optim.Optimizer:
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
