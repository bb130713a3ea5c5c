"""Where trials run: connects to a Ray cluster or starts one, and tells at once what it can't give."""

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
"""Most cores of a machine with GPUs on which a worker for each core loads torch before there is a trial."""

TRIAL_ENVIRONMENT = {
    # glibc gives freed memory back to the kernel and gets it again zeroed: 500 to 2,800 page faults a
    # training step, none with these two. Its top pad is left alone: with that too they come back.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    # With Ray's 2 s, a stopped trial that takes longer to end fails the next ones and hangs the run.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
}


DASHBOARD_PACKAGES = ("aiohttp", "aiohttp_cors", "opencensus", "opentelemetry")
"""Some of those that Ray's dashboard needs."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The cluster that is used."""

    embedded: bool
    "Whether it was started for this search, on this machine, and ends with it."
    address: str
    "HOST:PORT of its head."
    dashboard: str | None = None
    "HOST:PORT of its dashboard."
    session: Callable[[], Path | None] = lambda: None
    "Gives the folder of Ray's session, where that is on this machine."
    reconnect: Callable[[], None] = lambda: None
    """Leaves it and joins it again; one of our own is ended, and another one started. It does nothing where
    Ray was running in this process before. Raises `ClusterError`."""


@contextmanager
def connected(address: str | None, *, dashboard: bool = False, preload: str = "") -> Iterator[Connection]:
    """Join a Ray cluster, or start one on this machine, for a block.

    Where Ray is running in this process already, that one is used and left running. Else it is the cluster
    at ``address`` or RAY_ADDRESS (HOST:PORT, auto, or local); with neither, the one that this machine belongs
    to by `ray start` or `ray up`; with none that answers, one of our own, on loopback only. That of another
    search is never joined.

    Args:
        address: where the cluster's head is.
        dashboard: whether one of our own has Ray's dashboard, on 127.0.0.1.
        preload: modules, with commas, that one of our own imports in a worker for each core in advance.

    Raises:
        ClusterError: within 15 seconds, or 90 on a busy machine, if nothing answers at ``address``, the
            cluster wants a token or runs other versions, or the dashboard is not installed.
    """
    if ray.is_initialized():
        yield Connection(embedded=False, address=ray.get_runtime_context().gcs_address)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a coming default
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
    """Use a token or none, for a block; a Ray of our own decides that itself, and sets the variable."""
    try:
        with _environment({AUTH_MODE: mode or os.environ.get(AUTH_MODE)}):
            ray_private.read_auth_mode()
            yield
    finally:
        ray_private.read_auth_mode()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop all that this process writes to stderr, for a block.

    Ray writes there in C++ about tasks that end with it, for which it has no switch.
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
        preload = ""  # Ray starts a worker for each core, but trials are as few as fit on the GPUs
    # Inherited by the workers.
    variables = {**TRIAL_ENVIRONMENT, "RAY_preload_python_modules": preload}
    try:
        machine.check_temp_folder()
        with _environment(variables), ray_private.own_session(), ray_private.loopback_only():
            # Room for the data set once; Ray's own choice is a third of the memory.
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
            f"a Ray cluster can't be joined by {sys.executable}: Ray starts its workers by a shell, for "
            "which the path ends at the space; move the environment, or let --address local start a Ray"
        )
    try:
        return ray.init(address=address, runtime_env=_runtime_env(), **QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        check_versions(address, str(error))
        raise ClusterError(f"no Ray cluster answers at {address}: {first_line(error)}") from error


def _runtime_env() -> dict[str, Any]:
    """Give what the workers of a joined cluster are to have in their environment."""
    # A job of `ray job submit` has a runtime environment already, and Ray refuses a variable set in both.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    taken = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {"env_vars": {name: value for name, value in TRIAL_ENVIRONMENT.items() if name not in taken}}
