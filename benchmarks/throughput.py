"""Images a second of the bare training loop on one core: ours and the blog's, and the machine's own ceiling.

The ceiling is a matrix product of 2048 x 2048, timed in the same round; the share is what the training's
floating-point operations an image, counted by torch, make of it. Each measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.contestants import common
from tune_mnist import data
from tune_mnist.cluster import TRIAL_ENVIRONMENT
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.training import Training, evaluate, fit, resolve_precision

LOOPS = {
    "blog fp32": ("blog", "fp32"),
    "ours fp32": ("ours", "fp32"),
    "ours bf16": ("ours", "bf16"),
}
IMAGES, VALIDATION_IMAGES = 6_400, 2_000
MATRIX = 2_048


def run(console: Console, *, full: bool, data_dir: Path) -> pd.DataFrame:
    """Measure each loop in turn; give a row a measurement. Where bf16 would be emulated, it is left out."""
    data.prepare("mnist", data_dir)
    try:
        resolve_precision("bf16", "cpu")
        native = True
    except ValueError:
        native = False
    loops = {name: loop for name, loop in LOOPS.items() if native or loop[1] != "bf16"}
    measures: dict[str, Callable[[int], dict[str, Any]]] = {
        name: partial(_in_a_process, loop, precision, data_dir) for name, (loop, precision) in loops.items()
    }
    return measure.interleaved(measures, 5 if full else 3, console.print)


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print a line a loop: images a second and core, times the blog's, share of the ceiling."""
    table = Table(box=None, header_style="")
    for head in ("", "train, images/s", "× blog", "validate, images/s", "of the ceiling", "ceiling, GFLOP/s"):
        table.add_column(head, justify="left" if not head else "right")
    for name in rows["what"].unique():
        of = rows[rows["what"] == name]
        ratio = measure.ratios(rows, "train_images_per_second", name, "blog fp32")
        table.add_row(
            name,
            measure.spread(of["train_images_per_second"], digits=4),
            "" if name == "blog fp32" else measure.spread(ratio),
            measure.spread(of["validation_images_per_second"], digits=4),
            measure.spread(100 * of["share_of_ceiling"], " %"),
            measure.spread(of["ceiling_gflops"], digits=4),
        )
    console.print(table)
    n = rows["round"].nunique()
    console.print(f"one core, batch 64, n = {n}; medians, with the least and the greatest")


def measure_loop(loop: str, precision: str, data_dir: Path) -> dict[str, Any]:
    """Train one epoch to warm up and one that counts, on one core, with SGD."""
    torch.set_num_threads(1)
    train_size, val_size = IMAGES, VALIDATION_IMAGES
    model: torch.nn.Module
    if loop == "blog":
        torch.manual_seed(0)
        flags = {"data_dir": data_dir, "train_size": train_size, "val_size": val_size, "seed": 0}
        train, validation = common.loaders(argparse.Namespace(**flags, device="cpu"))
        model = common.Net()
        optimizer = common.make_optimizer(model, {"optimizer": "sgd", "lr": 0.005, "momentum": 0.8})
        common.train_epoch(model, optimizer, train, "cpu")
        train_seconds = _seconds(lambda: common.train_epoch(model, optimizer, train, "cpu"))
        validation_seconds = _seconds(lambda: common.accuracy(model, validation, "cpu"))
    else:
        splits = data.load_train_val("mnist", data_dir, val_size=val_size, train_size=train_size)
        hyperparameters = Hyperparameters(lr=0.005, momentum=0.8, epochs=2)
        training = Training(hyperparameters, seed=0, precision=precision)
        *_, last = fit(training, *splits)
        model = training.model
        train_seconds = train_size / last.images_per_second
        validation_seconds = _seconds(lambda: evaluate(training.model, splits[1], precision=precision))
    ceiling = _matmul_flops(torch.bfloat16 if precision == "bf16" else torch.float32)
    rate = train_size / train_seconds
    return {
        "train_images_per_second": rate,
        "validation_images_per_second": val_size / validation_seconds,
        "ceiling_gflops": ceiling / 1e9,
        "share_of_ceiling": rate * _flops_an_image() / ceiling,
    }


def _seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def _flops_an_image() -> float:
    """Count the operations of a training step an image: the blog's network, forward and backward."""
    model, images = common.Net(), torch.zeros(8, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return float(counter.get_total_flops() / 8)


def _matmul_flops(dtype: torch.dtype) -> float:
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    a @ b
    best = min(_seconds(lambda: a @ b) for _ in range(5))
    return 2 * MATRIX**3 / best


def _in_a_process(loop: str, precision: str, data_dir: Path, number: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.throughput", loop, precision, str(data_dir)]
    # As a trial has it: one thread, and for ours the allocator's settings.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(TRIAL_ENVIRONMENT if loop == "ours" else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=("blog", "ours"))
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("data_dir", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(measure_loop(arguments.loop, arguments.precision, arguments.data_dir)))
