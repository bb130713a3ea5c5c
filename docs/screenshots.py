"""Makes the README's pictures of a run: the top of its page, and the console at the end of its search.

make screenshots ARGS=runs/NAME     (needs Chromium: apt install chromium)
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from tune_mnist.cli.summary import print_summary
from tune_mnist.tuning import dashboard, tuner

DOCS = Path(__file__).parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1200, 1130
"Pixels of the page that are shown."
COLUMNS = 118
"Width of the terminal."
COLOURS = 128
"In the picture's palette: a third of the bytes, and the same to the eye."


def picture_page(run: str) -> bytes:
    """Let scripts/analyse.py make the run's page; give the top of it as a PNG."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        sys.exit("screenshots.py: error: Chromium is missing: apt install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "page.html"
        analyse = [sys.executable, str(DOCS.parent / "scripts" / "analyse.py"), run, "--out", str(page)]
        subprocess.run(analyse, check=True, stdout=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-drawn=yes]", timeout=60_000)
        shot = tab.screenshot()
        browser.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def picture_console(run: str) -> str:
    """Give what a terminal shows when the run's search has ended, as an SVG that loads nothing."""
    outcome = tuner.load_run(run)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for line in dashboard.ways_to_watch(outcome.folder):
        console.print(line, markup=False)
    print_summary(console, outcome)
    return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="tune-mnist"), flags=re.DOTALL)


def main() -> None:
    """Write page.png and console.svg."""
    parser = argparse.ArgumentParser(description="Make the README's pictures of a run.")
    parser.add_argument("run", metavar="RUN", help="folder of a search that has ended")
    parser.add_argument("--out", type=Path, default=DOCS / "images", help="folder (default: docs/images)")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "page.png").write_bytes(picture_page(flags.run))
    (flags.out / "console.svg").write_text(picture_console(flags.run))


if __name__ == "__main__":
    main()
