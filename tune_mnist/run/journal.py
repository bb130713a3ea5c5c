"""The study's journal, which optuna-dashboard reads; the ledger has all of it except the user's notes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileSymlinkLock

JOURNAL = "study.journal"
"""Name of the study's file in the run folder."""
PATIENCE_SECONDS = 3.0
"""Time after which the user is told about the wait for a lock."""


class Journal(BaseJournalBackend):
    """Optuna's journal of one study: in memory while it is rebuilt from a ledger, then in its file."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Start empty; ``tell`` is called with a line of text when a lock has to be waited for."""
        self._tell = tell
        self._made: list[dict[str, Any]] = []
        self._file: JournalFileBackend | None = None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the operations from a number on, counted from 0."""
        return self._file.read_logs(log_number_from) if self._file else self._made[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations."""
        if self._file:
            self._file.append_logs(logs)
        else:
            self._made += logs

    def put_in_place(self, path: Path) -> None:
        """Replace the journal at ``path`` with the operations so far, atomically, and continue there."""
        fresh = path.with_name(f".{path.name}.new")
        for stale in (fresh, Path(f"{fresh}.lock"), Path(f"{path}.lock")):  # a lock stops writers for 30 s
            stale.unlink(missing_ok=True)
        JournalFileBackend(str(fresh)).append_logs(self._made)
        fresh.replace(path)
        self._file, self._made = _UnsyncedFile(path, self._tell), []


class _UnsyncedFile(JournalFileBackend):
    """Optuna's file format and lock, so that other processes can read and write, without its sync.

    Optuna syncs the disk after each of the 17 operations of a trial, some 3 ms each. A resume rebuilds from
    the ledger what a power cut has lost of a journal.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path, self._lock = path, JournalFileSymlinkLock(str(path))
        self._tell = tell
        super().__init__(str(path), self._lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, so that other processes see them."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        lock, waits = Path(f"{self._path}.lock"), None
        if lock.is_symlink():
            text = f"waiting for {lock}: another process holds it; if that has died, delete it"
            waits = threading.Timer(PATIENCE_SECONDS, self._tell, [text])
            waits.start()
        self._lock.acquire()
        try:
            if waits:
                waits.cancel()
            with self._path.open("ab") as file:
                file.write(lines.encode())
        finally:
            self._lock.release()


def notes(journal: Path) -> dict[str, Any]:
    """Read what the user has written into a study with optuna-dashboard, which is stored nowhere else.

    Returns:
        The study's attributes; {} if no study can be read, as after a power cut.
    """
    if not journal.exists():
        return {}
    try:
        (study,) = JournalStorage(JournalFileBackend(str(journal))).get_all_studies()
    except Exception:  # Optuna may raise anything for a corrupt journal
        return {}
    return {name: value for name, value in study.system_attrs.items() if name.startswith("dashboard:")}
