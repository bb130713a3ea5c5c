"""A comparison of runs: the best so far of each, and whether the best one's lead exceeds the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from tune_mnist.report.insights import best_score
from tune_mnist.report.noise import error_noise, lead_level, noise_at, write_amount
from tune_mnist.report.panels import RUN_COLORS, Plot, dress, metric_axis
from tune_mnist.report.timeline import best_so_far
from tune_mnist.report.view import View
from tune_mnist.run.words import capital, count


def comparison(views: Sequence[View]) -> list[Plot]:
    """Draw the best so far of several runs against trials, epochs and seconds."""
    labels = run_labels(views)
    frames = [best_so_far(view.ledger) for view in views]
    scale, metric, objective = views[0].scale, views[0].metric, views[0].objective
    low, high = scale.room([value for frame in frames for value in frame[metric]])
    plots = []
    titles = {"trials": "trials that had ended", "epochs": "epochs trained", "seconds": "seconds"}
    for axis, title in titles.items():
        figure = go.Figure()
        for label, frame, color in zip(labels, frames, cycle(RUN_COLORS), strict=False):
            figure.add_scatter(
                x=[round(float(value), 1) for value in frame[axis]],
                y=[float(f"{scale.place(value):.5g}") for value in frame[metric]],
                text=[objective.write(value) for value in frame[metric]],
                hovertemplate=f"%{{text}} at %{{x}} {axis}<extra>{label}</extra>",
                mode="lines",
                name=label,
                line={"shape": "hv", "width": 2, "color": color},
            )
        dress(figure, xaxis={"title": title, "rangemode": "tozero"}, yaxis=metric_axis(scale, low, high))
        caption = f"{capital(objective.name)}, the best of any epoch so far."
        figures = {"": figure} if any(len(frame) for frame in frames) else {}
        plots.append(Plot(f"by-{axis}", f"By {axis}", caption, figures))
    return plots


def comparison_sentences(views: Sequence[View]) -> list[str]:
    """Describe by how much the best run leads each other one, with the noise; then what makes that unfair."""
    names = run_labels(views)
    labels = dict(zip(views, names, strict=True))
    best = {view: best_score(view, view.best)[0] for view in views if view.best}
    ranked = sorted(best, key=lambda view: -view.objective.sign * best[view])
    found = [_lead(labels, best, ranked[0], other) for other in ranked[1:]]
    unequal: dict[str, list[Any]] = {
        "task": [view.task.name for view in views],
        "data": [view.task.data for view in views],
        "number of validation examples": [view.task.validation_examples for view in views],
    }
    for what, values in unequal.items():
        if len(set(values)) > 1:
            which = [f"{label}: {value or 'not known'}" for label, value in zip(names, values, strict=True)]
            found.append(f"They differ in their {what}, not only as searches ({'; '.join(which)}).")
    return found


def _lead(labels: Mapping[View, str], best: Mapping[View, float], *runs: View) -> str:
    objective, shown = runs[0].objective, []
    results = [(best[view], view.task.validation_examples) for view in runs]
    noise = error_noise(objective, *results) or max(
        (noise_at(view, lead_level(view)) for view in runs), key=lambda candidate: candidate.amount
    )
    for view, (value, n) in zip(runs, results, strict=True):
        of_trials = f"the best of {count(len(view.trials), 'trial')}" + (f", n = {n:,}" if n else "")
        shown.append(f"{labels[view]} ({objective.write_with_error(value, n)}, {of_trials})")
    lead = abs(best[runs[0]] - best[runs[1]])
    return (
        f"{shown[0]} leads {shown[1]} by {write_amount(objective, lead)} on validation{noise.judge(lead)}."
        f"{_on_the_test_set(*runs)}"
    )


def _on_the_test_set(*runs: View) -> str:
    objective = runs[0].objective
    winners = [view.outcome.winner for view in runs]
    results = [
        (winner.test[objective.metric], winner.test_n)
        for winner in winners
        if winner and objective.metric in winner.test
    ]
    if len(results) < 2:
        return ""
    (value, n), (other, _) = results
    noise = error_noise(objective, *results)
    judged = noise.judge(abs(value - other)) if noise else "; the noise is not known"
    both = f"{objective.write(value)} and {objective.write(other)}" + (f" (n = {n:,})" if n else "")
    return f" On the test set they have {both}{judged}."


def run_labels(views: Sequence[View]) -> list[str]:
    """Return a unique name for each run: that of its folder, with the path if needed."""
    names = [view.name for view in views]
    return names if len(set(names)) == len(names) else [view.outcome.folder.uri for view in views]
