"""Step `loop`: eager steps and CUDA graphs compared: images a second, losses, memory, a profile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.step import Setup, StepError
from tune_mnist.mnist import steps
from tune_mnist.mnist.data import Split, load_train_val
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.precision import resolve_precision
from tune_mnist.mnist.training import EpochResult, Training, fit
from tune_mnist.tuning.device import release_memory

LEARNING_RATES = {"sgd": 0.05, "rmsprop": 0.0005, "adamw": 0.001}
"""Of each measured optimizer; high enough for the loss to fall at once."""
TOLERANCE = 0.03
"""Relative difference of an epoch's mean loss, eager and from a graph, with the same random numbers. A frozen
learning rate makes it 0.05 (SGD, 6,400 images, on a CPU), a different seed 0.04 to 0.07."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to take the steps."""

    name: str
    cuda_graph: bool
    steps_per_graph: int = 1


EAGER = Variant(name="eager", cuda_graph=False)
GRAPHS = (
    Variant(name="graph", cuda_graph=True),
    Variant(name="graph of 10", cuda_graph=True, steps_per_graph=10),
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The amount of training."""

    images: int
    epochs: int


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield the figures of each precision, optimizer and variant, bf16 and SGD first.

    Raises:
        StepError: if a graph was not used, or its losses differ from those of the eager steps.
    """
    work = Work(images=25_600, epochs=6) if setup.on_gpu else Work(images=192, epochs=2)
    splits = load_train_val("mnist", setup.data_dir, val_size=work.images // 5, train_size=work.images)
    precisions = ("bf16", "fp32") if resolve_precision("auto", setup.device) == "bf16" else ("fp32",)
    faults: list[str] = []
    for precision in precisions:
        for optimizer in LEARNING_RATES:
            name = f"{'tf32' if setup.on_gpu and precision == 'fp32' else precision} {optimizer}"
            eager = _train(setup, work, splits, precision, optimizer, EAGER)
            yield _figures(name, EAGER, eager)
            for variant in GRAPHS:
                results = _train(setup, work, splits, precision, optimizer, variant)
                difference = largest_difference(eager, results)
                yield {
                    **_figures(name, variant, results),
                    f"{name} {variant.name} loss differs by": difference,
                }
                if not difference <= TOLERANCE:
                    faults.append(f"{name}: losses of eager and {variant.name} differ by {difference:.1%}")
                if setup.on_gpu and not all(result.cuda_graph for result in results):
                    faults.append(f"{name}: an epoch was not replayed from a CUDA graph")
    if setup.on_gpu:
        yield _context_memory()
    good = (
        "all graphs were used and have the eager losses" if setup.on_gpu else "on a CPU there are no graphs"
    )
    yield {"verdict": "; ".join(faults) or good}
    with setup.output.profile_file.open("w") as file:  # last: a profiler can take its process with it
        for table in _profiles(setup, splits, precisions[0]):
            file.write(table)
            file.flush()
    if faults:
        raise StepError("; ".join(faults))


def _train(
    setup: Setup, work: Work, splits: tuple[Split, Split], precision: str, optimizer: str, variant: Variant
) -> list[EpochResult]:
    """Train with everything that a graph could get wrong: dropout, shifts, a falling learning rate."""
    release_memory()
    if setup.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    hyperparameters = Hyperparameters(
        optimizer=optimizer,
        lr=LEARNING_RATES[optimizer],
        epochs=work.epochs,
        shift=2,
        lr_end_factor=0.1,
    )
    training = Training(hyperparameters, seed=0, device=setup.device, precision=precision)
    steps.STEPS_PER_GRAPH = variant.steps_per_graph
    try:
        return list(fit(training, *splits, cuda_graph=variant.cuda_graph))
    finally:
        steps.STEPS_PER_GRAPH = 1


def _figures(name: str, variant: Variant, results: list[EpochResult]) -> dict[str, Any]:
    """Return images per second without the first epoch, which captures the graph, and the peak memory."""
    key = f"{name} {variant.name}"
    figures: dict[str, Any] = {
        f"{key} images/s": median(result.images_per_second for result in results[1:]),
        f"{key} loss": results[-1].train_loss,
    }
    if torch.cuda.is_available():
        figures[f"{key} peak MB"] = torch.cuda.max_memory_allocated() / 1e6
        figures[f"{key} reserved MB"] = torch.cuda.max_memory_reserved() / 1e6
    return figures


def largest_difference(results: list[EpochResult], others: list[EpochResult]) -> float:
    """Return the largest relative difference of two trainings' losses, over all epochs; NaN if one is NaN."""
    losses = [(one.train_loss, other.train_loss) for one, other in zip(results, others, strict=True)]
    differences = [abs(one - other) / one for one, other in losses]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _context_memory() -> dict[str, Any]:
    """Measure the GPU memory that torch does not count: context and kernels (nothing else is running)."""
    free, total = torch.cuda.mem_get_info()
    return {"context MB": (total - free - torch.cuda.memory_reserved()) / 1e6}


def _profiles(setup: Setup, splits: tuple[Split, Split], precision: str) -> Iterator[str]:
    """Profile epochs of 20 steps, each with one validation batch; the first epochs are skipped."""
    train, validation = splits
    train = Split(images=train.images[:1280], labels=train.labels[:1280])
    validation = Split(images=validation.images[:64], labels=validation.labels[:64])
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_gpu else [])]
    for variant in (EAGER, GRAPHS[0]):
        hyperparameters = Hyperparameters(epochs=3)
        training = Training(hyperparameters, seed=0, device=setup.device, precision=precision)
        epochs = fit(training, train, validation, cuda_graph=variant.cuda_graph)
        next(epochs)
        next(epochs)
        with profile(activities=activities) as profiler:
            next(epochs)
        order = "self_cuda_time_total" if setup.on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=70)
        what = f"{len(train) // 64} steps of batch 64, {precision}, {variant.name}, and one batch validated"
        yield f"{what}\n{table}\n\n"
