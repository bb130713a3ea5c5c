"""The plots that Optuna draws, dressed for the page, with the trials that ASHA cut told apart."""

from __future__ import annotations

import warnings
from functools import partial
from itertools import combinations

import optuna.visualization as optuna_plots
from optuna.exceptions import ExperimentalWarning
from plotly.colors import sample_colorscale

from tune_mnist.report.curves import epochs_per_trial, learning_curves, timeline
from tune_mnist.report.insights import MIN_FINISHED, View
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
from tune_mnist.run.words import capital, count

LINE_SCALE = [[0.0, "rgb(142,163,198)"], [0.6, "rgb(138,99,210)"], [1.0, "rgb(224,85,154)"]]
"""Colours of the parallel coordinates, from the worst to the best, on a bright page as on a dark one."""
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
        figure = optuna_plots.plot_param_importances(view.study)
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
        else f"Needs {MIN_FINISHED} finished trials with different results; there are {finished}.",
        figures=figures,
    )


def parallel_coordinates(view: View) -> Plot:
    """Draw each finished trial as a line through its hyper-parameters (Optuna)."""
    finished = len(view.finished)
    figures = {}
    if finished and view.space:  # which a spoilt ledger may have lost
        study = view.study_of_best(MOST_LINES)
        figure = optuna_plots.plot_parallel_coordinate(study, target_name=view.objective.name)
        values = [float(trial.value or 0.0) for trial in study.get_trials(deepcopy=False)]
        spread = max(values) - min(values) or 1.0
        lines = [trace for trace in figure.data if trace.customdata is not None]
        for trace, value in zip(lines, values, strict=True):
            rows = [list(row) for row in trace.customdata]
            rows[0][1] = view.scale.write(value)
            trace.customdata = rows
            # Of Optuna's blues the best one can't be seen on a dark page.
            place = (value - min(values)) / spread
            place = place if view.objective.mode == "max" else 1 - place
            trace.update(line_color=sample_colorscale(LINE_SCALE, [place])[0], opacity=0.35 + 0.6 * place)
        figure.data[-1].marker.update(
            colorbar=color_bar(view.scale, values),
            colorscale=LINE_SCALE,
            reversescale=view.objective.mode == "min",
            showscale=len(set(values)) > 1,
        )
        for note in figure.layout.annotations:
            note.font.color = None
            if note.x == 0:
                note.text = view.scale.write(min(values) + note.y * (max(values) - min(values)))
            if len(note.text) > 10:
                note.text = f"{note.text[:9]}…"
        axes = len(figure.layout.xaxis.tickvals)
        figure.update_xaxes(range=[-0.75, axes - 0.8])
        dress(figure, height=380, margin_b=40, margin_t=16)
        figures[""] = figure
    shown = f"The best {MOST_LINES} of " if finished > MOST_LINES else ""
    return Plot(
        name="parallel",
        title="Parallel coordinates",
        caption=f"{shown}{count(finished, 'finished trial')}, pink is best. Cut ones have no final result.",
        figures=figures,
        min_width=105 * (1 + len(view.space)),
    )


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
