"""The study's journal: what optuna-dashboard reads while a search runs. The ledger has all but its notes."""

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
"""Time after which a person is told that a lock is waited for."""


class Journal(BaseJournalBackend):
    """Optuna's journal of one study: in memory while it is made anew from a ledger, then in its file."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Begin without an operation; ``tell`` takes a line about a lock that has to be waited for."""
        self._tell = tell
        self._made: list[dict[str, Any]] = []
        self._file: JournalFileBackend | None = None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Give the operations from a number on, counted from 0."""
        return self._file.read_logs(log_number_from) if self._file else self._made[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Take operations down."""
        if self._file:
            self._file.append_logs(logs)
        else:
            self._made += logs

    def put_in_place(self, path: Path) -> None:
        """Write what there is over the journal at ``path``, whole or not at all, and go on in it."""
        fresh = path.with_name(f".{path.name}.new")
        for stale in (fresh, Path(f"{fresh}.lock"), Path(f"{path}.lock")):  # a lock stops writers for 30 s
            stale.unlink(missing_ok=True)
        JournalFileBackend(str(fresh)).append_logs(self._made)
        fresh.replace(path)
        self._file, self._made = _UnsyncedFile(path, self._tell), []


class _UnsyncedFile(JournalFileBackend):
    """Optuna's file, lines and lock, so that other processes can read and write, without its sync.

    Optuna syncs the disk after each of the 17 operations of a trial, some 3 ms each. What a power cut takes
    of a journal, a resume makes again from the ledger.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path, self._lock = path, JournalFileSymlinkLock(str(path))
        self._tell = tell
        super().__init__(str(path), self._lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Take operations down, so that other processes see them."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        lock, waits = Path(f"{self._path}.lock"), None
        if lock.is_symlink():
            text = f"waiting for {lock}: another process holds it, or has died with it and it can be deleted"
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
    """Read what a person has written into a study with optuna-dashboard; it is nowhere else.

    Returns:
        Its attributes; {} where there is no study that can be read, as after a power cut.
    """
    if not journal.exists():
        return {}
    try:
        (study,) = JournalStorage(JournalFileBackend(str(journal))).get_all_studies()
    except Exception:  # whatever Optuna makes of a spoilt journal
        return {}
    return {name: value for name, value in study.system_attrs.items() if name.startswith("dashboard:")}
