"""Runs the benchmarks one after the other, each in a short form or in full.

python -m benchmarks                  # all short forms: what `make bench` runs, 15 minutes on 2 cores at most
python -m benchmarks search --full    # one of them, in full
python -m benchmarks search --full --only ours synetune    # only these two searches
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from benchmarks import measure
from tune_mnist.mnist.data import DataError

BENCHMARKS = {
    "throughput": "images a second of the bare training loop, and the share of the machine's ceiling",
    "search": "whole searches by five tuners",
    "overhead": "seconds a trial beyond the training",
    "scale": "the driver under the load of a cluster",
    "quality": "regret against epochs of compute, on recorded learning curves",
}
"""Modules with ``run(console, full=, data_dir=)``, which yields raw rows, and ``show(console, frame)``."""


def main() -> None:
    """Run the named benchmarks, print and write their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ", ".join(f"{name}: {text}" for name, text in BENCHMARKS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all of them if none ({choices})")
    parser.add_argument("--full", action="store_true", help="the full form: up to hours")
    parser.add_argument("--only", nargs="+", metavar="WHO", help="search: only these of the five tuners")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST is or goes")
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder of the raw results")
    args = parser.parse_args()
    if args.results.exists() and not args.results.is_dir():
        parser.error(f"--results is {args.results}, but must be a folder")
    for name in args.names:
        if name not in BENCHMARKS:
            parser.error(f"NAME is {name}, but must be one of {', '.join(BENCHMARKS)}")
    options = {"full": args.full, "data_dir": args.data_dir}
    if args.only:
        _check_only(parser, args)
        options["only"] = args.only
    code = 0
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # the tables need it, even in a file
    here = measure.machine()
    console.print(", ".join(f"{key} {value}" for key, value in here.items() if value != ""))
    for name in args.names or BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        console.print(f"\n[bold]{name}[/]: {BENCHMARKS[name]}")
        started = time.perf_counter()
        rows = []
        try:
            for row in module.run(console, **options):
                rows.append(row)
        except KeyboardInterrupt:  # a row may have taken an hour
            console.print("  interrupted: the figures are of what was measured before")
            code = 130
        except DataError as error:
            parser.exit(2, f"benchmarks: {error}\n")
        except Exception as error:  # keep what was measured, and run the other benchmarks
            text = str(error) if isinstance(error, RuntimeError) else repr(error)
            console.print(f"  [red]failed[/]: {escape(text)}")
            code = 1
        if rows:  # else the reason was printed
            table = pd.DataFrame(rows)
            module.show(console, table)
            path = measure.write(name + ("-full" if args.full else ""), table, args.results)
            console.print(f"{path} ({time.perf_counter() - started:.0f} s)")
        if code == 130:
            break
    sys.exit(code)


def _check_only(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from benchmarks.search import CONTESTANTS

    if args.names != ["search"]:
        parser.error("--only goes with search alone: python -m benchmarks search --only ...")
    for who in args.only:
        if who not in CONTESTANTS:
            parser.error(f"WHO is {who}, but must be one of {', '.join(CONTESTANTS)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: else pools would outlive us
    main()
