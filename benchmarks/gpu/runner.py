"""Runs steps, each in its own process group and with its own limit, under one deadline.

A step is a program that prints its figures as JSON lines, as soon as it has them. One that fails, hangs or
overruns is stopped and recorded, and the next one starts.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.gpu.output import Output

PATIENCE_SECONDS = 5.0
"""Between the interrupt of a step and its SIGKILL."""
LEAST_SECONDS = 3.0
"""With less than this left, a step is not started."""
SKIPPED = "skipped"
"""Key of a figure: why a step cannot be run here, which is not a failure."""

Row = dict[str, Any]
"""what, device, ok, skipped, seconds, cpu_seconds, figures, error, ended."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A program, and how long it may run."""

    name: str
    command: Sequence[str]
    limit_seconds: float


def run_steps(
    steps: Sequence[Step],
    output: Output,
    *,
    device: str,
    folder: Path,
    environment: Mapping[str, str],
    deadline: float,
) -> Iterator[Row]:
    """Run steps in turn, and yield the row of each once it is written.

    Args:
        steps: what to run.
        output: where rows and logs go.
        device: cuda or cpu, a column of the rows.
        folder: where the steps run.
        environment: their variables; each gets its own TMPDIR and RAY_TMPDIR, which are removed.
        deadline: of `time.monotonic`, at which the last step is stopped.

    Raises:
        KeyboardInterrupt: on Ctrl-C, when the running step is stopped and its row written.
    """
    for step in steps:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            row = _row(step.name, device, seconds=0.0, cpu_seconds=0.0, figures={}, error="no time left")
            output.add_row(row)
            yield row
        else:
            yield _run(step, output, device, folder, environment, min(step.limit_seconds, left))


def _run(
    step: Step, output: Output, device: str, folder: Path, environment: Mapping[str, str], limit: float
) -> Row:
    log = output.log(step.name)
    # The sockets of Ray and of MPS need a short path.
    scratch = Path(tempfile.mkdtemp(prefix="gpu-", dir="/tmp"))
    variables = {**environment, "TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    begun = time.monotonic()
    error, cpu_seconds = "interrupted", None
    try:
        ran = process.run(
            step.command,
            log,
            folder=folder,
            environment=variables,
            limit_seconds=limit,
            patience_seconds=PATIENCE_SECONDS,
        )
        error, cpu_seconds = ran.error, round(ran.cpu_seconds, 2)
    except OSError as failure:
        error = f"cannot be started: {failure}"
    finally:
        text = log.read_text(errors="replace") if log.exists() else ""
        row = _row(
            step.name,
            device,
            seconds=time.monotonic() - begun,
            cpu_seconds=cpu_seconds,
            figures=_figures(text),
            error=error,
        )
        output.add_row(row)
        output.archive(log, scratch if error else None)
        shutil.rmtree(scratch, ignore_errors=True)
    return row


def _row(
    name: str,
    device: str,
    *,
    seconds: float,
    cpu_seconds: float | None,
    figures: dict[str, Any],
    error: str,
) -> Row:
    skipped = figures.pop(SKIPPED, "")
    return {
        "what": name,
        "device": device,
        "ok": not error,
        "skipped": skipped,
        "seconds": round(seconds, 2),
        "cpu_seconds": cpu_seconds,
        "figures": figures,
        "error": error,
        "ended": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
    }


def _figures(text: str) -> dict[str, Any]:
    """Collect the figures in a log: its lines that are JSON objects."""
    figures: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                figures |= json.loads(line)
            except ValueError:  # the program's own braces, or a line that a kill has truncated
                continue
    return figures


def step_environment(root: Path, device: str) -> dict[str, str]:
    """Return the steps' variables: ours, without a Ray cluster's address, packages by absolute paths."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    packages = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    if device == "cpu":  # on busy cores, threads that wait for each other spin
        environment["OMP_NUM_THREADS"] = "1"
    return {**environment, "PYTHONPATH": ":".join([str(root), *packages])}
