"""A search in which nothing moves any more, as its workers hang. A dead raylet: tests/lab/stress.py."""

import json
import os
import signal
from pathlib import Path

from tests.conftest import Runner
from tests.invariants import check
from tests.test_resume import SAVE_ALL, trial_processes, wait_for_epochs


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
