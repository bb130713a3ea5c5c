"""The flags of a search: its settings, and the options of its task."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import suppress

from tune_mnist.cli.parser import OneLineParser, add_flags
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.resuming import RESUMABLE, ResumeRequest
from tune_mnist.run.settings import GROUPS, Settings, flag_of
from tune_mnist.task import Task
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.tasks import find_task, resumable_options

CHOOSE_A_TASK = ("task", "trainable", "metric", "mode", "space", "resume")
"""Flags that decide which other flags there are."""


def parse_settings(arguments: Sequence[str] | None = None, *, description: str) -> Settings | ResumeRequest:
    """Read the flags of a command line; on a mistake print one line and exit with code 2."""
    parser = OneLineParser(
        usage="%(prog)s [FLAG ...]", description=description, argument_default=argparse.SUPPRESS
    )
    for title in GROUPS:
        parser.group(title)
    try:
        task = _task_of(arguments)
    except (ValueError, FolderError) as error:
        parser.error(str(error))
    add_flags(parser, Settings, [field.name for field in dataclasses.fields(Settings) if field.metadata])
    parser.add_argument(
        f"--target-{task.objective.metric.replace('_', '-')}",
        dest="target",
        type=float,
        help=argparse.SUPPRESS,
    )
    options = [field.name for field in dataclasses.fields(task.options)] if task.options else []
    if task.options:
        add_flags(parser, task.options)
    parser.group("most used").add_argument(
        "--resume",
        metavar="RUN",
        help="resume a run (a folder or a URI) that was killed or stopped, or give it more trials; can be "
        "combined with " + ", ".join(map(flag_of, [*RESUMABLE, *sorted(resumable_options(task))])),
    )
    try:
        given = vars(parser.parse_args(arguments))
        given.update({name: tuple(value) for name, value in given.items() if isinstance(value, list)})
        own = {name: given.pop(name) for name in options if name in given}
        if task.options:
            task.options(**own)  # checks them
        if "resume" not in given:
            return Settings(**given, options=own)
        run = given.pop("resume")
        Settings(**{name: value for name, value in given.items() if name not in CHOOSE_A_TASK})
        return ResumeRequest(run=run, changes={**given, **own})
    except ValueError as error:
        parser.error(str(error))


def _task_of(arguments: Sequence[str] | None) -> Task:
    """Find the task of a command line: the one it names, or that of the run to be resumed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in CHOOSE_A_TASK:
        parser.add_argument(flag_of(name), default=argparse.SUPPRESS)
    try:
        given = vars(parser.parse_known_args(arguments)[0])
    except argparse.ArgumentError:  # a flag without its value; the real parser reports it
        return find_task(Settings())
    if run := given.pop("resume", None):
        return task_of_run(run) or find_task(Settings())  # the search reports what is wrong
    return find_task(Settings(**given))


def task_of_run(run: str) -> Task | None:
    """Find the task of a run, a folder or a URI; None if there is none."""
    with suppress(FolderError, ValueError):
        return find_task(read_settings(RunFolder(run)))
    return None
