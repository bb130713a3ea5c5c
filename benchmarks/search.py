"""Whole searches by this project and by four tuners that a user might use instead, interleaved."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks import measure, process

ROOT = Path(__file__).parents[1]
SYNE_TUNE = Path(sys.prefix) / "syne-tune"
"""Where `make bench` installs Syne Tune, which only its contestant imports."""
OURS = "ours"
CONTESTANTS = {
    OURS: "scripts/tune.py",
    "blog": "Optuna alone, one trial after the other, no pruning",
    "ray_default": "Ray Tune as documented: OptunaSearch, ASHA, DataLoader",
    "optuna_processes": "Optuna, a process a core, SuccessiveHalvingPruner",
    "synetune": "Syne Tune, local backend, ASHA with its searcher CQR",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each contestant has to do."""

    rounds: int
    num_samples: int
    "Trials."
    max_epochs: int
    train_size: int
    val_size: int
    "Validation images."
    thresholds: tuple[float, float]
    "Accuracies, of which the time until each is reached is measured."
    limit_seconds: float
    "After which a contestant is stopped."


FULL = Work(
    rounds=1,
    num_samples=20,
    max_epochs=5,
    train_size=55_000,
    val_size=5_000,
    thresholds=(0.985, 0.989),
    limit_seconds=4 * 3600,
)
# With 4,000 images and 3 epochs the best of six trials reached 90 to 95 %.
SHORT = Work(
    rounds=1,
    num_samples=6,
    max_epochs=3,
    train_size=4_000,
    val_size=5_000,
    thresholds=(0.90, 0.93),
    limit_seconds=600,
)


def run(
    console: Console, *, full: bool, data_dir: Path, only: Collection[str] = tuple(CONTESTANTS)
) -> Iterator[dict[str, Any]]:
    """Run each contestant (of ``only``) in turn, round by round, with the round's number as the seed."""
    work = FULL if full else SHORT
    measure.prepare_mnist(data_dir)
    names = [name for name in CONTESTANTS if name in only]
    if "synetune" in names and not (SYNE_TUNE / "syne_tune").exists():
        names.remove("synetune")
        console.print(f"  Syne Tune is not in {SYNE_TUNE}, where `make bench` installs it: without it")
    measures: dict[str, Callable[[int], dict[str, Any]]] = {
        name: partial(search, name, work, data_dir.absolute()) for name in names
    }
    return measure.interleaved(measures, work.rounds, console.print)


def search(name: str, work: Work, data_dir: Path, seed: int) -> dict[str, Any]:
    """Run one contestant's search, and return a row of figures."""
    cores = measure.cores()
    # Ray's sockets are under RAY_TMPDIR and need a short path, so it is left unchanged.
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        folder = Path(made)
        variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        packages = [ROOT, SYNE_TUNE] if name == "synetune" else [ROOT]
        variables["PYTHONPATH"] = os.pathsep.join(map(str, packages))
        output = folder / "output.txt"
        ran = process.run(
            command(name, work, data_dir, seed, cores, folder),
            output,
            folder=folder,  # Syne Tune leaves a file in the current folder
            environment=variables,
            limit_seconds=work.limit_seconds,
        )
        epochs = epochs_of_ours(folder) if name == OURS else read_log(folder / "epochs.jsonl")
    return {
        "seed": seed,
        **{key: getattr(work, key) for key in ("num_samples", "max_epochs", "train_size", "val_size")},
        "workers": 1 if name == "blog" else cores,
        "wall_seconds": ran.wall_seconds,
        "cpu_seconds": ran.cpu_seconds,
        **figures(epochs, ran.started, work),
        "error": ran.error,
    }


