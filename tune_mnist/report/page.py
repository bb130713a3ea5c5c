"""The report of a run, or a comparison of runs: one page that opens without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from tune_mnist.report.comparison import comparison, comparison_sentences, run_labels
from tune_mnist.report.insights import Fact, facts, losses
from tune_mnist.report.learned import learned
from tune_mnist.report.panels import Plot
from tune_mnist.report.plots import EVERYWHERE, all_plots
from tune_mnist.report.rungs import describe_correlations
from tune_mnist.report.survival import describe_judgement, judgements_of, survival_frame, why_it_stopped
from tune_mnist.report.view import View
from tune_mnist.results.frames import hyperparameter_names, trials_frame
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
AT_LEVEL = "at level"
"""Name of the column with the values at the level that is shown."""


def make_report(
    view: View, next_command: str = "", plots: Mapping[str, Mapping[str, Plot]] | None = None
) -> str:
    """Write the page of a run: what it learned, its plots at each level, and all its trials in a table.

    Args:
        view: the run.
        next_command: what to run next, ready to paste; "" leaves it out.
        plots: from `all_plots`; None makes them.
    """
    plots = plots or all_plots(view)
    return _render(
        title=view.name,
        facts=facts(view),
        heading="What it learned",
        learned=learned(view).sentences,
        next_command=next_command,
        advice=f"{lost}." if (lost := losses(view)) else "",
        plots=plots,
        sections=SECTIONS,
        levels=_levels(view),
        survival=_survival(view),
        table=_table(view),
    )


def _levels(view: View) -> dict[str, Any]:
    """Return the page's levels, the one to begin with, the rule, and how well their ranks agree."""
    first, rule = view.choice
    names, words = {}, [rule]
    for level in view.levels:
        of_epochs = f" of {level.mixed}" if level.mixed else ""
        names[level.name] = f"{level.name} ({count(len(level.trials), 'trial')}{of_epochs})"
    if first.epoch is not None:
        words.append("A rung measures how fast trials learn, not where they end.")
    final = view.levels[-1]
    if final.mixed:
        most = max(trial.epoch for trial in final.trials)
        full = sum(trial.epoch == most for trial in final.trials)
        words.append(
            f"The search draws the number of epochs, so at {final.name} each value is that of the trial's "
            f"own last epoch: {full} of {len(final.trials)} trained {most}."
        )
    words.append(describe_correlations(view.levels))
    shared = f"Only at {final.name} do values" if final.mixed else "No values"
    return {"names": names, "first": first.name, "words": " ".join(filter(None, words)), "shared": shared}


def _survival(view: View) -> dict[str, Any] | None:
    """Return the table of which groups of trials passed which rung; None if it is empty."""
    frame = view.tried("the survival", lambda: survival_frame(view), pd.DataFrame())
    if frame.empty:
        return None
    rungs = sorted(frame["rung"].unique())
    rows = [
        {"name": name, "values": values, "trials": some["trials"].iloc[0]}
        | {"cells": list(zip(some["passed"], some["reached"], strict=True))}
        for (name, values), some in frame.groupby(["parameter", "values"], sort=False)
    ]
    return {"rungs": rungs, "rows": rows}


def _table(view: View) -> dict[str, Any]:
    """Return the table of trials: columns, rows, and for each trial what opens below its row."""
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
    """Explain why a trial stopped, and how it passed the rungs before."""
    passed = [
        describe_judgement(view, judgement)
        for judgement in judgements_of(view, trial)
        if not judgement.stopped
    ]
    return why_it_stopped(view, trial) + "".join(f" It passed {rung}." for rung in passed)


def make_comparison(views: Sequence[View]) -> str:
    """Write the page that compares runs by their best so far."""
    found = []
    for label, view in zip(run_labels(views), views, strict=True):
        best = next(fact.value for fact in facts(view) if fact.label.startswith("Best"))
        size = f"{count(len(view.trials), 'trial')}, {count(len(view.ledger.order), 'epoch')}"
        how = f"{view.settings.sampler} in space {view.settings.space}"
        found.append(Fact(label, best, f"{size}, {duration(view.outcome.seconds)}; {how}"))
    plots = {plot.name: {EVERYWHERE: plot} for plot in comparison(views)}
    return _render(
        title="Comparison",
        facts=found,
        learned=comparison_sentences(views),
        heading="Is the difference more than noise?",
        plots=plots,
        sections={"Best so far": list(plots)},
    )


def _render(
    *,
    plots: Mapping[str, Mapping[str, Plot]],
    sections: Mapping[str, Sequence[str]],
    table: dict[str, Any] | None = None,
    **parts: Any,
) -> str:
    """Fill the template; missing parts are left out of the page."""
    drawn = {
        name: {level: _plot_data(plot) for level, plot in plots[name].items()}
        for names in sections.values()
        for name in names
    }
    data = json.dumps({"plots": drawn, "table": table}, separators=(",", ":"), allow_nan=False)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("tune_mnist.report").joinpath("report.html.jinja").read_text("utf-8")
    left_out = {"next_command": "", "advice": "", "levels": None, "survival": None}
    return environment.from_string(template).render(
        **(left_out | parts),
        subtitle=f"as of {datetime.now():%d %B %Y, %H:%M}",
        sections={
            title: [next(iter(plots[name].values())) for name in names] for title, names in sections.items()
        },
        wide=WIDE,
        fixed=table["fixed"] if table else 0,
        table=table is not None,
        data=data.replace("<", "\\u003c"),
        plotly_js=get_plotlyjs(),
        footer=f"tune-mnist {version('tune-mnist')}, optuna {version('optuna')}, ray {version('ray')}",
    )


def _plot_data(plot: Plot) -> dict[str, Any]:
    return {
        "caption": plot.caption,
        "kind": plot.kind,
        "min_width": plot.min_width,
        "figures": {choice: _figure_data(figure) for choice, figure in plot.figures.items()},
    }


def _figure_data(figure: go.Figure) -> dict[str, Any]:
    """Return a figure as JSON; of a contour's grid, which is nearly empty, only the filled cells."""
    data: dict[str, Any] = json.loads(figure.to_json())
    for trace, drawn in zip(data["data"], figure.data, strict=True):
        if trace["type"] == "contour":
            trace |= {"x": list(drawn.x), "y": list(drawn.y)}  # either may be packed, like the grid
            del trace["z"]
            trace["cells"] = [
                [row, column, float(f"{value:.5g}")]
                for row, values in enumerate(drawn.z)
                for column, value in enumerate(values)
                if value is not None and not math.isnan(value)
            ]
    return data
