"""What several test files share: the real MNIST, a runner of the real script, and one finished run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that wait for each other spin: with two on two busy cores the test set takes 13 s, with one 4.5 s.
os.environ["OMP_NUM_THREADS"] = "1"

from tune_mnist.data import prepare

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
SMALL = ["--train-size", "512", "--val-size", "500", "--max-epochs", "3"]


# With --dist loadfile a file is one worker's, so that what its tests share, as the finished run, is made
# once. (The loadgroup of pytest-xdist 3.8 groups nothing under pytest 9.2, without a word: its issue 1386.)
LONGEST_FIRST = ("test_run", "test_hosts", "test_resume", "test_cluster", "test_autoscaling")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take minutes begin first, so that neither worker is left with one at the end."""
    order = {name: position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    data_dir = ROOT / "data"
    prepare("mnist", data_dir)
    return data_dir


class Runner:
    """Runs scripts in a folder and with a temp dir for Ray of their own, and leaves no process behind."""

    def __init__(self, folder: Path, mnist_dir: Path) -> None:
        self.folder, self.mnist_dir = folder, mnist_dir
        self.ray_temp = Path(
            f"/tmp/tm{os.getpid()}-{time.monotonic_ns() % 10**9}"
        )  # sockets need a short path
        self.ray_temp.mkdir()
        self.environment = {**os.environ, "RAY_TMPDIR": str(self.ray_temp), "PYTHONPATH": str(folder)}
        self.environment.pop("RAY_ADDRESS", None)

    def start(self, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPTS / "tune.py"), "--data-dir", str(self.mnist_dir), *flags]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str) -> tuple[int, str, str]:
        process = self.start(*flags)
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err

    def processes(self) -> dict[int, str]:
        """What Ray started for these runs, command line by pid: each has the temp dir in its own."""
        listed = subprocess.run(["ps", "-ewwo", "pid=,args="], capture_output=True, text=True, check=True)
        rows = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
        return {int(pid): command for pid, command in rows if str(self.ray_temp) in command}

    def close(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.ray_temp, ignore_errors=True)


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory, mnist_dir: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("work"), mnist_dir)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def finished(runner: Runner) -> tuple[Path, str, str]:
    code, out, err = runner.run("--num-samples", "8", "--name", "finished", *SMALL)
    assert code == 0, out + err
    return runner.folder / "runs" / "finished", out, err
