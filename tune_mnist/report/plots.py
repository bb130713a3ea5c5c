"""The registry of a run's plots, and those of values at a level: history, importance, slices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning

from tune_mnist.report.curves import epochs_per_trial, learning_curves, timeline
from tune_mnist.report.maps import contours, parallel_coordinates
from tune_mnist.report.panels import (
    BEST,
    LOOKS,
    Plot,
    by_look,
    dress,
    metric_axis,
    parameter_axis,
    parameter_places,
    whole_step,
)
from tune_mnist.report.rungs import Level
from tune_mnist.report.view import View
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.words import capital, count, short_value

EVERYWHERE = ""
"""In place of a level, for a plot that is the same at all of them."""


def all_plots(view: View) -> dict[str, dict[str, Plot]]:
    """Make every plot of a run's report, by name, then by level or EVERYWHERE.

    A plot that fails is left empty, and recorded in the view's failures.
    """
    at_levels: dict[str, Callable[[View, Level], Plot]] = {
        "history": history,
        "importance": importance,
        "parallel": parallel_coordinates,
        "slices": slices,
        "contour": contours,
    }
    others: dict[str, Callable[[View], Plot]] = {
        "curves": learning_curves,
        "timeline": timeline,
        "epochs": epochs_per_trial,
    }

    def tried(name: str, make: Callable[[], Plot]) -> Plot:
        empty = Plot(name, name.capitalize(), "It could not be drawn.")
        return view.tried(f"the plot {name}", make, empty)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return {
            name: {level.name: tried(name, partial(make, view, level)) for level in view.levels}
            for name, make in at_levels.items()
        } | {name: {EVERYWHERE: tried(name, partial(make, view))} for name, make in others.items()}


def _add_values(
    figure: go.Figure, view: View, level: Level, places: Callable[[Sequence[TrialRecord]], list[Any]]
) -> None:
    """Draw the values of a level's trials, at their places along the other axis."""
    values = {trial.number: value for trial, value in level.pairs}
    for look, trials in by_look(view, level.trials):
        some = [values[trial.number] for trial in trials]
        figure.add_scatter(
            x=places(trials),
            y=[float(f"{view.scale.place(value):.5g}") for value in some],
            text=[view.objective.write(value) for value in some],
            customdata=[trial.number for trial in trials],
            hovertemplate=f"trial %{{customdata}}: %{{text}}<extra>{look.word}</extra>",
            mode="markers",
            name=look.word,
            marker=look.mark(count=len(level.trials)),
        )


def history(view: View, level: Level) -> Plot:
    """Draw each trial's value at a level and the best so far; below them, the trials without a value."""
    figure = go.Figure()
    low, high = view.scale.room(level.values)
    if level.trials:
        so_far = list(accumulate(level.values, max if view.objective.mode == "max" else min))
        figure.add_scatter(
            x=[trial.number for trial in level.trials],
            y=[float(f"{view.scale.place(value):.5g}") for value in so_far],
            text=[view.objective.write(value) for value in so_far],
            hovertemplate="best by trial %{x}: %{text}<extra></extra>",
            mode="lines",
            name="best so far",
            line={"shape": "hv", "width": 2, "color": LOOKS[BEST].color},
        )
    _add_values(figure, view, level, lambda trials: [trial.number for trial in trials])
    here = {trial.number for trial in level.trials}
    for state, look in LOOKS.items():
        missing = [trial.number for trial in view.of_state(state) if trial.number not in here]
        if missing:
            figure.add_scatter(
                x=missing,
                y=[round(low + 0.045 * (high - low), 4)] * len(missing),  # below all values
                mode="markers",
                name=f"{look.word}, no value here",
                marker={"symbol": "line-ns", "size": 9, "line": {"width": 1.2, "color": look.color}},
                hovertemplate=f"trial %{{x}}, {look.word}<extra></extra>",
            )
    numbers = {"title": "trial", "tickformat": "d", "dtick": whole_step(len(view.trials)), "zeroline": False}
    dress(figure, xaxis=numbers, yaxis=metric_axis(view.scale, low, high))
    caption = f"{capital(view.objective.name)} {level.where} of {count(len(level.trials), 'trial')}."
    if len(here) < len(view.trials):
        caption += " Ticks at the bottom: trials without a value there."
    return Plot("history", "Optimization history", caption, {"": figure} if view.trials else {})


def importance(view: View, level: Level) -> Plot:
    """Draw each hyper-parameter's importance at a level with its interval."""
    found = view.importance(level)
    figures = {}
    if found.shares:
        shares = found.shares[::-1]
        figure = go.Figure()
        figure.add_bar(
            orientation="h",
            y=[share.name for share in shares],
            x=[round(share.value, 4) for share in shares],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [round(share.high - share.value, 4) for share in shares],
                "arrayminus": [round(share.value - share.low, 4) for share in shares],
                "color": "#8b929c",
                "thickness": 1.6,
                "width": 5,
            },
            customdata=[[f"{share.value:.0%}", share.interval] for share in shares],
            hovertemplate="%{y}: %{customdata[0]} (%{customdata[1]})<extra></extra>",
            marker_color=LOOKS["COMPLETE"].color,
            width=0.5,
        )
        dress(
            figure,
            xaxis={"tickformat": ".0%", "range": [0, 1.05], "title": None},
            yaxis={"title": None, "automargin": True},
            height=max(420, 70 + 32 * len(shares)),  # at least that of the contour next to it
            margin_l=110,
            margin_t=10,
            showlegend=False,
        )
        figures[""] = figure
    words = found.method if found.shares else capital(found.why_none(view.variable))
    caption = f"{words}. {found.lone_words}".rstrip()
    return Plot("importance", "Importance", caption, figures)


def slices(view: View, level: Level) -> Plot:
    """Draw the values at a level against each hyper-parameter."""
    low, high = view.scale.room(level.values)
    figures = {}
    for name, distribution in view.space.items() if level.trials else ():
        figure = go.Figure()
        # A damaged ledger may have lost a parameter of a trial.
        known = replace(level, pairs=[(trial, value) for trial, value in level.pairs if name in trial.params])
        _add_values(figure, view, known, partial(parameter_places, name=name, distribution=distribution))
        figure.update_traces(text=None)  # the page has it elsewhere, and for a thousand trials it is long
        # The places of choices and steps are not exactly their values.
        if not isinstance(distribution, FloatDistribution) or distribution.step:
            values = {trial.number: short_value(trial.params[name]) for trial in known.trials}
            for trace in figure.data:
                trace.customdata = [[number, values[number]] for number in trace.customdata]
        dress(
            figure,
            height=230,
            title={"text": name, "font_size": 13, "x": 0, "xref": "paper"},
            xaxis={**parameter_axis("", distribution), "automargin": True},
            yaxis=metric_axis(view.scale, low, high),
            showlegend=False,
            margin_b=30,
        )
        figures[name] = figure
    marks = ", ".join(look.with_mark for look, _ in by_look(view, level.trials))
    of_trials = f"of {count(len(level.trials), 'trial')}: {marks}"
    caption = f"{capital(view.objective.name)} {level.where} by hyper-parameter, {of_trials}."
    return Plot("slices", "Slices", caption, figures, kind="several")
