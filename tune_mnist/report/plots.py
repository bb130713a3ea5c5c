"""The plots that Optuna draws, dressed for the page, with the trials that ASHA cut told apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import optuna.visualization as optuna_plots
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from plotly.colors import sample_colorscale

from tune_mnist.report.curves import epochs_per_trial, learning_curves, timeline
from tune_mnist.report.insights import View, why_no_importance
from tune_mnist.report.panels import (
    BEST_COLOR,
    COLORS,
    Plot,
    add_ticks,
    color_bar,
    dress,
    foot,
    metric_axis,
    parameter_axis,
    parameter_values,
    whole_step,
)
from tune_mnist.run.words import capital, count, short_value

LINE_SCALE = [[0.0, "rgb(142,163,198)"], [0.6, "rgb(138,99,210)"], [1.0, "rgb(224,85,154)"]]
"""Colours of the parallel coordinates, from the worst to the best, on a bright page as on a dark one."""
AXIS_MARK: dict[str, Any] = {"showarrow": False, "xanchor": "right", "xshift": -4, "font_size": 10}
MOST_LINES = 100
"""Finished trials that the parallel coordinates show at most; more can't be told apart."""
MOST_CELLS = 60
"""Finished trials that a contour is made of at most: its grid has their number squared of cells."""
CONTOUR_PARAMETERS = 4
"""Of so many hyper-parameters, the most important ones, each pair has a contour."""


