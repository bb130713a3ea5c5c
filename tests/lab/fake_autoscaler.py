"""An autoscaling Ray cluster whose nodes are processes, for GPU nodes that start at zero. Use isolated.sh.

Not `ray.cluster_utils.AutoscalingCluster`: it reads an example file that is missing from Ray 2.60's wheel.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_TYPE = "ray.head.default"  # the provider's name for it
IDLE_SECONDS = 3.0
SMALL_NODE = (f"--object-store-memory={150 * 2**20}", "--include-log-monitor=false")
"""Flags of `ray start`: little memory, and no monitor that sends unwanted logs to the driver."""


def node_type(max_workers: int, **resources: float) -> dict[str, Any]:
    store = {"object_store_memory": 150 * 2**20}
    return {"resources": resources | store, "node_config": {}, "min_workers": 0, "max_workers": max_workers}


def start(head_cpus: int, node_types: dict[str, dict[str, Any]], *, v2: bool) -> None:
    """Start the head; `ray.init("auto")` finds it. It ends with the namespace."""
    provider = {
        # Not "fake_multinode", whose v2 monitor dies on the missing example file, and then nothing starts.
        "type": "external",
        "module": PROVIDER,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    environment = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    if v2:
        provider |= {"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID}
        environment |= {
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
    no_commands = (
        *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
        *("head_start_ray_commands", "worker_start_ray_commands"),
        *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
    )
    config = {
        "cluster_name": "fake",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            **node_types,
            HEAD_TYPE: {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
        },
        **{name: [] for name in no_commands},
    }
    path = Path(tempfile.mkdtemp(dir=Path.home())) / "cluster.yaml"
    path.write_text(json.dumps(config))
    start_head(head_cpus, f"--autoscaling-config={path}", environment=environment)


def start_head(cpus: int, *flags: str, environment: dict[str, str] | None = None) -> None:
    """Run `ray start --head` with little memory and no dashboard; its processes end with the namespace."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"),
        *("--include-dashboard=false", f"--num-cpus={cpus}", *SMALL_NODE, *flags),
    ]
    subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )


def add_node(before: str = ":", cpus: int = 1) -> None:
    """Start one more node in this pid namespace, in a mount namespace where a command was run before."""
    start = f"{sys.executable} -m ray.scripts.scripts start --address=127.0.0.1:6379 --num-cpus={cpus}"
    command = f"{before} && {start} {' '.join(SMALL_NODE)}"
    subprocess.run(["unshare", "--mount", "bash", "-c", command], check=True, capture_output=True)
