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
    columns = [
        _column("number", "trial"),
        _column("state", number=False),
        _column(view.metric, f"last {view.metric}", format="metric"),
        {**_column(AT_LEVEL, format="metric"), "title": ""},
        *map(_column, view.task.tables),
        _column("epochs_trained", "epochs"),
        _column("epochs_of", "planned"),
        _column("seconds", format="seconds"),
        _column("node", number=False),
        *(_column(name, number=bool(pd.api.types.is_numeric_dtype(frame[name]))) for name in varied),
    ]
    reports = [epoch for trial in trials for epoch in trial.epochs]
    losses = [name for epoch in reports[:1] for name in epoch if "loss" in name]
    others = dict.fromkeys([*view.task.tables, *losses])
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


def _column(name: str, title: str = "", *, number: bool = True, format: str = "") -> dict[str, Any]:
    return {"name": name, "title": title or name, "number": number, "format": format}


def _why(view: View, trial: TrialRecord) -> str:
    """Say why a trial stopped, and what it met with at the rungs before."""
    passed = [describe_judgement(view, one) for one in judgements_of(view, trial) if not one.stopped]
    return why_it_stopped(view, trial) + "".join(f" It passed {one}." for one in passed)
