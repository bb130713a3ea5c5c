"""The benchmarks, one after the other, each in a short form and a full one.

python -m benchmarks                  # all short forms: what `make bench` runs, 15 minutes on 2 cores at most
python -m benchmarks search --full    # one of them, in full
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks import measure

BENCHMARKS = {
    "throughput": "images a second of the bare training loop, and the share of the machine's ceiling",
    "search": "whole searches by five tuners",
    "overhead": "seconds a trial beyond the training",
    "scale": "the driver under the load of a cluster",
    "quality": "regret against epochs of compute, on recorded learning curves",
    "gpu": "one GPU: eager, CUDA graph, shares",
}
"""Modules with ``run(console, full=, data_dir=)``, which yields raw rows, and ``show(console, frame)``."""


def main() -> None:
    """Run what is asked for, print it, write its raw results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ", ".join(f"{name}: {text}" for name, text in BENCHMARKS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all of them if none ({choices})")
    parser.add_argument("--full", action="store_true", help="the full form: up to hours")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST is or goes")
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder of the raw results")
    args = parser.parse_args()
    for name in args.names:
        if name not in BENCHMARKS:
            parser.error(f"NAME is {name}, but must be one of {', '.join(BENCHMARKS)}")
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # the tables need it, also in a file
    here = measure.machine()
    console.print(", ".join(f"{key} {value}" for key, value in here.items() if value != ""))
    for name in args.names or BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        console.print(f"\n[bold]{name}[/]: {BENCHMARKS[name]}")
        started = time.perf_counter()
        rows, interrupted = [], False
        try:
            for row in module.run(console, full=args.full, data_dir=args.data_dir):
                rows.append(row)
        except KeyboardInterrupt:  # a row may have taken an hour
            console.print("  ended by Ctrl-C: the figures are of what was measured before it")
            interrupted = True
        if rows:  # else it has said why
            table = pd.DataFrame(rows)
            module.show(console, table)
            path = measure.write(name + ("-full" if args.full else ""), table, args.results)
            console.print(f"{path} ({time.perf_counter() - started:.0f} s)")
        if interrupted:
            sys.exit(130)


if __name__ == "__main__":
    main()
