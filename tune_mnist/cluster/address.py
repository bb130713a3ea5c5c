"""Finds the Ray cluster that is meant, and checks that it answers and that this process can use it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import ray

from tune_mnist.cluster import ray_private
from tune_mnist.run.words import first_line

ADDRESS_TIMEOUT_SECONDS = 10.0
"""Longest wait for a cluster at an address; `ray.init` alone waits two minutes and then kills the process."""

BUSY_SECONDS = 90.0
"""Longest wait on a machine so busy that Ray's client alone takes that long to load."""

TICK_SECONDS, BUSY_SHARE = 1.0, 0.02
"""Seconds between checks whether the client is still working, and the fraction of a core that proves it."""

AUTH_MODE = "RAY_AUTH_MODE"
"""Environment variable that sets whether Ray uses tokens."""


class ClusterError(RuntimeError):
    """There is no such cluster, or it does not have what a trial asks for."""


class RefusedError(ClusterError):
    """The cluster requires a token, or other versions of Ray or Python than those here."""


def find_address(address: str) -> str:
    """Resolve auto to a HOST:PORT: RAY_ADDRESS, or the cluster that this machine belongs to."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        return address
    started = ray_private.address_of_this_machine()
    if not started:
        raise ClusterError("the address is auto, but no Ray cluster was started on this machine")
    return started


def find_running_here() -> tuple[str, str] | None:
    """Find the cluster that this machine belongs to, and its mode of authentication.

    The file that Ray reads is written only by `ray start` and removed only by `ray stop`. So it never names a
    cluster that another search has started for itself, but names a dead one after a crash.

    Raises:
        RefusedError: if it requires a token or versions that are missing here.
    """
    address = ray_private.address_of_this_machine()
    if not address:
        return None
    try:
        return address, check_answers(address)
    except RefusedError:
        raise
    except ClusterError:
        return None


def check_answers(address: str) -> str:
    """Check that a cluster is healthy; return its mode of authentication, disabled or token."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"the address is {address}, but must be auto or HOST:PORT: Ray Client is not supported"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"the address is {address}, but must be auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=ADDRESS_TIMEOUT_SECONDS / 2).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {first_line(error)}") from error
    # If its mode and ours differ, Ray connects, but every actor dies at once.
    complaint = _ask_for_health(address, "disabled")
    if complaint is None:
        return "disabled"
    if "InvalidAuthToken" in complaint:
        if os.environ.get(AUTH_MODE) != "disabled" and _ask_for_health(address, "token") is None:
            return "token"
        raise RefusedError(
            f"the Ray cluster at {address} wants a token: set RAY_AUTH_MODE=token, and its RAY_AUTH_TOKEN"
        )
    check_versions(address, complaint)
    raise ClusterError(
        f"what answers at {address} is not a Ray cluster of version {ray.__version__}, or takes longer than "
        f"{ADDRESS_TIMEOUT_SECONDS:.0f} s"
    )


def _ask_for_health(address: str, auth_mode: str) -> str | None:
    """Return a cluster's complaint, if any, using a child process, because Ray's client never gives up."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    environment, pipe = os.environ | {AUTH_MODE: auth_mode}, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe) as process:
        try:
            return _complaint_of(process)
        finally:
            process.kill()


def _complaint_of(process: subprocess.Popen[bytes]) -> str | None:
    """Wait for a process that queries a cluster; on a busy machine it gets more time while it works."""
    started, before = time.monotonic(), 0.0
    while True:
        try:
            _, complaint = process.communicate(timeout=TICK_SECONDS)
            return complaint.decode(errors="replace") if process.returncode else None
        except subprocess.TimeoutExpired:
            used = _cpu_seconds(process.pid)
            works, before = used - before >= BUSY_SHARE * TICK_SECONDS, used
            if time.monotonic() - started >= (BUSY_SECONDS if works else ADDRESS_TIMEOUT_SECONDS):
                return ""


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far; 0 if there is no /proc entry."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check_versions(address: str, complaint: str) -> None:
    """Raise `RefusedError` if Ray complains that a cluster's versions differ from those of this process.

    `ray health-check` names both versions of Ray, the cluster's first; `ray.init` those of Python too.
    """
    named = r"(?:cluster has Ray version|local Ray version is|Ray:|Python:) (\S+)"
    versions = re.findall(named, complaint) if "ersion mismatch" in complaint else []
    if len(versions) in (2, 4):
        half = len(versions) // 2
        there, here = (" on Python ".join(both) for both in (versions[:half], versions[half:]))
        raise RefusedError(
            f"the Ray cluster at {address} has Ray {there}, but here it is {here}: they must be the same"
        )
