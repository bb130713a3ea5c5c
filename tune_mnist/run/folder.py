"""The folder of a run: on disk, or in a bucket, with a local working copy of the driver's files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from pyarrow import fs

from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.mirror import Mirror
from tune_mnist.run.words import first_line


class FolderError(ValueError):
    """There is no such run, or its storage cannot be used; the text is one line."""


class RunFolder:
    """One interface to a run's files, on a disk or behind a URI such as s3://BUCKET/runs/NAME.

    Its methods raise `FolderError` if the storage cannot be read or written, and OSError if the driver's own
    files cannot, as in `created` and `write`.

    Attributes:
        uri: the folder as shown to people; absolute.
        name: its last part, which is the run's name.
        remote: whether it is behind a URI.
        local: where the driver writes its own files: the folder itself, or a working copy.
        fs: pyarrow's file system.
        path: the folder on it.
    """

    def __init__(self, uri: str | Path) -> None:
        """Find the file system; nothing is read or written.

        Raises:
            FolderError: for a URI that pyarrow does not know.
        """
        text = str(uri).removeprefix("file://")
        self.remote = "://" in text
        if self.remote and re.match(r"[^/]+//[^/]*@", text):
            raise FolderError("the URI holds a key, but must not: give it in the environment or a profile")
        if self.remote and "?" in text:
            without = text.partition("?")[0]
            raise FolderError(
                f"{without} has options after it, but must not: AWS_ENDPOINT_URL selects another S3"
            )
        if not re.match(r"[\w.+-]+://[^/]+/.|(?![\w.+-]+:/).", text):
            raise FolderError(
                f"{text or 'the empty name'} is not a run: it must be a folder or like s3://BUCKET/PATH"
            )
        if self.remote:
            self.uri = text.rstrip("/")
            try:
                self.fs, self.path = fs.FileSystem.from_uri(self.uri)
            except (ValueError, OSError) as error:
                raise FolderError(f"{self.uri} can't be used as storage: {first_line(error)}") from error
            self.name = PurePosixPath(self.path).name
            digest = hashlib.sha256(self.uri.encode()).hexdigest()[:12]
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            self.local = Path(cache) / "tune-mnist" / f"{self.name}-{digest}"
        else:
            self.local = Path(text).expanduser().absolute()
            self.fs, self.path = fs.LocalFileSystem(), self.local.as_posix()
            self.uri, self.name = str(self.local), self.local.name
        self.mirror = Mirror(self)

    def exists(self) -> bool:
        """Return whether there is anything at this place."""
        with self.errors():
            return bool(self.fs.get_file_info(self.path).type != fs.FileType.NotFound)

    def check_writable(self) -> None:
        """Write and remove a file next to the run."""
        probe = f"{PurePosixPath(self.path).parent}/.{self.name}.probe"
        with self.errors("storage_path is {where}, but must be a folder that can be written"):
            if not self.remote:
                self.fs.create_dir(PurePosixPath(self.path).parent.as_posix(), recursive=True)
            with self.fs.open_output_stream(probe) as file:
                file.write(b"tune-mnist")
            self.fs.delete_file(probe)

    def has(self, path: str) -> bool:
        """Return whether there is a file that is not empty at a path of the file system."""
        try:
            return bool(self.fs.get_file_info(path).size)
        except OSError:
            return False

    def trial_folders(self) -> set[str]:
        """List the names of the trials' folders."""
        with self.errors():
            infos = self.fs.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name for info in infos if info.base_name.startswith("trial_")}

    def read(self, name: str) -> bytes | None:
        """Read a file of the run; None if it does not exist."""
        with self.errors():
            try:
                with self.fs.open_input_stream(f"{self.path}/{name}") as file:
                    return bytes(file.readall())
            except FileNotFoundError:
                return None

    def ledger(self) -> Ledger:
        """Read the ledger of the run.

        Raises:
            FolderError: if this is not the folder of a run.
        """
        content = self.read(LEDGER)
        if content is None:
            raise FolderError(f"{self.uri} is not the folder of a run: it has no {LEDGER}")
        return Ledger.parse(content)

    @contextmanager
    def created(self) -> Iterator[Path]:
        """Yield a new folder to write into, and move it into place when the block ends: all or nothing.

        Raises:
            OSError: if it cannot be created; FileExistsError if another run took its name in the meantime.
        """
        fresh = self.local.with_name(f".{self.local.name}.new")
        for stale in (fresh, *([self.local] if self.remote else [])):  # left by a kill before the first copy
            shutil.rmtree(stale, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        for file in fresh.iterdir():
            sync(file)
        fresh.rename(self.local)

    def pull(self) -> None:
        """Update the working copy from the bucket; what only the copy has is kept."""
        if not self.remote:
            return
        stored, copy = self.read(LEDGER) or b"", self.local / LEDGER
        if not copy.exists() or not copy.read_bytes().startswith(stored):
            shutil.rmtree(self.local, ignore_errors=True)  # another machine has continued the run
            self.local.mkdir(parents=True)
            copy.write_bytes(stored)

    def write(self, name: str, content: str | bytes) -> None:
        """Write one of the driver's files; a kill or a power cut leaves the old one or the new one."""
        self._replace(self.local / name, content.encode() if isinstance(content, str) else content)

    def put(self, name: str, content: bytes) -> None:
        """Write a file of a run outside a search: on the disk, or straight into the bucket.

        A kill or a power cut leaves the old one or the new one.
        """
        with self.errors():
            if self.remote:
                self.mirror.upload(name, content)
            else:
                (self.local / name).parent.mkdir(parents=True, exist_ok=True)
                self._replace(self.local / name, content)

    def remove(self, name: str) -> None:
        """Remove one of the driver's files, also from the bucket."""
        (self.local / name).unlink(missing_ok=True)
        if self.remote:
            with self.errors(), suppress(FileNotFoundError):
                self.fs.delete_file(f"{self.path}/{name}")

    def remove_folder(self, name: str) -> None:
        """Remove one of the driver's folders with its files, also from the bucket."""
        with self.errors():
            shutil.rmtree(self.local / name, ignore_errors=True)
            if self.remote:
                self.fs.delete_dir_contents(f"{self.path}/{name}", missing_dir_ok=True)

    def push(self, *, wait: bool = False) -> None:
        """Copy what has changed from the working copy into the bucket, if a copy is due, in a thread.

        With ``wait`` copy it now, and return when that is done. Without, the next copy retries a failed one.
        """
        if self.remote and wait:
            with self.errors():
                self.mirror.copy()
        elif self.remote:
            self.mirror.copy_when_due()

    def push_ledger(self) -> None:
        """Copy the ledger into the bucket now. If that fails, the next copy retries."""
        if self.remote:
            self.mirror.copy_ledger()

    def drop_working_copy(self) -> None:
        """Remove the working copy of a run that has ended and is complete in the bucket."""
        if self.remote:
            shutil.rmtree(self.local)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run against other processes of this machine for a block.

        Raises:
            FolderError: if another process has it.
        """
        self.local.parent.mkdir(parents=True, exist_ok=True)
        path = self.local.parent / f".{self.local.name}.lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FolderError(f"{self.uri} is being run by another process: end it first") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the release: who waits for it gets none, not a stale one
            lock.release()

    def _replace(self, target: Path, content: bytes) -> None:
        fresh = target.with_name(f".{target.name}.new")
        fresh.write_bytes(content)
        sync(fresh)
        fresh.replace(target)

    @contextmanager
    def errors(self, complaint: str = "{uri} can't be read or written") -> Iterator[None]:
        """Turn a block's OSError into a `FolderError` that names the folder and the reason."""
        try:
            yield
        except OSError as error:
            reason = error.strerror if error.strerror and not self.remote else first_line(error)
            text = complaint.format(uri=self.uri, where=self.uri.rpartition("/")[0])
            raise FolderError(f"{text} ({reason})") from error


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
