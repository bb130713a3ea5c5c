"""The settings of a search: one dataclass, the source of the Python API as of the command line's flags."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def setting(default: Any, group: str, help: str) -> Any:
    """Declare a field that becomes the flag ``--name-of-the-field`` in a group of ``--help``."""
    return dataclasses.field(default=default, metadata={"group": group, "help": help})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a search.

    Raises:
        ValueError: for a value out of range; the text states the value and the rule.
    """

    num_samples: int = setting(20, "search", "trials in all")
    max_epochs: int = setting(5, "search", "most epochs of a trial")
    space: str = setting("blog", "search", "blog, wide, or package.module:NAME of one's own")
    sampler: str = setting("tpe", "search", "Optuna's sampler: tpe, random or qmc")
    seed: int = setting(0, "search", "of the sampler, the validation split and the trials")
    time_budget: float | None = setting(None, "search", "end the search after SECONDS, or 10m, or 2h")
    target_accuracy: float | None = setting(
        None, "search", "end it when a trial's validation accuracy gets here"
    )
    warm_start: tuple[str, ...] = setting(
        (), "search", "earlier runs (folders or URIs) whose finished and pruned trials the sampler is to know"
    )
    points: Path | None = setting(
        None, "search", "JSON file of configurations to try first; what one leaves out is drawn"
    )

    grace_period: int = setting(1, "scheduler (ASHA)", "epochs before a trial can be cut: the first rung")
    # 4 is that of Li et al., 2020, and of Ray. On recorded curves (benchmarks/README.md) an epoch is worth as
    # much with 2 and 3; 4 gets through the most trials. A grace period of 3 is worse at first.
    reduction_factor: float = setting(
        4.0, "scheduler (ASHA)", "keep the best 1/FACTOR of the trials at a rung"
    )

    cpus_per_trial: float = setting(1.0, "resources", "CPU cores of a trial")
    gpus_per_trial: float | None = setting(
        None,
        "resources",
        "GPUs of a trial, 0.5 for two trials on one (default: 0.5 where there are GPUs, else 0)",
    )
    max_concurrent_trials: int | None = setting(
        None, "resources", "trials at a time (default: as many as the resources hold)"
    )
    max_failures: int = setting(
        3, "resources", "times that a trial is tried again after its process or node was lost"
    )
    stall_seconds: float = setting(
        120.0,
        "resources",
        "shortest silence of all trials after which their processes are replaced; while they train, never "
        "before 10 times the slowest epoch (before the first one: 10 times as long)",
    )
    fresh_actors: bool = setting(
        False, "resources", "start a new process for every trial: slower, but nothing shared"
    )
    address: str | None = setting(
        None,
        "resources",
        "running Ray cluster, auto or HOST:PORT (default: RAY_ADDRESS, else the one whose head this is, else "
        "a Ray of its own)",
    )
    dashboard: bool = setting(False, "resources", "start Ray's dashboard with a Ray of its own, on loopback")

    dataset: str = setting("mnist", "data", "mnist, fashion-mnist or kmnist")
    data_dir: Path = setting(Path("data"), "data", "folder of the data set, filled when empty")
    train_size: int | None = setting(None, "data", "training images (default: all but the validation part)")
    val_size: int = setting(5000, "data", "images cut from the training set for validation")

    precision: str = setting("auto", "training", "fp32, bf16, or auto: bf16 where the hardware has it")
    cuda_graph: str = setting(
        "on", "training", "on or off: whether a GPU replays the training steps from CUDA graphs"
    )
    checkpoint_seconds: float = setting(30.0, "training", "longest time without a checkpoint, at epoch ends")
    keep_checkpoints: int = setting(5, "training", "ended trials whose checkpoints are kept: the best ones")

    name: str | None = setting(None, "run", "name of the run (default: data set, date and time)")
    storage_path: str = setting(
        "runs", "run", "folder of the runs, or s3://BUCKET/PATH; this one is STORAGE_PATH/NAME"
    )
    open_dashboard: bool = setting(
        False, "run", "serve optuna-dashboard on loopback while the search runs, and open a browser"
    )

    def __post_init__(self) -> None:
        """Check each value that can be checked without looking at the machine."""
        for name in ("num_samples", "max_epochs", "grace_period", "val_size", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("train_size", "max_concurrent_trials"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1")
        self._require("seed", 0 <= self.seed < 2**31, f"0 to {2**31 - 1}")
        self._require(
            "grace_period", self.grace_period <= self.max_epochs, f"at most max_epochs, {self.max_epochs}"
        )
        factor = self.reduction_factor
        self._require("reduction_factor", math.isfinite(factor) and factor >= 2, "at least 2")
        cpus = self.cpus_per_trial
        self._require("cpus_per_trial", _is_share(cpus) and cpus > 0, f"above 0: {SHARE_RULE}")
        gpus = self.gpus_per_trial
        self._require("gpus_per_trial", gpus is None or _is_share(gpus), f"0, {SHARE_RULE}")
        budget = self.time_budget
        self._require("time_budget", budget is None or 0 < budget < math.inf, "above 0 seconds")
        target = self.target_accuracy
        self._require("target_accuracy", target is None or 0 < target <= 1, "above 0 and at most 1")
        self._require("checkpoint_seconds", self.checkpoint_seconds >= 0, "at least 0")
        self._require("stall_seconds", 0 < self.stall_seconds < math.inf, "above 0")
        self._one_of("sampler", ("tpe", "random", "qmc"))
        self._one_of("dataset", ("mnist", "fashion-mnist", "kmnist"))
        self._one_of("precision", ("auto", "fp32", "bf16"))
        self._one_of("cuda_graph", ("on", "off"))
        self._require(
            "name",
            self.name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            "letters, digits, '.', '_' and '-', at most 100, the first a letter or digit",
        )
        path = self.storage_path
        sound = path != "" and (":/" not in path or re.match(r"[\w.+-]+://[^/]+|file:///.", path) is not None)
        self._require("storage_path", sound, "a folder or a URI such as s3://BUCKET/runs")
        if re.match(r"\w+://[^/]*@", path):  # the value stays unsaid, here as in settings.json
            raise ValueError(
                "storage_path holds a key, but must not: give it in the environment or a profile"
            )
        self._require("max_failures", self.max_failures >= 0, "at least 0")
        if "" in self.warm_start:
            raise ValueError("warm_start is empty, but must be the folder or the URI of a run")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"{name} is {value if value != '' else 'empty'}, but must be {rule}")

    def _one_of(self, name: str, known: Sequence[str]) -> None:
        self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")

    def to_json(self) -> str:
        """Write the settings as JSON; paths become absolute, so that the file holds from any folder."""
        values = {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }
        values["warm_start"] = [
            run if "://" in run else str(Path(run).expanduser().absolute()) for run in self.warm_start
        ]
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: if it is not that.
        """
        try:
            values = {**SINCE_THEN, **json.loads(text)}
            values["data_dir"] = Path(values["data_dir"])
            values["points"] = Path(values["points"]) if values["points"] is not None else None
            values["warm_start"] = tuple(values["warm_start"])
            for name, hint in typing.get_type_hints(cls).items():
                if typing.get_origin(hint) is tuple:
                    hint = tuple
                # A whole number stands for a float of that value in JSON.
                if not isinstance(values[name], hint) and not (
                    isinstance(values[name], int) and isinstance(float(values[name]), hint)
                ):
                    raise TypeError(f"{name} is {values[name]!r}, but must be {hint}")
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no settings of a run: {error}") from error


SINCE_THEN: dict[str, Any] = {
    **{"warm_start": (), "points": None, "open_dashboard": False, "cuda_graph": "on", "stall_seconds": 120.0},
    "keep_checkpoints": 5,
}
"""What the settings of older runs lack."""

RESUMABLE = (
    *("num_samples", "time_budget", "max_concurrent_trials", "cpus_per_trial", "gpus_per_trial"),
    *("max_failures", "address", "dashboard", "data_dir", "open_dashboard", "cuda_graph", "stall_seconds"),
    "keep_checkpoints",
)
"""What a resume may change: how far to go, and what depends on the machines that it goes on."""


@dataclass(frozen=True, kw_only=True)
class ResumeRequest:
    """A run to go on with, and the settings to change."""

    run: str
    "Its folder or URI."
    changes: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse by name what a resume may not change."""
        if not self.run:
            raise ValueError("--resume is empty, but must be the folder or the URI of a run")
        for name, value in self.changes.items():
            if name not in RESUMABLE:
                shown = " ".join(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"{flag_of(name)} is {shown}, but must be left out: a resumed run keeps its own"
                )

    def settings_of(self, settings: Settings) -> Settings:
        """Give the run's settings with the changes.

        Raises:
            ValueError: for fewer trials than the run has, or a value out of range.
        """
        asked = self.changes.get("num_samples", settings.num_samples)
        if asked < settings.num_samples:
            rule = f"must be at least {settings.num_samples}, which the run has already"
            raise ValueError(f"num_samples is {asked}, but {rule}")
        # A browser is for who asks for it now.
        return dataclasses.replace(settings, **{"open_dashboard": False, **self.changes})


def flag_of(name: str) -> str:
    """Write the flag of a setting."""
    return f"--{name.replace('_', '-')}"


SHARE_RULE = "a fraction of 1 or a whole number"


def parse_settings(arguments: Sequence[str] | None = None, *, description: str) -> Settings | ResumeRequest:
    """Read the flags of a command line; on a mistake print one line and exit with code 2."""
    parser = OneLineParser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add_flags(parser, Settings)
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run (a folder or a URI) that was killed, stopped, or is to get more trials; only "
        + ", ".join(map(flag_of, RESUMABLE))
        + " can be given beside it",
    )
    try:
        given = vars(parser.parse_args(arguments))
        given.update({name: tuple(value) for name, value in given.items() if isinstance(value, list)})
        if "resume" not in given:
            return Settings(**given)
        request = ResumeRequest(run=given.pop("resume"), changes=given)
        Settings(**given)
        return request
    except ValueError as error:
        parser.error(str(error))


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
        if hints[field.name] is bool:
            group.add_argument(flag, action="store_true", help=help, default=parser.argument_default)
            continue
        if typing.get_origin(hints[field.name]) is tuple:
            group.add_argument(flag, nargs="+", action="extend", help=help, metavar="RUN")
            continue
        if field.default is not None:
            help = f"{help} (default: {field.default})"
        kind = _seconds if field.name == "time_budget" else _plain_type(hints[field.name])
        default: dict[str, Any] = (
            {} if parser.argument_default == argparse.SUPPRESS else {"default": field.default}
        )
        group.add_argument(flag, type=kind, help=help, metavar=_metavar(field.name, kind), **default)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


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


def _is_share(value: float) -> bool:
    return 0 <= value < math.inf and (value <= 1 or value == int(value))
