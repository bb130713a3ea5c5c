"""Makes a task from an existing Ray Tune function, which calls `ray.tune.report` and stays unchanged."""

from __future__ import annotations

import queue
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from ray.tune import Checkpoint
from ray.tune.search.optuna import OptunaSearch

from tune_mnist.cluster.ray_private import tune_session
from tune_mnist.run.settings import Settings
from tune_mnist.run.words import first_line
from tune_mnist.task import Objective, Save, Task, Trial
from tune_mnist.tuning.tasks import load_object

THREAD = "ray-tune-function"
"""Name of the thread in which such a function runs."""
Report = tuple[dict[str, Any], Checkpoint | None]


def task_of_function(settings: Settings) -> Task:
    """Make a task from the function that the settings name.

    Its reports are counted as epochs, unless they have an ``epoch``. Without checkpoints, a lost trial starts
    over. The function chooses its own seed.

    Raises:
        ValueError: if there is no such function or space, or the space has a part that cannot be drawn.
    """
    name, metric = settings.trainable or "", settings.metric or ""
    function = load_object("trainable", name)
    if not callable(function):
        raise ValueError(f"trainable is {name}, but must be a function of a config")
    spec = load_object("space", settings.space)
    space = convert_space(settings.space, spec)
    return Task(
        name=name.rpartition(":")[2],
        objective=Objective(metric=metric, mode=settings.mode or "max"),
        spaces={settings.space: space},
        train=partial(_train, function),
        complete=partial(_complete, spec),
    )


def convert_space(name: str, spec: Any) -> dict[str, BaseDistribution]:
    """Convert a Ray Tune space to Optuna's terms, if it is not in those; nested keys are joined by '/'.

    Raises:
        ValueError: for a grid, a function or another part without a matching distribution.
    """
    rule = "must be a dict of ray.tune's or Optuna's distributions, with one or more"
    if not isinstance(spec, Mapping):
        raise ValueError(f"space {name} is a {type(spec).__name__}, but {rule}")
    if any(isinstance(part, BaseDistribution) for part in spec.values()):
        return {key: part for key, part in spec.items() if isinstance(part, BaseDistribution)}
    try:
        space: dict[str, BaseDistribution] = OptunaSearch.convert_search_space(dict(spec))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"space {name} {rule}: {first_line(error)}") from error
    if not space:
        raise ValueError(f"space {name} has nothing to draw, but {rule}")
    return space


def _complete(spec: Mapping[str, Any], parameters: dict[str, Any], max_epochs: int) -> dict[str, Any]:
    """Put drawn values in their places among the constants of a space."""
    config: dict[str, Any] = _copy(spec)
    for name, value in parameters.items():
        *path, last = name.split("/") if name not in spec else [name]
        place = config
        for key in path:
            place = place[key]
        place[last] = value
    return config


def _copy(part: Any) -> Any:
    return {key: _copy(value) for key, value in part.items()} if isinstance(part, Mapping) else part


def _train(
    function: Callable[[dict[str, Any]], Any], config: dict[str, Any], data: Any, trial: Trial
) -> Iterator[tuple[dict[str, Any], Save | None]]:
    """Run a function in a thread, and yield its reports one by one; it waits in each."""
    with tempfile.TemporaryDirectory() as folder:
        start = None
        if trial.checkpoint:
            with tarfile.open(trial.checkpoint) as archive:
                archive.extractall(folder, filter="data")
            start = Checkpoint(folder)
        session = _Session(start)
        thread = threading.Thread(target=session.run, args=(function, config), name=THREAD, daemon=True)
        thread.start()
        try:
            while (report := session.reports.get()) is not None:
                metrics, checkpoint = report
                yield metrics, partial(_save, checkpoint) if checkpoint else None
                session.go_on.release()
            if session.error:
                raise session.error
        finally:
            session.ended = True
            session.go_on.release()


class _Session:
    """What a function talks to instead of Ray's session."""

    def __init__(self, start: Checkpoint | None) -> None:
        self.start = start
        self.reports: queue.Queue[Report | None] = queue.Queue()
        self.go_on = threading.Semaphore(0)
        self.error: Exception | None = None
        self.ended = False

    def run(self, function: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> None:
        try:
            with tune_session(function, self.report, lambda: self.start), suppress(SystemExit):
                function(config)
        except Exception as error:
            self.error = error
        self.reports.put(None)

    def report(self, metrics: dict[str, Any], *, checkpoint: Checkpoint | None = None, **_: Any) -> None:
        """Pass a report on; end the thread if the trial has been stopped."""
        self.reports.put((dict(metrics), checkpoint))
        self.go_on.acquire()
        if self.ended:
            raise SystemExit


def _save(checkpoint: Checkpoint, path: Path) -> None:
    with checkpoint.as_directory() as directory, tarfile.open(path, "w") as archive:
        archive.add(directory, arcname=".")
