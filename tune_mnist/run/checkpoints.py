"""The checkpoints of trials: written whole or not at all, read again by the next attempt, deleted when old.

A trial has one folder, ``trial_NUMBER_ID``, whatever number of attempts it takes: its reports in
``result.json``, its curves for TensorBoard, what it raised in ``error.txt``, and a ``checkpoint_EPOCH`` for
each checkpoint that is kept. Not by ``tune.report(checkpoint=...)``: Ray copies a checkpoint file by file, so
that a kill leaves half of one, into a folder of the attempt, in which it counts from 0 again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from tune_mnist.run.folder import CHECKPOINT, CHECKSUM, REPORTS, RunFolder, SavedCheckpoint, sync
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import CHECKPOINT_NAME, TrialRecord


@dataclass(frozen=True, kw_only=True)
class TrialStorage:
    """Where one trial writes its checkpoints and reads them; what a worker gets of the run folder."""

    fs: fs.FileSystem
    path: str
    "The trial's folder on it."

    def write(self, epoch: int, save: Callable[[Path], None], reports: list[dict[str, Any]]) -> str:
        """Write a checkpoint: after a kill or a power cut it is there whole or not at all.

        Args:
            epoch: that it was taken after.
            save: writes the state of the training to a file.
            reports: all that the trial has reported up to there.

        Returns:
            Its name. One that an earlier attempt has left for the same epoch stays: it is the same.

        Raises:
            OSError: if it can't be written.
        """
        name = f"checkpoint_{epoch:06d}"
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
            if self.fs.type_name != "s3":  # which has no folders, and makes empty objects of them
                self.fs.create_dir(f"{self.path}/{name}")
            for part in (
                REPORTS,
                CHECKSUM,
                CHECKPOINT,
            ):  # it counts from when its last file is there
                with self.fs.open_output_stream(f"{self.path}/{name}/{part}") as out:
                    out.write(Path(folder, part).read_bytes())
        return name

    @contextmanager
    def read(self, name: str) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """Give a checkpoint's file and the reports up to there, for a block.

        Raises:
            OSError: if they can't be read.
        """
        with tempfile.TemporaryDirectory() as folder:
            local = Path(self.path, name)
            if not isinstance(self.fs, fs.LocalFileSystem):
                local = Path(folder)
                for file in (CHECKPOINT, REPORTS):
                    with self.fs.open_input_stream(f"{self.path}/{name}/{file}") as content:
                        (local / file).write_bytes(content.readall())
            yield local / CHECKPOINT, json.loads((local / REPORTS).read_text())

    def _fill(self, folder: Path, save: Callable[[Path], None], reports: list[dict[str, Any]]) -> None:
        save(folder / CHECKPOINT)
        (folder / CHECKSUM).write_text(f"{zlib.crc32((folder / CHECKPOINT).read_bytes())}\n")
        (folder / REPORTS).write_text(json.dumps(reports))


def kept_checkpoints(
    record: TrialRecord, saved: list[SavedCheckpoint]
) -> list[tuple[SavedCheckpoint, dict[str, Any]]]:
    """List the whole ones of a trial's checkpoints that the ledger knows, each with its report."""
    reports = {epoch[CHECKPOINT_NAME]: epoch for epoch in record.saved}
    return [
        (checkpoint, reports[checkpoint.name])
        for checkpoint in saved
        if checkpoint.whole and checkpoint.name in reports
    ]


def take_in_checkpoints(folder: RunFolder, ledger: Ledger) -> None:
    """Let the checkpoints of unfinished trials tell what the ledger does not know; remove damaged ones.

    A checkpoint can be ahead of the ledger: a worker writes it before the driver hears of it. The reports are
    taken in by time, as the scheduler had judged them.

    Raises:
        FolderError: if the storage can't be read or written.
    """
    found = folder.checkpoints()
    ahead: list[tuple[float, str, dict[str, Any]]] = []
    for trial in ledger.unended():
        ahead += _ahead(folder, trial, found.get(trial.directory, []))
    for _, trial_id, report in sorted(ahead, key=lambda entry: entry[0]):
        ledger.reported(trial_id, report)


