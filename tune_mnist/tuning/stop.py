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
"""The reason of a search that has reached its target."""
REACHED = (TARGET, "target accuracy")
"""The same, as older versions wrote it, too."""


class StopRequest:
    """Ends a search in order, once, on a signal, when its time is up, or when it has reached its target.

    Ray's own SIGINT handler returns from ``fit()`` as if the search were done, and on SIGTERM it saves
    nothing. With ours, Ray's loop is told to stop by its `Stopper`, which asks for the ``reason``.
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
        if self.pending is not None:  # Ray may have made another exception of the one that was raised
            raise SystemExit(128 + self.pending)

    def _install(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Put a signal off to the end of a block that it would tear: half a `ray.init` aborts the process."""
        set_handler = signal.signal
        # ray.init puts a handler of its own in place, which exits in the middle.
        signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
            signal.signal = set_handler
            self._install()  # below Python too: Ray's C++ has taken SIGTERM
        if self.pending is not None:
            raise SystemExit(128 + self.pending)

    def begin(self) -> None:
        """Start the clock: from here on a first signal ends the search in order."""
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
            self.pending = number  # before the search, or for the second time: at once
            if not self.deferring:
                raise SystemExit(128 + number)
            return
        self.reason = signal.Signals(number).name
