"""All uses of Ray's private interfaces; the rest of the package keeps to its public one.

Each function says why it is needed, what a user loses without it, and where upstream the public way is asked
for or missing. Tested with Ray 2.50.1, 2.55.1 and 2.60.0. If a version does not have something, that feature
is skipped, and `skipped` has a line about it.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

RPC_SECONDS = 2.0
"""Longest wait for an answer from the cluster's head in frequent calls."""

skipped: dict[str, str] = {}
"""What this version of Ray does not let us do: a line of text by what is lost."""


@contextmanager
def _optional(loss: str) -> Iterator[None]:
    """Record in `skipped` what is lost if a block fails because this version of Ray does not have its API."""
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        skipped[loss] = f"with Ray {ray.__version__} {loss} ({type(error).__name__}: {error})"


@contextmanager
def _replaced(loss: str, module: str, attribute: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace a module's attribute for a block with a value made from the current one."""
    with ExitStack() as stack:
        with _optional(loss):
            owner = importlib.import_module(module)
            before = getattr(owner, attribute)
            setattr(owner, attribute, make(before))
            stack.callback(setattr, owner, attribute, before)
        yield


def loopback_only() -> AbstractContextManager[None]:
    """Make a Ray that is started in a block listen on 127.0.0.1 only.

    Why: Ray uses the address of the outgoing interface, and whoever reaches its ports can run code here. The
    only public way is RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, for other systems, and only before Ray is first
    imported, where it would break joining a cluster. Without: the network reaches the ports during a search.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/ray_constants.py
    """
    loss = "Ray's ports can be reached from the network"
    return _replaced(loss, "ray._private.ray_constants", "ENABLE_RAY_CLUSTER", lambda _: False)


def own_session() -> AbstractContextManager[None]:
    """Let the processes of a Ray that is started in a block survive a SIGTERM to our process group.

    Why: `timeout`, systemd and Slurm send it to the whole group; the driver then dies with its raylet, and
    shuts nothing down. Ray itself handles SIGINT. Without: such a SIGTERM is like a kill, after which
    --resume continues. https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/services.py
    """
    loss = "a SIGTERM to the process group does not end the search cleanly"
    return _replaced(
        loss, "ray._private.services", "ConsolePopen", lambda popen: partial(popen, start_new_session=True)
    )


def quiet_errors() -> AbstractContextManager[None]:
    """Send Ray's coloured paragraphs about dead workers to its log in the run folder, for a block.

    Why: Ray has no switch for them, and a lost worker is not an error in a search that retries. Without: they
    appear between the lines of the search.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/worker.py
    """
    loss = "Ray's paragraphs about lost processes appear on the terminal"
    return _replaced(loss, "ray._private.worker", "print_to_stdstream", lambda _: _log_message)


def waiting_workers() -> AbstractContextManager[None]:
    """Let the trials of our own Ray run in the workers that it has already started, for a block.

    Why: Ray Tune gives each trial an environment variable, and hence a new worker. The waiting ones have
    already loaded torch (RAY_preload_python_modules). Without: the first trials start some 4 s later.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/tune/execution/class_cache.py
    """
    loss = "the first trials wait for torch to be loaded"
    return _replaced(loss, "ray.tune.execution.class_cache", "DEFAULT_ENV_VARS", lambda _: {})


def no_uv_environment() -> AbstractContextManager[None]:
    """Let the workers of a cluster that is joined or started in a block run in their own environment.

    Why: if `uv run` started the driver, Ray copies its folder and starts each worker with the same command,
    in an empty environment if --no-sync was given. The only public way is RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
    before Ray is first imported; a user's own setting is kept. Without: no trial starts under `uv run` unless
    that variable is set to 0.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/worker.py
    """
    name = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    loss = f"under `uv run` no trial starts unless {name} is 0"
    keep = name in os.environ
    return _replaced(loss, "ray._private.ray_constants", name, lambda before: before and keep)


def _log_message(data: dict[str, Any], *args: Any, **options: Any) -> None:
    logging.getLogger("ray.tune.raylet").error("\n".join(map(str, data.get("lines", ()))))


def address_of_this_machine() -> str | None:
    """Return the HOST:PORT of the cluster that this machine belongs to, as recorded by `ray start`.

    Why: `ray.init("auto")` waits minutes for a cluster that is gone, and a bare `ray.init()` joins the one
    that another search has started for itself. Without: a cluster is joined only with --address HOST:PORT.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/services.py
    """
    address: str | None = None
    with _optional("no running cluster is found without --address"):
        from ray._private.services import find_bootstrap_address

        address = find_bootstrap_address(None)
    return address


def read_auth_mode() -> None:
    """Make Ray read the current RAY_AUTH_MODE of this process.

    Why: Ray keeps the mode and token of the first cluster that a process has used; our own Ray has a token.
    Without: a notebook that searches on this machine, then on a cluster without tokens, loses every trial.
    https://github.com/ray-project/ray/tree/ray-2.60.0/python/ray/_private/authentication
    """
    with _optional("a notebook cannot use a cluster without tokens after one with them"):
        from ray import _raylet

        raylet: Any = _raylet
        raylet.Config.initialize("")
        if hasattr(raylet, "AuthenticationTokenLoader"):  # Ray 2.50 has no tokens
            raylet.AuthenticationTokenLoader.instance().reset_cache()


class AutoscalerState:
    """What the head of the connected cluster reports about its autoscaler.

    Why: the public ways are `ray status`, a text for people, and `ray.autoscaler.v2.sdk`, which does not say
    what can never be started. Without: nodes that are about to start are neither counted nor named.
    https://github.com/ray-project/ray/blob/ray-2.60.0/src/ray/protobuf/autoscaler.proto
    """

    def __init__(self) -> None:
        """Ask, and wait up to ``RPC_SECONDS`` for each of two answers.

        Raises:
            RayError: if the head does not answer.
        """
        self.version = 0
        "Version of the v2 autoscaler's state; 0 if there is none."
        self.infeasible_groups: list[str] = []
        "Details of the placement groups for which no node can be started."
        self.node_types: list[str] = []
        'Type of each node; "" if it has none.'
        self.pending: Counter[str] = Counter()
        "Nodes that are requested or starting, by type."
        self.v1_node_types: list[str] = []
        "Types of the nodes, as reported by the v1 autoscaler."
        for read in (self._read_v2, self._read_v1):
            if not self.version:
                with _optional("nothing is known of an autoscaler"):
                    read()

    def _read_v2(self) -> None:
        from ray.core.generated import autoscaler_pb2

        protobuf: Any = autoscaler_pb2
        reply = protobuf.GetClusterStatusReply()
        reply.ParseFromString(_gcs().get_cluster_status(timeout_s=RPC_SECONDS))
        state = reply.autoscaling_state
        self.version = state.autoscaler_state_version
        self.infeasible_groups = [gang.details for gang in state.infeasible_gang_resource_requests]
        self.node_types = [node.ray_node_type_name for node in reply.cluster_resource_state.node_states]
        for request in state.pending_instance_requests:
            self.pending[request.ray_node_type_name] += request.count
        self.pending.update(instance.ray_node_type_name for instance in state.pending_instances)

    def _read_v1(self) -> None:
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS

        status = _gcs().internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), timeout=RPC_SECONDS)
        report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
        self.pending.update(report.get("pending_launches") or {})
        self.pending.update(node_type for _, node_type, _ in report.get("pending_nodes") or ())
        self.v1_node_types = list((report.get("node_type_mapping") or {}).values())


