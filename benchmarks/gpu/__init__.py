"""One GPU: images a second eager and with a CUDA graph, at shares, with MPS or without, and a whole search.

Written without a GPU at hand and not run on one yet.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure, process
from benchmarks.loop import side_by_side

ROOT = Path(__file__).parents[1]
BLOG = "blog"
SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of the GPU, for each of as many trials as fit."""
SEARCH_SHARE = 0.125
SEARCH_LIMIT_SECONDS = 3600.0


def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[str, Any]]:
    """Measure every loop in turn, then, once a round, the search of 64 trials."""
    if not torch.cuda.is_available():
        console.print("  torch sees no GPU here: not measured")
        return
    measure.prepare_mnist(data_dir)
    data = ["--data-dir", str(data_dir.absolute())]
    sizes = ["--images", "51200", "--val-images", "5000"]
    flags = ["--device", "cuda", *sizes, *data]
    environment = dict(os.environ)
    ours = [
        "ours",
        "--precision",
        "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32",
        *flags,
    ]
    measures: dict[str, Callable[[int], dict[str, Any]]] = {
        BLOG: partial(_loop, 1, ["blog", *flags], environment),
        "eager": partial(_loop, 1, [*ours, "--no-cuda-graph"], environment),
    }
    for share in SHARES:
        measures[f"graph, share {share:g}"] = partial(_loop, round(1 / share), ours, environment)
    with _mps(console) as mps:
        for share in SHARES if mps else ():
            measured = partial(_loop, round(1 / share), ours, {**environment, **mps})
            measures[f"graph, share {share:g}, MPS"] = measured
        measures["64 trials"] = partial(_search, data, environment)
        yield from measure.interleaved(measures, 3 if full else 1, console.print)


def _loop(copies: int, flags: list[str], environment: dict[str, str], number: int) -> dict[str, Any]:
    """Sum up the images a second of copies side by side."""
    try:
        figures = side_by_side(copies, flags, {**environment, "OMP_NUM_THREADS": "1"})
    except RuntimeError as error:
        return {"processes": copies, "images_per_second": math.nan, "error": str(error)}
    return {"processes": copies, "images_per_second": copies * figures["images_per_second"], "error": ""}


def _search(data: list[str], environment: dict[str, str], number: int) -> dict[str, Any]:
    """Time `scripts/tune.py --num-samples 64 --gpus-per-trial 0.125`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        script = [str(ROOT / "scripts" / "tune.py"), "--address", "local", "--storage-path", folder]
        shares = ["--num-samples", "64", "--gpus-per-trial", str(SEARCH_SHARE), "--seed", str(number)]
        ran = process.run(
            [sys.executable, *script, *shares, *data],
            Path(folder) / "output.txt",
            folder=ROOT,
            environment=environment,
            limit_seconds=SEARCH_LIMIT_SECONDS,
        )
    return {"processes": round(1 / SEARCH_SHARE), "wall_seconds": ran.wall_seconds, "error": ran.error}


@contextmanager
def _mps(console: Console) -> Iterator[dict[str, str]]:
    """Start NVIDIA's MPS for a block, and give the variables that lead to it; {} where it can't start."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        console.print("  there is no nvidia-cuda-mps-control: without MPS")
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = {**os.environ, **variables}
        started = subprocess.run([control, "-d"], env=environment, capture_output=True, text=True)
        if started.returncode:
            console.print(f"  MPS can't be started ({started.stderr.strip()}): without it")
            yield {}
            return
        try:
            yield variables
        finally:
            subprocess.run([control], input="quit\n", env=environment, text=True, capture_output=True)


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print images a second of the GPU, how many times the blog's that is, and the search's wall time."""
    table = Table("", "processes", "1,000 images/s", "times the blog's")
    for name, of_name in rows.groupby("what", sort=False):
        if of_name["images_per_second"].isna().all():
            continue
        ratio = measure.ratios(rows, "images_per_second", str(name), BLOG)
        rates = measure.spread(of_name["images_per_second"] / 1000, digits=4)
        table.add_row(str(name), str(of_name["processes"].iloc[0]), rates, measure.spread(ratio, "×"))
    console.print(table)
    searches = rows[(rows["what"] == "64 trials") & (rows["error"] == "")]
    if len(searches):
        console.print(f"64 trials: {measure.spread(searches['wall_seconds'], ' s')}")
    for row in rows[rows["error"] != ""].itertuples():
        console.print(f"{row.what}, round {row.round}: {row.error}")
