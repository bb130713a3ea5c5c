"""What a user writes to have a training loop tuned: a `Task`, with the `Objective` by which it is judged.

This module imports neither torch nor Ray nor the rest of the package, so anything may import it.
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
"""A search space: Optuna's distributions by parameter name."""
Save = Callable[[Path], None]
"""Writes all that is needed to resume the training to a file."""

AXES = ("linear", "log", "nines")


class DivergedError(ArithmeticError):
    """Training cannot continue because a loss is not finite; the trial fails, its process lives on."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The reported value that a search optimises, its direction, and how it is written.

    Raises:
        ValueError: for an unknown mode, axis or standard error, or a format that cannot write a number.
    """

    metric: str
    "Name of the value in a report."
    mode: str = "max"
    "max or min."
    label: str = ""
    "Its display name; the default is the metric's name."
    format: str = ".4g"
    "Python format specification for a value."
    axis: str = "linear"
    "The scale of its plots: linear, log, or nines, where 98 and 99 % are as far apart as 80 and 90 %."
    standard_error: str | None = None
    "binomial, for a fraction of independent examples; None if unknown."
    time_attr: str = "epoch"
    "Name of the reported value that counts a trial's progress, from 1; `max_epochs` is its budget."

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
        """The display name of the value."""
        return self.label or self.metric.replace("_", " ")

    @property
    def sign(self) -> float:
        """1 if more is better, else -1."""
        return 1.0 if self.mode == "max" else -1.0

    def score(self, report: Mapping[str, Any]) -> float:
        """Return a report's value, signed so that more is better; NaN is worst."""
        value = float(report[self.metric])
        return -math.inf if math.isnan(value) else self.sign * value

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of some values; None if there are none."""
        return max(values, key=lambda value: self.sign * value, default=None)

    def write(self, value: float | None) -> str:
        """Format a value for people; -- for None and NaN."""
        return "--" if value is None or math.isnan(value) else format(value, self.format)

    def error_of(self, value: float, n: int | None) -> float | None:
        """Return the standard error of a value from n examples; None if unknown."""
        if self.standard_error != "binomial" or not n or not 0 <= value <= 1:
            return None
        return math.sqrt(value * (1 - value) / n)

    def write_with_error(self, value: float, n: int | None) -> str:
        """Format a value with its standard error, if known: 98.86% ± 0.15%."""
        error = self.error_of(value, n)
        return self.write(value) if error is None else f"{self.write(value)} ± {self.write(error)}"

    @property
    def unit(self) -> str:
        """Unit of a difference between two values: " points" for percentages, else nothing."""
        return " points" if self.format.endswith("%") else ""

    def write_difference(self, difference: float, *, sign: str = "") -> str:
        """Format a difference between two values, without its unit; -- for NaN.

        Args:
            difference: as a fraction for percentages, like the values.
            sign: "+" to put one before positive differences.
        """
        if math.isnan(difference):
            return "--"
        text = f"{100 * difference:.2f}" if self.unit else self.write(difference)
        return text if text.startswith("-") else sign + text

    def compare(self, value: float, other: float) -> str:
        """Describe how far a value is from another: 0.52 points above it; equal to it."""
        amount = self.write_difference(abs(value - other))
        if amount == self.write_difference(0.0):
            return "equal to it"
        return f"{amount}{self.unit} {'above' if value > other else 'below'} it"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a task's training knows about the trial that it trains."""

    seed: int
    "Differs between trials; the same after a resume."
    max_epochs: int
    "Most reports to yield."
    checkpoint: Path | None = None
    "File that a `Save` wrote, to resume from; None at the start."
    epoch: int = 0
    "Reports yielded before that checkpoint was written; 0 at the start."
    device: str = "cpu"
    "cpu or cuda."
    cpus: float = 1.0
    "CPU cores; torch uses one thread for each."
    gpus: float = 0.0
    "GPUs; a fraction is also a limit of the GPU's memory."


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Result of the winner's checkpoint on the test set."""

    metrics: Mapping[str, float]
    "Includes `Objective.metric`."
    n: int | None = None
    "Examples in the test set."
    files: Mapping[str, bytes] = field(default_factory=dict)
    "What to keep of the winner besides its checkpoint, such as its weights, by file name."


Train = Callable[[dict[str, Any], Any, Trial], Iterator[tuple[Mapping[str, Any], "Save | None"]]]
"""The type of `Task.train`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training loop to be tuned.

    Raises:
        ValueError: for a name with characters that are not allowed, or if ``spaces`` is empty.
    """

    name: str
    "Names its runs; letters, digits, '_' and '-'."
    objective: Objective
    spaces: Mapping[str, Space]
    "Search spaces by name; the first is the default."
    train: Train
    """``train(config, data, trial)`` trains one configuration: a generator that yields, for each epoch, what
    it reports (numbers by name, including `Objective.metric`) and a `Save`; if that is None, a lost trial
    starts over."""
    load: Callable[[Any, int], Any] | None = None
    """``load(options, seed)`` loads the data, once, on the driver; trials share NumPy arrays in it. Raises
    ValueError or OSError, with a one-line text, if there is no data."""
    options: type | None = None
    "A dataclass whose fields become flags, see `option`."
    baseline: Mapping[str, Any] | Callable[[Space, int], Mapping[str, Any]] | None = None
    """A configuration in the terms of the space, which is tried first, or a function
    ``baseline(space, max_epochs)`` that returns one. Left out if the space does not contain it."""
    complete: Callable[[dict[str, Any], int], dict[str, Any]] | None = None
    """``complete(parameters, max_epochs)`` turns drawn parameters into the configuration to train. Raises
    ValueError if that is impossible. An integer ``epochs`` in it is the trial's own budget."""
    test: Callable[[dict[str, Any], Path, Any], TestSet] | None = None
    "``test(config, checkpoint, options)`` scores a checkpoint on the test set, once, for the winner."
    load_all: Callable[[Any, int], Any] | None = None
    """``load_all(options, seed)`` loads what a final model is trained on: like ``load``, but with the
    validation part in the training data. With this and ``test``, a search can be finalized."""
    export: Callable[[dict[str, Any], Path, Any], Mapping[str, bytes]] | None = None
    """``export(config, checkpoint, options)`` returns the files of a final model for others to use, by file
    name."""
    usage: str = ""
    "What a final model is and how to use its files, in Markdown, for its card."
    validation_examples: Callable[[Any], int] | None = None
    "``validation_examples(options)`` counts the examples behind the metric, for its standard error."
    describe: Callable[[Any], str] | None = None
    "``describe(options)`` describes the data in words."
    preload: tuple[str, ...] = ()
    "Modules that a worker may import before its first trial."
    defaults: Mapping[str, Any] = field(default_factory=dict)
    "Values of what the space does not draw, for the tables."
    tables: tuple[str, ...] = ()
    "Other reported values to show in the table of trials and on the page."

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "")
        rule = "letters, digits, '_' and '-'"
        require(plain.isascii() and plain.isalnum(), "a task's name", self.name or "empty", rule)
        require(bool(self.spaces), f"spaces of task {self.name}", "empty", "a dict with at least one space")


def option(default: Any, help: str, *, group: str = "task", resumable: bool = False) -> Any:
    """Declare a field of a task's options, which becomes the flag ``--name-of-the-field``.

    Args:
        default: its value if the flag is not given.
        help: its text in ``--help``.
        group: the heading above it there.
        resumable: whether a resume may change it, because it depends on the machine and changes no result.
    """
    return field(default=default, metadata={"group": group, "help": help, "resumable": resumable})


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise a ValueError that states the value and the rule, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} is {value}, but must be {rule}")
