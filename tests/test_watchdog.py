"""Searches in which nothing moves any more: workers that hang, and a dead raylet on the driver's node."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT, SCRIPTS, Runner
from tests.invariants import check
from tests.lab import isolated
from tests.lab.fake_autoscaler import start_head
from tests.test_resume import SAVE_ALL, epochs_in, trial_processes, wait_for_epochs


def broke(run_dir: Path) -> list[str]:
    """Why Ray's loop had to be started again, each time."""
    lines = map(json.loads, (run_dir / "ledger.jsonl").read_text().splitlines())
    return [line["reason"] for line in lines if line["event"] == "broke"]


def test_workers_that_hang_are_replaced(runner: Runner) -> None:
    run_dir = runner.folder / "runs" / "hung"
    process = runner.start("--num-samples", "4", "--name", "hung", "--stall-seconds", "8", *SAVE_ALL)
    wait_for_epochs(2, run_dir / "ledger.jsonl", process)
    stopped = trial_processes(runner)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, ""), out
    assert stopped and "nothing moves: connecting to Ray again" in out
    assert broke(run_dir) and "0 FAIL" in out
    check(run_dir, 4)


def start_node(ip: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address=127.0.0.2:6379"]
    command += [f"--node-ip-address={ip}", "--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
    subprocess.run(command, check=True, capture_output=True)


def raylet_of(ip: str) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if command[0].endswith("/raylet") and f"--node_ip_address={ip}" in command:
            return int(process.name)
    raise AssertionError(f"no raylet with {ip}")


@isolated
def test_a_search_outlives_the_raylet_of_its_drivers_node() -> None:
    """Ray takes the driver's job for finished, says nothing, and places no trial any more."""
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "2"}
    start_head(0, "--node-ip-address=127.0.0.2", environment=quick)
    start_node("127.0.0.1")  # the driver's own address, so that it is attached to this one
    start_node("127.0.0.3")
    runs = Path.home() / "runs"
    command = [sys.executable, str(SCRIPTS / "tune.py"), "--address", "127.0.0.2:6379", *SAVE_ALL]
    command += ["--data-dir", str(ROOT / "data"), "--storage-path", str(runs), "--name", "home"]
    command += ["--num-samples", "6", "--stall-seconds", "10"]
    ledger = runs / "home" / "ledger.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        wait_for_epochs(3, ledger, driver)
        os.kill(raylet_of("127.0.0.1"), signal.SIGKILL)
        killed, known = time.monotonic(), epochs_in(ledger)
        out, _ = driver.communicate(timeout=130)
    assert driver.returncode == 0, out
    assert "nothing moves: connecting to Ray again" in out and broke(runs / "home"), out
    assert epochs_in(ledger) > known and time.monotonic() - killed < 130
    check(runs / "home", 6)
