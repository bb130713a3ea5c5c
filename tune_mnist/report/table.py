"""The table of all trials on the page: columns, rows, and what opens below a row."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from tune_mnist.report.survival import describe_judgement, judgements_of, why_it_stopped
from tune_mnist.report.view import View
from tune_mnist.results.frames import hyperparameter_names, trials_frame
from tune_mnist.run.records import EPOCH, TrialRecord

AT_LEVEL = "at level"
"""Name of the column with the values at the level that is shown."""


def make_table(view: View) -> dict[str, Any]:
    """Give the page its table: columns, rows, and by trial what opens below its row."""
    trials = view.trials
    frame = trials_frame(view.outcome.grid)
    varied = [
        name
        for name in hyperparameter_names(view.outcome.grid)
        if name != "epochs" and (name in view.space or frame[name].nunique() > 1)
    ]
    frame = frame.assign(epochs_of=frame["epochs_planned"])
    columns: list[dict[str, Any]] = [
        {"name": "number", "title": "trial", "number": True, "format": ""},
        {"name": "state", "title": "state", "number": False, "format": ""},
        {"name": view.metric, "title": f"last {view.metric}", "number": True, "format": "metric"},
        {"name": AT_LEVEL, "title": "", "number": True, "format": "metric"},
        *({"name": name, "title": name, "number": True, "format": ""} for name in view.task.tables),
        {"name": "epochs_trained", "title": "epochs", "number": True, "format": ""},
        {"name": "epochs_of", "title": "planned", "number": True, "format": ""},
        {"name": "seconds", "title": "seconds", "number": True, "format": "seconds"},
        {"name": "node", "title": "node", "number": False, "format": ""},
    ]
    for name in varied:
        number = bool(pd.api.types.is_numeric_dtype(frame[name]))
        columns.append({"name": name, "title": name, "number": number, "format": ""})
    reports = [epoch for trial in trials for epoch in trial.epochs]
    others = dict.fromkeys(
        [*view.task.tables, *(name for epoch in reports[:1] for name in epoch if "loss" in name)]
    )
    curves = [view.metric, *(name for name in others if all(name in epoch for epoch in reports))]
    stored = [column["name"] for column in columns if column["name"] != AT_LEVEL]
    rows = json.loads(frame[stored].to_json(orient="values", double_precision=8))
    return {
        "fixed": len(columns) - len(varied),
        "metric": {"name": view.metric, "label": view.objective.name, "format": view.objective.format},
        "curves": curves[1:],
        "columns": columns,
        "stored": stored,
        "rows": rows,
        "levels": {
            level.name: {trial.number: float(f"{value:.8g}") for trial, value in level.pairs}
            for level in view.levels
        },
        "epochs": {
            trial.number: [
                [epoch[EPOCH], *(float(f"{epoch[name]:.5g}") for name in curves)] for epoch in trial.epochs
            ]
            for trial in trials
            if trial.epochs
        },
        "notes": {trial.number: "the baseline" for trial in trials if trial.hand_set},
        "why": {trial.number: _why(view, trial) for trial in trials},
    }


def _why(view: View, trial: TrialRecord) -> str:
    """Say why a trial stopped, and what it met with at the rungs before."""
    passed = [describe_judgement(view, one) for one in judgements_of(view, trial) if not one.stopped]
    return why_it_stopped(view, trial) + "".join(f" It passed {one}." for one in passed)
