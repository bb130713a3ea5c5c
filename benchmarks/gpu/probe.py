"""Step `probe`: this machine as torch, the driver and Ray see it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import ray
import torch
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from benchmarks.gpu.step import Setup, StepError

SMI_SECONDS = 15.0
"""Longest wait for nvidia-smi."""


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield versions, the GPU, and what Ray counts.

    Raises:
        StepError: if torch sees a GPU but Ray does not: no trial would get one.
    """
    yield {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "ray": ray.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gigabytes": psutil.virtual_memory().total / 1e9,
        "mps_control": shutil.which("nvidia-cuda-mps-control"),
    }
    if setup.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        yield {
            "gpu": properties.name,
            "gpu_gigabytes": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
        yield {"driver, compute mode, MB used": _ask_driver("driver_version,compute_mode,memory.used")}
    ray_gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    yield {"ray_gpus": ray_gpus}
    if setup.on_gpu and ray_gpus < 1:
        raise StepError("Ray sees 0 GPUs, but torch sees one: no trial would get it")


def _ask_driver(query: str) -> str | None:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    command = [smi, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS).stdout.strip()
    except subprocess.TimeoutExpired:
        return f"no answer in {SMI_SECONDS:.0f} s"
