"""Runs of the real script that are ended in various ways, and resumed."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer

from tests.conftest import TOY, Runner, WarmRunner
from tests.invariants import check, fingerprint
from tests.searches import TOY_SAVE_ALL, kill, resume, trial_processes, wait_for_epochs
from tests.tuning.test_ends import assert_ends_in_order
from tune_mnist import results
from tune_mnist.run.folder import RunFolder

SECRET = "k3y-that-no-file-may-hold"


@pytest.mark.timeout(600)  # four sessions
def test_a_killed_search_is_resumed_in_another_place_and_then_gets_more_trials(
    joining: Runner, warm_joining: WarmRunner
) -> None:
    run_dir, moved = joining.folder / "runs" / "killed", joining.folder / "elsewhere" / "moved"
    process = joining.start("--num-samples", "6", "--name", "killed", *TOY_SAVE_ALL)
    wait_for_epochs(5, run_dir / "ledger.jsonl", process)
    kill(process)
    before = results.load(run_dir)  # a killed run can be read as is
    states = results.trials_frame(before)["state"].tolist()
    assert "RUNNING" in states or len(states) < 6
    with (run_dir / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"event": "epoch", "trial_id": "')  # what a kill can leave
    moved.parent.mkdir()
    run_dir.rename(moved)

    out = resume(warm_joining, "elsewhere/moved")
    assert "6 of 6 trials" in out
    assert check(moved, 6)["sessions"] == 2
    after = results.epochs_frame(results.load(moved))
    kept = results.epochs_frame(before).merge(after, on=["trial_id", "epoch"])
    assert kept["loss_x"].tolist() == kept["loss_y"].tolist() and len(kept) >= 5

    # The winner's checkpoint is corrupt and its score lost, as by a kill: the next best one wins.
    winner = json.loads((moved / "best" / "metrics.json").read_text())
    (corrupt,) = moved.glob(f"trial_{winner['number']:05d}_*")
    for file in corrupt.glob("checkpoint_*/training.pt"):
        file.write_bytes(bytes(len(file.read_bytes())))
    shutil.rmtree(moved / "best")
    assert "6 of 6 trials" in resume(warm_joining, "elsewhere/moved")
    second = json.loads((moved / "best" / "metrics.json").read_text())
    assert second["number"] != winner["number"] and second["loss"] >= winner["loss"]
    check(moved, 6)

    left = fingerprint(moved)
    assert "has finished" in resume(warm_joining, "elsewhere/moved")
    assert fingerprint(moved) == left

    out = resume(warm_joining, "elsewhere/moved", "--num-samples", "8")
    assert "8 of 8 trials" in out and len(re.findall(r"^ +\d/8 trial ", out, re.MULTILINE)) == 2
    check(moved, 8)


def test_a_stopped_search_is_resumed(runner: Runner, warm_joining: WarmRunner) -> None:
    run_dir = runner.folder / "runs" / "stopped"
    process = runner.start("--num-samples", "10", "--name", "stopped", "--time-budget", "1h", *TOY)
    wait_for_epochs(3, run_dir / "ledger.jsonl", process)
    code, _, err = warm_joining.run("--resume", "runs/stopped")
    assert code == 2 and re.search(r"runs/stopped is being run by another process: end it first\n$", err)
    assert_ends_in_order(process, signal.SIGINT, runner, run_dir)
    assert json.loads((run_dir / "settings.json").read_text())["time_budget"] == 3600
    resume(warm_joining, "runs/stopped", "--time-budget", "30m", "--max-concurrent-trials", "1")
    assert check(run_dir, 10)["sessions"] == 2
    settings = json.loads((run_dir / "settings.json").read_text())
    assert (settings["time_budget"], settings["max_concurrent_trials"]) == (1800, 1)


def test_a_lost_process_costs_at_most_what_was_not_saved(joining: Runner) -> None:
    run_dir = joining.folder / "runs" / "lost"
    process = joining.start("--num-samples", "4", "--name", "lost", *TOY_SAVE_ALL)
    killed = 0
    for epochs in (1, 4):
        wait_for_epochs(epochs, run_dir / "ledger.jsonl", process)
        for pid in trial_processes(joining)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, ""), out
    assert killed and "0 FAIL" in out
    check(run_dir, 4)


def test_without_retries_a_lost_process_fails_its_trial_alone(joining: Runner) -> None:
    run_dir = joining.folder / "runs" / "unretried"
    process = joining.start("--num-samples", "3", "--name", "unretried", "--max-failures", "0", *TOY)
    wait_for_epochs(1, run_dir / "ledger.jsonl", process)
    os.kill(trial_processes(joining)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, ""), out
    assert "1 FAIL" in out and "1 failed; the first error: " in out
    check(run_dir, 3)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, joining: Runner) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), SECRET),
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(joining.environment, name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket/runs"
    server.stop()


def test_a_search_in_a_bucket_is_resumed_on_another_machine(
    bucket: str, joining: Runner, warm_joining: WarmRunner, tmp_path: Path
) -> None:
    name = "s3"
    uri = f"{bucket}/{name}"
    copy = RunFolder(uri).local
    process = joining.start("--num-samples", "4", "--name", name, "--storage-path", bucket, *TOY_SAVE_ALL)
    wait_for_epochs(4, copy / "ledger.jsonl", process)
    kill(process)
    assert not (joining.folder / "s3:").exists()
    shutil.rmtree(copy)  # the driver's disk is lost with it
    known = len(results.load(uri))
    out = resume(warm_joining, uri)
    assert "4 of 4 trials" in out and f"Run folder: {uri}" in out
    assert not copy.exists()  # the bucket has everything
    code, out, err = warm_joining.run(uri, script="analyse.py")
    assert (code, err) == (0, "") and out.endswith(f"In {uri}: report.html, epochs.parquet, trials.parquet\n")
    code, out, err = warm_joining.run(uri, "--out", f"{bucket}/shown/page.html", script="analyse.py")
    assert (code, err) == (0, "") and out.endswith(
        f"In {bucket}/shown: page.html, epochs.parquet, trials.parquet\n"
    )
    here = tmp_path / name
    pyarrow.fs.copy_files(uri, str(here))
    assert (here / "report.html").read_text().startswith("<!DOCTYPE html>")
    found = check(here, 4)
    assert found["sessions"] == 2 and known >= 1
    assert not [file for file in here.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    grid = results.load(uri)
    assert results.trials_frame(grid)["state"].isin(["COMPLETE", "PRUNED"]).all()
    assert "has finished" in resume(warm_joining, uri)
