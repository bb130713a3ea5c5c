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
from pathlib import Path

import optuna

from tune_mnist.cli.console import PatientConsole
from tune_mnist.cli.parser import OneLineParser, program
from tune_mnist.cli.summary import REPORT, next_command, print_analysis, print_comparison, print_trial
from tune_mnist.report.page import make_comparison, make_report
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
    if flags.png and importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib: pip install 'tune-mnist[png]'")
    if len(set(flags.runs)) < len(flags.runs):
        parser.error("a run is named twice, but each must be another one")
    try:
        views = [View(tuner.load_run(run)) for run in flags.runs]
    except (FolderError, ValueError) as error:
        parser.error(str(error))
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
    try:
        place = Place(flags.out, views[0].outcome.folder if alone else None)
        written = _write(views, place.put, place.page, csv=flags.csv, png=flags.png)
    except (OSError, FolderError) as error:
        print(f"{program()}: error: {error}; --out names another folder", file=sys.stderr)
        return 1
    for failure in (failure for view in views for failure in view.failures):
        print(f"{program()}: {failure}", file=sys.stderr)
    console.print(f"\nIn {place.name}: {', '.join(written)}", markup=False)
    return 0


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
    views: list[View], put: Callable[[str, bytes], None], page: str, *, csv: bool, png: bool
) -> list[str]:
    """Write what was asked for, the tables first; list the names."""
    written = []
    if len(views) == 1:
        written += write_tables(views[0].outcome.grid, put, csv=csv)
        put(page, make_report(views[0], next_command(views[0])).encode())
    else:
        put(page, make_comparison(views).encode())
    if png:
        from tune_mnist.report.pictures import all_pictures, comparison_pictures  # matplotlib is an extra

        pictures = all_pictures(views[0]) if len(views) == 1 else comparison_pictures(views)
        for name, content in pictures.items():
            put(f"plots/{name}.png", content)
        written.append(f"{count(len(pictures), 'picture')} in plots/")
    return [page, *written]
