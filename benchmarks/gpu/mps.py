"""Step `mps`: NVIDIA's MPS, if it can be started: the copies again, and the search at 0.125."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.gpu import copies, search
from benchmarks.gpu.step import Setup, SkippedError

CONTROL = "nvidia-cuda-mps-control"
ANSWER_SECONDS = 10.0
"""Longest wait for an answer of the daemon."""
KERNEL_SECONDS = 30.0
"""Longest wait for a first kernel through it, including torch's import and CUDA's start."""
KERNEL = "import torch; print(torch.ones(8, device='cuda').sum().item())"
GPUS = 0.125


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Start the daemon, yield the figures of `copies` and `search` under it, shut it down.

    Raises:
        SkippedError: if there is no MPS here, or it does not start: then it is not used at all.
        StepError: as `search`.
    """
    with started() as environment:
        yield {"mps": "started"}
        yield from copies.run(setup, loop="ours", counts=(1, 2, 4, 8), environment=environment)
        yield from search.run(setup, gpus=GPUS, environment=environment)


@contextmanager
def started() -> Iterator[dict[str, str]]:
    """Start MPS for a block, and yield the environment of its clients.

    Raises:
        SkippedError: if that fails.
    """
    control = shutil.which(CONTROL)
    if control is None:
        raise SkippedError(f"there is no {CONTROL}")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        try:
            _start(control, environment)
            yield environment
        finally:
            with suppress(SkippedError):
                _ask(control, "quit", environment)


def _start(control: str, environment: Mapping[str, str]) -> None:
    # The daemon would keep inherited pipes open, and their readers would wait forever.
    nowhere: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        code = subprocess.run(
            [control, "-d"], env=dict(environment), timeout=ANSWER_SECONDS, **nowhere
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"MPS does not start in {ANSWER_SECONDS:.0f} s") from error
    if code:
        raise SkippedError(f"MPS does not start: {CONTROL} -d ended with code {code}")
    _ask(control, "get_server_list", environment)
    command = [sys.executable, "-c", KERNEL]
    try:
        done = subprocess.run(
            command, env=dict(environment), timeout=KERNEL_SECONDS, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"no kernel runs through MPS in {KERNEL_SECONDS:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SkippedError(f"no kernel runs through MPS: {last}")


def _ask(control: str, command: str, environment: Mapping[str, str]) -> str:
    """Send the daemon a command; return its answer.

    Raises:
        SkippedError: if there is no answer in time.
    """
    try:
        done = subprocess.run(
            [control],
            input=f"{command}\n",
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"MPS does not answer in {ANSWER_SECONDS:.0f} s") from error
    return done.stdout.strip()
