"""The device on which a trial trains: its threads and its memory limit.

Of what drives trials only this module imports torch, and only for a GPU: a task without torch does not wait
for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CONTEXT_BYTES = 600 * 2**20
"""GPU memory of a process that torch does not count: CUDA's context and the kernels. An estimate for an H100;
`python -m benchmarks.gpu` measures it."""

MEMORY_ERROR = re.compile(
    r"out of memory|ALLOC_FAILED|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED|unable to find an engine",
    re.IGNORECASE,
)
"""How CUDA, cuBLAS and cuDNN report that no memory is left: the last two when they cannot allocate their
handle or a convolution's workspace."""


class DeviceMemoryError(RuntimeError):
    """The GPU does not have enough memory for the training."""


def use_threads(cpus: float) -> None:
    """Let torch use one thread per core; Ray sets OMP_NUM_THREADS too late, after torch is loaded."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(max(1, int(cpus)))


def prepare_gpu(gpus: float) -> None:
    """Limit this process to its fraction of the GPU's memory: trials on one GPU must not starve each other.

    CUDA's own needs are subtracted from the fraction, as torch's limit does not count them. Without a GPU, or
    with whole ones, nothing is limited.

    Raises:
        RuntimeError: if the trial has a GPU and torch sees none.
    """
    if not gpus:
        return
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "this trial was given a GPU, but torch sees no CUDA device; it will not train on the CPU"
        )
    if gpus >= 1:
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(max(gpus - CONTEXT_BYTES / total, gpus / 2))


def is_memory_error(error: BaseException | None) -> bool:
    """Return whether an error, or one that it wraps, says that a GPU has no memory left.

    The end of a failed graph capture raises another error, which has the one about memory as its context.
    """
    while error is not None:
        if isinstance(error, RuntimeError) and MEMORY_ERROR.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def device_memory_errors(gpus: float) -> Iterator[None]:
    """Turn CUDA's memory errors in a block into one sentence that names the cure.

    ``gpus`` is the fraction of a GPU, or the number of GPUs, of this process.

    Raises:
        DeviceMemoryError: in place of CUDA's own errors.
    """
    try:
        yield
    except RuntimeError as error:  # includes torch.OutOfMemoryError and what cuBLAS and cuDNN raise
        if not is_memory_error(error):
            raise
        cure = f"--gpus-per-trial {min(1.0, 2 * gpus):g}" if gpus < 1 else "a space with smaller batches"
        raise DeviceMemoryError(
            f"the GPU has no memory left for this trial, which has a fraction of {gpus:g}: ask for {cure}"
        ) from error


def release_memory() -> None:
    """Free the memory that torch caches on a GPU, for what trains next in this process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        with suppress(RuntimeError):  # after a CUDA error this raises too, and would hide the cause
            torch.cuda.empty_cache()
