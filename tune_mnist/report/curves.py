"""The plots of a run along its time: learning curves with rungs, timeline, epochs per trial."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from tune_mnist.report.panels import (
    BEST,
    BEST_COLOR,
    COLORS,
    DRAWN_FIRST,
    STATE_WORDS,
    Plot,
    dress,
    mark,
    metric_axis,
    whole_step,
)
from tune_mnist.report.timeline import stretches
from tune_mnist.report.view import STATES, View
from tune_mnist.run.records import EPOCH, TrialRecord
from tune_mnist.run.words import capital
from tune_mnist.tuning.asha import rungs


def learning_curves(view: View) -> Plot:
    """Draw the metric of each trial by epoch, ASHA's rungs, and what became of the trial."""
    trials = [trial for trial in view.trials if trial.epochs]
    best = view.best
    figure = go.Figure()
    for state in DRAWN_FIRST:
        some = [trial for trial in view.of_state(state) if trial.epochs and trial is not best]
        if some:
            figure.add_trace(_curves(view, some, STATE_WORDS[state], state, color=COLORS[state], width=1.2))
    if best:
        name = f"trial {best.number}, the best"
        figure.add_trace(_curves(view, [best], name, BEST, color=BEST_COLOR, width=3))
    low, high = view.scale.room([epoch[view.metric] for trial in trials for epoch in trial.epochs])
    judged = rungs(view.settings)
    for rung in judged:
        figure.add_vline(x=rung, line={"color": "#8a93a0", "width": 1, "dash": "dot"})
    planned = max((trial.epochs_planned for trial in trials), default=1)
    dress(
        figure,
        xaxis={
            "title": "epoch",
            "range": [0.8, planned + 0.2],
            "tickformat": "d",
            "dtick": whole_step(planned),
        },
        yaxis=metric_axis(view.scale, low, high),
    )
    return Plot(
        name="curves",
        title="Learning curves",
        caption=f"{capital(view.objective.name)} by epoch. "
        + (
            f"Dotted: ASHA's rungs, epochs {', '.join(map(str, judged))}, where worse trials end (grey)."
            if judged
            else "No trial was stopped early."
        ),
        figures={"": figure} if trials else {},
    )


def timeline(view: View) -> Plot:
    """Draw which worker trained which trial when."""
    found = stretches(view.ledger)
    unit, seconds = _time_unit(max((one.end for one in found), default=0.0))
    workers = sorted({one.worker for one in found}, key=lambda name: (name.rpartition(" ")[0], _place(name)))
    figure = go.Figure()
    for state in STATES:
        some = [one for one in found if one.state == state]
        if some:
            figure.add_bar(
                y=[one.worker for one in some],
                x=[round((one.end - one.start) / seconds, 4) for one in some],
                base=[round(one.start / seconds, 4) for one in some],
                text=[str(one.number) for one in some] if len(found) <= 100 else None,
                textposition="inside",
                textangle=0,
                insidetextanchor="middle",
                orientation="h",
                name=STATE_WORDS[state],
                marker={"color": COLORS[state], "line": {"color": "rgba(255,255,255,.65)", "width": 1}},
                customdata=[
                    [one.number, _epochs(one.first_epoch, one.last_epoch), one.process] for one in some
                ],
                hovertemplate="trial %{customdata[0]}, %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            )
    dress(
        figure,
        height=110 + 34 * max(len(workers), 1) if len(workers) < 20 else 110 + 18 * len(workers),
        barmode="overlay",
        uniformtext={"minsize": 9, "mode": "hide"},
        bargap=0.25,
        xaxis={"title": unit, "rangemode": "tozero"},
        yaxis={"categoryorder": "array", "categoryarray": workers[::-1], "title": None},
        margin_l=90,
    )
    return Plot(
        name="timeline",
        title="Timeline by worker",
        caption="Each bar is a trial at work in a worker's place; the time between sessions is left out.",
        figures={"": figure} if found else {},
    )


def epochs_per_trial(view: View) -> Plot:
    """Draw the epochs that each trial was given, of those that it had planned."""
    trials = view.trials
    figure = go.Figure()
    for state in STATES:
        some = view.of_state(state)
        if some:
            figure.add_bar(
                x=[trial.number for trial in some],
                y=[trial.epoch for trial in some],
                name=STATE_WORDS[state],
                marker_color=COLORS[state],
                customdata=[trial.epochs_planned for trial in some],
                hovertemplate="trial %{x}: %{y} of %{customdata} epochs",
            )
    figure.add_bar(
        x=[trial.number for trial in trials],
        y=[trial.epochs_planned - trial.epoch for trial in trials],
        name="planned, not trained",
        marker={"color": "rgba(138,147,160,.16)"},
        hoverinfo="skip",
    )
    most = max((trial.epochs_planned for trial in trials), default=1)
    dress(
        figure,
        barmode="stack",
        bargap=0.15,
        xaxis={"title": "trial", "tickformat": "d", "dtick": whole_step(len(trials))},
        yaxis={"title": "epochs", "tickformat": "d", "dtick": whole_step(most)},
    )
    return Plot(
        name="epochs",
        title="Epochs per trial",
        caption="What each trial was given of the epochs that it had planned.",
        figures={"": figure} if trials else {},
    )


def _curves(
    view: View, trials: Sequence[TrialRecord], name: str, state: str, *, color: str, width: float
) -> go.Scatter:
    """Draw the curves of several trials as one trace, with gaps between them: a thousand traces are slow."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str | None] = []
    numbers: list[int | None] = []
    for trial in trials:
        for epoch in trial.epochs:
            x.append(epoch[EPOCH])
            y.append(float(f"{view.scale.place(epoch[view.metric]):.5g}"))
            text.append(view.objective.write(epoch[view.metric]))
            numbers.append(trial.number)
        x.append(None)
        y.append(None)
        text.append(None)
        numbers.append(None)
    return go.Scatter(
        x=x,
        y=y,
        text=text,
        customdata=numbers,
        hovertemplate="trial %{customdata}, epoch %{x}: %{text}<extra></extra>",
        mode="lines+markers",
        name=name,
        marker=mark(state, size=5, count=len(view.trials)),
        line={"color": color, "width": width},
        opacity=0.75 if width < 2 else 1.0,
    )


def _epochs(first: int, last: int) -> str:
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _place(worker: str) -> int:
    return int(worker.rpartition(" ")[2])
