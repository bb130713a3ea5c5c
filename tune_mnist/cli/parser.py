"""A parser whose flags are the fields of dataclasses, and whose errors are one line."""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from tune_mnist.run.settings import GROUPS, flag_of
from tune_mnist.run.words import short_path

SCRIPTS = Path(__file__).parents[2] / "scripts"
"""The folder of the scripts, which are not installed with the package."""
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
OF_THE_MACHINE = "this machine; what is left out is as in the search"
"""Heading of the flags that a command about a run takes besides its own."""
FLAG_WIDTH = 32
"""Columns of ``--help`` for a flag, before its explanation."""


def add_flags(
    parser: OneLineParser, settings: type, names: Collection[str] | None = None, group: str | None = None
) -> None:
    """Add one flag for each field of a dataclass, grouped and explained by the fields' metadata.

    Args:
        parser: gets the flags.
        settings: the dataclass.
        names: the fields that become flags; None takes all.
        group: title of one group for all of them, which states their default; None takes the groups of the
            fields, and each flag states its default.
    """
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if names is not None and field.name not in names:
            continue
        place = parser.group(group or field.metadata.get("group", "options"))
        flag, help = flag_of(field.name), field.metadata.get("help", "")
        default = field.default if parser.argument_default is None else parser.argument_default
        kind = _seconds if field.name == "time_budget" else _plain_type(hints[field.name])
        if kind is bool:
            place.add_argument(flag, action=argparse.BooleanOptionalAction, help=help, default=default)
            continue
        if typing.get_origin(hints[field.name]) is tuple:
            place.add_argument(flag, nargs="+", action="extend", help=help, metavar=_metavar(field.name, str))
            continue
        if group:
            help = help.partition(" (default: ")[0]
        elif field.default not in (None, ""):
            shown = f"{field.default:g}" if kind is float else field.default
            help = f"{help} (default: {shown})"
        place.add_argument(flag, type=kind, help=help, metavar=_metavar(field.name, kind), default=default)


class _Help(argparse.HelpFormatter):
    """Leaves more room for a flag, and breaks none at a hyphen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=FLAG_WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class OneLineParser(argparse.ArgumentParser):
    """The parser of a command: flags cannot be abbreviated, and an error is one line, without the usage."""

    def __init__(self, **options: Any) -> None:
        """Take argparse's options, and let the command print to an output of any encoding."""
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **options})
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook; stderr never refuses a character
            sys.stdout.reconfigure(errors="replace")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return the group of flags with a title, with its example if it has one."""
        if title not in self._groups:
            example = GROUPS.get(title)
            heading = f"{title}, as in {example}" if example else title
            self._groups[title] = self.add_argument_group(heading)
        return self._groups[title]

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def complain(text: str, code: int) -> int:
    """Print a line on standard error, after the name of the command that was typed; return the code."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)
    return code


def command(name: str, *arguments: str) -> str:
    """Write a command so that it works where it is printed: with its script, if that exists."""
    script = SCRIPTS / f"{name}.py"
    start = [str(short_path(script))] if script.exists() else ["-m", "tune_mnist", name]
    return shlex.join([str(short_path(Path(sys.executable))), *start, *arguments])


def _plain_type(hint: Any) -> Any:
    """Return the T of ``T | None``."""
    if isinstance(hint, types.UnionType):
        (hint,) = (argument for argument in typing.get_args(hint) if argument is not type(None))
    return hint


def _metavar(name: str, kind: Any) -> str:
    special = {
        "warm_start": "RUN",
        "points": "FILE",
        "storage_path": "PATH",
        "address": "HOST:PORT",
        "time_budget": "DURATION",
    }
    return special.get(name) or {int: "N", float: "X", Path: "FOLDER"}.get(kind, "NAME")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds, nor a duration like 90s, 10m or 2h"
        )
    return float(match[1]) * UNITS[match[2]]
