"""What tests do to real searches. Nothing here imports torch: each isolated test would wait for it."""

import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import SCRIPTS, TOY, Runner, WarmRunner
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import TrialRecord

TOY_SAVE_ALL = [*TOY, "--checkpoint-seconds", "0"]


def tune(*flags: str) -> "subprocess.Popen[str]":
    """Start the script in the home folder."""
    command = [sys.executable, str(SCRIPTS / "tune.py"), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=Path.home(), stdout=pipe, stderr=pipe, text=True)


def epochs_in(ledger: Path) -> int:
    return ledger.read_bytes().count(b'"event": "epoch"') if ledger.exists() else 0


def wait_for_epochs(count: int, ledger: Path, process: "subprocess.Popen[str]") -> None:
    while epochs_in(ledger) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def resume(runner: Runner | WarmRunner, run: str, *flags: str) -> str:
    code, out, err = runner.run("--resume", run, *flags)
    assert (code, err) == (0, ""), out + err
    return out


def trial_processes(runner: Runner) -> list[int]:
    """The processes in which trials run; of all that Ray starts, only they have this title."""
    listed = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    ours = set(runner.processes())
    return [int(pid) for pid, ppid, title in rows if "ImplicitFunc" in title and int(ppid) in ours]


def begun_trials(run_dir: Path) -> list[TrialRecord]:
    return [trial for trial in RunFolder(run_dir).ledger().trials.values() if trial.epochs]
