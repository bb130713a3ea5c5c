"""The optimisation steps of an epoch: eager, or on a GPU replayed from CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_mnist.mnist.data import Split
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.model import Network, normalise
from tune_mnist.mnist.precision import autocast, side_stream
from tune_mnist.run.words import first_line
from tune_mnist.task import DivergedError
from tune_mnist.tuning.device import is_memory_error

if TYPE_CHECKING:
    from tune_mnist.mnist.training import Training

STEPS_PER_GRAPH = 1
"""Steps that one CUDA graph holds. `python -m benchmarks.gpu` measures 1 and 10."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function does on static tensors, and returns a function that repeats it."""


class GraphCaptureError(RuntimeError):
    """The GPU cannot record a training step as a CUDA graph."""


class Steps:
    """Runs the optimisation steps of an epoch; on a GPU, full batches are replayed from CUDA graphs.

    At batch 64, launching the kernels of a step takes longer than running them; a graph launches them all at
    once. Nothing waits for the GPU before the end of an epoch: losses go into a tensor on it.

    Attributes:
        replayed: steps of the current epoch that were replayed from a graph.
    """

    WARM_UP = 3

    def __init__(self, training: Training, train: Split, *, capture: Capture | None) -> None:
        """Prepare to train.

        Args:
            training: what is trained.
            train: the training split, on the same device.
            capture: records a graph, like `capture_graph`; None takes every step eagerly.
        """
        self.model, self.optimizer, self.precision = training.model, training.optimizer, training.precision
        self.hyperparameters = hyperparameters = training.hyperparameters
        self.device = device = training.device
        self.labels, self.batch_size = train.labels, hyperparameters.batch_size
        images, shift = train.images, hyperparameters.shift
        if shift:
            images = F.pad(images, [shift] * 4)
        if device.type == "cuda":  # once, instead of in each step; on a CPU the split is shared memory
            images = normalise(images).to(torch.bfloat16 if self.precision == "bf16" else torch.float32)
        # With a shift, each image at each of its places, a view: [n, 2 shift + 1, 2 shift + 1, 28, 28].
        self.images = images.unfold(1, 28, 1).unfold(2, 28, 1) if shift else images
        self.moves = torch.zeros(2, len(train), dtype=torch.int64, device=device)
        self.losses = torch.zeros(-(-len(train) // self.batch_size), device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        "Index of the next step in the epoch, int64 [1]."
        self.index = torch.zeros(STEPS_PER_GRAPH, self.batch_size, dtype=torch.int64, device=device)
        self.rates = torch.zeros(STEPS_PER_GRAPH, dtype=torch.float64, device=device)
        "Image indices and learning rates of the steps that a graph replays: [steps, batch_size], [steps]."
        self.capture, self.warm_up = capture, self.WARM_UP
        self.graphs: dict[int, Callable[[], None]] = {}
        "Replays by their number of steps, the largest first."
        self.replayed = 0
        if hyperparameters.lr_end_factor != 1 and device.type == "cuda":
            for group in self.optimizer.param_groups:  # a number would become part of the graph
                group["lr"] = torch.tensor(hyperparameters.lr, device=device)

    def run(self, order: Tensor, moves: Tensor, epoch: int) -> float:
        """Take one step for each batch; return the mean loss of an image.

        Args:
            order: the images' indices, int64 [n].
            moves: how far each image is moved down and right, int64 [2, n], 0 to twice the shift.
            epoch: from 1.

        Raises:
            DivergedError: if a loss is not finite; on a CPU at once, on a GPU after the last step.
            GraphCaptureError: if the GPU cannot record a step.
        """
        self.model.train()
        self.position.zero_()
        self.moves.copy_(moves)
        batches, rates = torch.split(order, self.batch_size), self._learning_rates(epoch)
        full_batches = len(order) // self.batch_size
        self.replayed = step = 0
        while step < len(batches):
            count = next((count for count in self.graphs if count <= full_batches - step), 0)
            if count:
                self._replay(count, torch.stack(batches[step : step + count]), rates[step : step + count])
            else:
                self._take(batches[step], rates[step])
            step += count or 1
            # Reading a loss is free on a CPU; on a GPU it would stall every step.
            if self.device.type == "cpu" and not math.isfinite(self.losses[step - 1]):
                break
        losses = self.losses.double().cpu()
        if not losses.isfinite().all():
            first = int(losses.isfinite().logical_not().nonzero()[0]) + 1
            raise DivergedError(f"the loss is not finite at step {first} of epoch {epoch}")
        return float(losses @ torch.tensor([len(index) for index in batches]).double()) / len(order)

    def _replay(self, count: int, index: Tensor, rates: Tensor) -> None:
        """Replay a graph of ``count`` steps on as many batches: index int64 [count, batch_size]."""
        self.index[:count].copy_(index)
        self.rates[:count].copy_(rates)
        self.graphs[count]()
        self.replayed += count

    def _take(self, index: Tensor, rate: Tensor) -> None:
        """Take a step eagerly; after the first full batches, capture the graphs for the rest."""
        self._set_rate(rate)
        if self.capture is None or len(index) < self.batch_size:
            self._step(index)
            return
        with _on_side_stream(self.device):  # as torch requires before a capture
            self._step(index)
        self.warm_up -= 1
        if self.warm_up == 0:
            for count in sorted({1, STEPS_PER_GRAPH}, reverse=True):
                self.optimizer.zero_grad(set_to_none=True)
                self.graphs[count] = self.capture(partial(self._static_steps, count))
            self.capture = None

    def _static_steps(self, count: int) -> None:
        for index, rate in zip(self.index[:count], self.rates[:count], strict=True):
            self._set_rate(rate)
            self._step(index)

    def _step(self, index: Tensor) -> None:
        with autocast(self.device, self.precision):
            loss = F.nll_loss(self.model(self._images(index)), self.labels[index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.index_copy_(0, self.position, loss.detach().view(1))
        self.position.add_(1)

    def _images(self, index: Tensor) -> Tensor:
        if not self.hyperparameters.shift:
            return self.images[index]
        down, right = self.moves[:, index]
        return self.images[index, down, right]

    def _learning_rates(self, epoch: int) -> Tensor:
        """Return the rate of each step of an epoch, float64 [steps]: it falls linearly over all epochs."""
        steps, fall = len(self.losses), 1 - self.hyperparameters.lr_end_factor
        done = torch.arange((epoch - 1) * steps, epoch * steps, dtype=torch.float64)
        rates = self.hyperparameters.lr * (1 - fall * (done / (steps * self.hyperparameters.epochs)))
        return rates.to(self.device)

    def _set_rate(self, rate: Tensor) -> None:
        if self.hyperparameters.lr_end_factor == 1:
            return
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate.item()


def capture_graph(steps: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the GPU as a CUDA graph; return the graph's replay.

    Raises:
        GraphCaptureError: if that fails. The process must not continue training: torch's random generator
            stays in capture state, and the next dropout would raise.
        RuntimeError: CUDA's own, if there is no memory left.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side_stream()):
            steps()
    except RuntimeError as error:
        if is_memory_error(error):
            raise
        raise GraphCaptureError(
            f"this GPU cannot record a step as a CUDA graph ({first_line(error)}): use --cuda-graph off"
        ) from error
    return graph.replay


@contextmanager
def _on_side_stream(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        yield
        return
    stream = side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


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
