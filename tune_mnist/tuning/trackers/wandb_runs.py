"""Each trial as a run of Weights & Biases: a search is a group, the task a project.

The run folder records which trials are logged completely. Offline, W&B cannot continue a run: a resume writes
the others again from their first epoch, under the same ids, so that the newest folder of a run has all of it.
Online, the server knows which epochs it has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import EPOCH, RUNNING, TaskFacts, TrialRecord
from tune_mnist.run.words import short_path
from tune_mnist.tuning.dashboard import command
from tune_mnist.tuning.trackers.feed import Tracker
from tune_mnist.tuning.trial_files import numbers

if TYPE_CHECKING:
    import wandb

NOTES = "wandb.txt"
"""Name of the file in the run folder with the ids of the trials whose runs are complete, one per line."""
FINISH_SECONDS = 10.0
"""Longest time that W&B may take to finish a run; what it has not sent by then is in its folder."""


class WandbRuns(Tracker):
    """Keeps one run for each trial, under the same id after a resume; each run has its own connection."""

    title = "W&B"

    def __init__(self, search: str, task: TaskFacts, folder: RunFolder) -> None:
        """Settle group and project, and read which runs are complete."""
        import wandb

        self.search, self.project = search, os.environ.get("WANDB_PROJECT") or task.name
        self.folder = folder
        self.whole = set((folder.read(NOTES) or b"").decode().split())
        self.runs: dict[str, tuple[wandb.Run, int]] = {}
        "By trial: its run and the epochs logged."
        settings = wandb.setup().settings
        self.is_online = settings.mode == "online"
        self.where = f"W&B: group {search} of project {self.project}"
        if settings.mode == "offline":
            folders = f"{short_path(Path(settings.wandb_dir).absolute())}/offline-run-*-{search}-*"
            self.where += f"; {command('wandb', 'sync').strip()} {folders}"

    @staticmethod
    def check() -> None:
        """Check that there is an account to log to.

        Raises:
            ValueError: if there is none.
        """
        import wandb

        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        if settings.mode == "online":
            try:
                wandb.login(verify=False)
            except wandb.Error as error:
                rule = "must be left out without an account (wandb login, or WANDB_MODE=offline)"
                raise ValueError(f"log is wandb, but {rule}") from error

    def update(self, trial: TrialRecord) -> None:
        """Bring the run of a trial up to its record; if that fails, the next call starts the run again."""
        if trial.trial_id in self.whole:
            return
        known = trial.trial_id in self.runs
        run, logged = self.runs.pop(trial.trial_id) if known else self._begun(trial)
        for epoch in trial.epochs:
            if epoch[EPOCH] > logged:
                run.log(numbers(epoch), step=epoch[EPOCH])
                logged = epoch[EPOCH]
        if not trial.state:
            self.runs[trial.trial_id] = run, logged
            return
        run.summary["state"] = trial.state
        run.finish(exit_code=int(trial.state == "FAIL"))
        self.whole.add(trial.trial_id)
        self.folder.write(NOTES, "".join(f"{trial_id}\n" for trial_id in sorted(self.whole)))

    def close(self) -> None:
        """Mark unfinished runs as preempted."""
        while self.runs:
            run, _ = self.runs.popitem()[1]
            run.mark_preempting()
            run.finish(exit_code=1)

    def _begun(self, trial: TrialRecord) -> tuple[wandb.Run, int]:
        import wandb

        run = wandb.init(
            project=self.project,
            group=self.search,
            id=f"{self.search}-{trial.number}-{trial.trial_id}",
            name=f"{self.search}-{trial.number}",
            config=trial.config,
            resume="allow" if self.is_online else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                # The console output and the machine's load concern all trials, not this one.
                console="off",
                x_disable_stats=True,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        run.summary["state"] = RUNNING
        return run, max(run.step - 1, 0)
