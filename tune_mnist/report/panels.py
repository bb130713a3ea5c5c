"""What the plots share: the panel that holds one, colours, axes, and the look of the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune_mnist.report.scale import Scale
from tune_mnist.report.view import View
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.words import short_value


@dataclass(frozen=True, eq=False)
class Look:
    """How the trials of a state are drawn in every plot, and what they are called there."""

    word: str
    with_mark: str
    "What a plot without a legend calls them."
    color: str
    symbol: str

    def mark(self, *, size: float = 7, count: int = 1) -> dict[str, Any]:
        """Return their mark, in pixels; a fainter one if there are many."""
        if self is LOOKS[BEST]:
            return {"symbol": self.symbol, "size": 2 * size, "opacity": 1, "color": self.color, "line": EDGE}
        marker = {"symbol": self.symbol, "size": size, "opacity": 0.85 if count <= 200 else 0.5}
        if self.symbol.endswith("-thin"):
            return {**marker, "line": {"width": 1.4, "color": self.color}}
        return {**marker, "color": self.color}

    def mark_on_color(self) -> dict[str, Any]:
        """Return their mark for a coloured ground, on which thin grey lines are hard to see."""
        solid = self.symbol.removesuffix("-thin")
        return {**self.mark(), "symbol": solid, "color": self.color, "opacity": 1, "line": EDGE}


EDGE = {"width": 1, "color": "rgba(255,255,255,.8)"}
"""Of marks that must stand out."""

BEST = "best"
"""Stands in for the state of the best trial."""
# Okabe and Ito's colours, which colour-blind people can tell apart (https://jfly.uni-koeln.de/color/), and a
# grey; the blue is a little brighter, for dark pages.
LOOKS = {
    "PRUNED": Look("pruned", "pruned later (crosses)", "#8b929c", "x-thin"),
    "FAIL": Look("failed", "failed later (diamonds)", "#d55e00", "diamond"),
    "RUNNING": Look("running", "running (triangles)", "#e69f00", "triangle-up"),
    "COMPLETE": Look("finished", "finished (dots)", "#1f83c8", "circle"),
    BEST: Look("best", "best (star)", "#cc79a7", "star"),
}
"""By state, in the order in which they are drawn: the later ones on top."""
RUN_COLORS = ("#1f83c8", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8b929c", "#8c6d1f")
"""Of the runs of a comparison, in turn."""
JITTER = 0.25
"""Most steps by which trials with the same choice or number are moved apart, to either side."""
MOST_MOVED = 25
"""Steps of a range above which trials are not moved apart."""


@dataclass(frozen=True)
class Plot:
    """One panel of a report: a figure, several to choose from, or the reason why there is none."""

    name: str
    title: str
    caption: str
    figures: dict[str, go.Figure] = field(default_factory=dict)
    "By the words that select one."
    kind: str = "single"
    "single; several, shown next to one another; or choice, of which one is shown."
    min_width: int = 0
    "Pixels below which it is scrolled instead of squeezed."


def by_look(view: View, trials: Sequence[TrialRecord]) -> Iterator[tuple[Look, list[TrialRecord]]]:
    """Divide trials by how they are drawn: by their states, and the best one."""
    for state, look in LOOKS.items():
        some = [trial for trial in trials if state == (BEST if trial is view.best else trial.shown_state)]
        if some:
            yield look, some


def metric_axis(scale: Scale, low: float, high: float) -> dict[str, Any]:
    """Lay out an axis of the objective's places, marked with its values."""
    places, texts = scale.ticks(low, high)
    return {"tickvals": places, "ticktext": texts, "range": [low, high], "title": None, "zeroline": False}


def parameter_axis(name: str, distribution: BaseDistribution) -> dict[str, Any]:
    """Lay out the axis of a hyper-parameter over its whole range, in places of `parameter_places`."""
    axis: dict[str, Any] = {"title": name, "zeroline": False}
    if isinstance(distribution, CategoricalDistribution):
        n = len(distribution.choices)
        texts = [short_value(choice) for choice in distribution.choices]
        return {**axis, "tickvals": list(range(n)), "ticktext": texts, "range": [-0.6, n - 0.4]}
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log:
        low, high = math.log10(distribution.low), math.log10(distribution.high)
        mantissas = (1,) if high - low > 2.5 else (1, 3) if high - low > 1.2 else (1, 2, 5)
        decades = range(math.floor(low), math.ceil(high) + 1)
        marks = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        marks = [mark for mark in marks if distribution.low * 0.999 <= mark <= distribution.high * 1.001]
        axis |= {"type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}
    else:
        low, high = float(distribution.low), float(distribution.high)
        axis |= {"nticks": 6}
        if isinstance(distribution, IntDistribution):
            step = distribution.step * max(1, math.ceil((high - low) / distribution.step / 6))
            axis |= {"tick0": distribution.low, "dtick": step, "tickformat": "d"}
    pad = max(0.05 * (high - low) or 0.5, 0.6 * _moved_by(distribution))
    return {**axis, "range": [low - pad, high + pad]}


def parameter_places(trials: Iterable[TrialRecord], name: str, distribution: BaseDistribution) -> list[Any]:
    """Return the places of trials on the axis of a hyper-parameter; equal choices and steps moved apart."""
    values = [
        (trial.params[name], JITTER * (2 * math.fmod(0.5 + 0.618034 * trial.number, 1.0) - 1))
        for trial in trials
    ]
    if isinstance(distribution, CategoricalDistribution):
        return [round(distribution.choices.index(value) + aside, 3) for value, aside in values]
    if step := _moved_by(distribution):
        return [float(f"{value + step * aside:.4g}") for value, aside in values]
    return [float(f"{value:.4g}") if isinstance(value, float) else value for value, _ in values]


def _moved_by(distribution: BaseDistribution) -> float:
    """Return the step of a number whose equal values are moved apart; 0 if they are not."""
    if not isinstance(distribution, FloatDistribution | IntDistribution) or distribution.log:
        return 0.0
    step, width = distribution.step, distribution.high - distribution.low
    return step if step and width / step < MOST_MOVED else 0.0


def color_bar(scale: Scale, places: Sequence[float]) -> dict[str, Any]:
    """Lay out the legend of a colour scale of the objective's places, marked with its values."""
    ticks, texts = scale.ticks(min(places) - 1e-9, max(places) + 1e-9)
    return {"tickvals": ticks, "ticktext": texts, "title": None, "thickness": 12}


def whole_step(most: int) -> int:
    """Choose the step of an axis of whole numbers from 0 to ``most``: 1, 2 or 5 times a power of ten."""
    steps = (int(f"{factor}{'0' * zeros}") for zeros in itertools.count() for factor in (1, 2, 5))
    return next(step for step in steps if 8 * step >= most)


def dress(figure: go.Figure, *, height: int = 340, margin_l: int = 62, **layout: Any) -> None:
    """Give a figure the look of the page, which itself sets the colours of text and lines."""
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin={"l": margin_l, "r": 14, "t": layout.pop("margin_t", 34), "b": layout.pop("margin_b", 44)},
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        showlegend=True,  # even for a single trace
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_layout(**layout)
    figure.update_xaxes(title_font_size=12)
    figure.update_yaxes(title_font_size=12, title_standoff=8, ticklabelstandoff=4)
