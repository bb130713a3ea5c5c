"""A search whose workers hang, cannot begin or take too much memory, or whose raylet is dead."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TOY, Runner
from tests.invariants import check
from tests.lab import isolated
from tests.lab.fake_autoscaler import add_node, start_head
from tests.searches import TOY_SAVE_ALL, trial_processes, tune, wait_for_epochs


def broke(run_dir: Path) -> list[str]:
    """Why Ray's loop had to be restarted, each time."""
    lines = map(json.loads, (run_dir / "ledger.jsonl").read_text().splitlines())
    return [line["reason"] for line in lines if line["event"] == "broke"]


def test_workers_that_hang_are_replaced(runner: Runner) -> None:
    run_dir = runner.folder / "runs" / "hung"
    process = runner.start("--num-samples", "4", "--name", "hung", "--stall-seconds", "6", *TOY_SAVE_ALL)
    wait_for_epochs(2, run_dir / "ledger.jsonl", process)
    stopped = trial_processes(runner)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, ""), out
    assert stopped and "no progress: connecting to Ray again" in out
    assert broke(run_dir) and "0 FAIL" in out
    check(run_dir, 4)


HUNGRY = """
import dataclasses, pathlib, time
from tests import toy

def train(*given):
    for report in toy.train(*given):
        yield report
        if not EATEN.exists():
            EATEN.touch()
            hoard = [b"x" * 2**26 for _ in range(96)]
            time.sleep(60)

EATEN = pathlib.Path(__file__).with_name("eaten")
TASK = dataclasses.replace(toy.TASK, train=train)
"""


def test_a_worker_that_is_killed_for_lack_of_memory_costs_one_attempt(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, run_dir = psutil.virtual_memory(), runner.folder / "runs" / "hungry"
    limit = 1 - (memory.available - 4 * 2**30) / memory.total
    monkeypatch.setitem(runner.environment, "RAY_memory_usage_threshold", f"{limit:.3f}")
    (runner.folder / "hungry.py").write_text(HUNGRY)
    flags = ["--num-samples", "2", "--max-epochs", "2", "--max-failures", "9", "--max-concurrent-trials", "1"]
    process = runner.start("--task", "hungry.py:TASK", "--name", "hungry", *flags)
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, ""), out
    assert "a trial was killed for lack of memory" in out and "0 FAIL" in out
    assert broke(run_dir) == []
    check(run_dir, 2)


NEEDY = """
import dataclasses
import jinja2
import toy

def train(*given):
    jinja2.Environment()
    return toy.train(*given)

TASK = dataclasses.replace(toy.TASK, train=train)
"""


@isolated
def test_workers_that_cannot_import_a_trial_end_the_search_and_it_is_resumed_when_they_can() -> None:
    broken, run_dir = Path.home() / "path" / "jinja2.py", Path.home() / "runs" / "broken"
    broken.parent.mkdir()
    broken.write_text("raise ModuleNotFoundError(\"No module named 'jinja2'\")")
    (Path.home() / "needy.py").write_text(NEEDY)
    path = [str(ROOT), str(ROOT / "tests")]
    start_head(2, environment={"PYTHONPATH": os.pathsep.join([str(broken.parent), *path])})
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    search = tune("--task", "needy.py:TASK", "--num-samples", "3", "--name", "broken", "--max-epochs", "2")
    out, err = search.communicate(timeout=100)
    cause = "ModuleNotFoundError: No module named 'jinja2'"
    assert f"no worker can import what a trial needs: {cause}" in out, out + err
    assert search.returncode == 1 and err.splitlines()[-1] == (
        f"tune.py: error: no worker can import what a trial needs: {cause} (--resume {run_dir} continues)"
    )
    broken.unlink()
    resumed = tune("--resume", str(run_dir))
    out, err = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, out + err
    assert check(run_dir, 3)["sessions"] == 2 and "0 FAIL" in out


@isolated
def test_a_driver_whose_raylet_dies_ends_with_it_and_the_search_is_resumed_through_another_one() -> None:
    # Ray ends a process that uses the object store of a dead raylet, as the driver does for the data it gave.
    start_head(1, environment={"RAY_health_check_period_ms": "500"})
    raylet = int(subprocess.check_output(["pgrep", "-x", "raylet"]))
    # One core more than a trial needs: Ray has finished the job by then, but still creates a placement group
    # for its next attempt, and never removes it.
    add_node(cpus=2)
    run_dir = Path.home() / "runs" / "alone"
    process = tune("--num-samples", "4", "--name", "alone", "--max-concurrent-trials", "1", *TOY)
    wait_for_epochs(1, run_dir / "ledger.jsonl", process)
    os.kill(raylet, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode, out + err
    resumed = tune("--resume", str(run_dir))
    out, err = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, out + err
    assert check(run_dir, 4)["sessions"] == 2 and "0 FAIL" in out
