"""The ways in which a search ends: failures, signals, a budget, a target; the real script on a small task."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT, TOY, Runner, WarmRunner
from tests.invariants import study_of
from tests.searches import begun_trials
from tune_mnist import results


def test_a_diverged_trial_fails_at_once_and_the_search_continues(warm_joining: WarmRunner) -> None:
    flags = ("--num-samples", "4", "--space", "half_diverges", "--name", "half")
    code, out, err = warm_joining.run(*TOY, *flags)
    assert (code, err) == (0, ""), out
    run_dir = warm_joining.runner.folder / "runs" / "half"
    trials = pd.read_parquet(run_dir / "trials.parquet")
    failed = trials["rate"] > 1
    assert 0 < failed.sum() < 4
    assert (trials["state"] == "FAIL").tolist() == failed.tolist()
    assert [trial.state.name for trial in study_of(run_dir)] == list(trials["state"])
    named = re.search(r"(\d) failed; the first error: (.*) \((\S+)\)", out)
    assert named and int(named[1]) == failed.sum()
    assert named[2] == "loss is not finite after epoch 1"
    text = (warm_joining.runner.folder / named[3]).read_text()
    assert text.count(f"DivergedError: {named[2]}") == 1
    assert [str(error) for error in results.load(run_dir).errors] == [named[2]] * failed.sum()
    # It is a result: it was not tried again, and its process took the next trial.
    ledger = (run_dir / "ledger.jsonl").read_text()
    assert ledger.count(named[2]) == failed.sum() and ledger.count('"event": "attempt"') == 4
    assert len({trial.last["pid"] for trial in begun_trials(run_dir)}) <= 2


def test_a_search_in_which_every_trial_fails_exits_1(warm_joining: WarmRunner) -> None:
    flags = ("--num-samples", "3", "--space", "all_diverge", "--name", "all")
    code, out, err = warm_joining.run(*TOY, *flags)
    assert (code, err) == (1, "")
    assert (
        "3 of 3 trials (0 COMPLETE, 0 PRUNED, 3 FAIL)" in out
        and "3 failed; the first error: loss is not finite after epoch 1 (runs/all/" in out
    )


def test_a_test_that_raises_costs_the_test_alone(warm_joining: WarmRunner) -> None:
    task = warm_joining.runner.folder / "untestable.py"
    text = """
        import dataclasses, sys
        sys.path.append({tests!r})
        from toy import FINAL
        def test(config, checkpoint, options):
            raise FileNotFoundError("no such test set")
        TASK = dataclasses.replace(FINAL{test})
    """
    names = {"tests": str(ROOT / "tests")}
    task.write_text(textwrap.dedent(text).format(test=", test=test", **names))
    flags = ("--task", f"{task}:TASK", "--max-epochs", "2", "--num-samples", "2", "--name", "untestable")
    code, _, err = warm_joining.run(*flags)
    assert code == 1 and err.count("\n") == 1
    assert "task toy: its test of trial " in err and "raised FileNotFoundError: no such test set" in err
    run_dir = warm_joining.runner.folder / "runs" / "untestable"
    assert len(pd.read_parquet(run_dir / "trials.parquet")) == 2
    assert not (run_dir / "best" / "metrics.json").exists()
    sys.modules.pop("untestable")
    task.write_text(textwrap.dedent(text).format(test="", **names))
    code, out, _ = warm_joining.run("--resume", str(run_dir))
    assert code == 0 and re.search(r"Winner, trial \d at epoch 2: .* test 0\.", out)


def assert_ends_in_order(
    process: "subprocess.Popen[str]", number: signal.Signals, runner: Runner, run_dir: Path
) -> None:
    """Signal a search that has an epoch; its results must be written, and no process left."""
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C, `timeout` and systemd do
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, ""), out
    assert f"ended by {number.name}" in out and (run_dir / "best" / "metrics.json").exists()
    states = [trial.state.name for trial in study_of(run_dir)]
    assert len(states) >= 1 and "RUNNING" not in states
    trials = pd.read_parquet(run_dir / "trials.parquet")
    assert trials["state"].tolist() == states
    pd.testing.assert_frame_equal(results.trials_frame(results.load(run_dir)), trials)
    deadline = time.monotonic() + 20
    while runner.processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not runner.processes()


def test_sigterm_ends_the_search_in_order(runner: Runner) -> None:  # SIGINT: test_resume.py
    process = runner.start(*TOY, "--num-samples", "500", "--name", "sigterm")
    assert process.stdout is not None
    first = next(line for line in process.stdout if "trial" in line)
    assert "1/500 trial" in first
    processes = runner.processes().values()
    (gcs,) = (line for line in processes if "gcs_server" in line.split()[0])
    assert "--node-ip-address=127.0.0.1 " in gcs
    assert_ends_in_order(process, signal.SIGTERM, runner, runner.folder / "runs" / "sigterm")


@pytest.mark.parametrize("moment", ["imports", "start of Ray"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_search_ends_it_without_a_word(
    number: signal.Signals, code: int, moment: str, runner: Runner
) -> None:
    process = runner.start(*TOY, "--name", f"{number.name}-early")
    if moment == "imports":
        time.sleep(0.5)
        code = -number  # a shell also reports this as 130 or 143: the process died of it
    else:
        while not runner.processes():
            time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", "")
    assert not runner.processes()
    assert not (runner.folder / "runs" / f"{number.name}-early").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--time-budget", "12s", "--max-concurrent-trials", "1", "--fresh-actors"], "time budget"),
        (["--target", "0.02"], "target"),
    ],
)
def test_a_budget_or_a_target_ends_the_search_with_exit_code_0(
    flags: list[str], reason: str, warm_joining: WarmRunner
) -> None:
    name = reason.replace(" ", "-")
    code, out, err = warm_joining.run(*TOY, "--num-samples", "500", "--name", name, *flags)
    assert (code, err) == (0, ""), out
    assert f"ended by {reason}" in out
    run_dir = warm_joining.runner.folder / "runs" / name
    trials = pd.read_parquet(run_dir / "trials.parquet")
    assert len(trials) < 500
    assert [trial.state.name for trial in study_of(run_dir)] == trials["state"].tolist()
    pd.testing.assert_frame_equal(results.trials_frame(results.load(run_dir)), trials)
    if reason == "target":
        assert json.loads((run_dir / "best" / "metrics.json").read_text())["loss"] <= 0.02
    else:
        begun = begun_trials(run_dir)
        assert len({trial.last["pid"] for trial in begun}) == len(begun) > 1  # as with --fresh-actors
