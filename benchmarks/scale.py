"""The driver under the load of a cluster: up to 256 concurrent trials, up to 10,000 in all; none trains.

python -m benchmarks scale --full

Ray's own figures (Ray Tune's user guide, "Scalability and overhead benchmarks"): about 500 results a second
without logging, 50 to 100 with.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import load, made, measure

KINDS: dict[str, tuple[str, Callable[[load.Load], dict[str, float]]]] = {
    "parts": ("our parts alone: searcher, ASHA, ledger, journal", load.parts),
    "loop": ("the whole driver, with actors that are pretended", partial(load.search, pretended=True)),
    "actors": ("the whole driver, with real actors that sleep", partial(load.search, pretended=False)),
    "known": ("what grows with the trials that a search has", made.known),
    "resumed": ("a resume, up to the first new suggestion, Python and Ray being there", made.resumed),
    "read": ("what analyse.py does with a run", made.read),
}
OF_MADE_RUNS = ("known", "resumed", "read")
"""Kinds that start from a synthetic search."""
SHORT = [
    *(("known", trials, 64) for trials in (100, 1000)),
    *(("resumed", 1000, 64), ("read", 1000, 64), ("parts", 200, 64), ("loop", 150, 64)),
]
"""Kind, trials and concurrent trials of each measurement."""
FULL = [
    *((kind, trials, 64) for trials in (100, 1000, 10_000) for kind in OF_MADE_RUNS),
    *(("parts", trials, concurrent) for trials, concurrent in ((1000, 64), (1000, 256), (3000, 256))),
    *(("loop", trials, concurrent) for trials, concurrent in ((1000, 64), (1000, 256))),
    *(("actors", 320, 64), ("actors", 512, 256)),
]
ROUNDS = 3
"""Rounds of short measurements: those with up to 1,000 known trials."""
PROCESS_BYTES = 300e6
"""Memory that a Ray process takes for itself."""
SLEEP_SECONDS = 0.5
"""How long a real trial sleeps before each report: 64 could send 128 reports a second, 256 could send 512."""


def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[str, Any]]:
    """Measure each in a separate process; yield a row per figure."""
    measure.prepare_mnist(data_dir)
    with (
        tempfile.TemporaryDirectory(prefix="tm", dir="/tmp") as scratch,  # Ray's sockets need a short path
        mock.patch.dict(os.environ, {"RAY_TMPDIR": os.environ.get("RAY_TMPDIR", scratch)}),
    ):
        plan = [
            (one, number) for one in (FULL if full else SHORT) for number in range(_rounds(*one, full=full))
        ]
        for count, ((kind, trials, concurrent), number) in enumerate(plan, start=1):
            name = f"{kind}, {trials} trials, {concurrent} concurrent"
            if kind == "actors" and psutil.virtual_memory().available < concurrent * PROCESS_BYTES:
                console.print(f"  {name}: skipped: not enough memory for its processes")
                continue
            console.print(f"  {count} of {len(plan)}: {name}")
            given = load.Load(
                trials=trials,
                concurrent=concurrent,
                seconds=SLEEP_SECONDS,
                folder=Path(scratch) / f"{kind}-{count}",
                data_dir=data_dir.absolute(),
            )
            figures = measured(kind, given)
            common = {"what": kind, "trials": trials, "concurrent": concurrent, "round": number}
            yield from ({**common, "figure": name, "value": value} for name, value in figures.items())


def measured(kind: str, given: load.Load) -> dict[str, float]:
    """Measure in a separate process, and make the synthetic run, if it needs one, in another."""
    try:
        if kind in OF_MADE_RUNS:
            _alone(made.make, given)
        figures: dict[str, float] = _alone(KINDS[kind][1], given)
        return figures
    finally:
        load.clean(given)


def _alone(function: Callable[[load.Load], Any], given: load.Load) -> Any:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, optuna.logging.set_verbosity, (optuna.logging.WARNING,)) as pool:
        return pool.submit(function, given).result()


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print a table per kind: a line per figure, a column per size."""
    for kind, (text, _) in KINDS.items():
        mine = rows[rows["what"] == kind]
        if mine.empty:
            continue
        sizes = mine[["trials", "concurrent"]].drop_duplicates().itertuples(index=False)
        table = Table("", title=f"{kind}: {text}", title_justify="left")
        columns = []
        for trials, concurrent in sorted(sizes):
            table.add_column(f"{trials:,} trials, {concurrent} concurrent", justify="right")
            columns.append(mine[(mine["trials"] == trials) & (mine["concurrent"] == concurrent)])
        for figure in mine["figure"].unique():
            cells = [measure.spread(one.loc[one["figure"] == figure, "value"]) for one in columns]
            table.add_row(figure, *cells)
        console.print(table)
    console.print(_limit(rows))


def _limit(rows: pd.DataFrame) -> str:
    """Describe from how many known trials a suggestion takes over 1 s of CPU, by the two largest sizes."""
    mine = rows[(rows["what"] == "known") & (rows["figure"] == "suggestion, CPU ms")]
    sizes = sorted(int(trials) for trials in mine["trials"].unique())[-2:]
    if len(sizes) < 2:
        return ""
    fewer, more = sizes
    low, high = (float(mine.loc[mine["trials"] == trials, "value"].median()) for trials in sizes)
    slope = (high - low) / (more - fewer)
    if slope <= 0:
        return "A suggestion takes no longer the more trials are known."
    limit = more + (1000 - high) / slope
    return (
        f"A suggestion takes {1000 * slope:.0f} µs of CPU time more for each trial known: "
        f"1 s from some {limit:,.0f} on, going by {fewer:,} and {more:,}."
    )


def _rounds(kind: str, trials: int, concurrent: int, *, full: bool) -> int:
    return ROUNDS if full and trials <= 1000 and kind in OF_MADE_RUNS else 1
