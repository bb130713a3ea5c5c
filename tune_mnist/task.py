"""What a user writes to have a training loop tuned: a `Task`, with the `Objective` that it is judged by.

Nothing here imports torch or Ray, and nothing else of this package: everything may import this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # trials import this, and need no Optuna
    from optuna.distributions import BaseDistribution

Space = Mapping[str, "BaseDistribution"]
"""A search space: Optuna's distributions by the name of the parameter."""
Save = Callable[[Path], None]
"""Writes all that the training needs to be resumed to a file."""

AXES = ("linear", "log", "nines")


class DivergedError(ArithmeticError):
    """Training cannot continue, as a loss is not finite; the trial fails, and its process lives on."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The reported value that a search optimises, its direction, and how it is written.

    Raises:
        ValueError: for a mode, an axis or a standard error that is unknown, or a format that cannot write a
            number.
    """

    metric: str
    "Name of the value in a report."
    mode: str = "max"
    "max or min."
    label: str = ""
    "What people call it; the default is the metric's name."
    format: str = ".4g"
    "Python's format specification of a value."
    axis: str = "linear"
    "The scale of its plots: linear, log, or nines, on which 98 and 99 % lie as far apart as 80 and 90 %."
    standard_error: str | None = None
    "binomial, for a fraction of independent examples; None where nothing is known about it."
    time_attr: str = "epoch"
    "Name of the value in a report that counts the progress of a trial, from 1; `max_epochs` is its budget."

    def __post_init__(self) -> None:
        require(self.mode in ("max", "min"), "mode", self.mode, "max or min")
        require(self.axis in AXES, "axis", self.axis, f"one of {', '.join(AXES)}")
        known = self.standard_error in (None, "binomial")
        require(known, "standard_error", self.standard_error, "binomial or None")
        for name in ("metric", "time_attr"):
            require(bool(getattr(self, name)), name, "empty", "the name of a reported value")
        try:
            format(0.5, self.format)
        except ValueError as error:
            rule = "a format of numbers, such as .4g or .2%"
            raise ValueError(f"format is {self.format}, but must be {rule}") from error

    @property
    def name(self) -> str:
        """What people call the value."""
        return self.label or self.metric.replace("_", " ")

    @property
    def sign(self) -> float:
        """1 where more is better, else -1."""
        return 1.0 if self.mode == "max" else -1.0

    def score(self, report: Mapping[str, Any]) -> float:
        """Give a report's value so that more is better; one that is not a number is worst."""
        value = float(report[self.metric])
        return -math.inf if math.isnan(value) else self.sign * value

    def best(self, values: Iterable[float]) -> float | None:
        """Give the best of some values; None without any."""
        return max(values, key=lambda value: self.sign * value, default=None)

    def write(self, value: float | None) -> str:
        """Write a value for people; -- for None and NaN."""
        return "--" if value is None or math.isnan(value) else format(value, self.format)

    def error_of(self, value: float, n: int | None) -> float | None:
        """Give the standard error of a value from n examples; None where nothing is known about it."""
        if self.standard_error != "binomial" or not n or not 0 <= value <= 1:
            return None
        return math.sqrt(value * (1 - value) / n)

    def write_with_error(self, value: float, n: int | None) -> str:
        """Write a value with its standard error, where one is known: 98.86% ± 0.15%."""
        error = self.error_of(value, n)
        return self.write(value) if error is None else f"{self.write(value)} ± {self.write(error)}"

    @property
    def unit(self) -> str:
        """Unit of a difference of two values: " points" for percentages, else nothing."""
        return " points" if self.format.endswith("%") else ""

    def write_difference(self, difference: float, *, sign: str = "") -> str:
        """Write a difference of two values, without its unit; -- for NaN.

        Args:
            difference: of percentages as a fraction, as the values are.
            sign: "+" to write one before positive ones.
        """
        if math.isnan(difference):
            return "--"
        text = f"{100 * difference:.2f}" if self.unit else self.write(difference)
        return text if text.startswith("-") else sign + text

    def compare(self, value: float, other: float) -> str:
        """Write by how much a value is better than another: 0.52 points above it; equal to it."""
        amount = self.write_difference(abs(value - other))
        if amount == self.write_difference(0.0):
            return "equal to it"
        return f"{amount}{self.unit} {'above' if value > other else 'below'} it"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a task's training is told of the trial that it trains."""

    seed: int
    "Another one for each trial, the same one after a resume."
    max_epochs: int
    "Reports to give at most."
    checkpoint: Path | None = None
    "What a `Save` has written, to resume from; None at the start."
    epoch: int = 0
    "Reports given before that checkpoint was written, 0 at the start."
    device: str = "cpu"
    "cpu or cuda."
    cpus: float = 1.0
    "CPU cores; torch is set to use a thread for each."
    gpus: float = 0.0
    "GPUs; a fraction is also a limit of the GPU's memory."


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """What the winner's checkpoint came to on the test set."""

    metrics: Mapping[str, float]
    "With `Objective.metric` among them."
    n: int | None = None
    "Examples in the test set."
    files: Mapping[str, bytes] = field(default_factory=dict)
    "What is to be kept of the winner next to its checkpoint, such as its weights, by file name."


