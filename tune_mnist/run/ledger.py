"""The ledger of a run: the one place where the truth about it lies, and from which the rest is derived.

Every fact about a run is a line of ``ledger.jsonl``, appended by the driver when it happens: what the run
inherited from earlier ones, which points it tries first, what a trial was given, when an attempt at it began
and was lost, what it reported for an epoch, how it ended, when a session of the driver began and was closed.
The study, ASHA's rungs, the ResultGrid and the tables hold nothing else: a resume makes them again from these
lines, whatever state a kill has left them in. A kill can tear only the last line, which is then no fact yet.
A checkpoint repeats its trial's epochs, so that one which is ahead of the ledger (whose last lines had not
reached the bucket) brings them along. Two reports of one epoch, as after a retry, are one fact: the first.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_mnist.task import Objective

LEDGER = "ledger.jsonl"
"""Name of the ledger in the run folder."""
CHECKPOINT_NAME = "checkpoint_dir_name"
"""Key of a reported epoch: the folder of the checkpoint that was saved with it, or None."""
EVENTS = (
    *("inherited", "points", "trial", "attempt", "epoch", "saved", "lost", "error", "end", "broke", "close"),
)
"""Kinds of lines beside the first of a session."""
UNENDED = "RUNNING"
"""State of a trial that has not ended, in a run that has not been closed."""


OPTUNA_NUMBER = "optuna_trial_number"
"""Key in the config of a Ray trial, besides the hyper-parameters: its number, from 0, in the run."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What the ledger keeps of a task, so that a run can be read without the task's code."""

    name: str
    objective: Objective
    data: str = ""
    "The data that it trains on, in words."
    validation_examples: int | None = None
    "Examples that the metric is measured on."
    tables: Sequence[str] = ()
    "Other reported values that the tables show."
    defaults: Mapping[str, Any] = field(default_factory=dict)
    "What a configuration has where the space does not draw it."
    wider: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    "For each range of the space, whether values below its low end, and above its high end, could be trained."

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskFacts:
        """Read what `dataclasses.asdict` wrote."""
        return cls(**{**values, "objective": Objective(**values["objective"])})


@functools.cache
def legacy_task() -> TaskFacts:
    """Give the task of the runs of older versions, whose ledgers do not say it."""
    facts: TaskFacts = importlib.import_module("tune_mnist.mnist.facts").FACTS
    return facts


def trial_state(epochs_trained: int, epochs_planned: int, *, failed: bool) -> str:
    """Name the state of a trial that has ended, as the study and the tables call it.

    COMPLETE: it trained all epochs it was to train. FAIL: it raised, or ended before its first epoch.
    PRUNED: it was stopped in between.
    """
    if failed or epochs_trained == 0:
        return "FAIL"
    return "COMPLETE" if epochs_trained >= epochs_planned else "PRUNED"


EPOCH = "epoch"
"""Key of a report: epochs trained, from 1, whatever the task's own name for its progress is."""


@dataclass(kw_only=True)
class TrialRecord:
    """What the ledger says of one trial."""

    trial_id: str
    "The id of Ray's trial; of several attempts, which are a Ray trial each, that of the first."
    number: int
    "Its place in the run, from 0; in the study, that among those which were not inherited."
    params: dict[str, Any]
    "Parameters drawn, in the terms of the search space."
    config: dict[str, Any]
    "The configuration to train that they came to."
    started: float
    "When it was suggested: seconds since 1970, as all times here."
    hand_set: bool = False
    "Whether it is the task's baseline."
    planned: int | None = None
    "Epochs that it was to train; None in the ledgers of older versions."
    epochs: list[dict[str, Any]] = field(default_factory=list)
    "What it reported for each epoch, in order, none twice."
    state: str | None = None
    "COMPLETE, PRUNED or FAIL once it has ended."
    ended: float | None = None
    stopped_by: str | None = None
    "What closed the run before this trial had ended."
    error: str | None = None
    "The first line of what it raised last, or was lost of."
    attempts: int = 0
    "How often it was given to Ray; 0 in the ledgers of older versions."
    lost: int = 0
    "Attempts of this session that were lost with their process or node."

    @property
    def last(self) -> dict[str, Any]:
        """Its last report, {} before the first."""
        return self.epochs[-1] if self.epochs else {}

    @property
    def epoch(self) -> int:
        """Epochs trained."""
        return int(self.last.get(EPOCH, 0))

    @property
    def epochs_planned(self) -> int:
        """Epochs that it was to train."""
        return int(self.config["epochs"]) if self.planned is None else self.planned

    @property
    def shown_state(self) -> str:
        """Its state for people: RUNNING only where the run was not closed."""
        if self.state is None and self.stopped_by is None:
            return UNENDED
        return self.state or trial_state(self.epoch, self.epochs_planned, failed=False)

    @property
    def directory(self) -> str:
        """Name of its folder in the run folder."""
        return trial_directory(self.number, self.trial_id)

    @property
    def saved(self) -> list[dict[str, Any]]:
        """Its reports that came with a checkpoint, kept or not."""
        return [epoch for epoch in self.epochs if epoch.get(CHECKPOINT_NAME)]

    def find(self, epoch: int) -> dict[str, Any] | None:
        """Give its report of an epoch, counted from 1, None where there is none."""
        return next((one for one in self.epochs if one[EPOCH] == epoch), None)


