"""The report in headless Chromium: every plot with its points; the table sorted, filtered, expanded."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.lab.lab import install_packages
from tests.made_runs import make_run
from tests.report.conftest import events, view_of
from tune_mnist.report.page import make_comparison, make_report

CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
MEGABYTE = 10**6
EVERYTHING = {"history", "curves", "importance", "parallel", "slices", "contour", "timeline", "epochs"}

RUNS: dict[str, dict[str, Any]] = {
    "two": {"num_samples": 2},
    "wide": {"num_samples": 64, "space": "wide", "max_epochs": 15},
    "thousand": {"num_samples": 1000, "space": "wide", "max_epochs": 9, "workers": 16},
    "all-finish": {"num_samples": 1000, "space": "wide", "max_epochs": 9, "grace_period": 9, "workers": 16},
    "failed": {"num_samples": 5, "every_trial_fails": True},
    "running": {"num_samples": 12, "running": True},
}


def find_chromium() -> str | None:
    """Debian's Chromium; if CI is set it is installed first."""
    if os.environ.get("CI") and os.geteuid() == 0:
        install_packages({"chromium": "chromium"})
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of RUNS with its report, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, shape in RUNS.items():
        run = make_run(folder / name, **shape)
        (run / "report.html").write_text(make_report(view_of(run)))
    return folder


class Opened:
    """An open page, with all its errors."""

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.requests: list[str] = []
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)

    def points(self, plot: str, choice: str | None = None) -> dict[str, int]:
        """Count the points of each trace of a plot in the browser, by the trace's name."""
        traces = self.page.evaluate(
            """([plot, choice]) => [...document.querySelectorAll(`.plot[data-plot="${plot}"]`)]
                .find(one => choice === null || one.dataset.choice === choice).data
                .map(trace => [trace.name, [...trace.y].filter(value => value !== null).length])""",
            [plot, choice],
        )
        counts: Counter[str] = Counter()
        for name, n in traces:
            counts[name] += n
        return counts

    def drawn(self) -> set[str]:
        """Names of the plots that have been drawn with a nonzero area."""
        names = self.page.evaluate(
            """() => [...document.querySelectorAll(".plot.js-plotly-plot")]
                .filter(place => place.querySelector(".main-svg").getBoundingClientRect().height > 100)
                .map(place => place.dataset.plot)"""
        )
        return set(names)

    def column(self, name: str) -> list[str]:
        """Read a column of the table as shown."""
        headings = self.page.locator("#trials .names th").all_inner_texts()
        index = [heading.split()[0] for heading in headings].index(name)
        return self.page.locator(f"#trials tbody tr.trial td:nth-child({index + 1})").all_text_contents()


@pytest.fixture(scope="module")
def wide(browser: Browser, runs: Path) -> Opened:
    """The page of the wide run, for tests that do not change its size; drawing it takes seconds."""
    return Opened(browser, runs / "wide" / "report.html", viewport={"width": 1280, "height": 900})


