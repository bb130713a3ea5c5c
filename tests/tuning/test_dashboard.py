"""Views of a run in a browser: each printed command serves its page, the dashboard ends with its search."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Runner
from tests.tuning.test_search import complete, interrupted, read_study, result, searcher, suggest
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.tuning import dashboard


def fetch(url: str, body: object = None, method: str | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status in (200, 204)
        return str(answer.read().decode())


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            return fetch(url)
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)


def is_gone(url: str) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            fetch(url)
        except OSError:
            return True
        time.sleep(0.1)
    return False


@contextmanager
def started(command: str, folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a printed command, on its own port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*shlex.split(command), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


def test_the_printed_commands_serve_the_run(runner: Runner, finished: tuple[Path, str, str]) -> None:
    first, *commands = finished[1].splitlines()[:3]
    assert first == "Run folder: runs/finished"
    with (
        started(commands[0], runner.folder) as (url, process),
        started(commands[1], runner.folder) as (board, other),
    ):
        assert "<html" in wait_for(f"{url}/dashboard", process).lower()
        studies = json.loads(fetch(f"{url}/api/studies"))["study_summaries"]
        assert [study["study_name"] for study in studies] == ["finished"]
        study = json.loads(fetch(f"{url}/api/studies/0"))
        assert len(study["trials"]) == 8

        assert "<html" in wait_for(board, other).lower()
        trials = {folder.name for folder in finished[0].glob("trial_*")}
        deadline = time.monotonic() + 30
        while not trials <= set(json.loads(fetch(f"{board}/data/runs"))):  # it reads them one by one
            assert time.monotonic() < deadline
            time.sleep(0.2)
        tags = json.loads(fetch(f"{board}/data/plugin/scalars/tags"))
        assert all("ray/tune/accuracy" in tags[trial] for trial in trials)


NOTES = ["see 4", "see 5", "see 6", "see 7", "", "", "", ""]


def notes_in(study: Any) -> list[str]:
    return [trial["note"]["body"] for trial in study["trials"]]


def test_the_dashboard_serves_a_study_that_is_written_to_and_its_notes_outlive_a_resume(
    tmp_path: Path,
) -> None:
    search = interrupted(tmp_path)
    with dashboard.served(tmp_path / JOURNAL) as url:
        assert url is not None and url.startswith("http://127.0.0.1:")
        assert "<html" in fetch(f"{url}/dashboard").lower()
        started = time.monotonic()
        for number in range(4, 8):
            suggest(search, str(number))
            fetch(f"{url}/api/studies/0/{number - 4}/note", {"body": f"see {number}", "version": 1}, "PUT")
            search.report(str(number), result(1, 0.5))
            complete(search, str(number), result(2, 0.5))
        assert time.monotonic() - started < 10  # nobody waited for a lock
        study = json.loads(fetch(f"{url}/api/studies/0"))
        assert [trial["state"] for trial in study["trials"]][4:] == ["Pruned"] * 4
        assert notes_in(study) == NOTES
    assert is_gone(url)
    search = searcher(tmp_path)  # which rebuilds the journal
    assert len(read_study(tmp_path).trials) == 8
    with dashboard.served(tmp_path / JOURNAL) as url:
        study = json.loads(fetch(f"{url}/api/studies/0"))
        assert notes_in(study) == NOTES
    (tmp_path / JOURNAL).write_bytes(b"\x00spoilt\n" + (tmp_path / JOURNAL).read_bytes())
    searcher(tmp_path)
    assert len(read_study(tmp_path).trials) == 8


KILLED = """
import sys, time
from pathlib import Path
from tune_mnist.tuning import dashboard
with dashboard.served(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def test_a_kill_of_the_driver_takes_the_dashboard_with_it(tmp_path: Path) -> None:
    interrupted(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path / JOURNAL)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        url = driver.stdout.readline().strip()
        assert "study_summaries" in fetch(f"{url}/api/studies")
        os.kill(driver.pid, signal.SIGKILL)
    assert is_gone(url)


def test_a_dashboard_that_cannot_start_is_none(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("no journal\nat all\n")
    with dashboard.served(tmp_path / JOURNAL) as url:
        assert url is None


def test_without_the_packages_it_is_said_what_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    complaint = r"^open_dashboard is True, but must be left out: .* is not installed"
    with pytest.raises(ValueError, match=complaint):
        dashboard.check_installed()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert dashboard.ways_to_watch(RunFolder(tmp_path / "my runs" / "x")) == [
        "Run folder: my runs/x",
        "  optuna-dashboard 'my runs/x/study.journal'     (pip install 'tune-mnist[dashboard]')",
        "  tensorboard --logdir 'my runs/x'     (pip install 'tune-mnist[dashboard]')",
    ]
    for program in ("optuna-dashboard", "tensorboard"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / program).touch()
    assert dashboard.ways_to_watch(RunFolder("my runs/x"))[1:] == [
        "  bin/optuna-dashboard 'my runs/x/study.journal'",
        "  bin/tensorboard --logdir 'my runs/x'",
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, command = dashboard.ways_to_watch(RunFolder("mock://bucket/runs/x"))
    assert folder == "Run folder: mock://bucket/runs/x"
    assert re.fullmatch(r"  bin/optuna-dashboard tune-mnist/x-\w+/study.journal", command)