def command(name: str, work: Work, data_dir: Path, seed: int, cores: int, folder: Path) -> list[str]:
    """Return the command line of a contestant."""
    common = [
        *("--num-samples", work.num_samples, "--max-epochs", work.max_epochs, "--seed", seed),
        *("--train-size", work.train_size, "--val-size", work.val_size, "--data-dir", data_dir),
    ]
    if name == OURS:
        # Its own Ray, as the others have; no GPU, as they use none; defaults for everything else.
        program = [str(ROOT / "scripts" / "tune.py"), "--address", "local", "--gpus-per-trial", "0"]
        own: list[Any] = ["--storage-path", folder, "--name", "run", "--max-concurrent-trials", cores]
    else:
        program = ["-m", f"benchmarks.contestants.{name}"]
        own = ["--cores", cores, "--log", folder / "epochs.jsonl"]
    return [sys.executable, *program, *map(str, common), *map(str, own)]


def read_log(path: Path) -> pd.DataFrame:
    """Read the lines that a contestant wrote: trial, epoch, accuracy, time."""
    lines = path.read_text().splitlines() if path.exists() else []
    return pd.DataFrame([json.loads(line) for line in lines], columns=["trial", "epoch", "accuracy", "time"])


def epochs_of_ours(folder: Path) -> pd.DataFrame:
    """Read the same from the run's ledger, whose lines have the time at which the driver received them."""
    epochs = measure.ledger_lines(folder / "run")["epoch"]
    rows = [{**line, "trial": line["trial_id"]} for line in epochs]
    return pd.DataFrame(rows, columns=["trial", "epoch", "accuracy", "time"])


def figures(epochs: pd.DataFrame, started: float, work: Work) -> dict[str, Any]:
    """Count what was trained, and when validation accuracy first reached each threshold (or NaN)."""
    first, second = (_seconds_to(epochs, threshold, started) for threshold in work.thresholds)
    return {
        "trials": epochs["trial"].nunique(),
        "epochs": len(epochs),
        "images": len(epochs) * work.train_size,
        "best_accuracy": epochs["accuracy"].max() if len(epochs) else math.nan,
        "threshold_1": work.thresholds[0],
        "threshold_2": work.thresholds[1],
        "seconds_to_1": first,
        "seconds_to_2": second,
    }


def _seconds_to(epochs: pd.DataFrame, threshold: float, started: float) -> float:
    reached = epochs.loc[epochs["accuracy"] >= threshold, "time"]
    return float(reached.min() - started) if len(reached) else math.nan


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print medians with their spread, and each time as a multiple of ours."""
    work = rows.iloc[0]
    console.print(
        f"{work.num_samples} trials of at most {work.max_epochs} epochs on {work.train_size:,} images; "
        f"accuracy on {work.val_size:,} validation images"
    )
    to_1, to_2 = (f"s to {work[name]:.1%}" for name in ("threshold_1", "threshold_2"))
    shown = {
        "wall_seconds": ("wall s", 3, 1.0),
        "cpu_seconds": ("CPU s", 3, 1.0),
        "trials": ("trials", 3, 1.0),
        "epochs": ("epochs", 3, 1.0),
        "best_accuracy": ("best %", 4, 100.0),
        "seconds_to_1": (to_1, 3, 1.0),
        "seconds_to_2": (to_2, 3, 1.0),
    }
    sound = rows[rows["error"] == ""]
    table = Table("", *(title for title, _, _ in shown.values()), title=measure.legend(rows))
    for name in rows["what"].unique():
        of_name = sound[sound["what"] == name]
        texts = [
            measure.spread(of_name[key] * unit, digits=digits) for key, (_, digits, unit) in shown.items()
        ]
        table.add_row(name, *texts)
    console.print(table)
    _show_ratios(console, sound, {key: shown[key][0] for key in shown if "seconds" in key})
    for row in rows[rows["error"] != ""].itertuples():
        console.print(f"{row.what}, round {row.round}: {row.error}")


def _show_ratios(console: Console, sound: pd.DataFrame, columns: dict[str, str]) -> None:
    others = [name for name in sound["what"].unique() if name != OURS]
    if OURS not in set(sound["what"]):
        return
    table = Table("times ours", *columns.values(), "what it is")
    for name in others:
        ratios = [measure.ratios(sound, key, name, OURS) for key in columns]
        table.add_row(name, *(measure.spread(ratio, "×", 2) for ratio in ratios), CONTESTANTS[name])
    console.print(table)
