"""What several test files share: the real MNIST, runners of the real scripts, and one finished run."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from filelock import FileLock

# Threads that wait for each other spin: with two on two busy cores the test set takes 13 s, with one 4.5 s.
os.environ["OMP_NUM_THREADS"] = "1"

from tune_mnist.cluster.connection import connected

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
FINISHED = ["--num-samples", "8", "--max-concurrent-trials", "2"]
SMALL = ["--train-size", "512", "--val-size", "500", "--max-epochs", "3"]
TOY = ["--task", f"{ROOT / 'tests' / 'toy.py'}:TASK", "--max-epochs", "4"]


# With --dist loadfile one worker runs a whole file. (The loadgroup of pytest-xdist 3.8 silently groups
# nothing under pytest 9.2: its issue 1386.)
FIRST = (
    *("hosts", "cluster", "resume", "watchdog", "ends", "finals", "warm_start", "run", "task", "notebook"),
    *("autoscaling", "predict", "console", "report", "readme", "dashboard", "analyse"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first, so that no worker is left with one of them at the end."""
    order = {f"test_{name}": position for position, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    from tune_mnist.mnist.data import prepare  # importing torch takes 2 s, and isolated tests do not need it

    data_dir = ROOT / "data"
    prepare("mnist", data_dir)
    return data_dir


class Runner:
    """Runs scripts in their own folder, with their own temp dir for Ray, and leaves no process behind."""

    def __init__(self, folder: Path, mnist_dir: Path) -> None:
        self.folder, self.mnist_dir = folder, mnist_dir
        self.ray_temp = Path(
            f"/tmp/tm{os.getpid()}-{time.monotonic_ns() % 10**9}"
        )  # sockets need a short path
        self.ray_temp.mkdir()
        # With the package of this checkout, even if an editable installation points elsewhere.
        path = os.pathsep.join([str(folder), str(ROOT)])
        self.environment = {**os.environ, "RAY_TMPDIR": str(self.ray_temp), "PYTHONPATH": path}
        self.environment.pop("RAY_ADDRESS", None)

    def command(self, script: str, flags: Sequence[str]) -> list[str]:
        """Return the script and its flags; scripts that read MNIST get its folder."""
        elsewhere = {"--task", "--trainable", "--resume", "--run"} & set(flags)
        data = ["--data-dir", str(self.mnist_dir)] * (script in ("tune.py", "train.py") and not elsewhere)
        return [str(SCRIPTS / script), *data, *flags]

    def start(self, *flags: str, script: str = "tune.py") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *self.command(script, flags)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str, script: str = "tune.py") -> tuple[int, str, str]:
        process = self.start(*flags, script=script)
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the runner's cluster in this process, for a block."""
        with mock.patch.dict(os.environ, self.environment, clear=True), connected(None):
            yield

    def processes(self) -> dict[int, str]:
        """Ray's processes for these runs, command line by pid: each names the temp dir."""
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
def joining(runner: Runner) -> Iterator[Runner]:
    """A runner whose searches join a lasting cluster: starting Ray takes a third of a small search."""
    code = (
        "import ray, sys; cluster = ray.init(address='local', include_dashboard=False, log_to_driver=False)\n"
        "print(cluster.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    joining = Runner(runner.folder, runner.mnist_dir)
    joining.environment["RAY_AUTH_MODE"] = "disabled"  # there may be a token in the home
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=joining.environment,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        joining.environment["RAY_ADDRESS"] = cluster.stdout.readline().strip()
        yield joining
        cluster.stdin.close()
    joining.close()


class WarmRunner:
    """Runs a script as `python SCRIPT` does, but in this process, which has torch and Ray already.

    A separate process takes 4 s to refuse its flags, 3 of them for imports.
    """

    def __init__(
        self, runner: Runner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.runner, self.monkeypatch, self.capfd = runner, monkeypatch, capfd

    def run(self, *flags: str, script: str = "tune.py") -> tuple[int, str, str]:
        handler = signal.getsignal(signal.SIGINT)
        self.capfd.readouterr()
        with (
            self.monkeypatch.context() as patch,
            mock.patch.dict(os.environ, self.runner.environment, clear=True),
        ):
            patch.chdir(self.runner.folder)
            patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
            patch.setattr(sys, "argv", self.runner.command(script, flags))
            try:
                with pytest.raises(SystemExit) as ended:
                    runpy.run_path(sys.argv[0], run_name="__main__")
            finally:
                signal.signal(signal.SIGINT, handler)
        assert isinstance(ended.value.code, int)
        return ended.value.code, *self.capfd.readouterr()


@pytest.fixture
def warm_runner(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> WarmRunner:
    return WarmRunner(runner, monkeypatch, capfd)


@pytest.fixture(scope="module")
def joined(joining: Runner) -> Iterator[None]:
    """Join that cluster in this process for the tests of a file: their searches also share its workers."""
    with joining.joined():
        yield


@pytest.fixture
def warm_joining(
    joining: Runner, joined: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> WarmRunner:
    """A runner whose searches take 2 s instead of 20."""
    return WarmRunner(joining, monkeypatch, capfd)


@pytest.fixture(scope="session")
def finished(
    runner: Runner, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, str, str]:
    """One run, with its output; each of pytest-xdist's workers has its own copy."""
    run_dir = runner.folder / "runs" / "finished"
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    said = shared / "said.json"
    with FileLock(shared.with_suffix(".lock")):
        if not said.exists():
            code, out, err = runner.run(*FINISHED, "--name", "finished", *SMALL)
            assert code == 0, out + err
            shutil.copytree(run_dir, shared / "finished")
            said.write_text(json.dumps([out, err]))
    if not run_dir.exists():
        shutil.copytree(shared / "finished", run_dir)
    out, err = json.loads(said.read_text())
    return run_dir, out, err
