"""The plan: the steps and how long each may take, the most valuable first."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import Step


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A step of the plan."""

    module: str
    "Of its ``run(setup, **options)``, an iterator of figures."
    limit_seconds: float
    "The limits add up to more than the deadline: a step that overruns costs the last ones, not the run."
    options: dict[str, Any] = field(default_factory=dict)
    needs_cuda: bool = False


PLAN = {
    "probe": Planned(module="probe", limit_seconds=40),
    "warm-up": Planned(module="warm_up", limit_seconds=90),
    "tests": Planned(module="cuda_tests", limit_seconds=75, needs_cuda=True),
    "loop": Planned(module="loop", limit_seconds=90),
    "search-0.5": Planned(module="search", limit_seconds=100, options={"gpus": 0.5}),
    "blog": Planned(module="copies", limit_seconds=40, options={"loop": "blog", "counts": (1,)}),
    "copies": Planned(module="copies", limit_seconds=75, options={"loop": "ours", "counts": (1, 2, 4, 8)}),
    "reuse": Planned(module="reuse", limit_seconds=45),
    "memory": Planned(module="memory", limit_seconds=45, needs_cuda=True),
    "mps": Planned(module="mps", limit_seconds=110, needs_cuda=True),
    "search-0.25": Planned(module="search", limit_seconds=90, options={"gpus": 0.25}),
}
"""The steps by name."""


CPU_FACTOR = 2.0
"""Factor by which the limits are longer in a rehearsal, which may have to share its cores."""


def plan(names: Collection[str], *, device: str, data_dir: Path, out: Path) -> list[Step]:
    """Return the steps with these names, in the plan's order."""
    flags = ["--device", device, "--data-dir", str(data_dir.absolute()), "--out", str(out.absolute())]
    command = [sys.executable, "-m", "benchmarks.gpu.step"]
    factor = CPU_FACTOR if device == "cpu" else 1.0
    return [
        Step(name=name, command=[*command, name, *flags], limit_seconds=factor * planned.limit_seconds)
        for name, planned in PLAN.items()
        if name in names
    ]
