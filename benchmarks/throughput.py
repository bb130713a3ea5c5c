"""Images per second and core of the bare training loops, ours and the baseline's, and the ceiling."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.contestants.common import BATCH_SIZE
from benchmarks.loop import side_by_side
from tune_mnist.cluster.connection import TRIAL_ENVIRONMENT
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.model import Network
from tune_mnist.mnist.precision import resolve_precision

BASE = "blog, all cores"
"""One process on all cores, as the baseline runs; the others are one process per core, in parallel."""


def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[str, Any]]:
    """Measure every loop in turn, in separate processes, round by round."""
    cores = measure.cores()
    measure.prepare_mnist(data_dir)
    sizes = ["--images", str(19_200 if full else 1920), "--val-images", str(5000 if full else 2000)]
    flags = [*sizes, "--data-dir", str(data_dir.absolute())]
    measures: dict[str, Callable[[int], dict[str, Any]]] = {
        BASE: partial(_measure, "blog", "fp32", flags, threads=cores, copies=1),
        "blog fp32": partial(_measure, "blog", "fp32", flags, threads=1, copies=cores),
    }
    for precision in _precisions():
        for loop in ("ours", "matmul"):
            measured = partial(_measure, loop, precision, flags, threads=1, copies=cores)
            measures[f"{loop} {precision}"] = measured
    flop = {"flop_per_image": flop_per_image()}
    return (row | flop for row in measure.interleaved(measures, 5 if full else 2, console.print))


def _precisions() -> list[str]:
    native = resolve_precision("auto", "cpu")
    return ["fp32", "bf16"] if native == "bf16" else ["fp32"]


def _measure(
    loop: str, precision: str, flags: list[str], number: int, *, threads: int, copies: int
) -> dict[str, Any]:
    # Ours has the environment of its trials; the baseline has that of the post's reader.
    ours = TRIAL_ENVIRONMENT if loop == "ours" else {}
    figures = side_by_side(
        copies,
        [loop, "--precision", precision, *flags],
        {**os.environ, **ours, "OMP_NUM_THREADS": str(threads)},
    )
    settings = {"loop": loop, "precision": precision, "threads": threads, "processes": copies}
    return {**settings, **figures}


def flop_per_image() -> int:
    """Count the floating-point operations of training on one image, forward and backward."""
    model = Network(Hyperparameters())
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(BATCH_SIZE, 28, 28, dtype=torch.uint8)).sum().backward()
    return int(counter.get_total_flops()) // BATCH_SIZE


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print images per second and core, the ratio to the baseline's, and the fraction of the ceiling."""
    rows = _per_core(rows)
    heads = (
        "a core",
        "training images/s",
        "times the baseline's",
        "by CPU s",
        "of matmul",
        "validation images/s",
    )
    table = Table(*heads, title=measure.legend(rows))
    for name, of_name in rows[rows["loop"] != "matmul"].groupby("what", sort=False):
        ceiling = f"matmul {of_name['precision'].iloc[0]}"
        ratios = [
            measure.ratios(rows, "training", str(name), BASE),
            measure.ratios(rows, "cpu_seconds", BASE, str(name)),
            measure.ratios(rows, "rate", str(name), ceiling),
        ]
        table.add_row(
            str(name),
            measure.spread(of_name["training"], digits=4),
            *(measure.spread(ratio, "×") if name != BASE else "" for ratio in ratios[:2]),
            measure.spread(100 * ratios[2], " %"),
            measure.spread(of_name["validation"], digits=4),
        )
    console.print(table)
    for name, rates in rows[rows["loop"] == "matmul"].groupby("what", sort=False)["rate"]:
        console.print(f"{name}: {measure.spread(rates / 1e9)} GFLOP/s a core")
    flop = rows["flop_per_image"].iloc[0]
    console.print(f"Training on an image takes {flop / 1e6:.1f} MFLOP, forward and backward")


def _per_core(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the work per second and core: training and validation in images, rate in FLOP."""
    training = rows["images_per_second"] / rows["threads"]
    flops = training * rows["flop_per_image"]
    return rows.assign(
        training=training,
        validation=rows["validation_images_per_second"] / rows["threads"],
        rate=rows.get("flops", flops).fillna(flops),  # only the matrix product reports it itself
    )
