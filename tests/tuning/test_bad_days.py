"""Full disks, deleted folders, odd launchers: one line, nothing lost, and the search is resumed."""

import os
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import TOY, Runner
from tests.invariants import check
from tests.lab import isolated
from tests.lab.fake_autoscaler import start_head
from tests.lab.stress import fill_up
from tests.searches import TOY_SAVE_ALL, tune, wait_for_epochs
from tune_mnist.cluster import connection, machine
from tune_mnist.cluster.address import ClusterError
from tune_mnist.run import journal
from tune_mnist.run.journal import Journal
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.preflight import name_run


def ended(process: "subprocess.Popen[str]") -> str:
    """Wait until a search has ended with exit code 1; return its error, which must be one line."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in out + err, out + err
    return err.splitlines()[-1]


@isolated
def test_a_full_disk_and_a_deleted_temp_folder_end_a_search_that_is_resumed() -> None:
    start_head(2)
    runs = Path.home() / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", runs], check=True)
    run_dir = runs / "bad"
    process = tune("--num-samples", "6", "--name", "bad", *TOY_SAVE_ALL)
    wait_for_epochs(3, run_dir / "ledger.jsonl", process)
    fill_up(runs / "fill")
    complaint = ended(process)
    assert "No space left on device" in complaint and f"(--resume {run_dir} continues" in complaint
    (runs / "fill").unlink()
    process = tune("--resume", str(run_dir), "--num-samples", "8")
    wait_for_epochs(6, run_dir / "ledger.jsonl", process)
    for session in Path("/tmp/ray").glob("session_*"):
        shutil.rmtree(session, ignore_errors=True)  # Ray keeps writing its logs
    complaint = ended(process)
    assert f"was deleted while it ran (--resume {run_dir} continues)" in complaint, complaint
    process = tune("--resume", str(run_dir), "--address", "local")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and "8 of 8 trials" in out and "0 FAIL" in out, out + err
    check(run_dir, 8)


def test_uv_run_changes_nothing_for_the_workers(joining: Runner, tmp_path: Path) -> None:
    # Ray looks at the parent's command; Python runs a file named `run`.
    (tmp_path / "run").write_text("import subprocess, sys; sys.exit(subprocess.call(sys.argv[3:]))")
    search = [sys.executable, *joining.command("tune.py", [*TOY, "--num-samples", "2", "--name", "uv"])]
    done = subprocess.run(
        ["uv", "run", "--no-sync", "python", *search],
        executable=sys.executable,
        cwd=tmp_path,
        env=joining.environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "2 of 2 trials" in done.stdout, done.stdout + done.stderr


def test_searches_without_a_name_that_start_in_the_same_second_get_different_ones(tmp_path: Path) -> None:
    settings = Settings(storage_path=str(tmp_path))
    with ExitStack() as stack:
        names = {name_run(settings, "toy", stack)[0].name for _ in range(3)}
    assert len(names) == 3


def test_a_wait_for_a_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PATIENCE_SECONDS", 0.05)
    messages: list[str] = []
    study, lock = Journal(messages.append), tmp_path / "study.journal.lock"
    study.append_logs([{"op": 1}])
    study.put_in_place(tmp_path / "study.journal")
    study.append_logs([{"op": 2}])
    assert messages == []
    lock.symlink_to(tmp_path / "study.journal")
    threading.Timer(0.3, lock.unlink).start()
    study.append_logs([{"op": 3}])
    assert messages == [f"waiting for {lock}: another process holds it; if that has died, delete it"]
    assert list(study.read_logs(0)) == [{"op": 1}, {"op": 2}, {"op": 3}]


def test_a_search_uses_the_cores_that_it_may(tmp_path: Path) -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from tune_mnist.cluster.machine import usable_cpus; print(usable_cpus())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_temp_folder_that_ray_cannot_use_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 80}")
    with pytest.raises(
        ValueError, match=r"^its temp folder is /tmp/xx.* must have at most \d\d characters.*set RAY_"
    ):
        machine.check_temp_folder()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/tm{os.getpid()}-file")
    Path(f"/tmp/tm{os.getpid()}-file").touch()
    with pytest.raises(
        ClusterError, match=r"one that can be written \(Not a directory\): set RAY_TMPDIR to an"
    ):
        connection._start(dashboard=False, preload="")
    Path(f"/tmp/tm{os.getpid()}-file").unlink()


def test_a_cluster_is_not_joined_from_a_path_with_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    with pytest.raises(ClusterError, match=r"can't be joined by /my env/bin/python: .* --address local"):
        connection._join("127.0.0.1:6379")


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise PermissionError(13, "Permission denied", str(Path.home() / ".ray"))

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ClusterError, match=r"set HOME to a folder that can be written$"):
        connection._start(dashboard=False, preload="")
