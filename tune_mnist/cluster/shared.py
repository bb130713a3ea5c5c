"""Checks that all nodes see the folder that a search writes to, before a trial fails because of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_mnist.cluster import autoscaler
from tune_mnist.cluster.address import ClusterError

SHARED_SECONDS = 30.0
"""Longest wait for the nodes to look for a file; a busy node takes seconds to start a worker process."""

LOCAL_FILE_SYSTEMS = {"btrfs", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
"""File systems that are local to one machine; others (nfs, lustre, fuse, ...) may be shared."""


def check_shared(folder: Path) -> None:
    """Check that every node sees a folder of this machine, which trials on several nodes need.

    Each live node looks for a file in it; one that does not answer in 30 s is presumed lost and skipped. If
    there is only the head, and the autoscaler may start nodes, none can look yet: then the folder must not be
    on one of ``LOCAL_FILE_SYSTEMS``.

    Raises:
        ClusterError: if a node does not see the folder, cannot write to it or does not have this package.
        OSError: if it cannot be written to from here.
    """
    cure = "use a folder on NFS, or s3://BUCKET/PATH, as --storage-path"
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) == 1:
        kind = _file_system(folder)
        scaler = autoscaler.find() if kind in LOCAL_FILE_SYSTEMS else None
        if scaler and (scaler.node_types or scaler.uncounted):
            raise ClusterError(
                f"storage_path is {folder}, but the nodes that the autoscaler starts must see it too, and "
                f"{kind} is local to one machine: {cure}"
            )
        return
    file = folder / f".shared-{secrets.token_hex(8)}"
    sees = ray.remote(num_cpus=0, max_retries=0)(_sees)
    try:
        file.write_text(file.name)
        answers = {}
        for node in nodes:
            affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[sees.options(scheduling_strategy=affinity).remote(str(file))] = node
        for done in ray.wait(list(answers), num_returns=len(answers), timeout=SHARED_SECONDS)[0]:
            name = f"{answers[done]['NodeManagerHostname']} ({answers[done]['NodeManagerAddress']})"
            try:
                if not ray.get(done):
                    raise ClusterError(f"storage_path is {folder}, which node {name} does not see: {cure}")
            except RayTaskError as error:
                raise ClusterError(
                    f"node {name} can't import tune_mnist: install it on every node"
                ) from error
            except RayError:  # the node has died meanwhile
                continue
    finally:
        file.unlink(missing_ok=True)


def _sees(file: str) -> bool:
    """Return whether this node reads what the driver wrote, and may write next to it."""
    path = Path(file)
    try:
        return path.read_text() == path.name and os.access(path.parent, os.W_OK)
    except OSError:
        return False


def _file_system(folder: Path) -> str:
    """Return the type of a folder's file system, such as ext4 or nfs4; "" if there is no /proc."""
    best, kind = Path(), ""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in mounts:
        _, point, fstype, *_ = line.split()
        path = Path(point.replace("\\040", " "))
        if folder.resolve().is_relative_to(path) and len(path.parts) >= len(best.parts):
            best, kind = path, fstype
    return kind
