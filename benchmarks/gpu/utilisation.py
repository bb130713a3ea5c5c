"""Samples how busy the GPU is while something runs, through the driver's library (NVML)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean
from typing import Any

from ray._private.thirdparty import pynvml as untyped_pynvml

pynvml: Any = untyped_pynvml
SECONDS = 0.2
"""Between two samples."""


class Utilisation:
    """The GPU's utilisation and memory over time.

    The driver's utilisation is the fraction of its own last sampling period (a sixth of a second to one) in
    which any kernel ran, however small: 0 is idle, 100 does not mean that the GPU is full.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []
        "Seconds since 1970, per cent, MB."

    @contextmanager
    def sampled(self, *, on: bool) -> Iterator[None]:
        """Sample during a block, if ``on``; if the driver does not report, there are no samples."""
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), daemon=True)
        if on:
            thread.start()
        try:
            yield
        finally:
            over.set()

    def _sample(self, over: threading.Event) -> None:
        try:
            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not over.wait(SECONDS):
                percent = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
                megabytes = pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e6
                self.samples.append((time.time(), percent, megabytes))
        except pynvml.NVMLError as error:
            print(f"no utilisation: {error}")

    def between(self, first: float, last: float) -> dict[str, Any]:
        """Summarise the samples between two times; {} if there are none."""
        samples = [sample for sample in self.samples if first <= sample[0] <= last]
        if not samples:
            return {}
        return {
            "GPU utilisation, mean %": mean(percent for _, percent, _ in samples),
            "GPU idle, % of samples": 100 * mean(percent == 0 for _, percent, _ in samples),
            "GPU memory, most MB": max(megabytes for _, _, megabytes in samples),
        }
