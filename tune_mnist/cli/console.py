"""What a search shows while it runs: one live line, or a line per trial."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.words import describe, duration, short_path
from tune_mnist.tuning.progress import EndedTrial, Listener, Progress


class PatientConsole(Console):
    """Standard output whose reader may leave (``| head -1``): Rich would exit, and end the search."""

    def __init__(self, *, markup: bool = True) -> None:
        super().__init__(highlight=False, markup=markup, soft_wrap=not sys.stdout.isatty())

    def on_broken_pipe(self) -> None:
        """Continue without a reader."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class SearchConsole(Listener):
    """Shows a search as a live line, or as a line per ended trial if the output is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PatientConsole()
        self.started = time.monotonic()
        self.progress: Progress | None = None
        self.waiting = ""
        self.live = Live(
            console=self.console, get_renderable=self._line, transient=True, refresh_per_second=2
        )

    def __enter__(self) -> SearchConsole:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def on_message(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def on_progress(self, progress: Progress) -> None:
        """Remember the counts for the next refresh."""
        if self.progress is None:
            self.started = time.monotonic()
            if progress.resumed:
                self.console.print(
                    f"{progress.resumed} of {progress.num_samples} trials had ended; the others continue"
                )
        self.progress = progress
        if progress.waiting != self.waiting and not self.console.is_terminal:
            self.console.print(progress.waiting or "no longer waiting")
        self.waiting = progress.waiting

    def on_trial_end(self, progress: Progress, trial: EndedTrial) -> None:
        """Print a line for the trial if there is no live line to show it."""
        if not self.console.is_terminal:
            value = progress.objective.write(trial.value)
            self.console.print(
                f"{len(progress.ended):>4}/{progress.num_samples} trial {trial.number:<3} {trial.state:<8} "
                f"{value:>7} after {trial.epochs}/{trial.epochs_planned} epochs  {describe(trial.config)}"
            )

    def _line(self) -> Text:
        elapsed = time.monotonic() - self.started
        if self.progress is None:
            return Text(f"starting Ray, reading the data ... {elapsed:.0f} s", style="dim")
        return Text(live_line(self.progress, elapsed))


def place_of(folder: RunFolder) -> str:
    """Return where a run is: its URI, or its path, relative below the working folder."""
    return folder.uri if folder.remote else str(short_path(folder.local))


def live_line(progress: Progress, elapsed: float) -> str:
    """Describe the progress of a search in one line."""
    done = len(progress.ended)
    parts = [
        f"{done}/{progress.num_samples} trials done",
        f"{progress.running} running",
        f"{progress.count('PRUNED')} pruned",
        f"{progress.count('FAIL')} failed",
        *([f"{progress.retries} retried"] if progress.retries else []),
        f"{progress.epochs} epochs",
    ]
    if progress.best_value is not None and progress.best_config is not None:
        best = progress.objective.write(progress.best_value)
        parts.append(f"best {best} ({describe(progress.best_config)})")
    if done == progress.num_samples:
        parts.append("scoring the winner")
    elif progress.waiting:
        parts.append(progress.waiting)
    elif done > progress.resumed:
        left = elapsed / (done - progress.resumed) * (progress.num_samples - done)
        if progress.deadline is not None:
            left = max(0.0, min(left, progress.deadline - time.monotonic()))
        parts.append(f"about {duration(left)} left")
    else:
        parts.append(duration(elapsed))
    return " · ".join(parts)
