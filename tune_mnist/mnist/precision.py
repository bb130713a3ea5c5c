"""The precisions that a device computes in, and the stream that its graphs are captured on."""

from __future__ import annotations

import functools

import torch

PRECISIONS = ("auto", "fp32", "bf16")


def resolve_precision(precision: str, device: str) -> str:
    """Choose fp32 or bf16: ``auto`` takes bf16 where the device multiplies it natively.

    Raises:
        ValueError: for an unknown precision, or bf16 where it would be emulated.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}, but must be one of {', '.join(PRECISIONS)}")
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    if precision == "bf16" and not native:
        raise ValueError(
            f"precision is bf16, but must be fp32 or auto here: this {device} does not multiply bf16"
        )
    return "bf16" if native and precision != "fp32" else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute matrix products in bf16 if ``precision`` says so."""
    # Under capture a cached cast of the weights would be replayed stale, so no casts are cached.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def allow_tf32() -> None:
    """Let CUDA multiply fp32 matrices in TF32, as cuDNN's convolutions do by default; the CPU stays exact."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """Return this process's one stream on which graphs are prepared and captured.

    torch keeps a cuBLAS workspace for each stream (32 MiB on Hopper), for as long as the process lives.
    """
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
