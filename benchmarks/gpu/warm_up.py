"""Step `warm-up`: imports, first kernels and Ray's start, so that no later step pays for cold files."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.step import Setup


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield the seconds that each takes."""
    started = time.perf_counter()
    for name in (
        "tune_mnist.tuning.tuner",
        "tune_mnist.cli.summary",
        "benchmarks.contestants.common",
        "torch._dynamo",
    ):
        importlib.import_module(name)
    yield {"import_seconds": time.perf_counter() - started}
    yield {"data_seconds": _seconds(_prepare_data, setup)}
    yield {"kernel_seconds": _seconds(_train, setup)}
    yield {"ray_seconds": _seconds(_start_ray, setup)}


def _seconds(function: Any, setup: Setup) -> float:
    started = time.perf_counter()
    function(setup)
    return time.perf_counter() - started


def _prepare_data(setup: Setup) -> None:
    from benchmarks import measure

    measure.prepare_mnist(setup.data_dir)


def _train(setup: Setup) -> None:
    """Train an epoch of ten steps with each optimizer."""
    from tune_mnist.mnist.data import load_train_val
    from tune_mnist.mnist.hyperparameters import OPTIMIZERS, Hyperparameters
    from tune_mnist.mnist.training import Training, fit

    train, validation = load_train_val("mnist", setup.data_dir, val_size=1000, train_size=640)
    for optimizer in OPTIMIZERS:
        hyperparameters = Hyperparameters(epochs=1, optimizer=optimizer)
        for _ in fit(Training(hyperparameters, seed=0, device=setup.device), train, validation):
            pass


def _start_ray(setup: Setup) -> None:
    from tune_mnist.cluster.connection import connected

    with connected("local"):
        pass
