"""Ray's autoscaler, which has no public interface: what it may start, is starting, and can never start."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_mnist.cluster.ray_private import AutoscalerState

HEAD_SECONDS = 60.0
"""Longest wait for a task on the head; a busy head takes seconds to start a worker process."""

PROBE_SECONDS = 600.0
"""Longest wait for a node from an autoscaler that names neither its node types nor what it refuses (v1 on
Kubernetes): a GPU machine in a cloud takes minutes from the request to a running Ray."""
LOCAL_PROBE_SECONDS = 60.0
"""The same for on-premises machines that have not joined yet: they are there, or will not come."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of worker node that the autoscaler may start."""

    name: str
    cpus: float
    gpus: float
    max_workers: int


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """What the autoscaler of a cluster may start besides the head."""

    node_types: tuple[NodeType, ...] = ()
    max_workers: int = 0
    "Most concurrent worker nodes, of all types together."
    uncounted: bool = False
    """Whether nodes of unknown size and number may join: on Kubernetes no process on the head knows them, and
    the machines of provider `local` declare no resources."""
    probe_seconds: float = PROBE_SECONDS
    "Longest time that a node may take to start."


def find() -> Autoscaler | None:
    """Find out what the autoscaler of the connected cluster may start; None if it does not autoscale.

    Its monitor runs on the head, with the configuration's path on its command line, and the GCS does not have
    the node types (Ray 2.60). So they are read on the head, by a task unless that is this machine.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    heads = [node["NodeID"] for node in nodes if "node:__internal_head__" in node["Resources"]]
    context = ray.get_runtime_context()
    config = None
    if context.get_node_id() in heads:
        config = _read_monitor(context.gcs_address)
    elif heads:
        affinity = NodeAffinitySchedulingStrategy(heads[0], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(_read_monitor).options(scheduling_strategy=affinity)
        with suppress(RayError):  # the head has no tune_mnist, or no time
            config = ray.get(task.remote(context.gcs_address), timeout=HEAD_SECONDS)
    if config is None:
        return Autoscaler(uncounted=True) if _runs_elsewhere() else None
    return _from_config(config, workers=len(nodes) - 1) if config else None


def can_start(cpus: float, gpus: float, seconds: float = PROBE_SECONDS) -> bool:
    """Request room for one trial from the autoscaler, and withdraw the request once it is answered.

    v2 lists in its state what it cannot start, within two of its rounds (5 s each by default). v1 does not,
    so a node must join within ``seconds``. A launch is not an answer: it may be for another request.
    """
    request = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    group = placement_group([request])
    deadline = time.monotonic() + seconds
    asked_at = 0
    try:
        while time.monotonic() < deadline:
            if group.wait(0.25):
                return True
            try:
                state = AutoscalerState()
            except RayError:  # the head is busy; try until the deadline
                continue
            if any(group.id.hex() in details for details in state.infeasible_groups):
                return False
            asked_at = asked_at or state.version
            if asked_at and state.version >= asked_at + 2:
                return True
        return False
    finally:
        remove_placement_group(group)


def pending_nodes() -> dict[str, int]:
    """Count the nodes that are requested or starting but have not joined yet, by node type.

    {} if the cluster does not autoscale, or its head does not answer within 2 s. One or two calls of a
    millisecond.
    """
    try:
        return dict(AutoscalerState().pending)
    except RayError:
        return {}


def _read_monitor(gcs_address: str) -> dict[str, Any] | None:
    """Read the autoscaler's configuration on the head: {} if it starts nothing, None if none runs here."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if f"--gcs-address={gcs_address}" not in command or not any(
            argument.endswith("monitor.py") and "autoscaler" in argument for argument in command
        ):
            continue
        paths = [argument.partition("=")[2] for argument in command if "--autoscaling-config=" in argument]
        if not paths:
            return {}
        try:
            config = yaml.safe_load(Path(paths[0]).expanduser().read_text())
        except OSError:
            return None
        # The rest is private and not needed here: keys, commands, paths.
        wanted = ("available_node_types", "head_node_type", "max_workers", "provider")
        config = {key: config[key] for key in wanted if key in config}
        config["provider"] = {"type": config.get("provider", {}).get("type")}
        for node_type in config.get("available_node_types", {}).values():
            node_type.pop("node_config", None)
        return config
    return None


def _from_config(config: dict[str, Any], workers: int) -> Autoscaler:
    max_workers = config.get("max_workers", 0)
    node_types, uncounted = [], False
    for name, node_type in config.get("available_node_types", {}).items():
        default = 0 if name == config.get("head_node_type") else max_workers
        most = min(node_type.get("max_workers", default), max_workers)
        resources = node_type.get("resources") or {}
        # Provider `local` has one type, also for its head; it has room until all machines have joined.
        if not resources and workers < max_workers:
            uncounted = True
        elif resources and most > 0:
            cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
            node_types.append(NodeType(name=name, cpus=cpus, gpus=gpus, max_workers=most))
    local = config.get("provider", {}).get("type") == "local"
    return Autoscaler(
        node_types=tuple(node_types),
        max_workers=max_workers,
        uncounted=uncounted,
        probe_seconds=LOCAL_PROBE_SECONDS if local else PROBE_SECONDS,
    )


def _runs_elsewhere() -> bool:
    """Return whether an autoscaler outside the head's processes serves this cluster, as on Kubernetes."""
    try:
        state = AutoscalerState()
    except RayError:
        return False
    if state.version:
        return any(state.node_types)
    # A read-only monitor gives each node its own type, node_<its id>.
    return any(not name.startswith("node_") for name in state.v1_node_types)
