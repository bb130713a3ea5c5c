"""The comparison of runs on a terminal: a table, and whether their differences exceed the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mnist.cli.summary import print_hanging, print_losses
from tune_mnist.report.comparison import comparison_sentences, run_labels
from tune_mnist.report.timeline import best_so_far
from tune_mnist.report.view import View
from tune_mnist.run.words import duration


def print_comparison(console: Console, views: Sequence[View]) -> None:
    """Print runs side by side: their size, their best, and what it took to get within reach of it."""
    frames = [best_so_far(view.ledger) for view in views]
    objective, metric = views[0].objective, views[0].metric
    ends = [float(frame[metric].iloc[-1]) for frame in frames if len(frame)]
    reach = min(ends, key=lambda value: objective.sign * value, default=math.nan)
    if objective.format.endswith("%"):
        reach = math.floor(reach * 1000) / 1000 if reach == reach else reach
    table = Table(box=None, header_style="bold")
    headings = (
        "run",
        "trials",
        "epochs",
        "wall time",
        "best",
        f"until {objective.write(reach)}: trials",
        "epochs",
        "seconds",
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for label, view, frame in zip(run_labels(views), views, frames, strict=True):
        row = [label, str(len(view.trials)), str(len(frame)), duration(view.outcome.seconds)]
        there = frame[objective.sign * (frame[metric] - reach) >= 0].head(1)
        best = objective.write(float(frame[metric].iloc[-1])) if len(frame) else "--"
        when = [f"{value:.0f}" for name in ("trials", "epochs", "seconds") for value in there[name]]
        table.add_row(*row, best, *(when or ["--"] * 3))
    console.print(table)
    for sentence in comparison_sentences(views):
        print_hanging(console, "- ", Text(sentence))
    for view in views:
        print_losses(console, view)
