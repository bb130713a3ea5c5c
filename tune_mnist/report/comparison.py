"""Runs compared: the best so far of each, and whether the lead of the best one exceeds the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tune_mnist.report.insights import best_score
from tune_mnist.report.noise import error_noise, lead_level, noise_at
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
    for axis, words in (
        ("trials", "trials that had ended"),
        ("epochs", "epochs trained"),
        ("seconds", "seconds"),
    ):
        figure = go.Figure()
        for index, (label, frame) in enumerate(zip(labels, frames, strict=True)):
            figure.add_scatter(
                x=[round(float(value), 1) for value in frame[axis]],
                y=[float(f"{scale.place(value):.5g}") for value in frame[metric]],
                text=[objective.write(value) for value in frame[metric]],
                hovertemplate=f"%{{text}} at %{{x}} {axis}<extra>{label}</extra>",
                mode="lines",
                name=label,
                line={"shape": "hv", "width": 2, "color": RUN_COLORS[index % len(RUN_COLORS)]},
            )
        dress(figure, xaxis={"title": words, "rangemode": "tozero"}, yaxis=metric_axis(scale, low, high))
        plots.append(
            Plot(
                name=f"by-{axis}",
                title=f"By {axis}",
                caption=f"{capital(objective.name)}, the best of any epoch so far.",
                figures={"": figure} if any(len(frame) for frame in frames) else {},
            )
        )
    return plots


def comparison_sentences(views: Sequence[View]) -> list[str]:
    """Say of each run by how much the best one leads it, with the noise; then what makes that unfair."""
    names = run_labels(views)
    labels = dict(zip(views, names, strict=True))
    best = {view: best_score(view, view.best)[0] for view in views if view.best}
    ranked = sorted(best, key=lambda view: -view.objective.sign * best[view])
    found = [_lead(labels, ranked[0], other, best) for other in ranked[1:]]
    unequal: dict[str, list[Any]] = {
        "task": [view.task.name for view in views],
        "data": [view.task.data for view in views],
        "number of validation examples": [view.task.validation_examples for view in views],
    }
    for what, values in unequal.items():
        if len(set(values)) > 1:
            which = [f"{label}: {value or 'not known'}" for label, value in zip(names, values, strict=True)]
            found.append(f"They differ in their {what}, and not only as searches ({'; '.join(which)}).")
    return found


def _lead(labels: Mapping[View, str], first: View, other: View, best: Mapping[View, float]) -> str:
    objective, runs = first.objective, (first, other)
    counts = [view.task.validation_examples for view in runs]
    noise = error_noise(objective, *((best[view], n) for view, n in zip(runs, counts, strict=True)))
    if noise is None:
        noise = max((noise_at(view, lead_level(view)) for view in runs), key=lambda one: one.amount)
    shown = []
    for view, n in zip(runs, counts, strict=True):
        value = objective.write_with_error(best[view], n)
        of_examples = f", n = {n:,}" if n else ""
        shown.append(f"{labels[view]} ({value}, the best of {count(len(view.trials), 'trial')}{of_examples})")
    lead = abs(best[first] - best[other])
    amount = f"{objective.write_difference(lead)}{objective.unit}"
    return (
        f"{shown[0]} leads {shown[1]} by {amount} on validation{noise.judge(lead)}.{_on_the_test_set(*runs)}"
    )


def _on_the_test_set(first: View, other: View) -> str:
    winners = [view.outcome.winner for view in (first, other)]
    objective = first.objective
    results = [
        (winner.test[objective.metric], winner.test_n)
        for winner in winners
        if winner and objective.metric in winner.test
    ]
    if len(results) < 2:
        return ""
    (value, n), (other_value, _) = results
    noise = error_noise(objective, *results)
    judged = noise.judge(abs(value - other_value)) if noise else "; the noise is not known"
    of_examples = f" (n = {n:,})" if n else ""
    both = f"{objective.write(value)} and {objective.write(other_value)}"
    return f" On the test set they have {both}{of_examples}{judged}."


def run_labels(views: Sequence[View]) -> list[str]:
    """Name runs so that no two are named alike: by their folders, where need be with the path."""
    names = [view.name for view in views]
    return names if len(set(names)) == len(names) else [view.outcome.folder.uri for view in views]
