"""On several hosts: ray up, submit and down, and a search through power cuts, cut links and kills.

The hosts are namespaces of this machine, see hosts.sh; they behave in the same way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from tests.conftest import ROOT
from tests.invariants import check, fingerprint
from tests.lab.lab import Lab, what_is_missing
from tune_mnist import results
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import TrialRecord

T = TypeVar("T")
Timed = Callable[[str], AbstractContextManager[None]]

HOSTS = ["h0", "h1", "h2"]
ADDRESSES = ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
CLIENT = f"cd {ROOT} && {sys.prefix}/bin"
RAY_FLAGS = "--log-style pretty ~/cluster.yaml"  # the style that a terminal gets
TUNE = "python tune-mnist/scripts/tune.py"
SMALL = "--train-size 2048 --val-size 500 --precision fp32"
GRACE_PERIOD = 3
NUM_SAMPLES = 14


@pytest.fixture(scope="module")
def timed(request: pytest.FixtureRequest) -> Timed:
    """Return a context manager that prints its block's duration, past the captures of pytest and xdist."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    @contextmanager
    def timing(what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        with capture.global_and_fixture_disabled():
            print(f"\n  {what}: {time.monotonic() - begun:.1f} s", end=" ", file=sys.stderr, flush=True)

    return timing


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, mnist_dir: Path) -> Iterator[Lab]:
    if reason := what_is_missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    environment = {
        "PYTHONPATH": "/root/tune-mnist",  # in place of pip install --editable, which needs an index
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",  # the head checks its workers every 5 s otherwise
        # A silent host is given up after some 20 s, not 65: after 3 checks of at most 3 s, not 5 of 10.
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "3",
    }
    show = [ROOT, mnist_dir, Path(sys.prefix), Path(sys.base_prefix)]
    lab = Lab(tmp_path_factory.mktemp("lab"), show=show, environment=environment)
    try:
        lab.up(len(HOSTS))
        yield lab
    finally:
        lab.down()


def cluster_config() -> str:
    """Return cluster-onprem.yaml with the values of these hosts: their addresses, login and size."""
    config = yaml.safe_load((ROOT / "cluster-onprem.yaml").read_text())
    config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": ADDRESSES[1:]}
    config["auth"]["ssh_user"] = "root"
    config["setup_commands"] = [
        command for command in config["setup_commands"] if "pip install" not in command
    ]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = "ray start --num-cpus=1 --object-store-memory=150000000"
        config[key] = [
            command.replace("ray start", start).replace("--head", "--head --include-dashboard=false")
            for command in config[key]
        ]
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def cluster(lab: Lab, timed: Timed) -> Lab:
    (lab.home("cli") / "cluster.yaml").write_text(cluster_config())
    for host in HOSTS:  # they share this environment, so that `ray up` finds it there and makes none
        (lab.home(host) / "venv").symlink_to(sys.prefix)
    lab.run("cli", f"{CLIENT}/ray get-auth-token --generate")
    with timed("ray up"):
        lab.run(
            "cli", f"export RAY_UP_enable_autoscaler_v2=0; {CLIENT}/ray up -y --no-config-cache {RAY_FLAGS}"
        )
    with timed("until all workers have joined"):
        wait_for(lambda: all_joined(lab), 90)
    return lab


def all_joined(lab: Lab) -> bool:
    return f"/{len(HOSTS)}.0 CPU" in lab.run("h0", "ray status")


def wait_for(what: Callable[[], T | None], seconds: float, driver: subprocess.Popen[str] | None = None) -> T:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if driver is not None and driver.poll() is not None:
            pytest.fail(f"the search has ended:\n{driver.communicate()[0]}")
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.2)
    return found


def test_a_submitted_search_runs_on_all_hosts(cluster: Lab, mnist_dir: Path, timed: Timed) -> None:
    flags = f"{SMALL} --num-samples 6 --max-epochs 2 --name submitted"
    with timed("ray submit"):
        submit = f"{CLIENT}/ray submit --no-config-cache {RAY_FLAGS} scripts/tune.py"
        cluster.run("cli", f"{submit} {places(cluster, mnist_dir)} {flags}")
    trials = results.trials_frame(results.load(cluster.shared / "submitted"))
    assert len(trials) == 6 and not trials["state"].isin(["RUNNING", "FAIL"]).any()
    assert set(trials["node"]) == set(HOSTS)


def places(lab: Lab, mnist_dir: Path) -> str:
    return f"--data-dir {mnist_dir} --storage-path {lab.shared}"


