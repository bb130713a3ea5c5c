"""The commands that show a run in a browser, while the search goes on and after it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.run.words import short_path

EXTRA = "pip install 'tune-mnist[dashboard]'"
"""What installs the programs that the commands call."""


def ways_to_watch(folder: RunFolder) -> list[str]:
    """Say in three lines where a run is, and what shows its study and its learning curves.

    Of a run in a bucket, the study is shown from the driver's working copy, which is there while the search
    runs; TensorBoard reads its own way from buckets, so its command is left out.
    """
    if folder.remote:
        return [
            f"Run folder: {folder.uri}",
            _command("optuna-dashboard", str(short_path(folder.local / JOURNAL))),
        ]
    run_dir = short_path(folder.local)
    return [
        f"Run folder: {run_dir}",
        _command("optuna-dashboard", str(run_dir / JOURNAL)),
        _command("tensorboard", "--logdir", str(run_dir)),
    ]


def _command(program: str, *arguments: str) -> str:
    """Write a command with the program that is installed beside Python, else with what installs it."""
    beside = Path(sys.executable).with_name(program)
    if beside.exists():
        return f"  {shlex.join([str(short_path(beside)), *arguments])}"
    return f"  {shlex.join([program, *arguments])}     ({EXTRA})"