@dataclass(frozen=True, kw_only=True)
class InheritedTrial:
    """What a search knows from an earlier run, which may be gone by now."""

    run: str
    "Name of that run."
    number: int
    "Of the trial there, from 0."
    state: str
    "COMPLETE or PRUNED."
    params: Mapping[str, Any]
    "Parameters drawn, in the terms of the search space."
    epochs: Sequence[tuple[int, float]]
    "Epoch, from 1, and the metric, in order; one at least."
    started: float
    "Seconds since 1970, as the next one."
    ended: float

    @property
    def value(self) -> float:
        """Its metric: that of its last epoch."""
        return self.epochs[-1][1]


@dataclass(frozen=True, kw_only=True)
class FirstPoint:
    """What a trial is to try, whatever the sampler would draw."""

    params: Mapping[str, Any]
    "In the terms of the search space; the sampler draws what is left out."
    hand_set: bool = False
    "Whether it is the task's baseline."


class Ledger:
    """The facts of a run in memory, and, where it was opened for writing, the file that they are added to."""

    def __init__(self) -> None:
        """Start without a fact."""
        self.path: Path | None = None
        self.facts: TaskFacts | None = None
        self.distributions: dict[str, str] = {}
        "The search space: Optuna's JSON by parameter."
        self.trials: dict[str, TrialRecord] = {}
        "By id, in the order of their numbers."
        self.inherited: list[InheritedTrial] = []
        "Trials of earlier runs, which the sampler knows and nothing else counts."
        self.points: list[FirstPoint] | None = None
        "What the first trials are to try, one each; None where that was not noted."
        self.order: list[tuple[str, int]] = []
        "Trial and epoch of every report, in the order in which the scheduler judged them."
        self.sessions: list[list[float]] = []
        "First and last time of each session."
        self.closed_by: str | None = None
        "Why the last session was closed; None while it runs, or where it was killed."
        self.lost_lines = 0
        self.lost_trials: set[str] = set()
        "Ids of trials that lines speak of, but whose own line is lost."
        self.failure: OSError | None = None
        "Why a line could not be written: the search can't go on without."

    @classmethod
    def parse(cls, content: bytes) -> Ledger:
        """Read a ledger; lines that can't be read are counted in ``lost_lines``, a torn last one is not."""
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
        """Read the ledger at ``path``, if there is one, cut a torn last line off, and go on writing it."""
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
        """What is known of the task."""
        return self.facts or legacy_task()

    @property
    def objective(self) -> Objective:
        """What the trials are judged by."""
        return self.task.objective

    def begin(self, distributions: Mapping[str, str], task: TaskFacts) -> None:
        """Begin a session. Trials that an earlier one closed are unended again."""
        facts = dataclasses.asdict(task)
        self._write({"event": "session", "distributions": dict(distributions), "task": facts}, durable=True)

    def inherit(self, trials: Sequence[InheritedTrial]) -> None:
        """Note trials of earlier runs, before the first of this run."""
        for trial in trials:
            self._write({"event": "inherited", **dataclasses.asdict(trial)})

    def plan(self, points: Sequence[FirstPoint]) -> None:
        """Note what the first trials are to try, before the first of them."""
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
        """Note a new trial."""
        trial = {"trial_id": trial_id, "number": number, "params": params, "config": config}
        self._write({"event": "trial", **trial, "planned": planned, "hand_set": hand_set}, durable=True)

    def reported(self, trial_id: str, epoch: Mapping[str, Any]) -> bool:
        """Note what a trial reported for an epoch; of one that is known, only that it is saved anew.

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
        """Note the end of a trial and give its state."""
        trial = self.trials[trial_id]
        state = trial_state(trial.epoch, trial.epochs_planned, failed=failed)
        self._write({"event": "end", "trial_id": trial_id, "state": state}, durable=True)
        return state

    def attempted(self, trial_id: str, attempt: str, resume_from: str | None) -> None:
        """Note that a trial was given to Ray under the id ``attempt``, and its checkpoint, if it has one."""
        self._write(
            {"event": "attempt", "trial_id": trial_id, "attempt": attempt, "resume_from": resume_from}
        )

    def lost(self, trial_id: str, attempt: str, error: str) -> None:
        """Note that an attempt was lost with its process, node or storage, and what Ray says of it."""
        self._write({"event": "lost", "trial_id": trial_id, "attempt": attempt, "error": error})

    def raised(self, trial_id: str, error: str) -> None:
        """Note what a trial's own code raised."""
        self._write({"event": "error", "trial_id": trial_id, "error": error})

    def broke(self, reason: str) -> None:
        """Note why Ray's loop had to be started again."""
        self._write({"event": "broke", "reason": reason})

    def close(self, reason: str) -> None:
        """Note why the session is over."""
        self._write({"event": "close", "reason": reason}, durable=True)

    def end_what_was_over(self, stopped: Collection[str] = ()) -> None:
        """Note the end of the trials that had trained all, or been told to stop, when the driver died.

        Args:
            stopped: ids of trials that the scheduler stops, going by the reports so far.
        """
        for trial in self.unended():
            over = trial.trial_id in stopped or trial.last.get("done") or trial.epoch >= trial.epochs_planned
            if over:
                self.ended(trial.trial_id, failed=False)

    def unended(self) -> list[TrialRecord]:
        """List the trials that have not ended."""
        return [trial for trial in self.trials.values() if trial.state is None]

    def seconds(self) -> float:
        """Wall time of all sessions, each from its beginning to its last line."""
        return sum(last - first for first, last in self.sessions)

    def _write(self, event: dict[str, Any], *, durable: bool = False) -> None:
        event["time"] = time.time()
        line = json.dumps(event).encode() + b"\n"
        if self.path is not None:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    if durable:  # what could not be had again after a power cut; an epoch can
                        file.flush()
                        os.fsync(file.fileno())
            except OSError as error:
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
            self.closed_by = None
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
            return
        if kind == "points":
            self.points = [FirstPoint(**point) for point in event["points"]]
            return
        if kind == "trial":
            self.trials[event["trial_id"]] = TrialRecord(started=now, **event)
            return
        if kind == "close":
            self.closed_by = event["reason"]
            for trial in self.unended():
                trial.stopped_by = event["reason"]
            return
        if kind == "broke":
            return
        trial_id = event.pop("trial_id")
        if trial_id not in self.trials:
            self.lost_trials.add(trial_id)
        trial = self.trials[trial_id]
        if kind == "epoch":
            trial.epochs.append(event)
            trial.epochs.sort(key=lambda one: int(one[EPOCH]))
            self.order.append((trial.trial_id, event[EPOCH]))
        elif kind == "saved":
            (trial.find(event[EPOCH]) or {})[CHECKPOINT_NAME] = event[CHECKPOINT_NAME]
        elif kind == "end":
            trial.state, trial.ended = event["state"], now
        elif kind == "attempt":
            trial.attempts += 1
        elif kind == "lost":
            trial.lost += 1
            trial.error = event["error"]
        elif kind == "error":
            trial.error = event["error"]


def trial_directory(number: int, trial_id: str) -> str:
    """Name a trial's folder in the run folder."""
    return f"trial_{number:05d}_{trial_id}"


def ray_config(trial: TrialRecord) -> dict[str, Any]:
    """Give the config of the trial's Ray trial."""
    return {**trial.config, OPTUNA_NUMBER: trial.number}
