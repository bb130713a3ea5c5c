"""Copies the driver's files of a run into its bucket, while the search writes them."""

from __future__ import annotations

import threading
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tune_mnist.run.ledger import LEDGER
from tune_mnist.run.words import first_line

if TYPE_CHECKING:
    from tune_mnist.run.folder import RunFolder

PUSH_SECONDS = 5.0
"""Minimum time between two copies of the driver's files into a bucket."""


class Mirror:
    """Keeps a bucket up to date with the working copy of a run."""

    def __init__(self, folder: RunFolder) -> None:
        """Remember the run's folder; nothing is read or written."""
        self.folder = folder
        self.error: str | None = None
        "Why the last background copy failed."
        self._copied: dict[str, tuple[int, int]] = {}
        self._due, self._copying = 0.0, threading.Lock()

    def copy(self) -> None:
        """Copy what has changed, and wait until that is done. Raises OSError."""
        with self._copying:
            self._copy_changed()

    def copy_when_due(self) -> None:
        """Copy what has changed in a thread, if a copy is due; if that fails, the next copy retries."""
        if time.monotonic() >= self._due and self._copying.acquire(blocking=False):
            threading.Thread(target=self._copy_in_thread, name="push", daemon=True).start()

    def copy_ledger(self) -> None:
        """Copy the ledger now. If that fails, the next copy retries."""
        with self._copying:
            try:
                self._copy(self.folder.local / LEDGER)
            except OSError as error:
                self.error = first_line(error)

    def upload(self, name: str, content: bytes) -> None:
        """Write a file into the bucket. Raises OSError."""
        fs, path = self.folder.fs, f"{self.folder.path}/{name}"
        if fs.type_name != "s3":  # it has no folders, and makes empty objects of them
            fs.create_dir(PurePosixPath(path).parent.as_posix())
        with fs.open_output_stream(path) as out:
            out.write(content)

    def _copy_in_thread(self) -> None:
        started = time.monotonic()
        try:
            self._copy_changed()
            self.error = None
        except OSError as error:
            self.error = first_line(error)
        finally:
            # Copies take at most a twentieth of the time, as in Ray.
            self._due = time.monotonic() + max(PUSH_SECONDS, 19 * (time.monotonic() - started))
            self._copying.release()

    def _copy_changed(self) -> None:
        # The ledger goes last: it marks a run, whose other files must be there by then.
        for file in sorted(self.folder.local.rglob("*"), key=lambda file: (file.name == LEDGER, file)):
            if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                self._copy(file)

    def _copy(self, file: Path) -> None:
        status, name = file.stat(), file.relative_to(self.folder.local).as_posix()
        stamp = status.st_mtime_ns, status.st_size
        if self._copied.get(name) != stamp:
            self.upload(name, file.read_bytes())
            self._copied[name] = stamp
