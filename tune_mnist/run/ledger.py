"""The ledger of a run: its single source of truth, from which everything else is derived.

Every fact about a run is a line of ``ledger.jsonl``, appended by the driver when it happens: what the run
inherited from earlier ones, which points it tries first, a trial's parameters, when an attempt at it began
and was lost, what it reported for an epoch, how it ended, when a session of the driver began and was closed.
The study, ASHA's rungs, the ResultGrid and the tables hold nothing else: a resume rebuilds them from these
lines, whatever state a kill has left them in. A kill can truncate only the last line, which then does not
count. A checkpoint repeats its trial's epochs, so one that is ahead of the ledger (whose last lines had not
reached the bucket) supplies them. Of two reports of one epoch, as after a retry, the first counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_mnist.run.records import (
    CHECKPOINT_NAME,
    EPOCH,
    FirstPoint,
    InheritedTrial,
    TaskFacts,
    TrialRecord,
    legacy_task,
    trial_state,
)
from tune_mnist.task import Objective

LEDGER = "ledger.jsonl"
"""Name of the ledger in the run folder."""
EVENTS = (
    *("inherited", "points", "trial", "attempt", "epoch", "saved", "lost", "error", "end", "broke", "close"),
)
"""Kinds of lines besides the first of a session."""


class Ledger:
    """The facts of a run in memory and, if opened for writing, the file to which they are appended."""

    def __init__(self) -> None:
        """Start without facts."""
        self.path: Path | None = None
        self.facts: TaskFacts | None = None
        self.distributions: dict[str, str] = {}
        "The search space: Optuna's JSON by parameter."
        self.trials: dict[str, TrialRecord] = {}
        "By id, in the order of their numbers."
        self.inherited: list[InheritedTrial] = []
        "Trials of earlier runs, which only the sampler uses."
        self.points: list[FirstPoint] | None = None
        "What the first trials must try, one point each; None if not recorded."
        self.order: list[tuple[str, int]] = []
        "Trial and epoch of every report, in the order in which the scheduler judged them."
        self.sessions: list[list[float]] = []
        "First and last time of each session."
        self.stop_reason: str | None = None
        "Why the last session was closed; None while it runs, or if it was killed."
        self.lost_lines = 0
        self.lost_trials: set[str] = set()
        "Ids of trials that other lines mention, but whose own line is lost."
        self.failure: OSError | None = None
        "Why a line could not be written; the search cannot continue then."

    @classmethod
    def parse(cls, content: bytes) -> Ledger:
        """Read a ledger; ``lost_lines`` counts unreadable lines, except for a truncated last one."""
        ledger = cls()
        lines = content.split(b"\n")
        for line in lines[:-1]:
            try:
                ledger._apply(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError):
                ledger.lost_lines += 1
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open the ledger at ``path``, if any, for appending; a truncated last line is removed."""
        content = path.read_bytes() if path.exists() else b""
        ledger = cls.parse(content)
        ledger.path = path
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
        return ledger

    @property
    def task(self) -> TaskFacts:
        """What is known about the task."""
        return self.facts or legacy_task()

    @property
    def objective(self) -> Objective:
        """What the trials are judged by."""
        return self.task.objective

    def begin(self, distributions: Mapping[str, str], task: TaskFacts) -> None:
        """Begin a session. Trials that an earlier one closed are unfinished again."""
        facts = dataclasses.asdict(task)
        self._write({"event": "session", "distributions": dict(distributions), "task": facts}, durable=True)

    def inherit(self, trials: Sequence[InheritedTrial]) -> None:
        """Record trials of earlier runs, before the first trial of this run."""
        for trial in trials:
            self._write({"event": "inherited", **dataclasses.asdict(trial)})

    def plan(self, points: Sequence[FirstPoint]) -> None:
        """Record what the first trials must try, before they start."""
        self._write({"event": "points", "points": [dataclasses.asdict(point) for point in points]})

    def suggested(
        self,
        trial_id: str,
        number: int,
        params: dict[str, Any],
        config: dict[str, Any],
        *,
        planned: int | None = None,
        hand_set: bool,
    ) -> None:
        """Record a new trial."""
        trial = {"trial_id": trial_id, "number": number, "params": params, "config": config}
        self._write({"event": "trial", **trial, "planned": planned, "hand_set": hand_set}, durable=True)

    def reported(self, trial_id: str, epoch: Mapping[str, Any]) -> bool:
        """Record a trial's report of an epoch; of a known epoch, only a new checkpoint.

        Returns:
            Whether the epoch was new.
        """
        known = self.trials[trial_id].find(epoch[EPOCH])
        if known is None:
            # Ray hands reports to searchers with the config flattened into config/lr and so on.
            dropped = ("config", "trial_id")
            values = {key: value for key, value in epoch.items() if key.split("/")[0] not in dropped}
            self._write({"event": "epoch", "trial_id": trial_id, **values})
        elif (name := epoch.get(CHECKPOINT_NAME)) and name != known.get(CHECKPOINT_NAME):
            saved = {EPOCH: epoch[EPOCH], CHECKPOINT_NAME: name}
            self._write({"event": "saved", "trial_id": trial_id, **saved})
        return known is None

    def ended(self, trial_id: str, *, failed: bool) -> str:
        """Record the end of a trial and return its state."""
        trial = self.trials[trial_id]
        state = trial_state(trial.epoch, trial.epochs_planned, failed=failed)
        self._write({"event": "end", "trial_id": trial_id, "state": state}, durable=True)
        return state

    def attempted(self, trial_id: str, attempt: str, resume_from: str | None) -> None:
        """Record that a trial was submitted to Ray with the id ``attempt``, and its checkpoint, if any."""
        self._write(
            {"event": "attempt", "trial_id": trial_id, "attempt": attempt, "resume_from": resume_from}
        )

    def lost(self, trial_id: str, attempt: str, error: str) -> None:
        """Record that an attempt was lost with its process, node or storage, and Ray's error."""
        self._write({"event": "lost", "trial_id": trial_id, "attempt": attempt, "error": error})

    def raised(self, trial_id: str, error: str) -> None:
        """Record what a trial's own code raised."""
        self._write({"event": "error", "trial_id": trial_id, "error": error})

    def broke(self, reason: str) -> None:
        """Record why Ray's loop had to be restarted."""
        self._write({"event": "broke", "reason": reason})

    def close(self, reason: str) -> None:
        """Record why the session is over."""
        self._write({"event": "close", "reason": reason}, durable=True)

    def end_what_was_over(self, stopped: Collection[str] = ()) -> None:
        """Record the end of the trials that had finished, or been told to stop, when the driver died.

        ``stopped`` are the ids of trials that the scheduler stops, judging by the reports so far.
        """
        for trial in self.unfinished():
            if trial.trial_id in stopped or trial.is_over:
                self.ended(trial.trial_id, failed=False)

    def unfinished(self) -> list[TrialRecord]:
        """List the trials that have not ended."""
        return [trial for trial in self.trials.values() if trial.state is None]

    def seconds(self) -> float:
        """Return the wall time of all sessions, each from its beginning to its last line."""
        return sum(last - first for first, last in self.sessions)

    def _write(self, event: dict[str, Any], *, durable: bool = False) -> None:
        event["time"] = time.time()
        line = json.dumps(event).encode() + b"\n"
        if self.path is not None:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    if durable:  # an epoch can be recovered after a power cut; this cannot
                        file.flush()
                        os.fsync(file.fileno())
            except OSError as error:
                error.filename = error.filename or str(self.path)  # a failed write does not name the file
                self.failure = error
                raise
        self._apply(json.loads(line))

    def _apply(self, event: dict[str, Any]) -> None:
        kind, now = event.pop("event"), float(event.pop("time"))
        if kind == "session":
            if not isinstance(event["distributions"], dict):
                raise ValueError("a search space must be a dict")
            self.distributions = event["distributions"]
            self.facts = TaskFacts.from_json(event["task"]) if "task" in event else None
            self.sessions.append([now, now])
            self.stop_reason = None
            for trial in self.trials.values():
                trial.stopped_by, trial.lost = None, 0
            return
        if kind not in EVENTS:
            raise ValueError(f"there is no event {kind}")
        if not self.sessions:  # its line is lost
            self.sessions.append([now, now])
        self.sessions[-1][1] = now
        if kind == "inherited":
            event["epochs"] = [(int(epoch), float(value)) for epoch, value in event["epochs"]]
            self.inherited.append(InheritedTrial(**event))
        elif kind == "points":
            self.points = [FirstPoint(**point) for point in event["points"]]
        elif kind == "trial":
            self.trials[event["trial_id"]] = TrialRecord(started=now, **event)
        elif kind == "close":
            self.stop_reason = event["reason"]
            for trial in self.unfinished():
                trial.stopped_by = event["reason"]
        elif kind != "broke":
            self._apply_to_trial(event.pop("trial_id"), kind, now, event)

    def _apply_to_trial(self, trial_id: str, kind: str, now: float, event: dict[str, Any]) -> None:
        if trial_id not in self.trials:
            self.lost_trials.add(trial_id)
        trial = self.trials[trial_id]
        if kind == "epoch":
            trial.epochs.append(event)
            trial.epochs.sort(key=lambda report: int(report[EPOCH]))
            self.order.append((trial.trial_id, event[EPOCH]))
        elif kind == "saved":
            (trial.find(event[EPOCH]) or {})[CHECKPOINT_NAME] = event[CHECKPOINT_NAME]
        elif kind == "end":
            trial.state, trial.ended = event["state"], now
        elif kind == "attempt":
            trial.attempts += 1
        else:
            trial.error = event["error"]
            trial.lost += kind == "lost"