def test_every_plot_has_its_points(wide: Opened, runs: Path) -> None:
    run, opened = runs / "wide", wide
    states = [line["state"] for line in events(run, "end")]
    finished, cut = states.count("COMPLETE"), states.count("PRUNED")
    epochs = events(run, "epoch")
    assert finished >= 5 and cut >= 30 and finished + cut == 64
    assert opened.drawn() == EVERYTHING
    of_trials = {"finished": finished - 1, "best": 1, "pruned": cut}
    assert opened.page.locator("#level").input_value() == "epoch 1"
    assert opened.points("history") == {**of_trials, "best so far": 64}
    curves = opened.points("curves")
    best = next(name for name in curves if name.endswith("the best"))
    assert sum(curves.values()) == len(epochs) and curves[best] == 15
    of_cut = {line["trial_id"] for line in events(run, "end") if line["state"] == "PRUNED"}
    assert curves["pruned"] == sum(epoch["trial_id"] in of_cut for epoch in epochs)
    space = events(run, "session")[0]["distributions"]
    assert list(opened.points("importance").values()) == [len(space)] == [10]
    for name in space:
        assert opened.points("slices", name) == of_trials
    results = [epoch["accuracy"] for epoch in epochs if epoch["epoch"] == 1]
    lines = opened.page.evaluate(
        """() => document.querySelector('[data-plot="parallel"]').data
            .filter(trace => trace.mode === "lines").map(trace => [trace.y.length, trace.customdata[0][1]])"""
    )
    assert lines == [[1 + len(space), f"{accuracy:.2%}"] for accuracy in sorted(results)]
    assert opened.points("timeline") == {"finished": finished, "pruned": cut}
    assert opened.points("epochs") == {"finished": finished, "pruned": cut, "planned, not trained": 64}
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_plots_follow_the_level(wide: Opened, runs: Path) -> None:
    """Each level has the trials that reported that epoch, with what they reported then."""
    run, opened = runs / "wide", wide
    page, epochs = opened.page, events(run, "epoch")
    finished = {line["trial_id"] for line in events(run, "end") if line["state"] == "COMPLETE"}
    numbers = {line["trial_id"]: line["number"] for line in events(run, "trial")}
    expected = {
        f"epoch {rung}": {numbers[e["trial_id"]]: e["accuracy"] for e in epochs if e["epoch"] == rung}
        for rung in (1, 2, 4, 8)
    }
    last = {epoch["trial_id"]: epoch["accuracy"] for epoch in epochs}
    expected["final"] = {numbers[trial_id]: last[trial_id] for trial_id in finished}
    options = page.locator("#level option").all_inner_texts()
    assert options == [f"{name} ({len(values)} trials)" for name, values in expected.items()]
    for name, values in expected.items():
        page.select_option("#level", name)
        page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)
        shown = page.evaluate(
            """() => document.querySelector('[data-plot="history"]').data
                .filter(trace => trace.customdata)
                .flatMap(trace => trace.customdata.map((number, i) => [number, trace.text[i]]))"""
        )
        assert dict(map(tuple, shown)) == {number: f"{value:.2%}" for number, value in values.items()}
        points = opened.points("slices", "optimizer")
        assert sum(points.values()) == len(values)
        column = opened.column("validation")
        assert sum(value != "–" for value in column) == len(values)
    assert page.locator("#panel-importance .empty").inner_text() == "Nothing to draw."  # 8 have finished
    caption = page.locator("#panel-importance .caption").inner_text()
    assert "10 that differ in their values and hyper-parameters are needed" in caption
    page.select_option("#level", "epoch 1")
    page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)
    assert opened.complaints == []


def test_the_contour_of_another_pair_can_be_chosen(wide: Opened) -> None:
    page = wide.page
    choices = page.locator("#choice-contour option").all_inner_texts()
    assert len(choices) == len(set(choices)) == 6
    page.select_option("#choice-contour", choices[3])
    x, y = choices[3].split(" and ")
    panel = page.locator("#panel-contour")
    panel.locator(".xtitle", has_text=x).wait_for()
    assert panel.locator(".ytitle").text_content() == y


def test_the_table_sorts_filters_and_opens(wide: Opened, runs: Path) -> None:
    run, opened, page = runs / "wide", wide, wide.page
    assert opened.column("trial") == [str(number) for number in range(64)]
    page.click("#trials th:has-text('last accuracy') button")
    shares = [float(text.rstrip("%")) for text in opened.column("last")]
    assert len(shares) == 64 and shares == sorted(shares, reverse=True)
    page.click("#trials th:has-text('last accuracy') button")
    assert [float(text.rstrip("%")) for text in opened.column("last")] == sorted(shares)
    states = [line["state"] for line in events(run, "end")]
    page.fill("input[aria-label='Filter state']", "compl")
    assert opened.column("state") == ["COMPLETE"] * states.count("COMPLETE")
    page.fill("input[aria-label='Filter last accuracy']", ">98.5%")
    good = [share for share in shares if share > 98.5]
    assert 0 < len(opened.column("trial")) <= len(good)
    page.fill("input[aria-label='Filter state']", "")
    assert len(opened.column("trial")) == len(good)
    page.fill("input[aria-label='Filter last accuracy']", "0.97..0.98")
    assert len(opened.column("trial")) == sum(97 <= share <= 98 for share in shares)
    page.click("#clear")
    assert page.locator("#shown").inner_text() == "64 of 64 trials"
    row = page.locator("tr.trial[data-number='1']")
    row.click()
    plot = page.locator("tr.detail .js-plotly-plot")
    plot.wait_for()
    (trial,) = (line for line in events(run, "trial") if line["number"] == 1)
    accuracies = [e["accuracy"] for e in events(run, "epoch") if e["trial_id"] == trial["trial_id"]]
    assert plot.evaluate("place => Array.from(place.data[0].y)") == accuracies
    assert f"optimizer={trial['config']['optimizer']}" in page.locator("tr.detail p").inner_text()
    assert re.search(r"(ASHA stopped it at epoch|It finished: )", page.locator("tr.detail p").inner_text())
    row.press("Enter")
    assert page.locator("tr.detail").count() == 0
    assert opened.complaints == []


