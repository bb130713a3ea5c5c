"""Whole searches by five tuners: wall time, epochs, best validation accuracy, time until it is reached.

Each runs as the program that its user would run, from its start to its end, one after the other in each
round: the same trials, data, split and cores. Round r has seed r.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from tune_mnist import data

ROOT = Path(__file__).parents[1]
CONTESTANTS = ("blog", "optuna_processes", "ray_default", "syne_tune_bohb", "ours")
SYNE_TUNE = ("syne-tune", "dill", "sortedcontainers", "statsmodels", "patsy", "tqdm", "psutil")
"""What its ASHA with KDE needs beyond .venv; all that it asks for would be 400 MB more, XGBoost with CUDA."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The size of a search."""

    num_samples: int
    max_epochs: int
    train_size: int
    val_size: int
    rounds: int
    targets: tuple[float, float]
    "Accuracies whose first time is taken."

    def flags(self) -> list[str]:
        """Give what all contestants are told, `scripts/tune.py` too."""
        names = ("num_samples", "max_epochs", "train_size", "val_size")
        return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]


FULL = Form(num_samples=20, max_epochs=5, train_size=55_000, val_size=5_000, rounds=1, targets=(0.985, 0.989))
SHORT = Form(num_samples=8, max_epochs=4, train_size=4_000, val_size=1_000, rounds=1, targets=(0.85, 0.92))


def run(
    console: Console,
    *,
    full: bool,
    data_dir: Path,
    form: Form | None = None,
    names: tuple[str, ...] = CONTESTANTS,
) -> pd.DataFrame:
    """Run the searches; give a row a search. A contestant that fails has its error in the row."""
    form = form or (FULL if full else SHORT)
    data.prepare("mnist", data_dir)
    measures: dict[str, Callable[[int], dict[str, Any]]] = {}
    for name in names:
        python = sys.executable
        if name == "syne_tune_bohb":
            try:
                python = str(install_syne_tune())
            except (OSError, subprocess.CalledProcessError) as error:
                console.print(f"  without Syne Tune, which could not be installed: {error}")
                continue
        measures[name] = partial(_search, name, python, form, data_dir.resolve())
    rows = measure.interleaved(measures, form.rounds, console.print)
    return rows.assign(**{key: value for key, value in vars(form).items() if key != "targets"})


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print a line a contestant, medians with their spread, and how many times as long as ours it took."""
    first, second = (column for column in rows.columns if column.startswith("seconds_to_"))
    table = Table(box=None, header_style="")
    heads = ("", "seconds", "× ours", "epochs", "best", f"s to {first[11:]} %", f"s to {second[11:]} %")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    for name in rows["what"].unique():
        of = rows[rows["what"] == name]
        has_ours = name != "ours" and "ours" in set(rows["what"])
        table.add_row(
            name.replace("_", "-"),
            measure.spread(of["seconds"]),
            measure.spread(measure.ratios(rows, "seconds", name, "ours")) if has_ours else "",
            measure.spread(of["epochs"]),
            measure.spread(100 * of["best"], " %", digits=4),
            *(measure.spread(of[column]) for column in (first, second)),
        )
    console.print(table)
    console.print(f"n = {rows['round'].nunique()}; medians, with the least and the greatest where n > 1")
    for row in rows[rows["error"] != ""].itertuples():
        console.print(f"  {row.what}, round {row.round}: {row.error}")


def figures(log: pd.DataFrame, started: float, targets: tuple[float, float]) -> dict[str, Any]:
    """Give what a log of epochs (``time``, ``trial``, ``accuracy``) comes to: NaN for what is not reached."""
    log = log.sort_values("time")

    def seconds_to(target: float) -> float:
        reached = log[log["accuracy"] >= target]
        return float(reached["time"].iloc[0]) - started if len(reached) else math.nan

    return {
        "epochs": len(log),
        "trials": log["trial"].nunique(),
        "best": log["accuracy"].max() if len(log) else math.nan,
        **{f"seconds_to_{100 * target:g}": seconds_to(target) for target in targets},
    }


def install_syne_tune() -> Path:
    """Make ``.venv-syne-tune`` beside the environment that runs this, and sees its packages; give its Python.

    Raises:
        subprocess.CalledProcessError: if pip fails.
    """
    venv = Path(sys.prefix).with_name(".venv-syne-tune")
    python, done = venv / "bin" / "python", venv / ".installed"
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "ours.pth").write_text("\n".join(ours or site.getsitepackages()) + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-qq",
        "--disable-pip-version-check",
    ]
    constraints = ["--constraint", str(ROOT / "constraints.txt"), "--no-deps"]
    subprocess.run([*pip, *constraints, *SYNE_TUNE], check=True)
    done.touch()
    return python


def _search(name: str, python: str, form: Form, data_dir: Path, number: int) -> dict[str, Any]:
    """Run one contestant with seed ``number``; its output and files go to a folder that is removed."""
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name[:4]}-"))
    log = folder / f"{name}.jsonl"
    flags = [*form.flags(), "--seed", str(number), "--data-dir", str(data_dir)]
    if name == "ours":
        script = str(ROOT / "scripts" / "tune.py")
        command = [python, script, *flags, "--storage-path", str(folder), "--name", "ours"]
    else:
        command = [python, "-m", f"benchmarks.contestants.{name}", *flags, "--log", str(log)]
    free = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # each decides for itself how many threads it takes
    environment = {key: value for key, value in os.environ.items() if key not in free}
    environment["PYTHONPATH"] = str(ROOT)
    started = time.time()
    with (folder / "output.txt").open("w") as output:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    seconds = time.time() - started
    error = ""
    if code:
        tail = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-1:]
        error = f"exit code {code}: {''.join(tail)}"
    try:
        epochs = _our_log(folder / "ours") if name == "ours" else _read_log(log)
        result = {
            "seconds": seconds,
            "seed": number,
            "error": error,
            **figures(epochs, started, form.targets),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _read_log(path: Path) -> pd.DataFrame:
    lines = path.read_text().splitlines() if path.exists() else []
    return pd.DataFrame([json.loads(line) for line in lines], columns=["time", "trial", "epoch", "accuracy"])


def _our_log(run: Path) -> pd.DataFrame:
    if not (run / "epochs.parquet").exists():
        return _read_log(run / "none")
    epochs = pd.read_parquet(run / "epochs.parquet")
    seconds = epochs["timestamp"].astype("datetime64[ms]").astype("int64") / 1000
    return epochs.assign(time=seconds, trial=epochs["number"])
