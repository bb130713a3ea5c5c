"""Seconds a trial beyond its training: searches of trials of almost no work, ours and Ray Tune's default.

They are seconds of the search, with two concurrent trials: each slot loses twice as many. Ours is
`scripts/tune.py` with one epoch on 64 images, less its ``epoch_seconds``; Ray's trials report once and
return. Each search is a separate process, the two in turn.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks import process
from benchmarks.measure import cores, ledger_lines, prepare_mnist, ratios, spread

ROOT = Path(__file__).parents[1]
SLOTS = 2
"""Concurrent trials, each on its own core."""
SHORT, FULL = (20, 60), (20, 100, 1000)
"""Trials per search."""
ROUNDS = 2
"""Searches of each size and kind; one for 1,000 trials."""
BUDGET_SECONDS = {False: 60.0, True: 300.0}
"""Longest time for the trials of Ray's default, short and full: it takes seconds to start each new
process."""
STAGES = {
    "folder_s": "start to run folder",
    "first_trial_s": "start to first trial",
    "first_report_s": "start to first report",
    "end_s": "last trial's end to exit",
}

COLUMNS = {
    "driver_cpu_s": "driver CPU s",
    "driver_mb": "driver MB",
    "all_cpu_s": "all CPU s",
    "files": "files a trial",
    "kb": "kB a trial",
}


def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[str, Any]]:
    """Measure searches of several sizes, ours and Ray's default in turn; a row per search."""
    prepare_mnist(data_dir)
    for trials in FULL if full else SHORT:
        for number in range(ROUNDS if trials < 1000 else 1):
            for name in ("ours", "ray-default"):
                console.print(f"  {trials} trials, round {number + 1}: {name}")
                with tempfile.TemporaryDirectory(prefix="tm", dir="/tmp") as folder:  # sockets: a short path
                    if name == "ours":
                        figures = _ours(Path(folder), trials, data_dir)
                    else:
                        figures = _ray_default(Path(folder), trials, BUDGET_SECONDS[full])
                yield {"what": name, "round": number, "trials": trials, **figures}


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print seconds per trial and the search's other costs, by size, and ours against Ray's default."""
    table = Table(box=None, header_style="bold")
    for heading in ("", "trials", "done", "s a trial beyond training", *COLUMNS.values()):
        table.add_column(heading, justify="right" if heading else "left")
    for (trials, what), group in rows.groupby(["trials", "what"]):
        cells = [str(what), str(trials), f"{group['done'].median():g}", spread(group["trial_s"])]
        table.add_row(*cells, *(f"{group[name].median():.1f}" for name in COLUMNS))
    console.print(table)
    for trials in sorted(set(rows["trials"])):
        times = ratios(rows[rows["trials"] == trials], "trial_s", "ray-default", "ours")
        console.print(f"{trials} trials: ray-default takes {spread(times)} times as long a trial")
    for what in rows["what"].unique():
        of_what = rows[rows["what"] == what]
        stages = (f"{text} {spread(of_what[name])}" for name, text in STAGES.items() if of_what[name].any())
        console.print(f"{what}, seconds of all {len(of_what)} searches: {', '.join(stages)}")
    ours = rows[rows["what"] == "ours"]
    medians = ours.groupby("trials")["trial_s"].median()
    sizes = [int(size) for size in medians.index]
    for fewer, more in itertools.pairwise(sizes):
        growth = medians[more] / medians[fewer]
        console.print(f"ours: with {more} trials one takes {growth:.2f} times as long as with {fewer}")


def _run(command: list[str], folder: Path, limit_seconds: float) -> process.Ran:
    """Run a search with its own temporary folder for Ray; its output goes to ``folder/output.txt``.

    Raises:
        RuntimeError: if it fails.
    """
    environment = {**os.environ, "RAY_TMPDIR": str(folder / "ray"), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    (folder / "ray").mkdir()
    ran = process.run(
        command, folder / "output.txt", folder=folder, environment=environment, limit_seconds=limit_seconds
    )
    if ran.error:
        raise RuntimeError(ran.error)
    return ran


def _figures(ran: process.Ran) -> dict[str, float]:
    return {
        "wall_s": ran.wall_seconds,
        "driver_cpu_s": ran.own_cpu_seconds,
        "driver_mb": ran.peak_megabytes,
        "all_cpu_s": ran.cpu_seconds,
    }


def _ours(folder: Path, trials: int, data_dir: Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), "--data-dir", str(data_dir.absolute())]
    command += ["--num-samples", str(trials), "--max-epochs", "1", "--train-size", "64", "--val-size", "64"]
    command += ["--address", "local", "--gpus-per-trial", "0"]
    command += ["--max-concurrent-trials", str(SLOTS)] if cores() > SLOTS else []
    ran = _run([*command, "--storage-path", str(folder / "runs"), "--name", "small"], folder, 7200)
    run_dir = folder / "runs" / "small"
    lines_of = ledger_lines(run_dir)
    reports, ends = ([line["time"] for line in lines_of[event]] for event in ("epoch", "end"))
    # The first trials, whose kernels are cold, are excluded from the seconds per trial too.
    training = statistics.mean(line["epoch_seconds"] for line in lines_of["epoch"][SLOTS:])
    return {
        "done": len(ends),
        "trial_s": _seconds_a_trial(reports) - training / SLOTS,
        "training_s": training,
        "folder_s": lines_of["session"][0]["time"] - ran.started,
        "first_trial_s": lines_of["trial"][0]["time"] - ran.started,
        "first_report_s": reports[0] - ran.started,
        "end_s": ran.wall_seconds - (max(ends) - ran.started),
        **_figures(ran),
        **_stored(run_dir, trials),
    }


def _ray_default(folder: Path, trials: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.contestants.ray_nothing", str(folder / "runs")]
    ran = _run([*command, str(trials), str(seconds)], folder, seconds + 300)
    reports = json.loads((folder / "output.txt").read_text().splitlines()[-1])
    done = len(reports)
    return {
        "done": done,
        "trial_s": _seconds_a_trial(reports),
        "training_s": 0.0,
        "first_report_s": reports[0] - ran.started,
        "end_s": ran.wall_seconds - (reports[-1] - ran.started),
        **_figures(ran),
        **_stored(folder / "runs", done),
    }


def _seconds_a_trial(reports: list[float]) -> float:
    """Measure from the first trials' reports to the last: the first in each slot wait for their processes."""
    return (reports[-1] - reports[SLOTS - 1]) / (len(reports) - SLOTS)


def _stored(folder: Path, trials: int) -> dict[str, float]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    kilobytes = sum(file.stat().st_size for file in files) / 1e3
    return {"files": len(files) / trials, "kb": kilobytes / trials}
