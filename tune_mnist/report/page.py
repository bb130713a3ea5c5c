"""The report of a run, or a comparison of runs: one page that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from tune_mnist.report.curves import comparison, run_labels
from tune_mnist.report.insights import Fact, View, edges, facts
from tune_mnist.report.panels import Plot
from tune_mnist.report.plots import all_plots
from tune_mnist.results.frames import hyperparameter_names, trials_frame
from tune_mnist.run.ledger import LEDGER
from tune_mnist.run.records import EPOCH, TrialRecord
from tune_mnist.run.words import count, duration

SECTIONS = {
    "The search": ("history", "curves"),
    "Hyper-parameters": ("importance", "contour", "parallel", "slices"),
    "The cluster": ("timeline", "epochs"),
}
"""Headings of the page with the names of the plots below them."""
WIDE = {"parallel", "slices", "timeline", "epochs", "by-seconds"}
"""Plots that take the whole width of a wide window."""


def make_report(view: View) -> str:
    """Write the page of a run: what it came to, its plots, and all its trials in a table."""
    plots = {plot.name: plot for plot in all_plots(view)}
    return _render(
        title=view.name,
        facts=facts(view),
        advice=advice(view),
        sections={heading: [plots[name] for name in names] for heading, names in SECTIONS.items()},
        table=_table(view),
    )


def make_comparison(views: Sequence[View]) -> str:
    """Write the page that compares runs by their best so far."""
    named = zip(run_labels(views), views, strict=True)
    return _render(
        title="Comparison",
        facts=[
            Fact(
                label=label,
                value=next(fact.value for fact in facts(view) if fact.label.startswith("Best")),
                note=f"{count(len(view.trials), 'trial')}, {count(len(view.ledger.order), 'epoch')}, "
                f"{duration(view.outcome.seconds)}; {view.settings.sampler} in space {view.settings.space}",
            )
            for label, view in named
        ],
        advice=[],
        sections={"Best so far": comparison(views)},
        table=None,
    )


def advice(view: View) -> list[str]:
    """Say what the reader of a run should know: ranges to widen, and what of the ledger is lost."""
    lost = view.ledger.lost_lines
    found = (
        [f"{LEDGER} has {count(lost, 'line')} that can't be read; what they said is lost."] if lost else []
    )
    if narrow := edges(view):
        found.append(f"The best trial lies at the edge of a range: {'; '.join(map(str, narrow))}.")
    return found


def _render(
    *,
    title: str,
    facts: Sequence[Fact],
    advice: Sequence[str],
    sections: Mapping[str, Sequence[Plot]],
    table: dict[str, Any] | None,
) -> str:
    plots = [plot for some in sections.values() for plot in some]
    figures = {
        plot.name: {choice: json.loads(figure.to_json()) for choice, figure in plot.figures.items()}
        for plot in plots
    }
    data = json.dumps({"figures": figures, "table": table}, separators=(",", ":"), allow_nan=False)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("tune_mnist.report").joinpath("report.html.jinja").read_text("utf-8")
    )
    return template.render(
        title=title,
        subtitle=f"as of {datetime.now():%d %B %Y, %H:%M}",
        facts=facts,
        advice=advice,
        sections=list(sections.items()),
        wide=WIDE,
        fixed=table["fixed"] if table else 0,
        table=table is not None,
        data=data.replace("<", "\\u003c"),
        plotly_js=get_plotlyjs(),
        footer=f"tune-mnist {version('tune-mnist')}, optuna {version('optuna')}, ray {version('ray')}",
    )


def _table(view: View) -> dict[str, Any]:
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
        {"name": view.metric, "title": view.metric, "number": True, "format": "metric"},
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
    rows = json.loads(
        frame[[column["name"] for column in columns]].to_json(orient="values", double_precision=8)
    )
    return {
        "fixed": len(columns) - len(varied),
        "metric": {"label": view.objective.name, "format": view.objective.format},
        "curves": curves[1:],
        "columns": columns,
        "rows": rows,
        "epochs": {
            trial.number: [
                [epoch[EPOCH], *(float(f"{epoch[name]:.5g}") for name in curves)] for epoch in trial.epochs
            ]
            for trial in trials
            if trial.epochs
        },
        "notes": {trial.number: note for trial in trials if (note := _note(trial))},
    }


def _note(trial: TrialRecord) -> str:
    """Say what the table's columns don't."""
    notes = ["the baseline"] if trial.hand_set else []
    if trial.error and trial.shown_state == "FAIL":
        notes.append(trial.error)
    return "; ".join(notes)
