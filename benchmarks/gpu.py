"""One GPU: images a second eager and as a CUDA graph, at smaller shares, and the 64-trial command.

Where there is no GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.contestants import common
from tune_mnist import data
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.training import Training, fit

ROOT = Path(__file__).parents[1]
SHARES = (1.0, 0.5, 0.25, 0.125)
SEARCH = ["--num-samples", "64", "--gpus-per-trial", "0.5"]
"""The README's command; further shares are tried beside its 0.5 in the full form."""


def run(console: Console, *, full: bool, data_dir: Path) -> pd.DataFrame:
    """Measure loops and shares in turn, without MPS and, where it starts, with it; then the searches."""
    if not torch.cuda.is_available():
        console.print("  no GPU here: nothing is measured")
        return pd.DataFrame()
    data.prepare("mnist", data_dir)
    rounds = 3 if full else 1
    loops: dict[str, Callable[[int], dict[str, Any]]] = {
        "blog": partial(_side_by_side, 1, "blog", data_dir),
        "ours, eager": partial(_side_by_side, 1, "eager", data_dir),
        "ours, CUDA graph": partial(_side_by_side, 1, "graph", data_dir),
    }
    shares: dict[str, Callable[[int], dict[str, Any]]] = {
        f"share {share:g}": partial(_side_by_side, round(1 / share), "graph", data_dir) for share in SHARES
    }
    searches: dict[str, Callable[[int], dict[str, Any]]] = {
        f"64 trials, share {share:g}": partial(_search, share, data_dir)
        for share in (SHARES if full else (0.5,))
    }
    frames = [measure.interleaved({**loops, **shares}, rounds, console.print).assign(mps=False)]
    with mps() as started:
        if started:
            frames.append(measure.interleaved(shares, rounds, console.print).assign(mps=True))
        else:
            console.print("  MPS can't be started here: without it only")
    frames.append(measure.interleaved(searches, 1, console.print).assign(mps=False))
    return pd.concat(frames, ignore_index=True)


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print a line a measurement: images a second of the whole GPU, seconds of a search."""
    table = Table(box=None, header_style="")
    for head in ("", "MPS", "images/s", "seconds"):
        table.add_column(head, justify="left" if not head else "right")
    for (name, with_mps), of in rows.groupby(["what", "mps"], sort=False):
        table.add_row(
            str(name),
            "yes" if with_mps else "no",
            *(measure.spread(of[column], digits=4) for column in ("images_per_second", "seconds")),
        )
    console.print(table)
    console.print(f"n = {rows['round'].nunique()}; medians, with the least and the greatest where n > 1")


def measure_loop(loop: str, data_dir: Path) -> float:
    """Train two epochs to warm up and one that counts; give its images a second."""
    if loop == "blog":
        flags = {"data_dir": data_dir, "train_size": 20_000, "val_size": 1_000, "seed": 0}
        train, _ = common.loaders(argparse.Namespace(**flags, device="cuda"))
        model = common.Net().to("cuda")
        optimizer = common.make_optimizer(model, {"optimizer": "sgd", "lr": 0.005, "momentum": 0.8})
        common.train_epoch(model, optimizer, train, "cuda")
        torch.cuda.synchronize()
        started = time.perf_counter()
        common.train_epoch(model, optimizer, train, "cuda")
        torch.cuda.synchronize()
        return 20_000 / (time.perf_counter() - started)
    splits = data.load_train_val("mnist", data_dir)
    training = Training(Hyperparameters(lr=0.005, momentum=0.8, epochs=3), seed=0, device="cuda")
    *_, last = fit(training, *splits, cuda_graph=loop == "graph")
    return last.images_per_second


def _side_by_side(processes: int, loop: str, data_dir: Path, number: int) -> dict[str, Any]:
    """Sum the images a second of so many processes at once; their start-up is not counted."""
    command = [sys.executable, "-m", "benchmarks.gpu", loop, str(data_dir)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    return {"images_per_second": sum(json.loads(output.splitlines()[-1]) for output in outputs)}


def _search(share: float, data_dir: Path, number: int) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="bench-gpu-")
    flags = [*SEARCH[:-1], f"{share:g}", "--data-dir", str(data_dir.resolve()), "--storage-path", folder]
    started = time.perf_counter()
    try:
        subprocess.run(
            [sys.executable, "scripts/tune.py", *flags], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )
        return {"seconds": time.perf_counter() - started}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mps() -> Iterator[bool]:
    """Run NVIDIA's Multi-Process Service for a block; tell whether it could be started."""
    control = shutil.which("nvidia-cuda-mps-control")
    if not control:
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        paths = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(paths)
        try:
            yield subprocess.run([control, "-d"], check=False).returncode == 0
        finally:
            subprocess.run([control], input="quit\n", text=True, check=False)
            for name in paths:
                del os.environ[name]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=("blog", "eager", "graph"))
    parser.add_argument("data_dir", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(measure_loop(arguments.loop, arguments.data_dir)))
