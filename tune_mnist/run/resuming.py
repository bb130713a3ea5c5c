"""A request to resume a run, and the settings that it may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tune_mnist.run.settings import Settings, flag_of

RESUMABLE = (
    *("num_samples", "time_budget", "max_concurrent_trials", "cpus_per_trial", "gpus_per_trial"),
    *("max_failures", "address", "dashboard", "open_dashboard", "stall_seconds", "keep_checkpoints", "log"),
)
"""What a resume may change: how far to go, and what depends on the machines. A task may add options."""


@dataclass(frozen=True, kw_only=True)
class ResumeRequest:
    """A run to resume, and the settings to change."""

    run: str
    "Its folder or URI."
    changes: Mapping[str, Any]
    "Settings and options of the task."

    def __post_init__(self) -> None:
        """Check that a run is named."""
        if not self.run:
            raise ValueError("--resume is empty, but must be the folder or the URI of a run")

    def settings_of(self, settings: Settings, resumable_options: Collection[str]) -> Settings:
        """Return the run's settings with the changes; changed options of the task must be resumable.

        Raises:
            ValueError: for a setting that a resume may not change, fewer trials than the run has, or a value
                out of range.
        """
        options = {name: value for name, value in self.changes.items() if name in resumable_options}
        changes = {name: value for name, value in self.changes.items() if name not in options}
        for name, value in changes.items():
            if name not in RESUMABLE:
                shown = " ".join(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"{flag_of(name)} is {shown}, but must be left out: a resumed run keeps its own"
                )
        asked = changes.get("num_samples", settings.num_samples)
        if asked < settings.num_samples:
            rule = f"must be at least {settings.num_samples}, which the run has already"
            raise ValueError(f"num_samples is {asked}, but {rule}")
        # A browser opens only if this session asks for it.
        changes = {"open_dashboard": False, **changes}
        return dataclasses.replace(settings, **changes, options={**settings.options, **options})
