"""Train the best configurations of a search again, choose one on validation, test it, and write the model.

python scripts/finalize.py runs/NAME
python scripts/finalize.py s3://BUCKET/runs/NAME --top-k 3 --seeds 5
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tune_mnist.cli.finals_console import FinalsConsole, print_verdict
from tune_mnist.cli.flags import task_of_run
from tune_mnist.cli.parser import OF_THE_MACHINE, OneLineParser, add_flags, command, complain
from tune_mnist.finalize.finalizer import AllDivergedError, finalize
from tune_mnist.finalize.protocol import FinalsSettings
from tune_mnist.finalize.trainings import TrainingError
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.settings import Settings, flag_of
from tune_mnist.tuning import tuner
from tune_mnist.tuning.tasks import resumable_options

OF_THE_RUN = ("address", "gpus_per_trial", "cpus_per_trial")
"""Settings of the run that may differ on this machine, like the task's options that a resume may change."""


def main() -> int:
    """Finalize a run as the flags say; return the exit code."""
    parser = OneLineParser(
        description="Train the best configurations of a search again with fresh seeds, choose one on "
        "validation, measure it on the test set next to the baseline, and write the model. All other "
        "settings are those of the run. Started again, it resumes where it was stopped.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("run", metavar="RUN", help="its folder, or its URI such as s3://BUCKET/runs/NAME")
    add_flags(parser, FinalsSettings)
    add_flags(parser, Settings, OF_THE_RUN, OF_THE_MACHINE)
    runs = (argument for argument in sys.argv[1:] if not argument.startswith("-"))
    task = next(filter(None, map(task_of_run, runs)), None)
    names = resumable_options(task) if task else set()
    if task and task.options:
        add_flags(parser, task.options, names, OF_THE_MACHINE)
    given = vars(parser.parse_args())
    try:
        for_card = _command_from_anywhere(given)
        Settings(**{name: given[name] for name in OF_THE_RUN if name in given})
        if task and task.options:
            task.options(**{name: given[name] for name in names if name in given})
        run = given.pop("run")
        own = {field.name for field in fields(FinalsSettings)} & set(given)
        protocol = FinalsSettings(**{name: given.pop(name) for name in own})
    except ValueError as error:
        parser.error(str(error))

    started = time.monotonic()
    try:
        with FinalsConsole() as console:
            verdict = finalize(run, protocol, given, console, command=for_card)
    except tuner.InputError as error:
        return complain(f"error: {error}", 2)
    except (FolderError, TrainingError, AllDivergedError) as error:
        return complain(f"error: {error}", 1)
    except SystemExit as stopped:
        again = command("finalize", *sys.argv[1:])
        words = f"stopped; what has ended is kept, and the same command resumes: {again}"
        return complain(words, int(stopped.code or 0))
    print_verdict(console.console, verdict, RunFolder(run), time.monotonic() - started)
    return 0


def _command_from_anywhere(given: Mapping[str, Any]) -> str:
    """Write the command with absolute paths, for the card, which is read from other folders too."""
    arguments = ["tune-mnist", "finalize", RunFolder(given["run"]).uri]
    for name, value in given.items():
        if isinstance(value, bool):
            arguments.append(flag_of(name if value else f"no_{name}"))
        elif name != "run":
            value = value.expanduser().absolute() if isinstance(value, Path) else value
            arguments += [flag_of(name), str(value)]
    return shlex.join(arguments)
