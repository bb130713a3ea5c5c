"""The checkpoints in a trial's folder: written whole or not at all, listed, checked and read.

A trial has one folder, ``trial_NUMBER_ID``, however many attempts it takes: its reports in ``result.json``,
its curves for TensorBoard, its error in ``error.txt``, and a ``checkpoint_EPOCH`` for each checkpoint that is
kept. ``tune.report(checkpoint=...)`` is not used: Ray copies a checkpoint file by file, so a kill leaves half
of one, and into a folder of the attempt, where it counts from 0 again.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from tune_mnist.run.folder import RunFolder, sync
from tune_mnist.run.words import first_line

CHECKPOINT = "training.pt"
"""Name of the file in a checkpoint's folder that holds the state of the training."""
REPORTS = "reports.json"
"""Name of the file next to it: what the trial had reported up to there."""
CHECKSUM = "crc32.txt"
"""Name of the file with the checksum of the first. Older versions, whose files were zips, had none."""


FULL_BYTES = 2**20
"""Free bytes below which a failed write is attributed to a full disk."""


class StorageError(OSError):
    """A run's storage cannot be read or written; the training's own code does not raise this."""


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint as stored in the run folder."""

    path: str
    "On the file system of the folder."
    name: str
    "Its last part, which ends in the epoch."
    whole: bool
    "Whether its file is there and not truncated."


@dataclass(frozen=True, kw_only=True)
class TrialStorage:
    """Where one trial reads and writes its checkpoints: a worker's view of the run folder."""

    fs: fs.FileSystem
    path: str
    "The trial's folder on it."

    def write(self, epoch: int, save: Callable[[Path], None], reports: list[dict[str, Any]]) -> str:
        """Write a checkpoint, with all that the trial has reported up to there; return its name.

        After a kill or a power cut it is there whole or not at all. One that an earlier attempt left for the
        same epoch stays: it is the same.

        Raises:
            StorageError: if it cannot be written.
        """
        with self._errors():
            return self._write(f"checkpoint_{epoch:06d}", save, reports)

    @contextmanager
    def read(self, name: str) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """Provide a checkpoint's file and the reports up to there for a block.

        Raises:
            StorageError: if they cannot be read.
        """
        with tempfile.TemporaryDirectory() as folder:
            local = Path(self.path, name)
            with self._errors():
                if not isinstance(self.fs, fs.LocalFileSystem):
                    local = Path(folder)
                    for file in (CHECKPOINT, REPORTS):
                        with self.fs.open_input_stream(f"{self.path}/{name}/{file}") as content:
                            (local / file).write_bytes(content.readall())
                reports = json.loads((local / REPORTS).read_text())
            yield local / CHECKPOINT, reports

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"{self.path} can't be written or read: {error.strerror or first_line(error)}"
            raise StorageError(error.errno or errno.EIO, text) from error

    def _write(self, name: str, save: Callable[[Path], None], reports: list[dict[str, Any]]) -> str:
        if isinstance(self.fs, fs.LocalFileSystem):
            Path(self.path).mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.path))
            try:
                fresh.chmod(0o755)
                self._fill(fresh, save, reports)
                for file in fresh.iterdir():
                    sync(file)
                with suppress(OSError):  # there is one already
                    fresh.rename(Path(self.path, name))
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            if not Path(self.path, name, CHECKPOINT).exists():
                raise OSError(f"{self.path}/{name} can't be written")
            return name
        with tempfile.TemporaryDirectory() as folder:
            self._fill(Path(folder), save, reports)
            if self.fs.type_name != "s3":  # it has no folders, and makes empty objects of them
                self.fs.create_dir(f"{self.path}/{name}")
            for part in (REPORTS, CHECKSUM, CHECKPOINT):  # it counts once its last file is there
                with self.fs.open_output_stream(f"{self.path}/{name}/{part}") as out:
                    out.write(Path(folder, part).read_bytes())
        return name

    def _fill(self, folder: Path, save: Callable[[Path], None], reports: list[dict[str, Any]]) -> None:
        try:
            save(folder / CHECKPOINT)
        except Exception as error:  # torch raises "unexpected pos" when the disk is full
            if isinstance(error, OSError) or shutil.disk_usage(folder).free > FULL_BYTES:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        (folder / CHECKSUM).write_text(f"{zlib.crc32((folder / CHECKPOINT).read_bytes())}\n")
        (folder / REPORTS).write_text(json.dumps(reports))


def list_checkpoints(folder: RunFolder, directory: str = "") -> dict[str, list[SavedCheckpoint]]:
    """List the checkpoints of a run or of one trial folder, by trial folder, the newest last.

    Raises:
        FolderError: if the storage cannot be read.
    """
    checkpoints: dict[str, list[SavedCheckpoint]] = {}
    with folder.errors():
        path = f"{folder.path}/{directory}" if directory else folder.path
        infos = folder.fs.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    files = {info.path: info.size for info in infos if info.type == fs.FileType.File}
    for info in sorted(infos, key=lambda info: info.base_name):
        trial, _, name = info.path.removeprefix(f"{folder.path}/").partition("/")
        if info.type == fs.FileType.Directory and re.fullmatch(r"checkpoint_\d+", name):
            file = f"{info.path}/{CHECKPOINT}"
            # A file in a bucket or with a checksum is never partial; a zip is complete if it has its end.
            sure = folder.remote or f"{info.path}/{CHECKSUM}" in files
            whole = bool(files.get(file)) and (sure or zipfile.is_zipfile(file))
            saved = SavedCheckpoint(path=info.path, name=name, whole=whole)
            checkpoints.setdefault(trial, []).append(saved)
    return checkpoints


def is_intact(folder: RunFolder, checkpoint: SavedCheckpoint) -> bool:
    """Return whether a checkpoint's file is undamaged, by the checksum next to it or those inside it."""
    try:
        with folder.fs.open_input_file(f"{checkpoint.path}/{CHECKPOINT}") as file:
            content = file.readall()
        if folder.has(f"{checkpoint.path}/{CHECKSUM}"):
            with folder.fs.open_input_file(f"{checkpoint.path}/{CHECKSUM}") as file:
                return int(file.readall()) == zlib.crc32(content)
        return zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
