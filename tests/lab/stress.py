"""Kills or stops processes of small searches at random moments, and checks what must hold afterwards.

make stress ARGS="-n 60"               (root, on Linux; in its own network and process namespaces)
make stress ARGS="-n 60 --task toy"    (a minimised task without torch)

Each round is a search on real MNIST with small numbers, on a Ray cluster of a head and two nodes. One to
three of its processes are killed with -9; a killed driver is followed by a resume, a killed node by a new
one. A worker that is to hang gets a SIGSTOP. The disk of the runs is filled, and Ray's temp folder deleted:
both end the search, which is resumed once there is room again, or on a new cluster. When the search has
finished, the six points of `tests/invariants.py` are checked.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from tests.invariants import check, fingerprint

ROOT = Path(__file__).resolve().parents[2]
TUNE = [sys.executable, str(ROOT / "scripts" / "tune.py")]
TRIALS = 6
TASKS = {
    "mnist": ["--train-size", "1536", "--val-size", "500", "--max-epochs", "5", "--precision", "fp32"],
    "toy": ["--task", f"{ROOT / 'tests' / 'toy.py'}:TASK", "--max-epochs", "5"],
}
"""Flags by the name of the task."""
HANG_SECONDS = 300.0
"""Longest time from the last kill to the end of a search; an idle machine needs 20."""
NOTICE_SECONDS = 30.0
"""Longest time until a cluster notices the death of a node: before that a driver may join by its raylet."""
KINDS = ("driver", "worker", "node", "hang", "disk", "temp")
DISK = "size=300m"
"""Of the tmpfs that holds the runs."""


class Arena:
    """A cluster whose nodes can be killed and replaced."""

    def __init__(self) -> None:
        self.node_killed = -NOTICE_SECONDS
        "When a node was killed last, by time.monotonic()."
        self.start()

    def start(self) -> None:
        self.cluster = Cluster(shutdown_at_exit=True)
        self.cluster.add_node(num_cpus=0, object_store_memory=200 * 2**20, include_dashboard=False)
        self.nodes = [self.add() for _ in range(2)]
        self.address = self.cluster.address

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def delete_temp_folder(self) -> None:
        """Delete all nodes' files in Ray's temp folder, as a cleaning job does."""
        for session in Path("/tmp/ray").glob("session_*"):
            shutil.rmtree(session, ignore_errors=True)

    def start_again(self) -> None:
        """Replace a broken cluster with a new one."""
        for node in [self.cluster.head_node, *self.nodes]:
            for processes in node.all_processes.values():
                for process in processes:
                    kill(process.process.pid)
        ray.shutdown()
        self.start()

    def processes(self, node: Any) -> list[psutil.Process]:
        (raylet,) = node.all_processes["raylet"]
        process = psutil.Process(raylet.process.pid)
        return [process, *process.children(recursive=True)]

    def kill_node(self, number: int) -> None:
        """Cut a node's power: kill its raylet and all that it has started."""
        for process in self.processes(self.nodes[number]):
            kill(process.pid)
        self.node_killed = time.monotonic()
        self.cluster.remove_node(self.nodes[number], allow_graceful=False)
        self.nodes[number] = self.add()

    def trial_processes(self) -> list[int]:
        """The processes in which trials run."""
        processes = [process for node in self.nodes for process in self.processes(node)]
        return [process.pid for process in processes if "ImplicitFunc" in command_of(process)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def one_round(arena: Arena, folder: Path, task: list[str], rng: random.Random, number: int) -> dict[str, Any]:
    """Run and kill one search; return what was done, and what was found."""
    name = f"round{number:03d}"
    run_dir = folder / name
    start = [*TUNE, *task, "--name", name, "--storage-path", str(folder), "--num-samples", str(TRIALS)]
    start += ["--seed", str(number), "--checkpoint-seconds", rng.choice(["0", "30"])]
    start += ["--sampler", rng.choice(["tpe", "random", "qmc"])]
    start += ["--max-failures", "9", "--stall-seconds", "30"]
    resume = [*TUNE, "--resume", str(run_dir)]
    planned = [rng.choice(KINDS) for _ in range(rng.randint(1, 3))]
    done: list[str] = []
    found: dict[str, Any] = {"round": name, "killed": done}
    try:
        with folder.with_name(f"{name}.log").open("w") as log:
            ended = ""
            while ended != "0":
                command = resume if (run_dir / "ledger.jsonl").exists() else start
                size = Path(log.name).stat().st_size
                unnoticed = time.monotonic() - arena.node_killed < NOTICE_SECONDS
                joined = [*command, "--address", arena.address]
                driver = subprocess.Popen(joined, stdout=log, stderr=log, start_new_session=True)
                ended = one_session(arena, driver, run_dir, rng, planned, done)
                # 2: no room for the first line of a session, or no folder that tells how to join the cluster.
                known = ["0", "-9 driver", "1 disk", "2 disk", "1 temp", "2 temp"]
                # A raylet silently takes its driver down with it, and a dead one whoever joins by it.
                if b"tune.py: error" not in Path(log.name).read_bytes()[size:]:
                    known += ["1 node", "1 "] if unnoticed else ["1 node"]
                assert ended in known, f"exit code and last kill: {ended}"
        found |= check(run_dir, TRIALS)
        before = fingerprint(run_dir)
        joined = [*resume, "--address", arena.address]
        again = subprocess.run(joined, capture_output=True, text=True, timeout=120, check=False)
        assert again.returncode == 0 and "has finished" in again.stdout, f"point 6: {again}"
        assert fingerprint(run_dir) == before, "point 6: a resume has changed a finished run"
        found["held"] = True
    except (AssertionError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        found |= {"held": False, "broken": f"{type(error).__name__}: {error}"[:300]}
    return found


def one_session(
    arena: Arena,
    driver: "subprocess.Popen[bytes]",
    run_dir: Path,
    rng: random.Random,
    planned: list[str],
    done: list[str],
) -> str:
    """Carry out the planned kills until the driver ends; return its exit code, and what ended it."""
    fill, kind = run_dir.with_name("fill"), ""
    wait_for_ledger(run_dir, driver)
    while planned and driver.poll() is None:
        wait_for_epochs(run_dir, driver, more=rng.randrange(5))
        time.sleep(rng.uniform(0.0, 1.5))
        if driver.poll() is not None:
            break
        kind = planned.pop(0)
        pids = arena.trial_processes()
        if kind == "worker" and pids:
            kill(rng.choice(pids))
        elif kind == "hang" and pids:
            kill(rng.choice(pids), signal.SIGSTOP)
        elif kind == "node":
            arena.kill_node(rng.randrange(2))
        elif kind == "driver":
            kill(driver.pid)
        elif kind == "disk":
            fill_up(fill)
        elif kind == "temp":
            arena.delete_temp_folder()
        else:
            continue
        done.append(kind)
        if kind in ("driver", "disk", "temp"):
            break
    try:
        code = driver.wait(timeout=HANG_SECONDS)
    finally:
        kill(driver.pid)
        fill.unlink(missing_ok=True)
        if kind == "temp":
            arena.start_again()
    return f"{code} {kind}" if code else "0"


def fill_up(file: Path) -> None:
    """Fill all free space on a disk."""
    with suppress(OSError), file.open("wb", buffering=0) as content:
        while True:
            content.write(bytes(4096))


def wait_for_ledger(run_dir: Path, driver: "subprocess.Popen[bytes]") -> None:
    """Wait until the search has begun: before that there is nothing that a kill could break."""
    while driver.poll() is None and not (run_dir / "ledger.jsonl").exists():
        time.sleep(0.05)


def wait_for_epochs(run_dir: Path, driver: "subprocess.Popen[bytes]", *, more: int) -> None:
    """Wait until that many epochs more than now have been reported."""
    target = epochs_in(run_dir) + more
    while driver.poll() is None and epochs_in(run_dir) < target:
        time.sleep(0.05)


def epochs_in(run_dir: Path) -> int:
    ledger = run_dir / "ledger.jsonl"
    return (ledger.read_bytes() if ledger.exists() else b"").count(b'"event": "epoch"')


def sum_of(rows: list[dict[str, Any]], name: str) -> int:
    return sum(row.get(name, 0) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-n", type=int, default=60, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tune-mnist-stress"))
    parser.add_argument("--task", choices=TASKS, default="mnist")
    args = parser.parse_args()
    task = [*TASKS[args.task], *(["--data-dir", str(ROOT / "data")] if args.task == "mnist" else [])]
    shutil.rmtree(args.folder, ignore_errors=True)
    runs = args.folder / "runs"
    runs.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", runs], check=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    rng, arena = random.Random(args.seed), Arena()
    kills: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for number in range(args.n):
        row = one_round(arena, runs, task, rng, number)
        rows.append(row)
        kills.update(row["killed"])
        print(json.dumps(row), flush=True)
        if row["held"]:
            shutil.rmtree(runs / row["round"], ignore_errors=True)
    broken = [row for row in rows if not row["held"]]
    print(f"\nrounds {len(rows)}, of which all six points held in {len(rows) - len(broken)}")
    print("killed, or stopped: " + ", ".join(f"{kills[kind]} {kind}s" for kind in KINDS))
    print(f"losses, and rounds of Ray's loop ended: {sum_of(rows, 'lost')}, {sum_of(rows, 'broke')}")
    print(f"restarts from a checkpoint: {sum_of(rows, 'restarts')}")
    print(f"sessions: {sum_of(rows, 'sessions')}")
    for row in broken:
        print(row["round"], row["broken"])
    ray.shutdown()
    arena.cluster.shutdown()  # type: ignore[no-untyped-call]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
