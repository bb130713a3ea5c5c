"""Show the outcome of a run, ended or not: on the console, as tables and as one page; or compare runs.

python scripts/analyse.py runs/NAME
python scripts/analyse.py s3://BUCKET/runs/NAME --out NAME
python scripts/analyse.py runs/NAME1 runs/NAME2
python scripts/analyse.py runs/NAME --trial 7
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna

from tune_mnist.cli.comparison import print_comparison
from tune_mnist.cli.console import PatientConsole
from tune_mnist.cli.parser import OneLineParser, program
from tune_mnist.cli.summary import REPORT, next_command, print_analysis, print_trial
from tune_mnist.report.comparison import comparison
from tune_mnist.report.page import make_comparison, make_report
from tune_mnist.report.panels import Plot
from tune_mnist.report.pictures import PictureError, pictures_of
from tune_mnist.report.plots import EVERYWHERE, all_plots
from tune_mnist.report.view import View
from tune_mnist.results.frames import write_tables
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.words import count, short_path
from tune_mnist.tuning import tuner

COMPARISON = "comparison.html"
"""Name of the page that compares runs."""


def main() -> int:
    """Look at runs as the flags say; return the exit code."""
    parser = OneLineParser(description="Show what a run has come to, or compare runs.", allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="its folder, or its URI such as s3://BUCKET/runs/NAME"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder for what is written, or the page's file, NAME.html (default: the run's folder; for a "
        "comparison this one)",
    )
    parser.add_argument("--csv", action="store_true", help="write the tables as CSV too")
    parser.add_argument("--png", action="store_true", help="write the plots as PNG too, into plots/")
    parser.add_argument(
        "--trial", type=int, metavar="N", help="print only this trial: its epochs, and why it stopped"
    )
    flags = parser.parse_args()
    if flags.trial is not None and len(flags.runs) > 1:
        parser.error("--trial is of one run, but there are several")
    if flags.png and importlib.util.find_spec("kaleido") is None:
        parser.error("--png needs kaleido: pip install 'tune-mnist[png]'")
    if len(set(flags.runs)) < len(flags.runs):
        parser.error("a run is named twice, but each must be another one")
    try:
        views = [View(tuner.load_run(run)) for run in flags.runs]
    except (FolderError, ValueError) as error:
        parser.error(str(error))
    objectives = {f"{view.metric} ({view.objective.mode})": view for view in views}
    if len(objectives) > 1:
        parser.error(f"runs of different objectives cannot be compared: {', '.join(objectives)}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # or it tells of every study made for a plot
    console = PatientConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
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
    complaint = []
    try:
        place = Place(flags.out, views[0].outcome.folder if alone else None)
        written, plots = _write(views, place.put, place.page, csv=flags.csv)
        pictures = pictures_of(plots) if flags.png else {}
        for name, content in pictures.items():
            place.put(f"plots/{name}.png", content)
    except PictureError as error:
        pictures, complaint = {}, [f"error: {error}"]
    except (OSError, FolderError) as error:
        print(f"{program()}: error: {error}; --out names another folder", file=sys.stderr)
        return 1
    written += [f"{count(len(pictures), 'picture')} in plots/"] if pictures else []
    console.print(f"\nIn {place.name}: {', '.join(written)}", markup=False)
    for failure in [*(failure for view in views for failure in view.failures), *complaint]:
        print(f"{program()}: {failure}", file=sys.stderr)
    return 2 if complaint else 0


class Place:
    """Where the files go: into a folder of one's choice, else into the run's, on a disk or in a bucket."""

    def __init__(self, out: Path | None, folder: RunFolder | None) -> None:
        """Settle the place and the name of the page."""
        self.page, self.folder = REPORT if folder else COMPARISON, folder
        if out is not None:
            self.folder = None
            if out.suffix == ".html":
                out, self.page = out.parent, out.name
        self.out = out or Path()
        self.name = str(short_path(self.out.absolute()))
        if self.folder:
            self.name = self.folder.uri if self.folder.remote else str(short_path(self.folder.local))

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        if self.folder:
            self.folder.put(name, content)
        else:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(content)


def _write(
    views: list[View], put: Callable[[str, bytes], None], page: str, *, csv: bool
) -> tuple[list[str], list[Plot]]:
    """Write the tables and the page; list their names, and the plots that the page begins with."""
    if len(views) > 1:
        put(page, make_comparison(views).encode())
        return [page], [replace(plot, name=f"comparison-{plot.name}") for plot in comparison(views)]
    (view,) = views
    written = write_tables(view.outcome.grid, put, csv=csv)
    plots = all_plots(view)
    put(page, make_report(view, next_command(view), plots).encode())
    return [page, *written], [levels.get(EVERYWHERE) or levels[view.level.name] for levels in plots.values()]
