"""What Ray needs from this machine: cores, a temp folder, and processes that start."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from loky import cpu_count

SOCKET = f"/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
"""Has the length of what Ray appends to its temp folder for a socket."""
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Maximum bytes in the path of a socket."""
PROBE_BYTES = 2**16


def usable_cpus() -> int:
    """Count the CPU cores that this process may use, by its affinity and its quota."""
    return int(cpu_count())


def check_temp_folder() -> None:
    """Check that Ray can use its temp folder.

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
    """Return whether a session's folder has the sockets by which a new worker on this machine reaches Ray.

    The folder alone proves nothing: if it was deleted, Ray's processes recreate it for their logs.
    """
    return any((session / "sockets").glob("*"))


def why_no_worker(session: Path | None) -> str:
    """Return the last line from processes that failed to become workers; "" if there is none here."""
    try:
        lines = (session / "logs" / "raylet.err").read_text(errors="replace").split("\n") if session else []
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
