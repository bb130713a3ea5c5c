"""Runs a program as a user would, measures its wall and CPU seconds, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 0.5
"""Between two samples of the processes' CPU seconds; what one uses after its last sample is not counted."""
PATIENCE_SECONDS = 20.0
"""Grace for a program that was asked to end, before it is killed."""
MARK = "BENCHMARK_PROCESS"
"""Environment variable that marks the processes that a program started, whatever their parent is now."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a program ran."""

    started: float
    "Seconds since 1970."
    wall_seconds: float
    cpu_seconds: float
    "User and system, of the process and all its descendants."
    own_cpu_seconds: float
    "Those of the process itself."
    peak_megabytes: float
    "Peak memory seen of the process itself."
    error: str
    "Why it failed: what killed it, or the last line of its output; else empty."


def run(
    command: Sequence[str],
    log: Path,
    *,
    folder: Path,
    environment: Mapping[str, str],
    limit_seconds: float,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Ran:
    """Run a program to its end, its output in a file; kill what it leaves running.

    Args:
        command: what to run.
        log: where its output goes.
        folder: where it runs.
        environment: its variables.
        limit_seconds: after which it is stopped, which counts as a failure.
        patience_seconds: between the interrupt and SIGKILL, and then for the processes to be gone.
    """
    started, begun = time.time(), time.perf_counter()
    # In its own session, so that a Ctrl-C meant for us reaches it only through us.
    mark = uuid.uuid4().hex
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARK: f"{environment.get(MARK, '')} {mark}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = _Tree(process.pid, mark)
    timed_out = False
    try:
        while not timed_out:
            tree.look()
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
                break
            timed_out = time.perf_counter() - begun > limit_seconds
    finally:
        wall_seconds = time.perf_counter() - begun
        code = tree.end(process, patience_seconds)
    error = ""
    if timed_out:
        error = f"not done after {limit_seconds:.0f} s"
        if code is None:
            error += f", and still there {patience_seconds:.0f} s after SIGKILL"
    elif code and code < 0:
        error = f"killed by {signal.Signals(-code).name}"
    elif code:
        lines = log.read_text(errors="replace").strip().splitlines()
        error = lines[-1].strip() if lines else f"exit code {code}"
    return Ran(
        started=started,
        wall_seconds=wall_seconds,
        cpu_seconds=sum(tree.seconds.values()),
        own_cpu_seconds=tree.seconds.get(tree.root, 0.0) if tree.root else 0.0,
        peak_megabytes=tree.peak_megabytes,
        error=error,
    )


class _Tree:
    """A process and all that it ever started, as far as sampling or their environment shows them.

    `os.wait4` is not enough: Ray's raylet lets the kernel reap its workers, whose CPU seconds are then lost.
    """

    def __init__(self, pid: int, mark: str) -> None:
        self.root: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self.root = psutil.Process(pid)
        self.mark = mark
        self.seconds: dict[psutil.Process, float] = {}
        self.peak_megabytes = 0.0

    def look(self) -> None:
        """Record the processes, the CPU seconds of each, and the memory of the first."""
        if self.root is None:
            return
        with suppress(psutil.Error):
            self.peak_megabytes = max(self.peak_megabytes, self.root.memory_info().rss / 1e6)
            for process in (self.root, *self.root.children(recursive=True)):
                self.seconds.setdefault(process, 0.0)
        for process in list(self.seconds):
            with suppress(psutil.Error):
                times = process.cpu_times()
                self.seconds[process] = times.user + times.system

    def end(self, process: subprocess.Popen[bytes], patience_seconds: float) -> int | None:
        """Interrupt the program if it still runs, as Ctrl-C does; in the end kill what is left of it.

        Returns:
            Its exit code; None if it outlives SIGKILL, as one that hangs in a driver can.
        """
        if process.poll() is None:
            self.look()
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience_seconds)
        self.look()
        for one in (*self.seconds, *self._marked()):
            with suppress(psutil.Error):  # psutil never kills another process that has since got the number
                one.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
        psutil.wait_procs(self.seconds, timeout=patience_seconds)
        return process.poll()

    def _marked(self) -> list[psutil.Process]:
        """Find the processes that no sample has seen, such as a daemon's after its parent's end."""
        marked = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if self.mark in process.environ().get(MARK, "").split():
                    marked.append(process)
        return marked
