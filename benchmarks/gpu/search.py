"""Steps `search-0.5` and `search-0.25`: the README's search of 64 trials, each on a fraction of the GPU."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import measure
from benchmarks.gpu.step import Setup, StepError
from benchmarks.gpu.utilisation import Utilisation

ROOT = Path(__file__).parents[2]
MINIATURE = ("--max-epochs", "1", "--train-size", "512", "--val-size", "500")


def run(
    setup: Setup, *, gpus: float, environment: Mapping[str, str] = os.environ
) -> Iterator[dict[str, Any]]:
    """Search, and yield when things happened, what was trained, and how long the GPU was idle.

    For an interrupted search, as at the step's limit, it yields what the ledger has so far.

    Raises:
        StepError: if the search failed, or a trial is missing.
    """
    trials = 64 if setup.on_gpu else 4
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(ROOT / "scripts" / "tune.py"), "--num-samples", str(trials)),
            *("--gpus-per-trial", f"{gpus:g}" if setup.on_gpu else "0", "--address", "local"),
            *("--storage-path", folder, "--name", "run", "--data-dir", str(setup.data_dir)),
            *(() if setup.on_gpu else MINIATURE),
        ]
        utilisation = Utilisation()
        log = Path(folder) / "search.log"
        started = time.time()
        with utilisation.sampled(on=setup.on_gpu):
            code = _run(command, log, environment)
        ended = time.time()
        lines = measure.ledger_lines(Path(folder) / "run")
        last_line = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1].strip()
    epochs = lines["epoch"]
    yield {"seconds to the end": ended - started}
    if epochs:
        first, last = min(map(_begin, epochs)), max(epoch["time"] for epoch in epochs)
        yield {
            "seconds to the first epoch": first - started,
            "seconds to the first report": min(epoch["time"] for epoch in epochs) - started,
            "seconds after the last report": ended - last,
        }
        yield {
            "epochs": len(epochs),
            "epochs from graphs": sum(bool(epoch.get("cuda_graph")) for epoch in epochs),
            "median epoch seconds": median(epoch["epoch_seconds"] for epoch in epochs),
            "best accuracy": max(epoch["accuracy"] for epoch in epochs),
            "processes": len({epoch["pid"] for epoch in epochs}),
        }
        yield {**idle_seconds(epochs), **utilisation.between(first, last)}
    states = Counter(line["state"] for line in lines["end"])
    yield {f"trials {state}": count for state, count in sorted(states.items())}
    # A diverged trial is a result; a lost attempt is not, even if the next one succeeds.
    failures = (*lines["error"], *lines["lost"])
    errors = [line["error"] for line in failures if "not finite" not in line["error"]]
    if errors:
        yield {"errors": len(errors), "first error": errors[0]}
    if code:
        raise StepError(f"the search ended with code {code}: {last_line}")
    if sum(states.values()) != trials:
        raise StepError(f"{sum(states.values())} of {trials} trials have ended")
    if errors:
        raise StepError(f"a trial failed: {errors[0]}")


def _run(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run the search, its output in a file and then in our log; return its exit code, 130 on Ctrl-C."""
    try:
        with log.open("w") as output:
            return subprocess.run(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        print(log.read_text(errors="replace"))


def _begin(epoch: Mapping[str, Any]) -> float:
    return float(epoch["time"] - epoch["epoch_seconds"])


def idle_seconds(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure how long slots train nothing, by the ledger's lines of epochs.

    A slot is a process. Between two trials it is idle from the time at which the driver received the last
    epoch of one to the start of the first epoch of the next, which is the time of its report minus the
    seconds that it took; so a report's way to the driver counts as idle. Busy is the fraction of all slots'
    time, from the first start to the last report, in which an epoch ran.
    """
    by_slot: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for epoch in sorted(epochs, key=lambda epoch: float(epoch["time"])):
        by_slot[epoch["pid"]].append(epoch)
    gaps = [
        _begin(after) - before["time"]
        for slot in by_slot.values()
        for before, after in itertools.pairwise(slot)
        if before["trial_id"] != after["trial_id"]
    ]
    wall = max(epoch["time"] for epoch in epochs) - min(map(_begin, epochs))
    busy = sum(epoch["epoch_seconds"] for epoch in epochs) / (wall * len(by_slot))
    return {
        "idle seconds between trials, median": median(gaps) if gaps else None,
        "idle seconds between trials, most": max(gaps, default=None),
        "idle seconds between trials, mean": mean(gaps) if gaps else None,
        "busy fraction of the slots": busy if math.isfinite(busy) else None,
    }
