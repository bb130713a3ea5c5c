"""The plots of the report as PNG files for a paper, at the level that the page begins with, by matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import optuna.visualization.matplotlib as optuna_pictures
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning

from tune_mnist.report.curves import run_labels
from tune_mnist.report.maps import CONTOUR_PARAMETERS, MOST_CELLS, MOST_LINES, varied_parameters
from tune_mnist.report.panels import BEST, BEST_COLOR, COLORS, RUN_COLORS, STATE_WORDS, apart
from tune_mnist.report.plots import by_mark
from tune_mnist.report.timeline import best_so_far, stretches
from tune_mnist.report.view import STATES, View
from tune_mnist.run.records import EPOCH, TrialRecord
from tune_mnist.run.words import short_value
from tune_mnist.tuning.asha import rungs

DPI = 200
MARKERS = {"COMPLETE": "o", "PRUNED": "x", "FAIL": "D", "RUNNING": "^", BEST: "*"}
"""The marks of the page, as matplotlib calls them."""
Maker = tuple[bool, Callable[[View], Figure]]
"""Whether there is something to draw, and what draws it."""


def all_pictures(view: View) -> dict[str, bytes]:
    """Draw each plot of a run that there is something to draw of; PNG files by name.

    One that fails is left out, and noted in the view's failures.
    """
    compared, trained = len(view.level.trials), any(trial.epochs for trial in view.trials)
    makers: dict[str, Maker] = {
        "history": (compared > 0, _history),
        "curves": (trained, _curves),
        "importance": (bool(view.importance(view.level).shares), _importance),
        "parallel": (compared > 0 and bool(view.space), _parallel),
        "contour": (len(varied_parameters(view, view.level)) > 1, _contour),
        "timeline": (trained, _timeline),
        "epochs": (bool(view.trials), _epochs),
    }
    for name in view.space:
        makers[f"slice-{name}"] = compared > 0, partial(_slice, name=name)
    with _quiet():
        pictures = {
            name: view.tried(f"the picture {name}", partial(_drawn, make, view), b"")
            for name, (possible, make) in makers.items()
            if possible
        }
    return {name: content for name, content in pictures.items() if content}


def comparison_pictures(views: Sequence[View]) -> dict[str, bytes]:
    """Draw the best so far of several runs against trials, epochs and seconds; PNG files by name."""
    frames = [best_so_far(view.ledger) for view in views]
    if not any(len(frame) for frame in frames):
        return {}
    with _quiet():
        view = views[0]
        metric = view.metric
        figure, axes = plt.subplots(1, 3, figsize=(14, 4), sharey=True)
        for axis, words in zip(axes, ("trials", "epochs", "seconds"), strict=True):
            for index, (label, frame) in enumerate(zip(run_labels(views), frames, strict=True)):
                color = RUN_COLORS[index % len(RUN_COLORS)]
                axis.step(
                    frame[words], frame[metric].map(view.scale.place), where="post", color=color, label=label
                )
            axis.set_xlabel(words)
        _mark_values(axes[0], view, [value for frame in frames for value in frame[metric]])
        axes[0].legend()
        return {"comparison": _png(figure)}


def _drawn(make: Callable[[View], Figure], view: View) -> bytes:
    return _png(make(view))


def _history(view: View) -> Figure:
    figure, axis = plt.subplots(figsize=(8, 5))
    numbers = [trial.number for trial in view.level.trials]
    values = pd.Series(view.level.values).map(view.scale.place)
    so_far = values.cummax() if view.objective.mode == "max" else values.cummin()
    axis.step(numbers, so_far, where="post", color=BEST_COLOR, linewidth=1.5, label="best so far")
    _draw_marks(axis, view, lambda trials: [trial.number for trial in trials])
    _mark_values(axis, view, view.level.values)
    axis.set(title=f"Optimization history {view.level.where}", xlabel="trial")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


def _draw_marks(axis: Axes, view: View, places: Callable[[Sequence[TrialRecord]], list[Any]]) -> None:
    """Draw the values of the level's trials with the marks of the page."""
    for state, trials, values in by_mark(view, view.level):
        axis.scatter(
            places(trials),
            [view.scale.place(value) for value in values],
            marker=MARKERS[state],
            s=150 if state == BEST else 36,
            linewidths=1.2 if MARKERS[state] == "x" else 0,
            color=BEST_COLOR if state == BEST else COLORS[state],
            label=STATE_WORDS.get(state, state),
            zorder=3,
        )


def _curves(view: View) -> Figure:
    figure, axis = plt.subplots(figsize=(8, 5))
    for state in ("PRUNED", "FAIL", "RUNNING", "COMPLETE"):
        for index, trial in enumerate(view.of_state(state)):
            x = [epoch[EPOCH] for epoch in trial.epochs]
            y = [view.scale.place(epoch[view.metric]) for epoch in trial.epochs]
            best = trial is view.best
            color, width = (BEST_COLOR, 2.5) if best else (COLORS[state], 0.9)
            label = f"trial {trial.number}, the best" if best else None if index else STATE_WORDS[state]
            axis.plot(x, y, ".-", color=color, linewidth=width, label=label, zorder=3 if best else 2)
    for rung in rungs(view.settings):
        axis.axvline(rung, color="grey", linewidth=0.8, linestyle=":")
    _mark_values(axis, view, [epoch[view.metric] for trial in view.trials for epoch in trial.epochs])
    axis.set(title="Learning curves and ASHA's rungs", xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


def _importance(view: View) -> Figure:
    found = view.importance(view.level)
    shares = list(found.shares)[::-1]
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.4 * len(shares)))
    values = [one.value for one in shares]
    ends = [[one.value - one.low for one in shares], [one.high - one.value for one in shares]]
    axis.barh([one.name for one in shares], values, color=COLORS["COMPLETE"])
    axis.errorbar(values, range(len(shares)), xerr=ends, fmt="none", ecolor="#555", capsize=3)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title(f"Importance: {found.method}", loc="left", fontsize=10)
    return figure