def all_plots(view: View) -> list[Plot]:
    """Make every plot of a run's report; one that fails is empty, and noted in the view's failures."""
    makers = {
        "history": history,
        "curves": learning_curves,
        "importance": importance,
        "parallel": parallel_coordinates,
        "slices": slices,
        "contour": contours,
        "timeline": timeline,
        "epochs": epochs_per_trial,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return [
            view.tried(
                f"the plot {name}",
                partial(make, view),
                Plot(name=name, title=name.capitalize(), caption="It could not be drawn."),
            )
            for name, make in makers.items()
        ]


def history(view: View) -> Plot:
    """Draw the value of each finished trial and the best so far (Optuna); cut trials as ticks at the foot."""
    trials = view.trials
    figure = optuna_plots.plot_optimization_history(view.study)
    figure.data = [trace for trace in figure.data if trace.x]
    for trace in figure.data:
        trace.hovertemplate = "trial %{x}: %{text}<extra></extra>"
        trace.text = [view.scale.write(value) for value in trace.y]
        trace.y = [float(f"{value:.5g}") for value in trace.y]
        best = trace.mode == "lines"
        trace.name, color = ("best so far", BEST_COLOR) if best else ("finished", COLORS["COMPLETE"])
        trace.update(line_color=color, line_shape="hv") if best else trace.update(marker_color=color)
    low, high = view.scale.room([trial.last[view.metric] for trial in view.finished])
    for state in ("PRUNED", "FAIL", "RUNNING"):
        some = view.of_state(state)
        add_ticks(figure, [trial.number for trial in some], some, foot(low, high))
    numbers = {"title": "trial", "tickformat": "d", "dtick": whole_step(len(trials))}
    dress(figure, xaxis=numbers, yaxis=metric_axis(view.scale, low, high))
    return Plot(
        name="history",
        title="Optimization history",
        caption=f"{capital(view.objective.name)} of finished trials. The others have no final result: "
        "ticks at the foot say when they came.",
        figures={"": figure} if trials else {},
    )


def importance(view: View) -> Plot:
    """Draw each hyper-parameter's share in the variance of the results (Optuna)."""
    finished = len(view.finished)
    figures = {}
    if view.importances:
        figure = optuna_plots.plot_param_importances(view.study, params=view.variable)
        figure.update_traces(marker_color=COLORS["COMPLETE"], hovertemplate="%{y}: %{x:.0%}<extra></extra>")
        figure.data[0].text = [f"{value:.0%}" for value in figure.data[0].x]
        dress(
            figure,
            xaxis={"tickformat": ".0%", "range": [0, 1.15 * max(figure.data[0].x)], "title": None},
            yaxis={"title": None},
            height=420,
            margin_l=110,
            margin_t=10,
        )
        figures[""] = figure
    return Plot(
        name="importance",
        title="Importance",
        caption=f"PED-ANOVA over {finished} finished trials{': a hint, no more' if finished < 30 else ''}."
        if figures
        else f"{capital(why_no_importance(view))}.",
        figures=figures,
    )


def parallel_coordinates(view: View) -> Plot:
    """Draw each finished trial as a line through its hyper-parameters; Optuna before 5 draws other traces."""
    finished = len(view.finished)
    trials = view.study_of_best(MOST_LINES).get_trials(deepcopy=False)
    figures = {}
    if trials and view.space:  # which a spoilt ledger may have lost
        values = [float(trial.value or 0.0) for trial in trials]
        axes = {view.metric: FloatDistribution(min(values), max(values)), **view.space}
        figure = go.Figure()
        for trial, value in zip(trials, values, strict=True):
            row = {view.metric: value, **trial.params}
            height = _height(value, axes[view.metric])
            good = height if view.objective.mode == "max" else 1 - height
            figure.add_scatter(
                x=list(range(len(axes))),
                y=[_height(row[name], one) for name, one in axes.items()],
                customdata=[[name, _text(view, name, row[name])] for name in axes],
                hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
                mode="lines",
                line={"color": sample_colorscale(LINE_SCALE, [good])[0], "width": 1.2},
                opacity=0.35 + 0.6 * good,
            )
        scale = {"colorscale": LINE_SCALE, "reversescale": view.objective.mode == "min"}
        scale |= {"showscale": len(set(values)) > 1, "colorbar": color_bar(view.scale, values)}
        ends = {"color": [min(values), max(values)], **scale}
        figure.add_scatter(x=[None, None], y=[None, None], mode="markers", marker=ends, hoverinfo="skip")
        for place, (name, one) in enumerate(axes.items()):
            figure.add_vline(x=place, line={"color": "#888", "width": 1}, layer="below")
            for mark in _marks(one):
                figure.add_annotation(
                    text=_text(view, name, mark), x=place, y=_height(mark, one), **AXIS_MARK
                )
        names = {
            "tickvals": list(range(len(axes))),
            "ticktext": list(axes),
            "range": [-0.75, len(axes) - 0.8],
        }
        dress(figure, height=380, margin_b=40, margin_t=16, showlegend=False)
        figure.update_xaxes(**names, showgrid=False, zeroline=False)
        figure.update_yaxes(range=[-0.08, 1.08], visible=False, fixedrange=True)
        figures[""] = figure
    shown = f"The best {MOST_LINES} of " if finished > MOST_LINES else ""
    return Plot(
        name="parallel",
        title="Parallel coordinates",
        caption=f"{shown}{count(finished, 'finished trial')}, pink is best. Cut ones have no final result.",
        figures=figures,
        min_width=105 * (1 + len(view.space)),
    )


def _height(value: Any, one: BaseDistribution) -> float:
    """Give where a value lies in its range: 0 at the low end, 1 at the high one."""
    if isinstance(one, CategoricalDistribution):
        return one.choices.index(value) / max(1, len(one.choices) - 1)
    assert isinstance(one, FloatDistribution | IntDistribution)
    at, low, high = (math.log(number) if one.log else number for number in (value, one.low, one.high))
    return (at - low) / (high - low or 1.0)


def _marks(one: BaseDistribution) -> Sequence[Any]:
    """List what marks the axis of a hyper-parameter: its choices, or five numbers over its range."""
    if isinstance(one, CategoricalDistribution):
        return one.choices
    assert isinstance(one, FloatDistribution | IntDistribution)
    marks = (np.geomspace if one.log else np.linspace)(one.low, one.high, 5).tolist()
    return sorted({round(mark) if isinstance(one, IntDistribution) else mark for mark in marks})


def _text(view: View, name: str, value: Any) -> str:
    text = view.scale.write(value) if name == view.metric else short_value(value)
    return text if len(text) <= 10 else f"{text[:9]}…"


def slices(view: View) -> Plot:
    """Draw the results against each hyper-parameter (Optuna), cut trials as ticks at the foot."""
    study = view.study
    values = [view.scale.place(trial.last[view.metric]) for trial in view.finished]
    low, high = view.scale.room([trial.last[view.metric] for trial in view.finished])
    figures = {}
    for name, one in view.space.items() if values else ():
        figure = optuna_plots.plot_slice(study, params=[name], target_name=view.objective.name)
        figure.update_traces(
            marker={"showscale": False, "color": COLORS["COMPLETE"], "line_width": 0, "opacity": 0.75},
            hovertemplate=f"trial %{{customdata}}: %{{text}}<br>{name} %{{x}}<extra></extra>",
            text=[view.objective.write(trial.last[view.metric]) for trial in view.finished],
            customdata=[trial.number for trial in view.finished],
            x=parameter_values([trial.params[name] for trial in view.finished], one),
            y=[float(f"{value:.5g}") for value in values],
            name="finished",
        )
        cut = [trial for trial in view.of_state("PRUNED") if name in trial.params]
        add_ticks(figure, parameter_values([trial.params[name] for trial in cut], one), cut, foot(low, high))
        dress(
            figure,
            height=230,
            title={"text": name, "font_size": 13, "x": 0, "xref": "paper"},
            xaxis=parameter_axis("", one),
            yaxis=metric_axis(view.scale, low, high),
            showlegend=False,
            margin_b=30,
        )
        figures[name] = figure
    return Plot(
        name="slices",
        title="Slices",
        caption="Finished trials by hyper-parameter. Grey ticks at the foot: where cut trials lay.",
        figures=figures,
        kind="several",
    )


def contours(view: View) -> Plot:
    """Draw the results over each pair of the most important hyper-parameters (Optuna)."""
    space = view.space
    study = view.study_of_best(MOST_CELLS)
    finished = study.get_trials(deepcopy=False)
    figures = {}
    for x, y in combinations(varied_parameters(view)[:CONTOUR_PARAMETERS], 2):
        figure = optuna_plots.plot_contour(study, params=[x, y], target_name=view.objective.name)
        x, y = figure.layout.xaxis.title.text, figure.layout.yaxis.title.text  # Optuna sorts them
        figure.data = [trace for trace in figure.data if trace.x is not None and len(trace.x)]
        figure.update_traces(
            selector={"type": "contour"}, colorbar=color_bar(view.scale, [t.value for t in finished])
        )
        figure.update_traces(
            selector={"type": "scatter"},
            marker={"color": "#111827", "size": 6, "line": {"width": 1, "color": "#fff"}},
            name="finished",
            hoverinfo="x+y",
            showlegend=True,
        )
        cut = [trial for trial in view.of_state("PRUNED") if {x, y} <= set(trial.params)]
        figure.add_scatter(
            x=parameter_values([trial.params[x] for trial in cut], space[x]),
            y=parameter_values([trial.params[y] for trial in cut], space[y]),
            mode="markers",
            name="cut",
            marker={"symbol": "x-thin", "size": 6, "line": {"width": 1.2, "color": COLORS["PRUNED"]}},
            hoverinfo="x+y",
        )
        dress(
            figure,
            height=420,
            margin_l=80,
            xaxis=parameter_axis(x, space[x]),
            yaxis=parameter_axis(y, space[y]),
        )
        figures[f"{x} and {y}"] = figure
    shown = f"the best {MOST_CELLS}" if len(view.finished) > MOST_CELLS else f"{len(finished)}"
    return Plot(
        name="contour",
        title="Contour",
        caption=f"{capital(view.objective.name)} between {shown} finished trials (dots); pruned ones "
        "(crosses) don't shape it."
        if figures
        else "Needs two finished trials that differ in two hyper-parameters.",
        figures=figures,
        kind="choice",
    )


def varied_parameters(view: View) -> list[str]:
    """List the hyper-parameters in which the best finished trials differ, the most important first."""
    finished = view.study_of_best(MOST_CELLS).get_trials(deepcopy=False)
    drawn = [name for name in view.space if len({trial.params.get(name) for trial in finished}) > 1]
    return sorted(drawn, key=lambda name: -view.importances.get(name, 0.0))
