"""Steps `blog` and `copies`: images per second of the bare training loop, in one process and in several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.step import Setup
from benchmarks.loop import side_by_side

EPOCHS = {"ours": 10, "blog": 1}
"""Measured epochs; one of ours is too short to be sure that all copies are measured at the same time."""


def run(
    setup: Setup, *, loop: str, counts: Sequence[int], environment: Mapping[str, str] = os.environ
) -> Iterator[dict[str, Any]]:
    """Yield the images per second of several copies of a loop, in total."""
    images, val_images = (25_600, 5000) if setup.on_gpu else (192, 100)
    flags = [
        *(loop, "--device", setup.device, "--precision", "auto" if loop == "ours" else "fp32"),
        *("--images", str(images), "--val-images", str(val_images), "--data-dir", str(setup.data_dir)),
        *("--epochs", str(EPOCHS[loop] if setup.on_gpu else 1)),
    ]
    for count in counts if setup.on_gpu else counts[:2]:
        figures = side_by_side(count, flags, {**environment, "OMP_NUM_THREADS": "1"})
        yield {f"images/s of {count}": count * figures["images_per_second"]}
