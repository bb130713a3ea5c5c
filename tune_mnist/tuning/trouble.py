"""Problems that affect all trials: losses that are no trial's fault, and when to give up."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util import placement_group_table

from tune_mnist.cluster.machine import has_sockets, why_no_worker
from tune_mnist.run.saved import StorageError
from tune_mnist.run.settings import Settings
from tune_mnist.run.words import first_line

LOAD_ERROR = re.compile(
    r"(?:failed to import on the worker.*?\n|System error: [^\n]*\ntraceback: )Traceback.*?\n(\w[^\n]*)",
    re.DOTALL,
)
"""Finds, in Ray's text about a lost attempt, the error raised on importing the trial or its task."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Storage errors that a retry cannot cure."""
FEWEST = 3
"""Minimum number of such losses in a row before a search gives up."""
STORAGE_SECONDS = 600.0
"""Time after which a search gives up on storage that does not answer."""
LONGEST_PAUSE = 60.0
"""Longest wait before a lost attempt is retried."""
SLOWEST = 10.0
"""Longest silence of a training trial, as a multiple of the slowest epoch so far."""


class Trouble:
    """Counts losses that are no trial's fault, until an attempt reports something."""

    def __init__(self, slots: int, tell: Callable[[str], None]) -> None:
        """Start at zero, for ``slots`` concurrent attempts; ``tell`` is called with a line for the user."""
        self.losses = 0
        self.reason = ""
        "Why the last attempt was lost."
        self._enough, self._tell, self._told = max(slots, FEWEST), tell, ""
        self._since, self._away, self._due = 0.0, False, 0.0

    def heard(self) -> None:
        """Reset the count: an attempt has reported something."""
        self.losses, self._since = 0, 0.0

    def excuses(self, cause: BaseException | str, details: str) -> str:
        """Return why a loss is not the trial's fault, so that it does not count; "" if it may be.

        ``cause`` is what the process raised, or Ray's text about its end; ``details`` is the whole text.
        """
        imported = LOAD_ERROR.search(details)
        if imported:
            reason, self._away = f"no worker can import what a trial needs: {imported[1]}", False
        elif isinstance(cause, StorageError):
            reason, self._away = cause.strerror or first_line(cause), cause.errno not in FULL
        else:
            return ""
        self.losses += 1
        self._since = self._since or time.monotonic()
        if self._away:
            self._wait(2.0**self.losses)
        self.reason = reason
        self._say(reason)
        return reason

    def memory(self, details: str, losses: int) -> None:
        """Delay the next attempt if one was killed for lack of memory, longer after each loss."""
        if "running low on memory" in details:
            self._wait(5 * 2.0**losses)
            self._say(
                "a trial was killed for lack of memory and will be retried later; a smaller "
                "--max-concurrent-trials or a larger --cpus-per-trial leaves more for each"
            )

    @property
    def hopeless(self) -> bool:
        """Whether so many losses in a row make another attempt pointless."""
        if self._away:
            return self.losses > 0 and time.monotonic() - self._since > STORAGE_SECONDS
        return self.losses >= self._enough

    @property
    def pause(self) -> float:
        """Seconds until the next attempt may begin."""
        return max(0.0, self._due - time.monotonic())

    def _wait(self, seconds: float) -> None:
        self._due = max(self._due, time.monotonic() + min(seconds, LONGEST_PAUSE))

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell(text)


class Watchdog:
    """Detects that a search makes no progress: attempts are silent, or Ray starts no worker."""

    def __init__(self, settings: Settings, session: Callable[[], Path | None], slowest: float) -> None:
        """Start the clock.

        ``session`` returns the folder of Ray's session, if it is on this machine; ``slowest`` is the slowest
        epoch so far in seconds, 0 before the first.
        """
        self.settings, self._session, self.slowest = settings, session, slowest
        self.reason = ""
        "Why Ray can no longer run anything here."
        self._heard, self._stalls, self._started = time.monotonic(), 0, False

    def heard(self, *, started: bool = False) -> None:
        """Record a sign of life."""
        self._heard = time.monotonic()
        self._started |= started

    def is_silent(self, *, training: bool) -> bool:
        """Return whether all attempts have been silent for longer than an epoch or a start explains.

        How long an epoch takes is unknown before the first, so that needs more patience. ``training`` is
        False if no attempt has a process, perhaps because no node has room, which is not a fault.
        """
        if self.has_lost_folder():
            return True
        patience = self.settings.stall_seconds
        if training:
            patience = max(patience, SLOWEST * (self.slowest or patience))
        if time.monotonic() - self._heard < patience * 2**self._stalls:
            return False
        if not training and not self._has_room():
            self.heard()
            return False
        if not training and not self._started and has_place():
            cause = why_no_worker(self._session())
            self.reason = f"Ray has started no worker in {patience:.0f} s{cause and f': {cause}'}"
        self._stalls += 1
        return True

    def has_lost_folder(self) -> bool:
        """Return whether the folder of Ray's session was deleted, without which no worker can start."""
        session = self._session()
        if session and not has_sockets(session):
            self.reason = f"Ray's folder {session} was deleted while it ran"
            return True
        return False

    def _has_room(self) -> bool:
        try:
            free = ray.available_resources()  # type: ignore[no-untyped-call]
        except RayError:
            return True
        settings = self.settings
        return has_place() or bool(
            free.get("CPU", 0.0) >= settings.cpus_per_trial
            and free.get("GPU", 0.0) >= (settings.gpus_per_trial or 0.0)
        )


def has_place() -> bool:
    """Return whether a node has reserved room for an attempt of this process, so a worker could start."""
    job: str = ray.get_runtime_context().get_job_id()  # the id of each placement group ends in it
    try:
        groups = placement_group_table().values()
    except RayError:
        return False
    return any(group["state"] == "CREATED" and group["placement_group_id"].endswith(job) for group in groups)
