"""What a trial gets from a cluster, and how many trials fit; refuses at once what can never be had."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray

from tune_mnist.cluster import autoscaler
from tune_mnist.cluster.address import ClusterError

UNCOUNTED_SLOTS = 8
"""Concurrent trials if an autoscaler may start an unknown number of nodes: enough to request some, few enough
for the sampler to learn from the first ones."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets, and how many trials fit concurrently."""

    cpus: float
    gpus: float
    slots: int
    "Includes the nodes that an autoscaler may start; otherwise it would never start one."


def fit_resources(cpus: float, gpus: float | None, max_concurrent: int | None) -> Resources:
    """Work out a trial's resources and the number of slots of the connected cluster.

    Args:
        cpus: CPU cores requested for a trial.
        gpus: GPUs requested for a trial; None means 0.5 if the cluster has or may start GPUs, else 0.
        max_concurrent: most concurrent trials; None means the number of slots.

    Raises:
        ClusterError: if no node can ever hold a trial; Ray alone would wait forever. This takes seconds, or
            up to ``autoscaler.PROBE_SECONDS`` if the autoscaler does not report what it cannot start.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    scaler = autoscaler.find()
    if scaler:
        sizes += [(kind.cpus, kind.gpus) for kind in scaler.node_types]
    if gpus is None:
        gpus = 0.5 if any(node_gpus for _, node_gpus in sizes) else 0.0
    slots = sum(count_slots(*size, cpus, gpus) for size in sizes[: len(nodes)])
    if scaler:
        heads = [size for size, node in zip(sizes, nodes, strict=False) if "node:__internal_head__" in node]
        on_head = sum(count_slots(*size, cpus, gpus) for size in heads)
        slots = max(slots, on_head + _slots_to_come(scaler, cpus, gpus))
        if scaler.uncounted and (slots or autoscaler.can_start(cpus, gpus, scaler.probe_seconds)):
            slots = max(slots, max_concurrent or UNCOUNTED_SLOTS)
    if slots == 0:
        raise ClusterError(_refusal(cpus, gpus, sizes, scaler))
    return Resources(cpus=cpus, gpus=gpus, slots=min(slots, max_concurrent or slots))


def count_slots(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    """Count the trials that fit on a node concurrently; a fraction of a GPU never spans two GPUs."""
    by_cpu = math.floor(node_cpus / cpus + 1e-9)
    if gpus == 0:
        return by_cpu
    by_gpu = node_gpus // gpus if gpus >= 1 else node_gpus * math.floor(1 / gpus + 1e-9)
    return min(by_cpu, int(by_gpu))


def _slots_to_come(scaler: autoscaler.Autoscaler, cpus: float, gpus: float) -> int:
    """Count the trials that fit on the workers that the autoscaler may start, the largest first."""
    total, left = 0, scaler.max_workers
    sizes = [(count_slots(kind.cpus, kind.gpus, cpus, gpus), kind.max_workers) for kind in scaler.node_types]
    for slots, max_workers in sorted(sizes, reverse=True):
        total += slots * min(max_workers, left)
        left -= min(max_workers, left)
    return total


def _refusal(
    cpus: float, gpus: float, sizes: list[tuple[float, float]], scaler: autoscaler.Autoscaler | None
) -> str:
    most_gpus = max((node_gpus for _, node_gpus in sizes), default=0.0)
    most_cpus = max(
        (node_cpus for node_cpus, node_gpus in sizes if node_gpus >= min(gpus, most_gpus)), default=0.0
    )
    cure = f"--gpus-per-trial {most_gpus:g}" if gpus > most_gpus else f"--cpus-per-trial {most_cpus:g}"
    nodes = "no node, and none that the autoscaler may start," if scaler else "no node"
    return (
        f"a trial asks for {cpus:g} CPU and {gpus:g} GPU, but {nodes} has more than {most_cpus:g} CPU and "
        f"{most_gpus:g} GPU: use {cure}"
    )