def take_in_trial(folder: RunFolder, ledger: Ledger, trial: TrialRecord) -> str | None:
    """Do the same for a trial whose attempt was lost; give the name of its newest checkpoint.

    Raises:
        FolderError: as above.
    """
    saved = folder.checkpoints(trial.directory).get(trial.directory, [])
    for _, trial_id, report in _ahead(folder, trial, saved):
        ledger.reported(trial_id, report)
    names = {checkpoint.name for checkpoint in saved if folder.has(f"{checkpoint.path}/{CHECKPOINT}")}
    return max((name for epoch in trial.saved if (name := epoch[CHECKPOINT_NAME]) in names), default=None)


def _ahead(
    folder: RunFolder, trial: TrialRecord, saved: list[SavedCheckpoint]
) -> list[tuple[float, str, dict[str, Any]]]:
    ahead: list[tuple[float, str, dict[str, Any]]] = []
    folder.remove_half_written(trial.directory)
    for checkpoint in saved:
        try:
            reports = json.loads(folder.read(f"{trial.directory}/{checkpoint.name}/{REPORTS}") or b"")
        except ValueError:
            reports = []
        if not (reports and checkpoint.whole and folder.is_intact(checkpoint)):
            folder.remove_checkpoint(checkpoint)
            continue
        reports[-1] |= {CHECKPOINT_NAME: checkpoint.name}
        ahead += [(report["timestamp"], trial.trial_id, report) for report in reports]
    return ahead


class CheckpointKeeper:
    """Deletes the checkpoints that nothing needs any more, while the search runs.

    Of an unfinished trial the newest stays, for its next attempt, and the best. Of those that have ended the
    best ``keep`` trials keep their best one, which is what `score_winner` and the ResultGrid look at. So the
    best of all is never deleted before the ledger knows of a better one.
    """

    def __init__(self, folder: RunFolder, ledger: Ledger, keep: int) -> None:
        """Start from what the storage has, and delete what an earlier session has left too much."""
        self._folder, self._ledger, self._keep = folder, ledger, keep
        # Behind a URI it takes a tenth of a second: Ray's loop must not wait for it.
        self._thread = ThreadPoolExecutor(1, "delete") if folder.remote else None
        self._ended: list[tuple[float, int, str]] = []
        "The best that have ended: the negative score, number and id; the best first."
        self._stored: dict[str, set[str]] = {}
        found = folder.checkpoints() if ledger.trials else {}
        for trial in ledger.trials.values():
            saved = found.get(trial.directory, [])
            self._stored[trial.trial_id] = {checkpoint.name for checkpoint in saved}
            if trial.state is None:
                self.saved(trial)
            else:
                self.ended(trial)

    def saved(self, trial: TrialRecord) -> None:
        """Take note of a trial's newest checkpoint, and delete the older ones but the best."""
        stored = self._stored.setdefault(trial.trial_id, set())
        stored.update(epoch[CHECKPOINT_NAME] for epoch in trial.saved[-1:])
        known = [epoch for epoch in trial.saved if epoch[CHECKPOINT_NAME] in stored]
        if known:
            self._delete(trial, {known[-1][CHECKPOINT_NAME], self._best(known)[CHECKPOINT_NAME]})

    def ended(self, trial: TrialRecord) -> None:
        """Keep the best checkpoint of a trial that is among the best, and of the others none."""
        stored = self._stored.get(trial.trial_id, set())
        known = [epoch for epoch in trial.saved if epoch[CHECKPOINT_NAME] in stored]
        if not known or trial.state == "FAIL":
            self._delete(trial, set())
            return
        best = self._best(known)
        self._delete(trial, {best[CHECKPOINT_NAME]})
        self._ended.append((-self._ledger.objective.score(best), trial.number, trial.trial_id))
        self._ended.sort()
        for _, _, trial_id in self._ended[self._keep :]:
            self._delete(self._ledger.trials[trial_id], set())
        del self._ended[self._keep :]

    def _delete(self, trial: TrialRecord, keep: set[str]) -> None:
        stored = self._stored.get(trial.trial_id, set())
        for name in stored - keep:
            path = f"{self._folder.path}/{trial.directory}/{name}"
            if self._thread:
                self._thread.submit(self._remove, path)
            else:
                self._remove(path)
        stored &= keep
        if not stored:
            self._stored.pop(trial.trial_id, None)

    def close(self) -> None:
        """Wait until all is deleted."""
        if self._thread:
            self._thread.shutdown()

    def _best(self, epochs: list[dict[str, Any]]) -> dict[str, Any]:
        return max(epochs, key=self._ledger.objective.score)

    def _remove(self, path: str) -> None:
        with suppress(OSError):  # a resume tries again
            self._folder.fs.delete_dir(path)
