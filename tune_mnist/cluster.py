"""Where trials run: connects to a Ray cluster or starts one, and tells at once what it can't give."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ray
from ray._private import ray_constants
from ray._private.services import canonicalize_bootstrap_address

ADDRESS_TIMEOUT_SECONDS = 10.0
"""Longest wait for a cluster at an address; `ray.init` alone waits two minutes and then kills the process."""

TRIAL_ENVIRONMENT = {
    # glibc gives freed memory back to the kernel and gets it again zeroed: 500 to 2,800 page faults a
    # training step, none with these two. Its top pad is left alone: with that too they come back.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    # With Ray's 2 s, a stopped trial that takes longer to end fails the next ones and hangs the run.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
}


class ClusterError(RuntimeError):
    """There is no such cluster, or it can't give what a trial asks for."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many trials fit at a time."""

    cpus: float
    gpus: float
    slots: int


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at ``address`` (or RAY_ADDRESS), or start one on this machine, for a block.

    Where Ray is running in this process already, that one is used and left running.

    Raises:
        ClusterError: within 15 seconds, if nothing answers.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a coming default
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": TRIAL_ENVIRONMENT},
    }
    if address and address != "local":
        address = _find(address)
        _check_answers(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Ray cluster answers at {address}: {_first_line(error)}") from error
    else:
        # Loopback only, which Ray does by itself on macOS and Windows; its _node_ip_address would not.
        with mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
            # Room for the data set once; Ray's own choice is a third of the memory.
            ray.init(address="local", include_dashboard=False, object_store_memory=2**30, **common)
    # Of a worker's death Ray prints a coloured paragraph, for which it has no switch.
    with mock.patch.object(ray._private.worker, "print_to_stdstream", _log_message):
        try:
            yield
        finally:
            ray.shutdown()


def fit_resources(cpus: float, gpus: float | None, max_concurrent: int | None) -> Resources:
    """Work out a trial's share and the number of slots of the connected cluster.

    Args:
        cpus: CPU cores asked for a trial.
        gpus: GPUs asked for a trial; None takes 0.5 where the cluster has GPUs, else 0.
        max_concurrent: most trials at a time; None takes the number of slots.

    Raises:
        ClusterError: if no node can ever hold a trial. Ray alone would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if gpus is None:
        gpus = 0.5 if any(node.get("GPU", 0) for node in nodes) else 0.0
    slots = sum(count_slots(node.get("CPU", 0.0), node.get("GPU", 0.0), cpus, gpus) for node in nodes)
    if slots == 0:
        most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
        with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= min(gpus, most_gpus)]
        most_cpus = max((node.get("CPU", 0.0) for node in with_gpus), default=0.0)
        cure = f"--gpus-per-trial {most_gpus:g}" if gpus > most_gpus else f"--cpus-per-trial {most_cpus:g}"
        raise ClusterError(
            f"a trial asks for {cpus:g} CPU and {gpus:g} GPU, but no node has more than {most_cpus:g} CPU "
            f"and {most_gpus:g} GPU: use {cure}"
        )
    return Resources(cpus=cpus, gpus=gpus, slots=min(slots, max_concurrent or slots))


def count_slots(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    """Count the trials that fit on a node at a time; fractions of a GPU never span two GPUs."""
    by_cpu = math.floor(node_cpus / cpus + 1e-9)
    if gpus == 0:
        return by_cpu
    by_gpu = node_gpus // gpus if gpus >= 1 else node_gpus * math.floor(1 / gpus + 1e-9)
    return min(by_cpu, int(by_gpu))


def _find(address: str) -> str:
    """Give the HOST:PORT that Ray means by auto: RAY_ADDRESS, or the newest cluster of this machine."""
    if address != "auto":
        return address
    try:
        found = canonicalize_bootstrap_address("auto")
    except ValueError as error:
        raise ClusterError(f"RAY_ADDRESS is {os.environ.get('RAY_ADDRESS')}, but {error}") from error
    if found is None:
        raise ClusterError("the address is auto, but no Ray cluster was started on this machine")
    return found


def _check_answers(address: str) -> None:
    """Ask a cluster for its health in a process of its own, because Ray's client can't be told to give up."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"the address is {address}, but must be auto or HOST:PORT: Ray Client is not supported"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"the address is {address}, but must be auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=ADDRESS_TIMEOUT_SECONDS / 2).close()
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        subprocess.run(command, check=True, capture_output=True, timeout=ADDRESS_TIMEOUT_SECONDS)
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {_first_line(error)}") from error
    except subprocess.SubprocessError as error:
        if isinstance(error, subprocess.CalledProcessError) and b"InvalidAuthToken" in error.stderr:
            raise ClusterError(
                f"the Ray cluster at {address} wants a token: set RAY_AUTH_MODE=token, and its RAY_AUTH_TOKEN"
            ) from error
        raise ClusterError(
            f"what answers at {address} is no Ray cluster of version {ray.__version__}"
        ) from error


def _log_message(data: dict[str, Any], ignore_prefix: bool) -> None:
    logging.getLogger("ray.tune.raylet").error("\n".join(data["lines"]))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
