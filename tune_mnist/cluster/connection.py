"""Connects to a Ray cluster or starts one, and fails early with a reason."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from tune_mnist.cluster import machine, ray_private
from tune_mnist.cluster.address import (
    AUTH_MODE,
    ClusterError,
    check_answers,
    check_versions,
    find_address,
    find_running_here,
)
from tune_mnist.run.words import first_line

PRELOADED_CORES = 32
"""Most cores at which, on a machine with GPUs, a worker per core loads torch before the first trial."""

TRIAL_ENVIRONMENT = {
    # glibc returns freed memory to the kernel and gets it back zeroed: 500 to 2,800 page faults per training
    # step, none with these two. Setting its top pad too brings them back.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    # With Ray's 2 s, a stopped trial that takes longer to end makes the next ones fail and hangs the run.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
}


DASHBOARD_PACKAGES = ("aiohttp", "aiohttp_cors", "opencensus", "opentelemetry")
"""Some of the packages that Ray's dashboard needs."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The cluster in use."""

    embedded: bool
    "Whether it was started for this search, on this machine, and ends with it."
    address: str
    "HOST:PORT of its head."
    dashboard: str | None = None
    "HOST:PORT of its dashboard."
    session: Callable[[], Path | None] = lambda: None
    "Returns the folder of Ray's session, if it is on this machine."
    reconnect: Callable[[], None] = lambda: None
    """Leaves the cluster and joins it again; our own Ray is ended, and another started. Does nothing if Ray
    was already running in this process. Raises `ClusterError`."""


@contextmanager
def connected(address: str | None, *, dashboard: bool = False, preload: str = "") -> Iterator[Connection]:
    """Join a Ray cluster, or start one on this machine, for a block.

    A Ray that already runs in this process is used and left running. Otherwise it is the cluster at
    ``address`` or RAY_ADDRESS (HOST:PORT, auto, or local); with neither, the one that this machine joined by
    `ray start` or `ray up`; if none answers, our own Ray, on loopback only. A Ray that another search started
    for itself is never joined.

    Args:
        address: where the cluster's head is.
        dashboard: whether our own Ray has its dashboard, on 127.0.0.1.
        preload: comma-separated modules that our own Ray imports in advance, in a worker for each core.

    Raises:
        ClusterError: within 15 seconds, or 90 on a busy machine, if nothing answers at ``address``, the
            cluster wants a token or runs other versions, or the dashboard is not installed.
    """
    if ray.is_initialized():
        yield Connection(embedded=False, address=ray.get_runtime_context().gcs_address)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns about a future default
    address, auth_mode = address or os.environ.get("RAY_ADDRESS"), None
    if not address:
        address, auth_mode = find_running_here() or ("local", None)
    elif address != "local":
        address = find_address(address)
        auth_mode = check_answers(address)
    head = address

    context: Any = None

    def connect() -> Any:
        return _start(dashboard, preload) if head == "local" else _join(head)

    def reconnect() -> None:
        nonlocal context
        with _without_stderr():
            ray.shutdown()
        context = connect()

    with ExitStack() as stack:
        stack.enter_context(_authentication(auth_mode))
        stack.enter_context(ray_private.no_uv_environment())
        context = connect()
        session = Path(context.address_info["session_dir"])
        here = machine.has_sockets(session)
        stack.enter_context(ray_private.quiet_errors())
        stack.enter_context(ray_private.memory_kills_lose_actors())
        if head == "local":
            stack.enter_context(ray_private.waiting_workers())
        try:
            yield Connection(
                embedded=head == "local",
                address=context.address_info["gcs_address"],
                dashboard=context.dashboard_url or None,
                session=lambda: Path(context.address_info["session_dir"]) if here else None,
                reconnect=reconnect,
            )
        finally:
            with _without_stderr():
                ray.shutdown()


@contextmanager
def _authentication(mode: str | None) -> Iterator[None]:
    """Set the authentication mode for a block; our own Ray chooses it itself, and sets the variable."""
    try:
        with _environment({AUTH_MODE: mode or os.environ.get(AUTH_MODE)}):
            ray_private.read_auth_mode()
            yield
    finally:
        ray_private.read_auth_mode()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop all that this process writes to stderr, for a block.

    Ray's C++ code reports tasks there that end with it, and has no switch for that.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # there may be no stderr
            before = os.dup(2)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, 2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nowhere)
            os.dup2(nowhere, 2)
        yield


def _start(dashboard: bool, preload: str) -> Any:
    if dashboard and not all(map(importlib.util.find_spec, DASHBOARD_PACKAGES)):
        raise ClusterError("the dashboard is not installed: pip install 'ray[default]'")
    cpus = machine.usable_cpus()
    if cpus > PRELOADED_CORES and _has_gpus():
        preload = ""  # Ray starts a worker per core, but only as many trials run as fit on the GPUs
    # Inherited by the workers.
    variables = {**TRIAL_ENVIRONMENT, "RAY_preload_python_modules": preload}
    try:
        machine.check_temp_folder()
        with _environment(variables), ray_private.own_session(), ray_private.loopback_only():
            # Room for one copy of the data set; Ray's default is a third of the memory.
            return ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=2**30,
                **QUIET,
            )
    except (OSError, ValueError, RuntimeError) as error:
        of_home = str(getattr(error, "filename", "")).startswith(str(Path.home()))
        cure = ": set HOME to a folder that can be written" if of_home else ""
        raise ClusterError(f"Ray can't be started here: {first_line(error)}{cure}") from error


def _has_gpus() -> bool:
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _join(address: str) -> Any:
    if " " in sys.executable:
        raise ClusterError(
            f"a Ray cluster can't be joined by {sys.executable}: Ray starts its workers with a shell, for "
            "which the path ends at the space; move the environment, or use --address local"
        )
    try:
        return ray.init(address=address, runtime_env=_runtime_env(), **QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        check_versions(address, str(error))
        raise ClusterError(f"no Ray cluster answers at {address}: {first_line(error)}") from error


def _runtime_env() -> dict[str, Any]:
    """Return the runtime environment for the workers of a joined cluster."""
    # A job from `ray job submit` already has a runtime environment, and Ray refuses a variable set in both.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    taken = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {"env_vars": {name: value for name, value in TRIAL_ENVIRONMENT.items() if name not in taken}}