def _parallel(view: View) -> Figure:
    axis = optuna_pictures.plot_parallel_coordinate(
        view.study(view.level, MOST_LINES), target_name=view.objective.name
    )
    axis.set_title(f"Parallel coordinates {view.level.where}")
    figure = _figure_of(axis)
    low, high = axis.get_ylim()
    _write_values(axis, view, low, high)
    _mark_color_bar(figure, view)
    figure.set_size_inches(max(8, 1.6 * (1 + len(view.space))), 5)
    return figure


def _slice(view: View, name: str) -> Figure:
    figure, axis = plt.subplots(figsize=(7, 4.5))
    one = view.space[name]

    def places(trials: Sequence[TrialRecord]) -> list[float]:
        if isinstance(one, CategoricalDistribution):
            return [one.choices.index(trial.params[name]) + apart(trial.number) for trial in trials]
        return [float(trial.params[name]) for trial in trials]

    _draw_marks(axis, view, places)
    _mark_values(axis, view, view.level.values)
    if isinstance(one, CategoricalDistribution):
        axis.set_xticks(range(len(one.choices)), [short_value(choice) for choice in one.choices])
        axis.set_xlim(-0.6, len(one.choices) - 0.4)
    elif isinstance(one, FloatDistribution | IntDistribution):
        pad = 0.05 * (one.high - one.low) or 0.5
        axis.set_xscale("log" if one.log else "linear")
        axis.set_xlim(*((one.low / 1.1, one.high * 1.1) if one.log else (one.low - pad, one.high + pad)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        if isinstance(one, IntDistribution):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(title=f"{name} {view.level.where}", xlabel=name)
    axis.legend()
    return figure


def _contour(view: View) -> Figure:
    names = varied_parameters(view, view.level)[:CONTOUR_PARAMETERS]
    axes = optuna_pictures.plot_contour(
        view.study(view.level, MOST_CELLS), params=names, target_name=view.objective.name
    )
    figure = _figure_of(np.ravel(np.asarray(axes))[0])
    figure.set_size_inches(3.4 * len(names), 3 * len(names))
    for axis in figure.axes:
        axis.set_title("")  # Optuna's own, where there is one pair only
    figure.suptitle(f"Contour: {view.objective.name} {view.level.where}", y=0.95)
    _mark_color_bar(figure, view)
    return figure


def _timeline(view: View) -> Figure:
    found = stretches(view.ledger)
    workers = sorted({one.worker for one in found}, reverse=True)
    figure, axis = plt.subplots(figsize=(11, 1.6 + 0.35 * len(workers)))
    for state in STATES:
        some = [one for one in found if one.state == state]
        if some:
            axis.barh(
                [one.worker for one in some],
                [one.end - one.start for one in some],
                left=[one.start for one in some],
                color=COLORS[state],
                edgecolor="white",
                linewidth=0.5,
                label=STATE_WORDS[state],
            )
    axis.set(title="Timeline by worker", xlabel="seconds of the run")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=4)
    return figure


def _epochs(view: View) -> Figure:
    figure, axis = plt.subplots(figsize=(11, 4))
    numbers = [trial.number for trial in view.trials]
    planned = [trial.epochs_planned for trial in view.trials]
    axis.bar(numbers, planned, color="#e4e7eb", label="planned")
    for state in STATES:
        if some := view.of_state(state):
            x, y = [trial.number for trial in some], [trial.epoch for trial in some]
            axis.bar(x, y, color=COLORS[state], label=STATE_WORDS[state])
    axis.set(title="Epochs per trial", xlabel="trial", ylabel="epochs")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def _mark_values(axis: Axes, view: View, values: Sequence[float]) -> tuple[float, float]:
    """Give a y axis room around values of the objective, and such values as its marks; return its ends."""
    low, high = view.scale.room(values)
    axis.set_ylim(low, high)
    _write_values(axis, view, low, high)
    axis.set_ylabel(view.objective.name)
    return low, high


def _mark_color_bar(figure: Figure, view: View) -> None:
    for axis in figure.axes:
        if axis.get_label() == "<colorbar>":
            _write_values(axis, view, *axis.get_ylim())


def _write_values(axis: Axes, view: View, low: float, high: float) -> None:
    axis.set_yticks(*view.scale.ticks(low, high))


def _figure_of(axis: Axes) -> Figure:
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return content.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Draw without a screen, and without the warnings of Optuna's about its own functions."""
    matplotlib.use("agg")
    with warnings.catch_warnings(), plt.style.context("default"):
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Attempting to set identical low and high")  # of one finished trial
        yield
