"""Every reason to end a search early: a signal, the time budget, the target."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tune_mnist.run.settings import Settings
from tune_mnist.tuning.progress import Progress

TARGET = "target"
"""Stop reason of a search that has reached its target."""
REACHED = (TARGET, "target accuracy")
"""The same, including what older versions wrote."""


class StopRequest:
    """Ends a search cleanly, once, on a signal, when its time is up, or when it has reached its target.

    Ray's own SIGINT handler returns from ``fit()`` as if the search were done, and on SIGTERM Ray saves
    nothing. With ours, the `Stopper` ends Ray's loop when there is a ``reason``.
    """

    def __init__(self, settings: Settings) -> None:
        self.reason: str | None = None
        self.target, self.budget = settings.target, settings.time_budget
        self.started: float | None = None
        self.deadline: float | None = None
        self.deferring = False
        self.pending: int | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a search must be run from the main thread, where its stop signals arrive")
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.getsignal(number)
        self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.pending is not None:  # Ray may have replaced the exception that was raised
            raise SystemExit(128 + self.pending)

    def _install(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay signals to the end of a block: a `ray.init` that is interrupted aborts the process."""
        set_handler = signal.signal
        # ray.init installs its own handler, which exits midway.
        signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
            signal.signal = set_handler
            self._install()  # below Python too: Ray's C++ code has replaced SIGTERM's
        if self.pending is not None:
            raise SystemExit(128 + self.pending)

    def begin(self) -> None:
        """Start the clock: from here on, the first signal ends the search cleanly."""
        self.started = time.monotonic()
        self.deadline = self.started + self.budget if self.budget else None

    def check(self, progress: Progress) -> None:
        """Give the search a reason to end when its target or its deadline is reached."""
        progress.deadline = self.deadline
        best, sign = progress.best_saved_value, progress.objective.sign  # a winner needs its checkpoint
        if self.reason is not None:
            return
        if self.target is not None and best is not None and sign * (best - self.target) >= 0:
            self.reason = TARGET
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = "time budget"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.started is None or self.reason in ("SIGINT", "SIGTERM"):
            self.pending = number  # before the search, or a second signal: exit at once
            if not self.deferring:
                raise SystemExit(128 + number)
            return
        self.reason = signal.Signals(number).name