@pytest.mark.timeout(600)
def test_a_search_survives_kills_a_power_cut_and_a_cut_link(cluster: Lab, timed: Timed) -> None:
    run_dir = cluster.shared / "survivor"
    shutil.copy(ROOT / "tests" / "toy.py", cluster.home("h0"))  # the other hosts have no such file
    flags = (
        f"--task toy.py:TASK --epoch-seconds 1 --num-samples {NUM_SAMPLES} --max-epochs 6 --name survivor "
        f"--grace-period {GRACE_PERIOD} --checkpoint-seconds 0 --storage-path {cluster.shared}"
    )
    driver = start_driver(cluster, flags)

    victim = wait_for(lambda: newly_begun(run_dir, HOSTS), 120, driver)
    with timed("kill -9 of a trial's process, until it reports again"):
        cluster.run(victim.last["hostname"], f"kill -9 {victim.last['pid']}")
        wait_for(lambda: reported_elsewhere(run_dir, victim), 120, driver)

    victim = wait_for(lambda: newly_begun(run_dir, ["h1"]), 120, driver)
    with timed("power cut, until the host's trial reports again"):
        cluster.cut_power("h1")
        wait_for(lambda: reported_elsewhere(run_dir, victim), 120, driver)
    cluster.power_on("h1")

    victim = wait_for(lambda: newly_begun(run_dir, HOSTS), 120, driver)
    with timed("kill -9 of the driver, until the resumed trial reports again"):
        cluster.run("h0", "kill -9 $(cat driver.pid)")
        assert driver.wait(10) != 0
        resumed = time.time()
        driver = start_driver(cluster, f"--resume {run_dir}")
        wait_for(lambda: reported_elsewhere(run_dir, victim), 120, driver)

    victim = wait_for(lambda: newly_begun(run_dir, ["h1", "h2"], since=resumed), 120, driver)
    with timed("cut link, until the host's trial reports again"):
        cluster.cut_link(victim.last["hostname"])
        wait_for(lambda: reported_elsewhere(run_dir, victim), 120, driver)
    cluster.mend_link(victim.last["hostname"])

    with timed("the rest of the search"):
        out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, out
    seen = check(run_dir, NUM_SAMPLES)
    assert seen["sessions"] == 2 and seen["restarts"] >= 4, seen

    with timed("until all hosts are back"):
        wait_for(lambda: all_joined(cluster), 120)

    before = fingerprint(run_dir)
    with timed("resume of the finished run"):
        out = cluster.run("h0", f"{TUNE} --resume {run_dir}")
    assert "nothing to resume" in out
    assert fingerprint(run_dir) == before


def start_driver(lab: Lab, flags: str) -> subprocess.Popen[str]:
    return lab.start("h0", f"echo $$ > driver.pid; exec {TUNE} {flags}")


def newly_begun(run_dir: Path, hosts: list[str], *, since: float = 0) -> TrialRecord | None:
    """Return a trial on one of the hosts that has a checkpoint and cannot end within two more epochs.

    Args:
        since: when the driver was started; where the trials of an earlier one are now is unknown.
    """
    for trial in unfinished(run_dir):
        last = trial.last
        if trial.epoch == GRACE_PERIOD - 2 and last.get("hostname") in hosts and last["timestamp"] > since:
            return trial
    return None


def reported_elsewhere(run_dir: Path, victim: TrialRecord) -> bool:
    """Return whether a trial has since continued in another process."""
    return not processes(RunFolder(run_dir).ledger().trials[victim.trial_id]) <= processes(victim)


def processes(trial: TrialRecord) -> set[tuple[str, int]]:
    # A report that a resume took from a checkpoint, because the driver never received it, has no host.
    return {(epoch["hostname"], epoch["pid"]) for epoch in trial.epochs if "pid" in epoch}


def unfinished(run_dir: Path) -> list[TrialRecord]:
    return RunFolder(run_dir).ledger().unfinished() if (run_dir / "ledger.jsonl").exists() else []


def test_ray_down_ends_ray_on_the_head(cluster: Lab, timed: Timed) -> None:
    assert "raylet" in cluster.run("h0", "ps -eo args")
    with timed("ray down"):
        cluster.run("cli", f"{CLIENT}/ray down -y {RAY_FLAGS}")
    # On the workers Ray ends on its own a minute later: the local provider cannot stop them.
    assert "raylet" not in cluster.run("h0", "ps -eo args")