OVERLAPS = """() => {
    const found = [];
    for (const place of document.querySelectorAll(".plot"))
        for (const kind of [".xtick text", ".ytick text", ".legendtext", ".annotation-text"]) {
            // Slanted labels have boxes that overlap where their letters don't.
            const texts = [...place.querySelectorAll(kind)]
                .filter(text => !/rotate\\((?!0[,)])/.test(text.getAttribute("transform") || ""));
            texts.forEach((text, i) => texts.slice(i + 1).forEach(other => {
                const a = text.getBoundingClientRect(), b = other.getBoundingClientRect();
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 1 && high > 2)
                    found.push([place.dataset.plot, text.textContent, other.textContent]);
            }));
        }
    return found;
}"""


@pytest.mark.parametrize(("width", "preferred"), [(1280, "light"), (400, "dark")])
def test_nothing_sticks_out_and_texts_don_t_overlap(
    browser: Browser, runs: Path, width: int, preferred: str
) -> None:
    viewport: Any = {"width": width, "height": 800}
    opened = Opened(browser, runs / "wide" / "report.html", viewport=viewport, color_scheme=preferred)
    for dark in (preferred == "dark", preferred != "dark"):
        colors = opened.page.evaluate(
            """() => {
                const page = getComputedStyle(document.body);
                const text = document.querySelector(".plot .xtick text");
                return [page.backgroundColor, page.color, getComputedStyle(text).fill];
            }"""
        )
        shades = [sum(map(int, color[4:-1].split(","))) for color in colors]
        assert (shades[0] < 150 and min(shades[1:]) > 600) if dark else (shades[0] > 600 > max(shades[1:]))
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.page.evaluate(OVERLAPS) == []
        opened.page.click("#theme")
    assert opened.complaints == []


@pytest.mark.parametrize("name", [name for name in RUNS if name != "wide"])
def test_runs_of_every_size_and_luck(browser: Browser, runs: Path, name: str) -> None:
    file = runs / name / "report.html"
    assert file.stat().st_size < 7 * MEGABYTE
    opened = Opened(browser, file)
    expected = {"two": EVERYTHING - {"importance"}, "failed": {"history", "epochs"}}
    assert opened.drawn() == expected.get(name, EVERYTHING)
    assert len(opened.column("trial")) == RUNS[name]["num_samples"]
    if name == "failed":
        assert opened.points("history") == {"failed, no value here": 5}
        opened.page.locator("tr.trial").first.click()
        assert "the loss is not finite" in opened.page.locator("tr.detail p").inner_text()
    if name == "running":
        assert opened.column("state").count("RUNNING") == 4
        assert "running (triangles)" in opened.page.locator("#panel-slices .caption").inner_text()
    assert opened.complaints == []


def test_a_comparison_draws_each_run_by_trials_epochs_and_seconds(
    browser: Browser, runs: Path, tmp_path: Path
) -> None:
    names = ("wide", "running", "failed")
    file = tmp_path / "comparison.html"
    file.write_text(make_comparison([view_of(runs / name) for name in names]))
    opened = Opened(browser, file)
    assert opened.drawn() == {"by-trials", "by-epochs", "by-seconds"}
    for axis in opened.drawn():
        assert opened.points(axis) == {name: len(events(runs / name, "epoch")) for name in names}
    assert opened.complaints == []
