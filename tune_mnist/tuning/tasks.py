"""Loads what settings name: a task, a space or a sampler, from a module or a file."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import sysconfig
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from ray import cloudpickle

from tune_mnist.run.settings import Settings, flag_of
from tune_mnist.run.space import checked_space
from tune_mnist.task import Task, Train

KNOWN = {"mnist": "tune_mnist.mnist.task:TASK"}
"""Built-in tasks by name."""


def find_task(settings: Settings) -> Task:
    """Return the task of a search.

    Raises:
        ValueError: if there is none of that name; the text is one line.
    """
    if settings.trainable is not None:
        from tune_mnist.tuning.functions import task_of_function

        return task_of_function(settings)
    task = load_object("task", settings.task, KNOWN)
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise ValueError(f"task is {settings.task}, but must be a tune_mnist.Task: it is a {kind}")
    return task


def load_object(setting: str, name: str, known: Mapping[str, str] | None = None) -> Any:
    """Load what a setting names: one of ``known``, ``package.module:NAME``, or ``FILE.py:NAME``.

    Raises:
        ValueError: if there is no such thing; the text is one line.
    """
    known = known or {}
    names = [*known, "FILE.py:NAME", "package.module:NAME"]
    rule = f"{setting} is {name or 'empty'}, but must be {', '.join(names[:-1])} or {names[-1]}"
    place, _, attribute = known.get(name, name).rpartition(":")
    if not place or not attribute:
        raise ValueError(rule)
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
        return getattr(module, attribute)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{rule} ({type(error).__name__}: {error})") from error


def _load_module(name: str) -> types.ModuleType:
    if (here := str(Path.cwd())) not in sys.path:  # a script has its own folder there instead
        sys.path.append(here)
    return importlib.import_module(name)


def _load_file(path: Path) -> types.ModuleType:
    path = path.expanduser().resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path) and module.__name__ != "__main__":
            return module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pickle looks for classes there
    sys.path.insert(0, str(path.parent))  # as for a script, so that it finds its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def send_by_value(train: Train) -> None:
    """Send a training's own code along to the nodes of a cluster, which need not have it installed.

    That is its module and all loaded modules next to it. Installed packages, such as this one, are imported
    on the node.
    """
    parts = [train, *getattr(train, "args", ()), getattr(train, "func", None)]  # it may be a partial
    for name in {str(getattr(part, "__module__", "")).partition(".")[0] for part in parts}:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file is None or not _is_own(module):
            continue
        folder = Path(file).parents[1 if hasattr(module, "__path__") else 0]
        for key, other in list(sys.modules.items()):
            if "." not in key and _is_own(other) and Path(other.__file__ or "").is_relative_to(folder):
                cloudpickle.register_pickle_by_value(other)  # type: ignore[no-untyped-call]


def _is_own(module: types.ModuleType | None) -> bool:
    """Return whether a module is the user's own, not installed."""
    file = getattr(module, "__file__", None)
    if module is None or not file or module.__name__ in ("__main__", "tune_mnist"):
        return False
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(Path(file).is_relative_to(path) for path in installed)


def load_space(settings: Settings, task: Task) -> tuple[Settings, dict[str, BaseDistribution]]:
    """Load the space of a search; return the settings with its name, and the space.

    Raises:
        ValueError: if there is no such space, or it has something that the task cannot train.
    """
    name = settings.space or next(iter(task.spaces))
    space = task.spaces.get(name) or load_object("space", name, dict.fromkeys(task.spaces, ""))
    space = checked_space(task, name, space, settings.max_epochs)
    return dataclasses.replace(settings, space=name), space


def make_options(task: Task, given: Mapping[str, Any]) -> Any:
    """Make a task's options from JSON values; None for a task without options.

    Raises:
        ValueError: for an option that the task does not have, or a value out of range.
    """
    if task.options is None:
        if given:
            raise ValueError(f"{', '.join(map(flag_of, given))}: task {task.name} has no options")
        return None
    hints = typing.get_type_hints(task.options)
    values = {
        name: Path(value) if isinstance(value, str) and "Path" in str(hints.get(name)) else value
        for name, value in given.items()
    }
    try:
        return task.options(**values)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(task.options))
        raise ValueError(f"task {task.name} has the options {known} ({error})") from error


def option_names(task: Task) -> list[str]:
    """List the options of a task."""
    return [field.name for field in dataclasses.fields(task.options)] if task.options else []


def resumable_options(task: Task) -> set[str]:
    """List the options of a task that a resume may change."""
    fields = dataclasses.fields(task.options) if task.options else ()
    return {field.name for field in fields if field.metadata.get("resumable")}
