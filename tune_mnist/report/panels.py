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

COLORS = {"COMPLETE": "#4a86e8", "PRUNED": "#9aa1ab", "FAIL": "#d64545", "RUNNING": "#d9901a"}
"""Of the states of trials."""
STATE_WORDS = {"COMPLETE": "finished", "PRUNED": "cut", "FAIL": "failed", "RUNNING": "running"}
"""What the plots call them."""
BEST_COLOR = "#e0559a"
RUN_COLORS = ("#4a86e8", "#d9901a", "#2a9d6f", "#a45ee5", "#d64545", "#5f7285", "#e0559a", "#8c6d1f")
"""Of the runs of a comparison, by turns."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One panel of a report: a figure, several to choose from, or the reason why there is none."""

    name: str
    title: str
    caption: str
    figures: dict[str, go.Figure] = field(default_factory=dict)
    "By the words to choose it by."
    kind: str = "single"
    "single; several, to be shown beside one another; or choice, of which one is shown."
    min_width: int = 0
    "Pixels below which it is scrolled instead of squeezed."


def foot(low: float, high: float) -> float:
    """Give the height at which the ticks of trials without a final result stand, below all results."""
    return low + 0.045 * (high - low)


def metric_axis(scale: Scale, low: float, high: float) -> dict[str, Any]:
    """Lay out an axis of the objective's places, marked with its values."""
    places, texts = scale.ticks(low, high)
    return {"tickvals": places, "ticktext": texts, "range": [low, high], "title": None, "zeroline": False}


def parameter_axis(name: str, one: BaseDistribution) -> dict[str, Any]:
    """Lay out the axis of a hyper-parameter over the whole of its range."""
    axis: dict[str, Any] = {"title": name}
    if isinstance(one, CategoricalDistribution):
        return {**axis, "type": "category", "range": None}
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
            axis |= {"tick0": one.low, "dtick": one.step * max(1, math.ceil((high - low) / one.step / 6))}
    pad = 0.05 * (high - low) or 0.5
    return {**axis, "range": [low - pad, high + pad]}


def parameter_values(values: Iterable[Any], one: BaseDistribution) -> list[Any]:
    """Write values for the axis of a hyper-parameter: choices as words, numbers with four digits."""
    if isinstance(one, CategoricalDistribution):
        return [str(value) for value in values]
    return [float(f"{value:.4g}") if isinstance(value, float) else value for value in values]


def color_bar(scale: Scale, places: Sequence[float | None]) -> dict[str, Any]:
    """Lay out the legend of a colour scale of the objective's places, marked with its values."""
    known = [place for place in places if place is not None]
    ticks, texts = scale.ticks(min(known) - 1e-9, max(known) + 1e-9)
    return {"tickvals": ticks, "ticktext": texts, "title": None, "thickness": 12}


def add_ticks(figure: go.Figure, places: Sequence[Any], trials: Sequence[TrialRecord], foot: float) -> None:
    """Mark trials without a final result at the foot of a plot, where no value can be read off them."""
    if not trials:
        return
    state = trials[0].shown_state
    name = STATE_WORDS[state]
    figure.add_scatter(
        x=places,
        y=[round(foot, 4)] * len(trials),
        mode="markers",
        name=name,
        marker={"symbol": "line-ns", "size": 11, "line": {"width": 1.5, "color": COLORS[state]}},
        customdata=[trial.number for trial in trials],
        hovertemplate=f"trial %{{customdata}}, {name}<extra></extra>",
    )


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
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    )
    figure.update_layout(**layout)
    figure.update_xaxes(title_font_size=12)
    figure.update_yaxes(title_font_size=12)
