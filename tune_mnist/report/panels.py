"""What the plots share: the panel that holds one, colours, axes, and the look of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tune_mnist.report.scale import Scale
from tune_mnist.run.records import TrialRecord
from tune_mnist.run.words import short_value

# Okabe and Ito's colours, which the colour-blind tell apart (https://jfly.uni-koeln.de/color/), and a grey;
# the blue a little brighter, for dark pages.
COLORS = {"COMPLETE": "#1f83c8", "PRUNED": "#8b929c", "FAIL": "#d55e00", "RUNNING": "#e69f00"}
"""Of the states of trials."""
SYMBOLS = {"COMPLETE": "circle", "PRUNED": "x-thin", "FAIL": "diamond", "RUNNING": "triangle-up"}
"""Their marks."""
STATE_WORDS = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""What the plots call them."""
BEST, BEST_COLOR, BEST_SYMBOL = "best", "#cc79a7", "star"
"""Name, colour and mark of the best trial."""
MARK_WORDS = {
    **{"COMPLETE": "finished (dots)", "PRUNED": "pruned later (crosses)", "FAIL": "failed later (diamonds)"},
    **{"RUNNING": "running (triangles)", BEST: "best (star)"},
}
"""What a plot without a legend calls the marks."""
DRAWN_FIRST = ("PRUNED", "FAIL", "RUNNING", "COMPLETE")
"""The states in the order in which they are drawn: the later ones on top."""
RUN_COLORS = ("#1f83c8", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8b929c", "#8c6d1f")
"""Of the runs of a comparison, by turns."""
JITTER = 0.25
"""Steps by which trials with the same choice or number are moved apart, at most, to either side."""
MOST_MOVED = 25
"""Steps of a range above which trials are not moved apart."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One panel of a report: a figure, several to choose from, or the reason why there is none."""

    name: str
    title: str
    caption: str
    figures: dict[str, go.Figure] = field(default_factory=dict)
    "By the words to choose it by."
    kind: str = "single"
    "single; several, to be shown next to one another; or choice, of which one is shown."
    min_width: int = 0
    "Pixels below which it is scrolled instead of squeezed."


def mark(state: str, *, size: float = 7, count: int = 1) -> dict[str, Any]:
    """Give the mark of trials of a state, or of the BEST one, the same in every plot.

    Args:
        state: of the trials.
        size: in pixels.
        count: of the trials at most, to draw many of them thinner.
    """
    if state == BEST:
        line = {"width": 1, "color": "rgba(255,255,255,.8)"}
        return {"symbol": BEST_SYMBOL, "size": 2 * size, "opacity": 1, "color": BEST_COLOR, "line": line}
    color, symbol = COLORS[state], SYMBOLS[state]
    opacity = 0.85 if count <= 200 else 0.5
    if symbol.endswith("-thin"):
        return {"symbol": symbol, "size": size, "opacity": opacity, "line": {"width": 1.4, "color": color}}
    return {"symbol": symbol, "size": size, "opacity": opacity, "color": color}


def apart(number: int) -> float:
    """Give the place of a trial among those at the same place, -JITTER..JITTER, spread by its number."""
    return JITTER * (2 * math.fmod(0.5 + 0.618034 * number, 1.0) - 1)


def foot(low: float, high: float) -> float:
    """Give the height at which trials without a value stand, below all values."""
    return low + 0.045 * (high - low)


def metric_axis(scale: Scale, low: float, high: float) -> dict[str, Any]:
    """Lay out an axis of the objective's places, marked with its values."""
    places, texts = scale.ticks(low, high)
    return {"tickvals": places, "ticktext": texts, "range": [low, high], "title": None, "zeroline": False}


def parameter_axis(name: str, one: BaseDistribution) -> dict[str, Any]:
    """Lay out the axis of a hyper-parameter over the whole of its range, in places of `parameter_places`."""
    axis: dict[str, Any] = {"title": name, "zeroline": False}
    if isinstance(one, CategoricalDistribution):
        n = len(one.choices)
        texts = [short_value(choice) for choice in one.choices]
        return {**axis, "tickvals": list(range(n)), "ticktext": texts, "range": [-0.6, n - 0.4]}
    assert isinstance(one, FloatDistribution | IntDistribution)
    if one.log:
        low, high = math.log10(one.low), math.log10(one.high)
        mantissas = (1,) if high - low > 2.5 else (1, 3) if high - low > 1.2 else (1, 2, 5)
        decades = range(math.floor(low), math.ceil(high) + 1)
        marks = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        marks = [mark for mark in marks if one.low * 0.999 <= mark <= one.high * 1.001]
        axis |= {"type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}
    else:
        low, high = float(one.low), float(one.high)
        axis |= {"nticks": 6}
        if isinstance(one, IntDistribution):
            step = one.step * max(1, math.ceil((high - low) / one.step / 6))
            axis |= {"tick0": one.low, "dtick": step, "tickformat": "d"}
    pad = 0.05 * (high - low) or 0.5
    pad = max(pad, 0.6 * _moved_by(one))
    return {**axis, "range": [low - pad, high + pad]}


def parameter_places(trials: Iterable[TrialRecord], name: str, one: BaseDistribution) -> list[Any]:
    """Give the places of trials on the axis of a hyper-parameter; equal choices and steps apart."""
    values = [(trial.params[name], apart(trial.number)) for trial in trials]
    if isinstance(one, CategoricalDistribution):
        return [round(one.choices.index(value) + aside, 3) for value, aside in values]
    if step := _moved_by(one):
        return [float(f"{value + step * aside:.4g}") for value, aside in values]
    return [float(f"{value:.4g}") if isinstance(value, float) else value for value, _ in values]


def _moved_by(one: BaseDistribution) -> float:
    """Give the step of a number whose equal values are moved apart; 0 where they are not."""
    if not isinstance(one, FloatDistribution | IntDistribution) or one.log or not one.step:
        return 0.0
    return one.step if (one.high - one.low) / one.step < MOST_MOVED else 0.0


def color_bar(scale: Scale, places: Sequence[float | None]) -> dict[str, Any]:
    """Lay out the legend of a colour scale of the objective's places, marked with its values."""
    known = [place for place in places if place is not None]
    ticks, texts = scale.ticks(min(known) - 1e-9, max(known) + 1e-9)
    return {"tickvals": ticks, "ticktext": texts, "title": None, "thickness": 12}


def whole_step(most: int) -> int:
    """Choose the step of an axis of whole numbers from 0 to ``most``: 1, 2 or 5 times a power of ten."""
    power = 1
    while 8 * 5 * power < most:
        power *= 10
    return next(step for step in (power, 2 * power, 5 * power) if 8 * step >= most)


def dress(figure: go.Figure, *, height: int = 340, margin_l: int = 62, **layout: Any) -> None:
    """Give a figure the look of the page, which sets the colours of its text and lines."""
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin={"l": margin_l, "r": 14, "t": layout.pop("margin_t", 34), "b": layout.pop("margin_b", 44)},
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        showlegend=True,  # of a single trace too
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_layout(**layout)
    figure.update_xaxes(title_font_size=12)
    figure.update_yaxes(title_font_size=12, title_standoff=8, ticklabelstandoff=4)
