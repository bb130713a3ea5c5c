"""What a Ray needs of this machine: cores, a temp folder, and processes that start."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from loky import cpu_count

SOCKET = f"/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
"""As long as what Ray appends to its temp folder for a socket."""
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Most bytes in the path of a socket."""
PROBE_BYTES = 2**16


def usable_cpus() -> int:
    """Count the CPU cores that this process may use: those it is bound to, and no more than its quota."""
    return int(cpu_count())


def check_temp_folder() -> None:
    """See that Ray can use its temp folder.

    Raises:
        ValueError: if not; the text names the folder, the rule and the variable to set.
    """
    unset = "/tmp" if sys.platform != "linux" else os.environ.get("TMPDIR") or "/tmp"
    folder = Path(os.environ.get("RAY_TMPDIR") or unset) / "ray"
    most = LONGEST_SOCKET - len(SOCKET)
    if len(os.fsencode(folder)) > most:
        raise ValueError(
            f"its temp folder is {folder}, but must have at most {most} characters, as the paths of sockets "
            "begin with it: set RAY_TMPDIR to a shorter one"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
    except OSError as error:
        raise ValueError(
            f"its temp folder is {folder}, but must be one that can be written ({error.strerror}): set "
            "RAY_TMPDIR to another one"
        ) from error


def has_sockets(session: Path) -> bool:
    """Tell whether a session's folder has the sockets by which a new worker reaches Ray, on this machine.

    The folder alone says nothing: where it was deleted, Ray's processes make it again, for their logs.
    """
    return any((session / "sockets").glob("*"))


def why_no_worker(session: Path | None) -> str:
    """Give the last words of the processes that did not become workers; "" where none are here."""
    try:
        lines = (session / "logs" / "raylet.err").read_text(errors="replace").split("\n") if session else []
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
