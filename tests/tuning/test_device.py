"""The device: its precisions, its threads, the limits of its memory, and CUDA's errors about that."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tune_mnist.mnist.precision import allow_tf32, resolve_precision
from tune_mnist.tuning import device
from tune_mnist.tuning.device import DeviceMemoryError, device_memory_errors

GIB = 2**30
CUBLAS = "CUDA error: CUBLAS_STATUS_{} when calling `cublasCreate(handle)`"
ENGINE = "GET was unable to find an engine to execute this computation"


def test_bf16_is_for_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert resolve_precision("auto", "cpu") == "fp32"
    with pytest.raises(ValueError, match="precision is bf16, but must be fp32 or auto here"):
        resolve_precision("bf16", "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert [resolve_precision(p, "cpu") for p in ("auto", "fp32", "bf16")] == ["bf16", "fp32", "bf16"]
    with pytest.raises(ValueError, match="precision is int8, but must be one of auto, fp32, bf16"):
        resolve_precision("int8", "cpu")


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1.0, 1), (2.5, 2)])
def test_a_trial_uses_a_thread_for_each_of_its_cores(cpus: float, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        device.use_threads(cpus)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def precisions() -> list[str]:
    backends: Any = torch.backends  # its type stubs do not have all of its modules
    modules = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul
    return [module.fp32_precision for module in modules]


def test_tf32_is_for_the_gpu_alone() -> None:
    before = precisions()
    allow_tf32()
    try:
        training = precisions()
        assert training == ["tf32", *before[1:]] and training[2] != "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before[0]


@pytest.mark.parametrize(
    ("raised", "gpus", "cure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 0.25, "--gpus-per-trial 0.5"),
        (RuntimeError("CUDA error: out of memory"), 0.75, "--gpus-per-trial 1"),
        (RuntimeError(CUBLAS.format("ALLOC_FAILED")), 0.5, "--gpus-per-trial 1"),
        (RuntimeError(CUBLAS.format("NOT_INITIALIZED")), 0.5, "--gpus-per-trial 1"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), 0.5, "--gpus-per-trial 1"),
        (RuntimeError(ENGINE), 0.5, "--gpus-per-trial 1"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "a space with smaller batches"),
    ],
)
def test_a_gpu_without_memory_is_said_in_one_sentence_that_names_the_fraction_to_ask_for(
    raised: RuntimeError, gpus: float, cure: str
) -> None:
    with pytest.raises(DeviceMemoryError) as error, device_memory_errors(gpus):
        raise raised
    assert str(error.value) == (
        f"the GPU has no memory left for this trial, which has a fraction of {gpus:g}: ask for {cure}"
    )


def test_the_error_that_a_failed_capture_puts_in_front_does_not_hide_the_memorys() -> None:
    with pytest.raises(DeviceMemoryError), device_memory_errors(0.5):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes do not match")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), device_memory_errors(0.5):
        raise error


def test_releasing_memory_never_hides_why_a_trial_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty_cache() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    with pytest.raises(ValueError, match="the cause"):
        try:
            raise ValueError("the cause")
        finally:
            device.release_memory()


@pytest.mark.parametrize(
    ("gpus", "gib", "limit"),
    [(0.5, 80, 40), (0.25, 16, 4), (0.125, 4, None), (1.0, 80, 80), (2.0, 80, 80), (0.0, 80, 80)],
)
def test_a_fraction_of_a_gpu_is_a_limit_of_its_memory(
    gpus: float, gib: int, limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [1.0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(total_memory=gib * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    device.prepare_gpu(gpus)
    allowed = limits[-1] * gib * GIB
    if limit == gib:
        assert limits == [1.0]
    elif limit:
        assert allowed + device.CONTEXT_BYTES == pytest.approx(limit * GIB)
    else:  # a fraction that CUDA itself would use up: half of it is left to try with
        assert allowed == pytest.approx(gpus / 2 * gib * GIB)


def test_a_waiting_worker_loads_what_a_trial_needs_and_asks_cuda_for_nothing() -> None:
    """Ray tells a worker which GPUs are its own only when it gets a trial."""
    code = (
        "import sys, torch\n"
        "def ask(*arguments): raise AssertionError('it asked CUDA')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda._lazy_init = ask\n"
        "torch.cuda.is_available = torch.cuda.device_count = ask\n"
        "import tune_mnist.tuning.preload\n"
        "print(torch.cuda.is_initialized(), 'torch._dynamo' in sys.modules, 'ray.tune' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "True"], done.stderr