def _gcs() -> Any:
    from ray._private import worker

    return worker.global_worker.gcs_client  # type: ignore[attr-defined]


def memory_kills_lose_actors() -> AbstractContextManager[None]:
    """Turn the error of a worker that was killed for lack of memory into that of a lost actor, for a block.

    Why: Ray Tune expects a RayActorError, and its loop ends with an OutOfMemoryError. Without: all running
    trials return to their newest checkpoints, and the kill does not count as a failure of its trial.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/air/execution/_internal/actor_manager.py
    """
    loss = "a worker that is killed for lack of memory interrupts all trials"

    def lost(message: str) -> RayActorError:
        return RayActorError(error_msg=message)

    return _replaced(loss, "ray._private.serialization", "OutOfMemoryError", lambda _: lost)


@contextmanager
def tune_session(
    function: Callable[..., Any], report: Callable[..., None], get_checkpoint: Callable[[], Any]
) -> Iterator[None]:
    """Let a Ray Tune function report to us, and start from our checkpoint, for a block.

    Why: its reports go from its process straight to Ray's loop, and there is no public way to start a new Ray
    trial from a checkpoint. The public functions are replaced in `ray.tune`, `ray.train` and the function's
    module. Without: such a function must be written as a `Task`.
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/tune/trainable/trainable_fn_utils.py
    """
    from ray import train, tune

    ours = {tune.report: report, tune.get_checkpoint: get_checkpoint}
    ours |= {train.report: report, train.get_checkpoint: get_checkpoint}
    replaced = [
        (names, name, value)
        for names in (vars(tune), vars(train), getattr(function, "__globals__", {}))
        for name, value in list(names.items())
        if callable(value) and getattr(value, "__hash__", None) and value in ours
    ]
    for names, name, value in replaced:
        names[name] = ours[value]
    try:
        yield
    finally:
        for names, name, value in replaced:
            names[name] = value