Train = Callable[[dict[str, Any], Any, Trial], Iterator[tuple[Mapping[str, Any], "Save | None"]]]
"""The type of `Task.train`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training loop to be tuned.

    Raises:
        ValueError: for a name that is no identifier, or without a space.
    """

    name: str
    "Names its runs; letters, digits, '_' and '-'."
    objective: Objective
    spaces: Mapping[str, Space]
    "Search spaces by name; the first is the default."
    train: Train
    """``train(config, data, trial)`` trains one configuration: a generator that yields, for each epoch, what
    it reports (numbers by name, `Objective.metric` among them) and a `Save`; where that is None, a trial that
    is lost starts over."""
    load: Callable[[Any, int], Any] | None = None
    """``load(options, seed)`` loads the data, once, on the driver; trials share NumPy arrays in it. Raises
    ValueError or OSError, in one line, where there are none."""
    options: type | None = None
    "A dataclass whose fields become flags, see `option`."
    baseline: Mapping[str, Any] | Callable[[Space, int], Mapping[str, Any]] | None = None
    """A configuration in the terms of the space, which is tried first; or ``baseline(space, max_epochs)``
    gives it. In a space that cannot have it, it is left out."""
    complete: Callable[[dict[str, Any], int], dict[str, Any]] | None = None
    """``complete(parameters, max_epochs)`` turns drawn parameters into the configuration to train. Raises
    ValueError for one that cannot be. An integer ``epochs`` in it is the trial's own budget."""
    test: Callable[[dict[str, Any], Path, Any], TestSet] | None = None
    "``test(config, checkpoint, options)`` scores a checkpoint on the test set, once, for the winner."
    load_all: Callable[[Any, int], Any] | None = None
    """``load_all(options, seed)`` loads what a final model is trained on: as ``load``, but with the
    validation part among the training data. With this and ``test``, a search can be finalized."""
    export: Callable[[dict[str, Any], Path, Any], Mapping[str, bytes]] | None = None
    """``export(config, checkpoint, options)`` makes the files of a final model for others to use, by file
    name."""
    usage: str = ""
    "What a final model is and how its files are used, in Markdown, for its card."
    validation_examples: Callable[[Any], int] | None = None
    "``validation_examples(options)`` counts the examples of the metric, for its standard error."
    describe: Callable[[Any], str] | None = None
    "``describe(options)`` says in words what is trained on."
    preload: tuple[str, ...] = ()
    "Modules that a worker may import before its first trial."
    defaults: Mapping[str, Any] = field(default_factory=dict)
    "What a configuration has where the space does not draw it, for the tables."
    tables: tuple[str, ...] = ()
    "Other reported values that the table of trials and the page show."

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "")
        rule = "letters, digits, '_' and '-'"
        require(plain.isascii() and plain.isalnum(), "a task's name", self.name or "empty", rule)
        require(bool(self.spaces), f"spaces of task {self.name}", "empty", "a dict with a space or more")


def option(default: Any, help: str, *, group: str = "task", resumable: bool = False) -> Any:
    """Declare a field of a task's options, which becomes the flag ``--name-of-the-field``.

    Args:
        default: its value where the flag is not given.
        help: what ``--help`` says.
        group: the heading above it there.
        resumable: whether a resume may change it, as what belongs to the machine and changes no result.
    """
    return field(default=default, metadata={"group": group, "help": help, "resumable": resumable})


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise ValueError, which states the value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} is {value}, but must be {rule}")
