"""The plots of several hyper-parameters at once, at a level: parallel coordinates and contours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import optuna.visualization as optuna_plots
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from plotly.colors import sample_colorscale

from tune_mnist.report.panels import Plot, by_look, color_bar, dress, parameter_axis
from tune_mnist.report.rungs import Level
from tune_mnist.report.view import View
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.words import capital, count, short_value

LINE_SCALE = [[0.0, "rgb(142,163,198)"], [0.6, "rgb(138,99,210)"], [1.0, "rgb(224,85,154)"]]
"""Colours of the parallel coordinates, from the worst to the best, on bright and dark pages alike."""
RULE = {"color": "#888", "width": 1}
AXIS_MARK: dict[str, Any] = {"showarrow": False, "xanchor": "right", "xshift": -4, "font_size": 10}
MOST_LINES = 100
"""Most trials that the parallel coordinates show; more cannot be told apart."""
MOST_CELLS = 60
"""Most trials in a contour: the number of its grid cells is the square of theirs."""
CONTOUR_PARAMETERS = 4
"""Number of the most important hyper-parameters, each pair of which has a contour."""


def parallel_coordinates(view: View, level: Level) -> Plot:
    """Draw each trial of a level as a line through its hyper-parameters (Optuna before 5 draws others)."""
    n = len(level.trials)
    rows = [
        {view.metric: view.scale.place(value), **trial.params}
        for trial, value in view.ranked(level)[:MOST_LINES]
        if view.space.keys() <= trial.params.keys()
    ]
    rows.sort(key=lambda row: view.objective.sign * row[view.metric])  # the best on top
    shown = f"The best {MOST_LINES} of " if n > MOST_LINES else ""
    caption = f"{shown}{count(n, 'trial')} {level.where}, pink is best."
    # A damaged ledger may have lost the space.
    figures = {"": _parallel_figure(view, rows)} if rows and view.space else {}
    width = 105 * (1 + len(view.space))
    return Plot("parallel", "Parallel coordinates", caption, figures, min_width=width)


def _parallel_figure(view: View, rows: Sequence[dict[str, Any]]) -> go.Figure:
    values = [row[view.metric] for row in rows]
    axes = {view.metric: FloatDistribution(min(values), max(values)), **view.space}
    heights = [_height(value, axes[view.metric]) for value in values]
    goods = [height if view.objective.mode == "max" else 1 - height for height in heights]
    lines = [
        go.Scatter(
            x=list(range(len(axes))),
            y=[round(_height(row[name], distribution), 4) for name, distribution in axes.items()],
            customdata=[[name, _text(view, name, row[name])] for name in axes],
            hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
            mode="lines",
            line={"color": color, "width": 1.2},
            opacity=0.35 + 0.6 * good,
        )
        for row, good, color in zip(rows, goods, sample_colorscale(LINE_SCALE, goods), strict=True)
    ]
    ends = {
        "color": [min(values), max(values)],
        "colorscale": LINE_SCALE,
        "reversescale": view.objective.mode == "min",
        "showscale": len(set(values)) > 1,
        "colorbar": color_bar(view.scale, values),
    }
    key = go.Scatter(x=[None, None], y=[None, None], mode="markers", marker=ends, hoverinfo="skip")
    marks = [
        {"text": _text(view, name, value), "x": place, "y": _height(value, distribution), **AXIS_MARK}
        for place, (name, distribution) in enumerate(axes.items())
        for value in _marks(distribution)
    ]
    rules = [
        {"x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "y domain", "line": RULE, "layer": "below"}
        for place in range(len(axes))
    ]
    figure = go.Figure([*lines, key])
    # All at once: for each one added, plotly checks all earlier ones again.
    dress(figure, height=380, margin_b=40, margin_t=16, showlegend=False, annotations=marks, shapes=rules)
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=list(axes),
        range=[-0.75, len(axes) - 0.8],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(range=[-0.08, 1.08], visible=False, fixedrange=True)
    return figure


def _height(value: Any, distribution: BaseDistribution) -> float:
    """Return where a value lies in its range: 0 at the low end, 1 at the high end."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(1, len(distribution.choices) - 1)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    numbers = value, distribution.low, distribution.high
    at, low, high = (math.log(number) if distribution.log else number for number in numbers)
    return (at - low) / (high - low or 1.0)


