"""The settings of a search: one dataclass, from which the Python API and the flags are made."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUPS = {
    "most used": "--num-samples 64 --gpus-per-trial 0.5 --name first",
    "search": "--sampler qmc --seed 1 --target 0.99",
    "stopping trials early": "--grace-period 3 --reduction-factor 3",
    "resources and cluster": "--address auto --max-concurrent-trials 4",
    "storage and run": "--storage-path s3://BUCKET/runs --open-dashboard",
    "task": "--task own.py:TASK",
}
"""The groups of ``--help``, the most used first, each with an example."""


TRACKERS = ("mlflow", "wandb")
"""Trackers to which trials can be logged."""


def setting(default: Any, group: str, help: str) -> Any:
    """Declare a field that becomes the flag ``--name-of-the-field`` in a group of ``--help``."""
    return dataclasses.field(default=default, metadata={"group": group, "help": help})


def _of(group: str) -> Callable[[Any, str], Any]:
    return lambda default, help: setting(default, group, help)


most_used, of_search, of_stopping, of_cluster, of_storage, of_task = map(_of, GROUPS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a search.

    Raises:
        ValueError: for a value out of range; the text states the value and the rule.
    """

    task: str = of_task("mnist", "mnist, or FILE.py:NAME or package.module:NAME of your own task")
    trainable: str | None = of_task(
        None, "FILE.py:NAME or package.module:NAME of a Ray Tune function, instead of a task"
    )
    metric: str | None = of_task(None, "reported value of a --trainable that the search optimises")
    mode: str | None = of_task(None, "max or min: whether a large or a small value is good")

    num_samples: int = most_used(20, "trials in all")
    max_epochs: int = most_used(5, "most epochs of a trial")
    space: str = most_used(
        "", "search space: one of the task's (mnist: blog, wide), or FILE.py:NAME of a dict"
    )
    sampler: str = of_search("tpe", "Optuna's tpe, random or qmc, or FILE.py:NAME of a function of a seed")
    seed: int = of_search(0, "seed of sampler, validation split and trials")
    time_budget: float | None = most_used(None, "end the search after SECONDS, or 10m, or 2h")
    target: float | None = of_search(None, "end the search when a trial's metric reaches this")
    warm_start: tuple[str, ...] = of_search(
        (), "earlier runs (folders or URIs), whose trials the sampler knows from the start"
    )
    points: Path | None = of_search(
        None, "JSON file of configurations to try first; missing values are drawn"
    )

    scheduler: str = of_stopping("asha", "asha, or none to stop no trial early")
    grace_period: int = of_stopping(1, "epochs before a trial can be stopped: the first rung")
    # Li et al., 2020, and Ray use 4. On recorded curves (benchmarks/README.md) 2 and 3 do as well per epoch;
    # 4 gets through the most trials. A grace period of 3 is worse at first.
    reduction_factor: float = of_stopping(4.0, "keep the best 1/X of the trials at a rung")

    cpus_per_trial: float = of_cluster(1.0, "CPU cores of a trial")
    gpus_per_trial: float | None = most_used(
        None, "GPUs of a trial; 0.5 runs two on one (default: 0.5 if there are GPUs, else 0)"
    )
    max_concurrent_trials: int | None = of_cluster(None, "trials in parallel (default: as many as fit)")
    max_failures: int = of_cluster(3, "retries of a trial whose process or node was lost")
    stall_seconds: float = of_cluster(
        120.0,
        "silence of all trials after which their processes are replaced; while they train, at least 10 times "
        "the slowest epoch (before the first one: 10 times this)",
    )
    fresh_actors: bool = of_cluster(
        False, "start a new process for every trial: slower, but nothing is shared"
    )
    address: str | None = of_cluster(
        None,
        "running Ray cluster, or auto (default: RAY_ADDRESS, else this machine's cluster, else a new Ray)",
    )
    dashboard: bool = of_cluster(False, "start Ray's dashboard with a new Ray, on loopback")

    checkpoint_seconds: float = of_storage(30.0, "longest time without a checkpoint, at epoch ends")
    keep_checkpoints: int = of_storage(5, "ended trials that keep their checkpoints: the best")

    name: str | None = most_used(None, "name of the run (default: task, date and time)")
    storage_path: str = of_storage("runs", "folder of the runs, or s3://BUCKET/PATH; this run is PATH/NAME")
    open_dashboard: bool = of_storage(
        False, "serve optuna-dashboard on loopback during the search, and open a browser"
    )
    log: tuple[str, ...] = of_storage((), "mlflow, wandb, or both: show each trial there as a run")

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    "The task's options that differ from their defaults, as JSON values."

    def __post_init__(self) -> None:
        """Check each value as far as possible without looking at the machine."""
        object.__setattr__(self, "log", _names(self.log))
        for name in ("num_samples", "max_epochs", "grace_period", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        most = self.max_concurrent_trials
        self._require("max_concurrent_trials", most is None or most >= 1, "at least 1")
        self._require("seed", 0 <= self.seed < 2**31, f"0 to {2**31 - 1}")
        self._require(
            "grace_period", self.grace_period <= self.max_epochs, f"at most max_epochs, {self.max_epochs}"
        )
        self._require("reduction_factor", 2 <= self.reduction_factor < math.inf, "at least 2")
        cpus = self.cpus_per_trial
        self._require("cpus_per_trial", _is_share(cpus) and cpus > 0, f"above 0: {SHARE_RULE}")
        gpus = self.gpus_per_trial
        self._require("gpus_per_trial", gpus is None or _is_share(gpus), f"0, {SHARE_RULE}")
        budget = self.time_budget
        self._require("time_budget", budget is None or 0 < budget < math.inf, "above 0 seconds")
        self._require("target", self.target is None or math.isfinite(self.target), "a finite number")
        self._require("checkpoint_seconds", self.checkpoint_seconds >= 0, "at least 0")
        self._require("stall_seconds", 0 < self.stall_seconds < math.inf, "above 0")
        known = ":" in self.sampler or self.sampler in ("tpe", "random", "qmc")
        self._require("sampler", known, "tpe, random, qmc, FILE.py:NAME or package.module:NAME")
        self._require("scheduler", self.scheduler in ("asha", "none"), "one of asha, none")
        self._require("mode", self.mode in (None, "max", "min"), "one of max, min")
        if self.trainable is not None:
            for name in ("metric", "mode", "space"):
                self._require(name, bool(getattr(self, name)), "given with a trainable")
        self._require(
            "name",
            self.name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            "letters, digits, '.', '_' and '-', at most 100, the first a letter or digit",
        )
        path = self.storage_path
        sound = path != "" and (":/" not in path or re.match(r"[\w.+-]+://[^/]+|file:///.", path) is not None)
        self._require("storage_path", sound, "a folder or a URI such as s3://BUCKET/runs")
        if re.match(r"\w+://[^/]*@", path):  # the value is not shown, here or in settings.json
            raise ValueError(
                "storage_path holds a key, but must not: give it in the environment or a profile"
            )
        self._require("max_failures", self.max_failures >= 0, "at least 0")
        if "" in self.warm_start:
            raise ValueError("warm_start is empty, but must be the folder or the URI of a run")
        for tracker in self.log:
            if tracker not in TRACKERS:
                rule = f"must be {', '.join(TRACKERS)}, both, or none"
                raise ValueError(f"log is {tracker or 'empty'}, but {rule}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"{name} is {value if value != '' else 'empty'}, but must be {rule}")

    def to_json(self) -> str:
        """Return the settings as JSON; paths become absolute, so that the file is valid from any folder."""
        values = {name: _absolute(value) for name, value in dataclasses.asdict(self).items()}
        values["warm_start"] = [
            run if "://" in run else str(Path(run).expanduser().absolute()) for run in self.warm_start
        ]
        for name in ("task", "trainable", "space", "sampler"):
            if isinstance(values[name], str) and ".py:" in values[name]:  # FILE.py:NAME
                values[name] = str(Path(values[name]).expanduser().absolute())
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what ``to_json`` or its older versions wrote.

        Raises:
            ValueError: if it is something else.
        """
        try:
            values = _renewed({**LEGACY_DEFAULTS, **json.loads(text)})
            values["points"] = Path(values["points"]) if values["points"] is not None else None
            values["warm_start"], values["log"] = tuple(values["warm_start"]), tuple(values["log"])
            for name, hint in typing.get_type_hints(cls).items():
                hint = typing.get_origin(hint) if typing.get_origin(hint) in (tuple, Mapping) else hint
                # JSON may hold a whole number for a float.
                if not isinstance(values[name], hint) and not (
                    isinstance(values[name], int) and isinstance(float(values[name]), hint)
                ):
                    raise TypeError(f"{name} is {values[name]!r}, but must be {hint}")
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are not the settings of a run: {error}") from error


LEGACY_DEFAULTS: dict[str, Any] = {
    **{"warm_start": (), "points": None, "open_dashboard": False, "stall_seconds": 120.0},
    **{"keep_checkpoints": 5, "task": "mnist", "trainable": None, "metric": None, "mode": None},
    **{"scheduler": "asha", "log": (), "options": {}},
}
"""What the settings of runs by older versions are missing."""


def _renewed(values: dict[str, Any]) -> dict[str, Any]:
    """Rename the settings of an older version, in which those of mnist were among the others."""
    if "target" not in values:
        values["target"] = values.pop("target_accuracy")
    names = {field.name for field in dataclasses.fields(Settings)}
    own = {name: values.pop(name) for name in list(values) if name not in names}
    return {**values, "options": {**values["options"], **own}}


def _names(log: Sequence[str]) -> tuple[str, ...]:
    """Return the names in comma-separated lists, each once, without "none"."""
    parts = [log] if isinstance(log, str) else log
    names = dict.fromkeys(name.strip() for part in parts for name in part.split(","))
    return tuple(name for name in names if name != "none")


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _absolute(part) for name, part in value.items()}
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


SHARE_RULE = "a fraction of 1 or a whole number"


def _is_share(value: float) -> bool:
    return 0 <= value < math.inf and (value <= 1 or value == int(value))
