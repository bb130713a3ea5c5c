"""What the benchmarks share: the machine, raw results as parquet, ratios with their spread."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from tune_mnist.mnist.data import prepare
from tune_mnist.run.ledger import LEDGER

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "ray", "optuna", "numpy", "pandas")


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, GPU, versions, UTC time; columns of the results."""
    import torch

    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "processor": _processor(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def prepare_mnist(data_dir: Path) -> None:
    """Get MNIST and unpack it, so that no contestant has to do so in its measured time."""
    from torchvision.datasets import MNIST

    prepare("mnist", data_dir)
    MNIST(str(data_dir), download=True)


def ledger_lines(run_dir: Path) -> defaultdict[str, list[dict[str, Any]]]:
    """Return a run's ledger lines by event, none without a ledger; an epoch's time is its report's."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    path = run_dir / LEDGER
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        found[line["event"]].append(line)
    return found


def write(name: str, rows: pd.DataFrame, folder: Path = RESULTS) -> Path:
    """Write a row per measurement to ``folder/NAME-YYYYMMDD-HHMM.parquet``, with the machine's columns."""
    here = machine()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{here['date'].translate(str.maketrans(' ', '-', '-:'))}.parquet"
    rows.assign(**here).to_parquet(path, index=False)
    return path


def interleaved(
    measures: dict[str, Callable[[int], dict[str, Any]]], rounds: int, tell: Callable[[str], None] = print
) -> Iterator[dict[str, Any]]:
    """Measure each in turn, A B A B ...: a row per measurement, with its name as ``what`` and its ``round``.

    A measure gets the number of the round, from 0, and returns its figures.
    """
    for number in range(rounds):
        for name, measure in measures.items():
            begun = time.perf_counter()
            tell(f"  round {number + 1} of {rounds}: {name}")
            yield {"what": name, "round": number, **measure(number)}
            tell(f"    {time.perf_counter() - begun:,.0f} s")


def ratios(rows: pd.DataFrame, column: str, numerator: str, denominator: str) -> pd.Series:
    """Return ``numerator``'s figure over ``denominator``'s for each round in which both have one."""
    table = rows.pivot(index="round", columns="what", values=column)
    table = table.reindex(columns=[numerator, denominator])  # one may not have been measured yet
    return (table[numerator] / table[denominator]).dropna()


def spread(values: Sequence[float] | pd.Series, unit: str = "", digits: int = 3) -> str:
    """Format a median with minimum and maximum, "4.1 (3.9 to 4.4) s"; a single value as "4.1 s"."""
    series = pd.Series(values).dropna()
    if not len(series):
        return "–"
    values = (series.median(), series.min(), series.max())
    whole = 10 ** (digits - 1)  # from here on no digits are left after the point
    texts = [f"{one:,.0f}" if round(abs(one)) >= whole else f"{one:.{digits}g}" for one in values]
    if len(series) == 1:
        return texts[0] + unit
    return f"{texts[0]} ({texts[1]} to {texts[2]}){unit}"


def legend(rows: pd.DataFrame) -> str:
    """Return a text with the number of rounds behind a table's figures."""
    n = rows["round"].nunique()
    return f"n = {n}" + ("; medians (least to greatest)" if n > 1 else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
