"""Show the outcome of a run, ended or not: on the console, as tables and as one page; or compare runs.

python scripts/analyse.py runs/NAME
python scripts/analyse.py s3://BUCKET/runs/NAME --out NAME
python scripts/analyse.py runs/NAME1 runs/NAME2
python scripts/analyse.py runs/NAME --trial 7
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace

import optuna
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_mnist.cli.console import PatientConsole, place_of
from tune_mnist.cli.parser import OneLineParser, complain
from tune_mnist.cli.summary import (
    REPORT,
    next_command,
    print_analysis,
    print_hanging,
    print_losses,
    print_trial,
)
from tune_mnist.report.comparison import comparison, comparison_sentences, run_labels
from tune_mnist.report.page import make_comparison, make_report
from tune_mnist.report.panels import Plot
from tune_mnist.report.pictures import PictureError, pictures_of
from tune_mnist.report.plots import EVERYWHERE, all_plots
from tune_mnist.report.timeline import best_so_far
from tune_mnist.report.view import View
from tune_mnist.results.frames import write_tables
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.words import count, duration
from tune_mnist.tuning import tuner

COMPARISON = "comparison.html"
"""Name of the page that compares runs."""


def main() -> int:
    """Show runs as the flags say; return the exit code."""
    parser = OneLineParser(description="Show the outcome of a run, or compare runs.")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="its folder, or its URI such as s3://BUCKET/runs/NAME"
    )
    parser.add_argument(
        "--out",
        help="folder or URI for the output, or the page's file, NAME.html (default: the run's folder; for a "
        "comparison the current one)",
    )
    parser.add_argument("--csv", action="store_true", help="write the tables as CSV too")
    parser.add_argument("--png", action="store_true", help="write the plots as PNG too, into plots/")
    parser.add_argument(
        "--trial", type=int, metavar="N", help="print only this trial: its epochs, and why it stopped"
    )
    flags = parser.parse_args()
    if flags.trial is not None and len(flags.runs) > 1:
        parser.error("--trial needs a single run, but there are several")
    if flags.png and importlib.util.find_spec("kaleido") is None:
        parser.error("--png needs kaleido: pip install 'tune-mnist[png]'")
    if len(set(flags.runs)) < len(flags.runs):
        parser.error("a run is named twice, but all must be different")
    try:
        out = None if flags.out is None else _place(flags.out)
        views = [View(tuner.load_run(run)) for run in flags.runs]
    except ValueError as error:  # a FolderError too
        parser.error(str(error))
    objectives = {f"{view.metric} ({view.objective.mode})": view for view in views}
    if len(objectives) > 1:
        parser.error(f"runs of different objectives cannot be compared: {', '.join(objectives)}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # or it logs every study made for a plot
    console = PatientConsole()
    alone = len(views) == 1
    if flags.trial is not None:
        try:
            print_trial(console, views[0], flags.trial)
        except ValueError as error:
            parser.error(str(error))
        return 0
    if alone:
        print_analysis(console, views[0])
    else:
        print_comparison(console, views)
    # Without --out the files go into the run's folder, and a comparison into the working folder.
    folder, page = (views[0].outcome.folder, REPORT) if alone else (RunFolder("."), COMPARISON)
    if out:
        folder, page = out[0], out[1] or page
    complaint, code = [], 0
    try:
        written, plots = _write(views, folder, page, csv=flags.csv)
        pictures = pictures_of(plots) if flags.png else {}
        for name, content in pictures.items():
            folder.put(f"plots/{name}.png", content)
        written += [f"{count(len(pictures), 'picture')} in plots/"] if pictures else []
    except PictureError as error:
        complaint, code = [f"error: {error}"], 2
    except FolderError as error:
        return complain(f"error: {error}; --out names another folder", 1)
    console.print(f"\nIn {place_of(folder)}: {', '.join(written)}", markup=False)
    for failure in [*(failure for view in views for failure in view.failures), *complaint]:
        complain(failure, code)
    return code


def _place(out: str) -> tuple[RunFolder, str]:
    """Return the folder that ``--out`` names, and the page's name in it, "" if it names none."""
    if not out.endswith(".html"):
        return RunFolder(out), ""
    parent, slash, page = out.rpartition("/")
    return RunFolder(parent or slash or "."), page


def _write(views: list[View], folder: RunFolder, page: str, *, csv: bool) -> tuple[list[str], list[Plot]]:
    """Write the tables and the page; return their names, and the plots that the page begins with."""
    if len(views) > 1:
        folder.put(page, make_comparison(views).encode())
        return [page], [replace(plot, name=f"comparison-{plot.name}") for plot in comparison(views)]
    (view,) = views
    written = write_tables(view.outcome.grid, folder.put, csv=csv)
    plots = all_plots(view)
    folder.put(page, make_report(view, next_command(view), plots).encode())
    return [page, *written], [levels.get(EVERYWHERE) or levels[view.level.name] for levels in plots.values()]


def print_comparison(console: Console, views: Sequence[View]) -> None:
    """Print a table of runs: their size, their best, and how soon each reached what all of them reached."""
    frames = [best_so_far(view.ledger) for view in views]
    objective, metric = views[0].objective, views[0].metric
    ends = [float(frame[metric].iloc[-1]) for frame in frames if len(frame)]
    reach = min(ends, key=lambda value: objective.sign * value, default=math.nan)
    if objective.format.endswith("%"):
        reach = math.floor(reach * 1000) / 1000 if reach == reach else reach
    table = Table("run", box=None, header_style="bold")
    until = f"until {objective.write(reach)}: trials"
    for heading in ("trials", "epochs", "wall time", "best", until, "epochs", "seconds"):
        table.add_column(heading, justify="right")
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
