"""The run folder, on a disk and behind a URI, and what a resume reads from its checkpoints."""

import json
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import torch
from ray.tune import ResultGrid

from tune_mnist.mnist.facts import FACTS
from tune_mnist.results.grid import load_grid
from tune_mnist.run import checkpoints
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.saved import CHECKPOINT, REPORTS, TrialStorage, is_intact, list_checkpoints
from tune_mnist.tuning.preflight import check_readable

Run = tuple[RunFolder, Ledger, Path]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A folder behind a URI, like a bucket, but with its objects visible in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = RunFolder("mock://bucket/run")  # pyarrow's in-memory file system, a new one for each URI
    folder.fs, folder.path = pyarrow.fs.LocalFileSystem(), str(tmp_path / "bucket" / "run")
    return folder


def created(folder: RunFolder, content: str = "one\n") -> RunFolder:
    with folder.created() as fresh:
        (fresh / LEDGER).write_text(content)
    return folder


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), folder.created() as fresh:
        (fresh / LEDGER).write_text("half")
        raise KeyboardInterrupt
    assert not folder.exists()
    assert created(folder).exists() and folder.read(LEDGER) == b"one\n"
    assert folder.read("nothing") is None


def test_what_a_kill_has_left_of_a_run_that_reached_no_bucket_is_not_taken_for_a_new_one(
    remote: RunFolder,
) -> None:
    created(remote, "old\n")
    assert not remote.exists()
    assert (created(remote).local / LEDGER).read_text() == "one\n"


def test_changes_of_the_working_copy_reach_the_bucket(remote: RunFolder, tmp_path: Path) -> None:
    created(remote).push(wait=True)
    there = tmp_path / "bucket" / "run" / LEDGER
    assert there.read_text() == "one\n"
    (remote.local / "best").mkdir()
    (remote.local / "best" / "model.pt").write_text("weights")
    stamp = there.stat().st_mtime_ns
    remote.push(wait=True)
    assert (there.parent / "best" / "model.pt").read_text() == "weights"
    assert there.stat().st_mtime_ns == stamp  # unchanged, so not copied again
    (remote.local / LEDGER).write_text("one\ntwo\n")
    remote.push_ledger()
    assert there.read_text() == "one\ntwo\n"
    remote.drop_working_copy()
    assert not remote.local.exists() and remote.exists()


@pytest.mark.parametrize(
    ("here", "there", "kept"),
    [
        ("one\ntwo\n", "one\n", "one\ntwo\n"),  # killed before its last lines were copied
        ("one\ntw", "one\n", "one\ntw"),
        ("one\n", "one\ntwo\n", "one\ntwo\n"),  # continued elsewhere meanwhile
        ("one\nother\n", "one\ntwo\n", "one\ntwo\n"),
        (None, "one\n", "one\n"),
    ],
)
def test_of_two_ledgers_the_one_that_continues_the_other_is_kept(
    here: str | None, there: str, kept: str, remote: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    (tmp_path / "bucket" / "run" / LEDGER).write_text(there)
    if here is not None:
        created(remote, here)
    remote.pull()
    assert (remote.local / LEDGER).read_text() == kept


def test_a_run_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    folder = created(RunFolder(tmp_path / "run"))
    with (
        folder.locked(),
        pytest.raises(FolderError, match="run is being run by another process"),
        RunFolder(folder.uri).locked(),
    ):
        pass
    with RunFolder(folder.uri).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("foo://bucket/run", "can't be used as storage: Unrecognized filesystem type"),
        ("s3://", "s3:// is not a run: it must be a folder or like s3://BUCKET/PATH"),
        ("s3://bucket", "s3://bucket is not a run"),
        ("", "the empty name is not a run"),
        ("s3://me:s3cret@bucket/run", "the URI holds a key, but must not"),
        ("s3://bucket/runs?secret_key=s3cret", "s3://bucket/runs has options after it, .* AWS_ENDPOINT_URL"),
    ],
)
def test_a_uri_that_is_none_is_said_in_one_line(uri: str, complaint: str) -> None:
    with pytest.raises(FolderError, match=complaint) as error:
        RunFolder(uri)
    assert "\n" not in str(error.value) and "s3cret" not in str(error.value)


def report(epoch: int, checkpoint: str | None = None) -> dict[str, Any]:
    return {"epoch": epoch, "accuracy": epoch / 10, "checkpoint_dir_name": checkpoint}


