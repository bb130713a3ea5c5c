"""The folder that a run fills: rows, table, profile, and one archive of logs."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LOG_BYTES = 2**20
"""Kept of a step's log: half from its beginning, half from its end."""
SCRATCH_BYTES, SCRATCH_LOG_BYTES = 2 * 2**20, 100_000
"""Kept of a failed step's other logs (Ray's, the search's): in total, and of each one's end."""
ARCHIVE_BYTES = 15 * 2**20
"""Limit of the archive: nothing is added that would make it larger."""


class OutputError(ValueError):
    """The folder cannot be used; the text states the rule."""


class Output:
    """The files of a run in one folder. All are complete after each step, so that a kill loses nothing.

    Attributes:
        rows_file: a JSON line per step.
        table_file: the rows as a table.
        parquet_file: the rows as parquet.
        profile_file: where a training step spends its time.
        archive_file: logs of the steps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows_file = folder / "rows.jsonl"
        self.table_file = folder / "table.txt"
        self.parquet_file = folder / "rows.parquet"
        self.profile_file = folder / "profile.txt"
        self.archive_file = folder / "logs.tar"

    def prepare(self, names: list[str], *, keep: bool) -> None:
        """Make the folder; unless its files are to be kept, remove those of an earlier run.

        Args:
            names: of the steps, whose logs may be there after a kill.
            keep: whether rows are added to those of an earlier run.

        Raises:
            OutputError: if anything else is there.
        """
        ours = {self.rows_file, self.table_file, self.parquet_file, self.profile_file, self.archive_file}
        ours |= {self.log(name) for name in names}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = sorted(self.folder.iterdir())
        except OSError as error:
            raise OutputError(f"--out is {self.folder}, but must be a folder: {error.strerror}") from error
        for path in there:
            if path not in ours or not path.is_file():
                rule = "must be new, or an earlier run's"
                raise OutputError(f"--out is {self.folder}, which has {path.name} in it, but {rule}")
        for path in there:
            if not keep:
                path.unlink()

    def log(self, name: str) -> Path:
        """Return the file of a running step's log."""
        return self.folder / f"{name}.log"

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows, without lines that a kill has truncated."""
        rows = []
        for line in self.rows_file.read_text().splitlines() if self.rows_file.exists() else ():
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def add_row(self, row: dict[str, Any]) -> None:
        """Append a row, and wait until it is on disk."""
        with self.rows_file.open("a+b") as file:
            truncated = file.tell() and not self.rows_file.read_bytes().endswith(b"\n")
            file.write(b"\n" * bool(truncated) + json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def archive(self, log: Path, scratch: Path | None) -> None:
        """Move a log into the archive, with the ends of those in a folder (Ray's, a search's), if given.

        If that fails, the log stays where it is: the next step matters more.
        """
        with suppress(OSError, tarfile.TarError):
            with tarfile.open(self.archive_file, "a") as archive:
                number = len(
                    {name.split("/")[1] for name in archive.getnames() if name.startswith(log.stem + "/")}
                )
                for path, content in (*_own(log), *(_others(scratch) if scratch else ())):
                    if self.archive_file.stat().st_size + len(content) < ARCHIVE_BYTES:
                        member = tarfile.TarInfo(f"{log.stem}/{number}/{path}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
            log.unlink(missing_ok=True)


def _own(log: Path) -> Iterator[tuple[str, bytes]]:
    if log.exists():
        content = log.read_bytes()
        if len(content) > LOG_BYTES:
            half = LOG_BYTES // 2
            content = content[:half] + b"\n[...]\n" + content[-half:]
        yield log.name, content


def _others(scratch: Path) -> Iterator[tuple[str, bytes]]:
    left = SCRATCH_BYTES
    paths = [path for path in scratch.rglob("*") if path.suffix in (".log", ".err", ".out", ".txt", ".jsonl")]
    for path in sorted(paths, key=lambda path: path.suffix != ".err"):
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()[-SCRATCH_LOG_BYTES:]
        if content and len(content) <= left:
            left -= len(content)
            yield str(path.relative_to(scratch)), content
