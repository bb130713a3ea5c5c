"""The plots of a run over time: learning curves with rungs, timeline, epochs per trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from tune_mnist.report.panels import BEST, LOOKS, Look, Plot, by_look, dress, metric_axis, whole_step
from tune_mnist.report.timeline import Stretch, stretches
from tune_mnist.report.view import STATES, View
from tune_mnist.run.records import EPOCH, TrialRecord
from tune_mnist.run.words import capital
from tune_mnist.tuning.asha import rungs


def learning_curves(view: View) -> Plot:
    """Draw the metric of each trial by epoch, styled by its state, and ASHA's rungs."""
    trials = [trial for trial in view.trials if trial.epochs]
    figure = go.Figure([_curves(view, some, look) for look, some in by_look(view, trials)])
    low, high = view.scale.room([epoch[view.metric] for trial in trials for epoch in trial.epochs])
    judged = rungs(view.settings)
    for rung in judged:
        figure.add_vline(x=rung, line={"color": "#8a93a0", "width": 1, "dash": "dot"})
    planned = max((trial.epochs_planned for trial in trials), default=1)
    epochs = {
        "title": "epoch",
        "range": [0.8, planned + 0.2],
        "tickformat": "d",
        "dtick": whole_step(planned),
    }
    dress(figure, xaxis=epochs, yaxis=metric_axis(view.scale, low, high))
    words = "No trial was stopped early."
    if judged:
        words = f"Dotted: ASHA's rungs, epochs {', '.join(map(str, judged))}, where worse trials end (grey)."
    caption = f"{capital(view.objective.name)} by epoch. {words}"
    return Plot("curves", "Learning curves", caption, {"": figure} if trials else {})


def timeline(view: View) -> Plot:
    """Draw which worker trained which trial when."""
    found = stretches(view.ledger)
    unit, seconds = _time_unit(max((stretch.end for stretch in found), default=0.0))
    workers = sorted({stretch.worker for stretch in found}, key=_host_and_place)
    figure = go.Figure()
    for state in STATES:
        some = [stretch for stretch in found if stretch.trial.shown_state == state]
        if some:
            figure.add_bar(
                y=[stretch.worker for stretch in some],
                x=[round((stretch.end - stretch.start) / seconds, 4) for stretch in some],
                base=[round(stretch.start / seconds, 4) for stretch in some],
                text=[str(stretch.trial.number) for stretch in some] if len(found) <= 100 else None,
                textposition="inside",
                textangle=0,
                insidetextanchor="middle",
                orientation="h",
                name=LOOKS[state].word,
                marker={"color": LOOKS[state].color, "line": {"color": "rgba(255,255,255,.65)", "width": 1}},
                customdata=[[stretch.trial.number, _epochs(stretch), stretch.process] for stretch in some],
                hovertemplate="trial %{customdata[0]}, %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            )
    dress(
        figure,
        height=110 + (34 if len(workers) < 20 else 18) * max(len(workers), 1),
        barmode="overlay",
        uniformtext={"minsize": 9, "mode": "hide"},
        bargap=0.25,
        xaxis={"title": unit, "rangemode": "tozero"},
        yaxis={"categoryorder": "array", "categoryarray": workers[::-1], "title": None},
        margin_l=90,
    )
    caption = "Each bar is a trial running in one slot of a host; the time between sessions is left out."
    return Plot("timeline", "Timeline by worker", caption, {"": figure} if found else {})


def epochs_per_trial(view: View) -> Plot:
    """Draw the epochs that each trial trained, of those that were planned for it."""
    trials = view.trials
    figure = go.Figure()
    for state in STATES:
        some = view.of_state(state)
        if some:
            figure.add_bar(
                x=[trial.number for trial in some],
                y=[trial.epoch for trial in some],
                name=LOOKS[state].word,
                marker_color=LOOKS[state].color,
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
    caption = "The epochs that each trial trained, of those that were planned for it."
    return Plot("epochs", "Epochs per trial", caption, {"": figure} if trials else {})


def _curves(view: View, trials: Sequence[TrialRecord], look: Look) -> go.Scatter:
    """Draw the curves of several trials as one trace, with gaps between them: a thousand traces are slow."""
    rows: list[tuple[Any, ...]] = []
    for trial in trials:
        values = [(epoch[EPOCH], epoch[view.metric]) for epoch in trial.epochs]
        rows += [
            (epoch, float(f"{view.scale.place(value):.5g}"), view.objective.write(value), trial.number)
            for epoch, value in values
        ]
        rows.append((None,) * 4)
    x, y, text, numbers = zip(*rows, strict=True)
    best = look is LOOKS[BEST]
    return go.Scatter(
        x=x,
        y=y,
        text=text,
        customdata=numbers,
        hovertemplate="trial %{customdata}, epoch %{x}: %{text}<extra></extra>",
        mode="lines+markers",
        name=f"trial {trials[0].number}, the best" if best else look.word,
        marker=look.mark(size=5, count=len(view.trials)),
        line={"color": look.color, "width": 3 if best else 1.2},
        opacity=1.0 if best else 0.75,
    )


def _epochs(stretch: Stretch) -> str:
    first, last = stretch.first_epoch, stretch.last_epoch
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _host_and_place(worker: str) -> tuple[str, int]:
    host, _, place = worker.rpartition(" ")
    return host, int(place)
