"""Searches from Python and in notebooks: `search`, `resume`, `load_run`, and the `Run` that they return."""

from __future__ import annotations

import time
from functools import cached_property
from html import escape
from typing import Any

import pandas as pd

from tune_mnist.cli.console import SearchConsole, live_line
from tune_mnist.cli.summary import REPORT, next_command
from tune_mnist.report.insights import facts
from tune_mnist.report.learned import learned
from tune_mnist.report.page import make_report
from tune_mnist.report.rungs import Level
from tune_mnist.report.survival import survival_frame
from tune_mnist.report.view import View
from tune_mnist.results.frames import epochs_frame, trials_frame
from tune_mnist.results.grid import LedgerGrid
from tune_mnist.results.winner import Winner
from tune_mnist.run.resuming import ResumeRequest
from tune_mnist.run.settings import Settings
from tune_mnist.task import Task
from tune_mnist.tuning import tuner
from tune_mnist.tuning.progress import Listener, Progress


class Run:
    """A run that has ended, was stopped, or is still running; in Jupyter it is shown as a summary."""

    def __init__(self, outcome: tuner.Outcome) -> None:
        self._outcome = outcome

    @property
    def folder(self) -> str:
        """Its folder: a path, or a URI."""
        return self._outcome.folder.uri

    @property
    def grid(self) -> LedgerGrid:
        """Ray's ResultGrid."""
        return self._outcome.grid

    @property
    def best(self) -> Winner | None:
        """The best trial with its checkpoint; None before there is one."""
        return self._outcome.winner

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial, see `tune_mnist.results.trials_frame`."""
        return trials_frame(self.grid)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row per trial and epoch, see `tune_mnist.results.epochs_frame`."""
        return epochs_frame(self.grid)

    @cached_property
    def _view(self) -> View:
        return View(self._outcome)

    @property
    def learned(self) -> list[str]:
        """What it learned, in a few sentences, each with its number of trials."""
        return list(learned(self._view).sentences)

    @property
    def survival(self) -> pd.DataFrame:
        """How many trials passed each rung, by hyper-parameter, see `survival_frame`."""
        return survival_frame(self._view)

    @property
    def levels(self) -> dict[str, int]:
        """The levels at which trials can be compared, each with its number of trials."""
        return {level.name: len(level.trials) for level in self._view.levels}

    def at(self, level: str | None = None) -> pd.DataFrame:
        """Compare trials at equal epochs: the rows of `trials` that reached a level, with ``value`` there.

        Args:
            level: one of `levels`, such as "epoch 4" or "final"; None takes the page's first one.

        Raises:
            KeyError: if there is no such level.
        """
        reached = self._level(level)
        numbers = [trial.number for trial in reached.trials]
        values = pd.Series(reached.values, index=numbers, dtype="float64")
        rows = self.trials[self.trials["number"].isin(numbers)]
        return rows.assign(value=rows["number"].map(values)).reset_index(drop=True)

    def importance(self, level: str | None = None) -> pd.DataFrame:
        """Return the importance of each hyper-parameter at a level, largest first; empty for too few trials.

        Columns: ``parameter``; ``importance``, ``low`` and ``high`` (0..1), a 90 % bootstrap interval.

        Args:
            level: as in `at`.
        """
        shares = self._view.importance(self._level(level)).shares
        rows = [(share.name, share.value, share.low, share.high) for share in shares]
        return pd.DataFrame(rows, columns=["parameter", "importance", "low", "high"])

    def _level(self, name: str | None) -> Level:
        return {level.name: level for level in self._view.levels}[name or self._view.level.name]

    def report(self) -> str:
        """Write ``report.html`` into the run's folder; return its path or URI."""
        self._outcome.folder.put(REPORT, make_report(self._view, next_command(self._view)).encode())
        return f"{self.folder}/{REPORT}"

    def __repr__(self) -> str:
        return f"Run({self.folder!r}: {len(self.grid)} trials)"

    def _repr_html_(self) -> str:
        view = self._view
        table = pd.DataFrame(facts(view))
        best = self.trials.sort_values(view.metric, ascending=view.objective.mode == "min").head(5)
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.learned)
        facts_table = table.to_html(index=False, header=False)
        return f"<b>{view.name}</b>{facts_table}<ul>{sentences}</ul>{best.to_html(index=False)}"


def search(task: Task | str = "mnist", **settings: Any) -> Run:
    """Search the hyper-parameters of a task; an interrupt ends the search cleanly.

    Args:
        task: a `Task`, or the name of one, as for `--task`.
        settings: fields of `Settings`, such as ``num_samples=20``, and the task's options.

    Raises:
        InputError: if the settings cannot be met; nothing has been written then.
        FolderError: if the storage is lost in between.
        ClusterError: if no trial can be run.
    """
    found = task if isinstance(task, Task) else tuner.find_task(Settings(task=task))
    names = tuner.option_names(found)
    options = {name: settings.pop(name) for name in names if name in settings}
    named = found.name if isinstance(task, Task) else task
    asked = Settings(task=named, options=options, **settings)
    with _console() as listener:
        return Run(tuner.run(asked, listener, task=found))


def resume(run: str, task: Task | None = None, **changes: Any) -> Run:
    """Resume a run that was killed or stopped, or give it more trials; with nothing to do it is only read.

    Args:
        run: its folder or URI.
        task: its task, if that cannot be found by name.
        changes: settings to change, such as ``num_samples=40``.

    Raises:
        InputError: if there is no such run, or a change is not allowed.
        FolderError: as in `search`.
        ClusterError: as in `search`.
    """
    with _console() as listener:
        outcome = tuner.resume(ResumeRequest(run=run, changes=changes), listener, task=task)
    return load_run(run) if outcome is None else Run(outcome)


def load_run(run: str) -> Run:
    """Read a run, without its task and without changing anything.

    Raises:
        FolderError: if there is no such run.
    """
    return Run(tuner.load_run(run))


def _console() -> SearchConsole | NotebookLine:
    try:
        from IPython import get_ipython
    except ImportError:
        return SearchConsole()
    shell = get_ipython()
    return NotebookLine() if shell is not None and hasattr(shell, "kernel") else SearchConsole()


class NotebookLine(Listener):
    """Shows a search in a cell: its messages, and one line that is updated in place."""

    SECONDS = 0.5
    "Shortest time between two updates."

    def __init__(self) -> None:
        from IPython.display import display

        self.started = self.shown = time.monotonic()
        self.line: Any = display(  # type: ignore[no-untyped-call]
            {"text/plain": "starting Ray ..."}, raw=True, display_id=True
        )

    def __enter__(self) -> NotebookLine:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last line."""

    def on_message(self, text: str) -> None:
        """Print a line."""
        print(text)

    def on_progress(self, progress: Progress) -> None:
        """Update the line."""
        if time.monotonic() - self.shown > self.SECONDS or len(progress.ended) == progress.num_samples:
            self.shown = time.monotonic()
            text = live_line(progress, time.monotonic() - self.started)
            self.line.update({"text/plain": text}, raw=True)
