"""A run over time: the best so far, and which worker trained which trial when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import EPOCH, TrialRecord

PAUSE_SECONDS = 2.0
"""Pause between two epochs after which the second may be another process's; time stamps are whole seconds."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A trial at work in one process, without a break."""

    worker: str
    "The host, and its slot for a trial: a new process takes the first free slot of its host."
    trial: TrialRecord
    first_epoch: int
    last_epoch: int
    start: float
    "Seconds of the run, without the time between sessions."
    end: float
    process: str
    "HOST, process PID."


def elapsed(ledger: Ledger, moment: float) -> float:
    """Return the seconds of a run until a moment, without the time between its sessions."""
    starts = [first for first, _ in ledger.sessions]
    current = bisect_right(starts, moment) - 1
    if current < 0:
        return 0.0
    before = sum(last - first for first, last in ledger.sessions[:current])
    first, last = ledger.sessions[current]
    return before + min(moment, last) - first


def best_so_far(ledger: Ledger) -> pd.DataFrame:
    """Follow the best metric of a run, one row per reported epoch, in the order of the reports.

    Columns: ``epochs`` reported until then and ``trials`` that had ended (int64), ``seconds`` of the run and
    the best metric so far (float64).
    """
    metric = ledger.objective.metric
    # Epochs carry whole seconds: the stable sort keeps the order of their reports.
    moments = [
        (float(report["timestamp"]), float(report[metric]))
        for trial_id, epoch in ledger.order
        if (report := ledger.trials[trial_id].find(epoch)) is not None
    ]
    moments.sort(key=lambda moment: moment[0])
    ends = sorted(trial.ended for trial in ledger.trials.values() if trial.ended is not None)
    values = pd.Series([value for _, value in moments], dtype="float64")
    return pd.DataFrame(
        {
            "epochs": range(1, len(moments) + 1),
            "trials": [bisect_right(ends, moment + 1.0) for moment, _ in moments],
            "seconds": [elapsed(ledger, moment) for moment, _ in moments],
            metric: values.cummax() if ledger.objective.mode == "max" else values.cummin(),
        }
    )


def stretches(ledger: Ledger) -> list[Stretch]:
    """List which worker trained which trial when, by start."""
    raw = []
    for trial in ledger.trials.values():
        processes = _processes(trial.epochs)
        for process, group in groupby(zip(processes, trial.epochs, strict=True), key=lambda pair: pair[0]):
            epochs = [epoch for _, epoch in group]
            start = float(epochs[0]["timestamp"]) - float(epochs[0].get("epoch_seconds", 0.0))
            raw.append((start, float(epochs[-1]["timestamp"]), *process, trial, epochs))
    places: dict[str, list[float]] = {}  # by host, until when each of its slots is taken
    found = []
    for start, end, host, pid, trial, epochs in sorted(raw, key=lambda stretch: stretch[:2]):
        taken = places.setdefault(host, [])
        # A second of tolerance: time stamps are whole seconds.
        place = next((i for i, until in enumerate(taken) if until <= start + 1.0), len(taken))
        taken[place : place + 1] = [end]
        found.append(
            Stretch(
                worker=f"{host} {place + 1}",
                trial=trial,
                first_epoch=epochs[0][EPOCH],
                last_epoch=epochs[-1][EPOCH],
                start=elapsed(ledger, start),
                end=elapsed(ledger, end),
                process=f"{host}, process {pid}",
            )
        )
    return found


def _processes(epochs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Name the host and the process of each epoch of a trial.

    An epoch known only from a checkpoint has neither. If it followed the one before it without the pause that
    a new process needs to start, it belongs to the same process.
    """
    found: list[tuple[str, str]] = []
    for before, epoch in zip([None, *epochs], epochs, strict=False):
        process = epoch.get("hostname", "unknown"), str(epoch.get("pid", "unknown"))
        if before and "pid" not in epoch:
            pause = float(epoch["timestamp"]) - epoch.get("epoch_seconds", 0.0) - float(before["timestamp"])
            process = found[-1] if pause < PAUSE_SECONDS else process
        found.append(process)
    return found
