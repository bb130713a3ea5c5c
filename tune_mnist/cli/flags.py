"""The flags of the commands, made of the fields of dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.settings import RESUMABLE, ResumeRequest, Settings, flag_of
from tune_mnist.run.words import short_path
from tune_mnist.task import Task
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.tasks import find_task

SCRIPTS = Path(__file__).parents[2] / "scripts"
"""The folder of the scripts, which are not installed with the package."""
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
CHOOSE_A_TASK = ("task", "trainable", "metric", "mode", "space", "resume")
"""Flags that say which other flags there are."""


def parse_settings(arguments: Sequence[str] | None = None, *, description: str) -> Settings | ResumeRequest:
    """Read the flags of a command line; on a mistake print one line and exit with code 2."""
    parser = OneLineParser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
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
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="resume a run (a folder or a URI) that was killed, stopped, or is to get more trials; only "
        + ", ".join(map(flag_of, RESUMABLE))
        + " and some options of the task can be given with it",
    )
    try:
        given = vars(parser.parse_args(arguments))
        given.update({name: tuple(value) for name, value in given.items() if isinstance(value, list)})
        own = {name: given.pop(name) for name in options if name in given}
        if task.options:
            task.options(**own)  # which checks them
        if "resume" not in given:
            return Settings(**given, options=own)
        run = given.pop("resume")
        Settings(**{name: value for name, value in given.items() if name not in CHOOSE_A_TASK})
        return ResumeRequest(run=run, changes={**given, **own})
    except ValueError as error:
        parser.error(str(error))


def _task_of(arguments: Sequence[str] | None) -> Task:
    """Find the task that a command line is about: its own, or that of the run to be resumed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in CHOOSE_A_TASK:
        parser.add_argument(flag_of(name), default=argparse.SUPPRESS)
    try:
        given = vars(parser.parse_known_args(arguments)[0])
    except argparse.ArgumentError:  # a flag without its value, of which the real parser complains
        return find_task(Settings())
    if run := given.pop("resume", None):
        try:
            return find_task(read_settings(RunFolder(run)))
        except (FolderError, ValueError):
            return find_task(Settings())  # the search itself says what is wrong
    return find_task(Settings(**given))


def add_flags(parser: argparse.ArgumentParser, settings: type, names: Collection[str] | None = None) -> None:
    """Add one flag for each field of a dataclass, grouped and explained by the fields' metadata.

    Args:
        parser: where to.
        settings: the dataclass.
        names: the fields that become flags; None takes all.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if names is not None and field.name not in names:
            continue
        title = field.metadata.get("group", "options")
        group = groups.setdefault(title, parser.add_argument_group(title))
        flag, help = flag_of(field.name), field.metadata.get("help", "")
        default: dict[str, Any] = (
            {} if parser.argument_default == argparse.SUPPRESS else {"default": field.default}
        )
        kind = _seconds if field.name == "time_budget" else _plain_type(hints[field.name])
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help, **default)
            continue
        if typing.get_origin(hints[field.name]) is tuple:
            group.add_argument(flag, nargs="+", action="extend", help=help, metavar="RUN")
            continue
        if field.default not in (None, ""):
            help = f"{help} (default: {field.default})"
        group.add_argument(flag, type=kind, help=help, metavar=_metavar(field.name, kind), **default)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def program() -> str:
    """Name the command that was typed, for the beginning of a complaint."""
    return Path(sys.argv[0]).name


def command(name: str, *arguments: str) -> str:
    """Write a command so that it works where it is printed: with its script, where that is there."""
    script = SCRIPTS / f"{name}.py"
    start = [str(short_path(script))] if script.exists() else ["-m", "tune_mnist", name]
    return shlex.join([str(short_path(Path(sys.executable))), *start, *arguments])


def _plain_type(hint: Any) -> Any:
    """Give the T of ``T | None``."""
    if isinstance(hint, types.UnionType):
        (hint,) = (argument for argument in typing.get_args(hint) if argument is not type(None))
    return hint


def _metavar(name: str, kind: Any) -> str:
    if name == "points":
        return "FILE"
    return "DURATION" if kind is _seconds else {int: "N", float: "X", Path: "FOLDER"}.get(kind, name.upper())


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, nor one like 90s, 10m or 2h")
    return float(match[1]) * UNITS[match[2]]