def save(trial: Path, index: int, epochs: int) -> Path:
    """Write a checkpoint as a trial does."""
    folder = trial / f"checkpoint_{index:06d}"
    folder.mkdir(parents=True)
    torch.save({"epoch": epochs}, folder / CHECKPOINT)
    reports = [{"epoch": epoch, "accuracy": epoch / 10, "timestamp": epoch} for epoch in range(1, epochs + 1)]
    (folder / REPORTS).write_text(json.dumps(reports))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with one trial of 9 epochs, two of them in the ledger, and a checkpoint of the second."""
    folder = created(RunFolder(tmp_path / "run"), "")
    ledger = Ledger.open(folder.local / LEDGER)
    ledger.begin({}, FACTS)
    ledger.suggested("a", 0, {}, {"epochs": 9}, hand_set=False)
    ledger.reported("a", report(1))
    ledger.reported("a", report(2, "checkpoint_000000"))
    trial = folder.local / ledger.trials["a"].directory
    save(trial, 0, epochs=2)
    return folder, ledger, trial


def test_a_checkpoint_that_is_ahead_of_the_ledger_brings_its_epochs(run: Run) -> None:
    folder, ledger, trial = run
    save(trial, 1, epochs=4)
    checkpoints.take_in_checkpoints(folder, ledger)
    epochs = ledger.trials["a"].epochs
    assert [(one["epoch"], one["accuracy"]) for one in epochs] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    names = [one.get("checkpoint_dir_name") for one in epochs]
    assert names == [None, "checkpoint_000000", None, "checkpoint_000001"]


@pytest.mark.parametrize("torn", [CHECKPOINT, REPORTS, "gone", "corrupt"])
def test_a_truncated_checkpoint_is_removed_and_the_one_before_it_counts(torn: str, run: Run) -> None:
    folder, ledger, trial = run
    newest = save(trial, 1, epochs=4)
    if torn == "gone":
        (newest / REPORTS).unlink()
    elif torn == "corrupt":  # of the right length, with an intact zip directory at its end
        content = (newest / CHECKPOINT).read_bytes()
        (newest / CHECKPOINT).write_bytes(content[:64] + bytes(64) + content[128:])
    else:
        (newest / torn).write_bytes((newest / torn).read_bytes()[:-30])
    checkpoints.take_in_checkpoints(folder, ledger)
    assert ledger.trials["a"].epoch == 2 and not newest.exists()
    found = list_checkpoints(folder)[trial.name]
    assert [(one.name, one.whole) for one in found] == [("checkpoint_000000", True)]


def test_to_look_at_a_run_removes_nothing_of_it(run: Run) -> None:
    folder, ledger, trial = run
    for index in (1, 2, 3):
        save(trial, index, epochs=index + 2)
        ledger.reported("a", report(index + 2, f"checkpoint_{index:06d}"))
    grid = load_grid(folder.uri)
    assert len(list(trial.glob("checkpoint_*"))) == 4
    assert [one[1].name for one in grid.saved_epochs()] == [f"checkpoint_{index:06d}" for index in range(4)]
    assert grid[0].checkpoint is not None and grid[0].checkpoint.path.endswith("checkpoint_000003")
    assert grid[0].metrics is not None and grid[0].metrics["epoch"] == 5
    assert isinstance(grid, ResultGrid) and (len(grid), grid.num_errors, grid.num_terminated) == (1, 0, 0)
    assert grid[0].metrics_dataframe is not None
    assert grid[0].metrics_dataframe["accuracy"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert not (folder.local / ".validate_storage_marker").exists()


def test_reports_ahead_of_the_ledger_are_taken_in_by_time(run: Run) -> None:
    """Of two alternating trials, as the scheduler had judged them."""
    folder, ledger, _ = run
    ledger.suggested("b", 1, {}, {"epochs": 9}, hand_set=False)
    for name, times in (("a", (1, 2, 5, 9)), ("b", (3, 7, 8))):
        checkpoint = save(folder.local / ledger.trials[name].directory, 1, epochs=len(times))
        reports = json.loads((checkpoint / REPORTS).read_text())
        stamped = [{**report, "timestamp": time} for report, time in zip(reports, times, strict=True)]
        (checkpoint / REPORTS).write_text(json.dumps(stamped))
    checkpoints.take_in_checkpoints(folder, ledger)
    assert ledger.order[2:] == [("b", 1), ("a", 3), ("b", 2), ("b", 3), ("a", 4)]


def test_a_folder_that_no_line_speaks_of_stops_a_resume_only_where_a_line_is_lost(run: Run) -> None:
    folder, ledger, _ = run
    ledger.begin({"lr": "{}"}, FACTS)
    save(folder.local / "trial_00001_b", 0, epochs=1)
    check_readable(folder, folder.ledger())
    with (folder.local / LEDGER).open("a") as file:
        file.write("corrupt\n")
    with pytest.raises(FolderError, match="1 lines that can't be read, and with them a trial"):
        check_readable(folder, folder.ledger())


def test_neither_links_nor_hidden_files_are_copied(remote: RunFolder, tmp_path: Path) -> None:
    created(remote)
    (remote.local / "study.journal.lock").symlink_to(remote.local / LEDGER)
    (remote.local / ".half").touch()
    remote.push(wait=True)
    assert [path.name for path in (tmp_path / "bucket" / "run").iterdir()] == [LEDGER]
    remote.remove(LEDGER)
    assert not list((tmp_path / "bucket" / "run").iterdir())


def test_a_checkpoint_of_any_format_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        path.write_text("1 2 3")

    storage = TrialStorage(fs=pyarrow.fs.LocalFileSystem(), path=str(tmp_path / "run" / "trial_00000_a"))
    storage.write(1, save, [{"epoch": 1}])
    folder = RunFolder(tmp_path / "run")
    (saved,) = list_checkpoints(folder)["trial_00000_a"]
    assert saved.whole and is_intact(folder, saved)
    Path(saved.path, CHECKPOINT).write_text("1 2 4")
    assert not is_intact(folder, saved)