def _marks(distribution: BaseDistribution) -> Sequence[Any]:
    """List the marks on a hyper-parameter's axis: its choices, or at most five numbers over its range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    spaced = np.geomspace if distribution.log else np.linspace
    marks = spaced(distribution.low, distribution.high, 5).tolist()
    return sorted({round(mark) if isinstance(distribution, IntDistribution) else mark for mark in marks})


def _text(view: View, name: str, value: Any) -> str:
    text = view.scale.write(value) if name == view.metric else short_value(value)
    return text if len(text) <= 10 else f"{text[:9]}…"


def contours(view: View, level: Level) -> Plot:
    """Draw the values at a level over each pair of the most important hyper-parameters (Optuna)."""
    pairs = view.ranked(level)[:MOST_CELLS]
    study = view.study(level, MOST_CELLS)
    figures = {}
    for names in combinations(_varied_parameters(view, level)[:CONTOUR_PARAMETERS], 2):
        figure = optuna_plots.plot_contour(study, params=list(names), target_name=view.objective.name)
        x, y = figure.layout.xaxis.title.text, figure.layout.yaxis.title.text  # Optuna sorts them
        figure.data = [trace for trace in figure.data if trace.type == "contour" and len(trace.x)]
        bar = color_bar(view.scale, [view.scale.place(value) for _, value in pairs])
        figure.update_traces(colorbar=bar, hoverinfo="skip")
        _add_trials(figure, view, [trial for trial, _ in pairs if {x, y} <= set(trial.params)], x, y)
        dress(
            figure,
            height=420,
            margin_l=80,
            xaxis=_contour_axis(x, view.space[x]),
            yaxis={**_contour_axis(y, view.space[y]), "automargin": True},
        )
        figures[f"{x} and {y}"] = figure
    n = len(level.trials)
    shown = f"the best {MOST_CELLS} of {n:,} trials" if n > MOST_CELLS else count(n, "trial")
    caption = f"Needs two trials {level.where} that differ in two hyper-parameters."
    if figures:
        caption = (
            f"{capital(view.objective.name)} {level.where}, interpolated between {shown}; larger marks are "
            "several trials."
        )
    return Plot("contour", "Contour", caption, figures, kind="choice")


def _varied_parameters(view: View, level: Level) -> list[str]:
    """List the hyper-parameters in which the best trials of a level differ, the most important first."""
    trials = [trial for trial, _ in view.ranked(level)[:MOST_CELLS]]
    drawn = [name for name in view.space if len({trial.params.get(name) for trial in trials}) > 1]
    shares = {share.name: share.value for share in view.importance(level).shares}
    return sorted(drawn, key=lambda name: -shares.get(name, 0.0))


def _add_trials(figure: go.Figure, view: View, trials: Sequence[TrialRecord], x: str, y: str) -> None:
    """Mark trials by their state; several at the same place as one larger mark, with their number."""
    for look, some in by_look(view, trials):
        places = Counter((_place(view, x, trial), _place(view, y, trial)) for trial in some)
        marker = look.mark_on_color()
        marker["size"] = [round(marker["size"] * math.sqrt(n), 1) for n in places.values()]
        figure.add_scatter(
            x=[place[0] for place in places],
            y=[place[1] for place in places],
            customdata=[count(n, "trial") for n in places.values()],
            mode="markers",
            name=look.word,
            marker=marker,
            hovertemplate=f"{x} %{{x}}, {y} %{{y}}: %{{customdata}}<extra>{look.word}</extra>",
        )


def _place(view: View, name: str, trial: TrialRecord) -> Any:
    value = trial.params[name]
    if isinstance(view.space[name], CategoricalDistribution):
        return str(value)
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _contour_axis(name: str, distribution: BaseDistribution) -> dict[str, Any]:
    """Lay out an axis as in Optuna's contours: choices by their names."""
    if isinstance(distribution, CategoricalDistribution):
        return {"title": name, "type": "category", "range": None}
    return parameter_axis(name, distribution)
