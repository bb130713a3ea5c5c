"""The plots of the page as PNG files for a paper, at the level that the page begins with, drawn by Chrome."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Iterable, Mapping
from html import escape
from io import BytesIO

import plotly.graph_objects as go
from PIL import Image

from tune_mnist.report.panels import Plot
from tune_mnist.run.words import first_line

DPI = 200
WIDTH, NARROW = 760, 480
"""CSS pixels, 96 per inch: of most pictures, and of those that the page shows next to one another."""


class PictureError(Exception):
    """The pictures cannot be drawn; the text says what is missing."""


def pictures_of(plots: Iterable[Plot]) -> dict[str, bytes]:
    """Draw each figure of some plots; PNG files by name: history, slice-x, contour-x-y.

    Raises:
        PictureError: if Chrome is missing, or fails.
    """
    figures = {
        _file_name(plot, choice): _for_paper(plot, choice, figure)
        for plot in plots
        for choice, figure in plot.figures.items()
    }
    if not figures:
        return {}
    from kaleido.errors import ChromeNotFoundError  # an extra; analyse.py has checked that it is installed

    try:
        return asyncio.run(_draw(figures))
    except ChromeNotFoundError as error:
        what = "apt install chromium, or run plotly_get_chrome"
        raise PictureError(f"--png needs Chrome or Chromium: {what}") from error
    except Exception as error:  # of the browser or its driver
        raise PictureError(f"Chrome failed: {type(error).__name__}: {first_line(error)}") from error


async def _draw(figures: Mapping[str, go.Figure]) -> dict[str, bytes]:
    """Draw figures in one browser, as starting it takes longer than drawing a figure."""
    from kaleido import Kaleido

    pictures = {}
    async with Kaleido(mathjax=False) as browser:  # MathJax would be fetched from the network
        for name, figure in figures.items():
            size = {"width": figure.layout.width, "height": figure.layout.height, "scale": DPI / 96}
            drawn = await browser.calc_fig(figure, opts={"format": "png", **size})
            picture = BytesIO()
            # Chrome's own PNG does not state its resolution.
            Image.open(BytesIO(drawn)).save(picture, "PNG", dpi=(DPI, DPI))
            pictures[name] = picture.getvalue()
    return pictures


def _for_paper(plot: Plot, choice: str, figure: go.Figure) -> go.Figure:
    """Return a figure in black on white, with the title and the caption that the page writes above it."""
    width = max(NARROW if plot.kind == "several" else WIDTH, plot.min_width)
    lines = textwrap.wrap(plot.caption, width // 7)
    caption = "".join(f'<br><span style="font-size: 12px">{escape(line)}</span>' for line in lines)
    title = escape(f"{plot.title}: {choice}" if choice else plot.title) + caption
    top, bottom = 30 + 18 * len(lines), 8
    place = {"x": 0, "xref": "paper", "y": 1, "yanchor": "top", "pad_t": 20}
    return go.Figure(figure).update_layout(
        title={"text": title, "font_size": 15, **place},
        width=width,
        height=figure.layout.height + top + bottom,
        margin_t=figure.layout.margin.t + top,
        margin_b=figure.layout.margin.b + bottom,
        font_color="black",
        paper_bgcolor="white",
        plot_bgcolor="white",
    )


def _file_name(plot: Plot, choice: str) -> str:
    return "-".join([plot.name.removesuffix("s"), *choice.split(" and ")]) if choice else plot.name
