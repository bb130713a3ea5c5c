"""Tests the whole GPU path in under eight minutes: steps under one deadline, a row each.

python -m benchmarks.gpu                            # on a machine with a GPU
python -m benchmarks.gpu --only loop search-0.5     # two steps again; rows are added
python -m benchmarks.gpu --device cpu               # the same in miniature: 4 minutes at most on 2 cores
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks import process
from benchmarks.gpu.output import Output, OutputError
from benchmarks.gpu.plan import PLAN, plan
from benchmarks.gpu.runner import PATIENCE_SECONDS, Step, run_steps, step_environment
from benchmarks.gpu.table import show_rows, verdict
from tune_mnist.cli.parser import OneLineParser

ROOT = Path(__file__).parents[2]
RESERVED_SECONDS = 12.0
"""Reserved before the deadline for stopping the last step, the table and the parquet."""
CUDA_SECONDS = 60.0
"""Longest wait for torch to say whether there is a GPU."""
RESULTS_SECONDS = 60.0
"""Longest wait for the parquet."""


def main() -> int:
    """Check the flags, run the steps; return the exit code."""
    begun = time.monotonic()
    args = _parse()
    output = Output(args.out)
    steps = plan(args.only or list(PLAN), device=args.device, data_dir=args.data_dir, out=args.out)
    return run(steps, output, device=args.device, deadline=begun + args.seconds - RESERVED_SECONDS)


def run(steps: list[Step], output: Output, *, device: str, deadline: float) -> int:
    """Run steps, print and write their results; return 0 if all passed, else 1, or 130 on Ctrl-C."""
    console = Console(highlight=False)
    console.width = max(console.width, 110)  # the table needs it, even in a file
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    environment = step_environment(ROOT, device)
    code = 0
    try:
        rows = run_steps(
            steps, output, device=device, folder=ROOT, environment=environment, deadline=deadline
        )
        for row in rows:
            text = row["error"] or row["skipped"]
            console.print(
                f"{row['what']:12} {verdict(row):8} {row['seconds']:5.0f} s  {escape(text)}", soft_wrap=True
            )
            code = code if row["ok"] else 1
    except KeyboardInterrupt:
        code = 130
    show_rows(console, output.rows())
    with output.table_file.open("w") as file:
        show_rows(Console(file=file, width=160), output.rows(), separator="\n")
    _write_parquet(console, output, environment)
    if code == 130:
        console.print("interrupted: the steps after the last row were not run")
    return code


def _interrupt_once(number: int, frame: object) -> None:
    """Stop the running step; what follows takes seconds and must not be interrupted again."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    parser = OneLineParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(PLAN)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"only these steps ({names}); keeps earlier rows"
    )
    parser.add_argument("--seconds", type=float, default=470.0, help="deadline of the whole (default: 470)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST is or goes")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-out"), help="folder of rows, table, profile, logs"
    )
    args = parser.parse_args()
    for name in args.only or ():
        if name not in PLAN:
            parser.error(f"NAME is {name}, but must be one of {names}")
    if not 0 < args.seconds < float("inf"):
        parser.error(f"--seconds is {args.seconds:g}, but must be above 0")
    if args.device == "cuda" and not _has_cuda():
        parser.error("--device is cuda, but torch sees no GPU: --device cpu rehearses without one")
    try:
        Output(args.out).prepare(list(PLAN), keep=bool(args.only))
    except OutputError as error:
        parser.error(str(error))
    return args


def _has_cuda() -> bool:
    """Ask torch in a separate process: a driver that hangs must not take this one with it."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return not _run([sys.executable, "-c", code], os.environ, CUDA_SECONDS)[0]


def _write_parquet(console: Console, output: Output, environment: Mapping[str, str]) -> None:
    """Write the parquet in a separate process, as its columns ask torch for the GPU's name."""
    command = [sys.executable, "-m", "benchmarks.gpu.results", str(output.folder.absolute())]
    error, text = _run(command, environment, RESULTS_SECONDS)
    console.print(f"parquet: {escape(error or text)}", soft_wrap=True)


def _run(command: list[str], environment: Mapping[str, str], limit_seconds: float) -> tuple[str, str]:
    """Run a program that may hang; return its error, if any, and its output."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output.txt"
        ran = process.run(
            command,
            log,
            folder=ROOT,
            environment=environment,
            limit_seconds=limit_seconds,
            patience_seconds=PATIENCE_SECONDS,
        )
        return ran.error, log.read_text(errors="replace").strip()


if __name__ == "__main__":
    sys.exit(main())
