"""scripts/analyse.py: what it prints and writes for handmade runs, and what it refuses."""

import importlib
import json
import re
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import pytest
from PIL import Image

from tests.made_runs import make_run
from tests.report.conftest import Analyse
from tests.report.test_report import find_chromium
from tune_mnist import load_run, results


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "blog", 20)


def test_it_prints_the_study_and_writes_page_and_tables(analyse: Analyse, run: Path) -> None:
    code, out, err = analyse("runs/blog")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "blog" and len(lines[: lines.index("What it learned")]) <= 11
    trials = results.trials_frame(results.load(run))
    best = trials.nlargest(10, "accuracy")
    place = lines.index("Best 10 trials")  # in this space a trial's row fits 80 columns
    shown = [line.split() for line in lines[place + 1 : place + 12]]
    assert shown[0] == ["trial", "state", "accuracy", "epochs", "lr", "momentum", "optimizer"]
    assert sorted(int(row[0]) for row in shown[1:]) == sorted(best["number"])
    first = best.iloc[0]
    lengths = f"{first['epochs_trained']}/{first['epochs_planned']}"
    assert shown[1][:4] == [str(first["number"]), first["state"], f"{first['accuracy']:.2%}", lengths]
    learned = lines[lines.index("What it learned") + 1 : lines.index("Best 10 trials")]
    assert 3 <= len(learned) <= 7 and all(line.startswith("- ") for line in learned[:-1])
    assert learned[-1].startswith("Next: ") and "scripts/" in learned[-1]
    assert all(re.search(r"\d", line) for line in learned)
    assert "Importance (PED-ANOVA over " in out
    prose = ("- ", "Next: ", "Importance ", "Rank correlation ")
    assert max(len(line) for line in lines if not line.startswith(prose)) <= 110
    assert lines[-1] == "In runs/blog: report.html, epochs.parquet, trials.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(run / "trials.parquet"), trials)
    epochs = results.epochs_frame(results.load(run))
    pd.testing.assert_frame_equal(pd.read_parquet(run / "epochs.parquet"), epochs)
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(("columns", "a_row_each"), [(80, False), (160, True)])
def test_a_trial_is_a_row_where_the_console_has_room_for_it(
    columns: int, a_row_each: bool, analyse: Analyse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    make_run(tmp_path / "wide", 20, space="wide")
    lines = analyse("wide")[1].splitlines()
    place = lines.index("Best 10 trials")
    table = lines[place + 1 : next(i for i, line in enumerate(lines) if line.startswith("Trials can be "))]
    assert max(map(len, table)) <= columns and "lr_end_factor" in " ".join(table)
    assert len(table) == 11 if a_row_each else sum(line.startswith(" trial ") for line in table) == 2


def test_a_plot_that_fails_costs_nothing_else(
    analyse: Analyse, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise AttributeError("Figure has no attribute of this version")

    monkeypatch.setattr("tune_mnist.report.plots.contours", fail)
    # By the module's name: until it is imported, optuna.importance is a stand-in for it.
    monkeypatch.setattr(importlib.import_module("optuna.importance"), "get_param_importances", fail)
    code, out, err = analyse("runs/blog")
    assert code == 0 and "Best 10 trials" in out
    why = "failed: AttributeError: Figure has no attribute of this version"
    assert err == f"analyse.py: the importance {why}\nanalyse.py: the plot contour {why}\n"
    assert len(pd.read_parquet(run / "trials.parquet")) == 20
    page = (run / "report.html").read_text()
    # Only the contour: in the shown plot, and in the page's data for each level.
    assert page.count("It could not be drawn.") == 1 + len(load_run(str(run)).levels)
    assert 'data-panel="curves"' in page


@pytest.fixture
def chrome() -> None:
    if find_chromium() is None:
        pytest.skip("needs Chromium: apt install chromium")


@pytest.mark.usefixtures("chrome")
def test_tables_as_csv_and_plots_as_png_elsewhere(analyse: Analyse, run: Path, tmp_path: Path) -> None:
    before = sorted(run.iterdir())
    code, out, err = analyse("runs/blog", "--csv", "--png", "--out", "paper")
    assert (code, err) == (0, "")
    assert sorted(run.iterdir()) == before
    assert len(pd.read_csv("paper/trials.csv")) == 20
    assert len(pd.read_csv("paper/epochs.csv")) == len(pd.read_parquet("paper/epochs.parquet"))
    pictures = {picture.stem: Image.open(picture) for picture in Path("paper/plots").glob("*.png")}
    assert set(pictures) == {
        *("history", "curves", "importance", "parallel", "timeline", "epochs"),
        *(f"slice-{name}" for name in ("lr", "momentum", "optimizer", "epochs")),
        *(f"contour-{pair}" for pair in ("lr-momentum", "lr-optimizer", "epochs-lr", "momentum-optimizer")),
        *("contour-epochs-momentum", "contour-epochs-optimizer"),
    }
    for name, picture in pictures.items():
        assert min(picture.size) > 300 and len(set(picture.convert("L").getdata())) > 20, name
        assert round(picture.info["dpi"][0]) == 200, name
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255), name
    tables = "epochs.parquet, epochs.csv, trials.parquet, trials.csv"
    assert out.endswith(f"In paper: report.html, {tables}, 16 pictures in plots/\n")


def test_without_chrome_all_but_the_pictures_is_there(
    analyse: Analyse, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere")
    code, out, err = analyse("runs/blog", "--png")
    what = "apt install chromium, or run plotly_get_chrome"
    assert (code, err) == (2, f"analyse.py: error: --png needs Chrome or Chromium: {what}\n")
    assert out.endswith("In runs/blog: report.html, epochs.parquet, trials.parquet\n")
    assert (run / "report.html").exists() and not (run / "plots").exists()


@pytest.mark.usefixtures("chrome")
def test_pictures_of_a_run_in_which_every_trial_fails(analyse: Analyse, tmp_path: Path) -> None:
    make_run(tmp_path / "run", 5, every_trial_fails=True)
    code, _, err = analyse("run", "--png", "--out", "page.html")
    assert (code, err) == (0, "") and Path("page.html").exists() and Path("plots/epochs.png").exists()


@pytest.mark.parametrize(
    ("lr", "printed", "on_page"),
    [
        (
            "0.003, 0.003",
            r"Importance: no hyper-parameter of the space can vary\n",
            "No hyper-parameter of the space can vary.",
        ),
        (
            "0.001, 0.01",
            r"(?s)lr is the only hyper-parameter that varies at the end, n = 12 trials\..+"
            r"Importance \(PED-ANOVA over 12 trials at the end; [^\n]*\): lr 100%",
            "lr is the only hyper-parameter that varies at the end, n = 12 trials.",
        ),
    ],
)
def test_importance_is_that_of_what_can_vary(
    lr: str, printed: str, on_page: str, analyse: Analyse, tmp_path: Path
) -> None:
    """In a space with one value for each parameter, except the given learning rate."""
    (tmp_path / "spaces.py").write_text(
        "from optuna.distributions import *\n"
        f"SPACE = {{'lr': FloatDistribution({lr}, log=True), 'momentum': FloatDistribution(0.5, 0.5),\n"
        "         'optimizer': CategoricalDistribution(('sgd',)), 'epochs': IntDistribution(5, 5)}\n"
    )
    run = make_run(tmp_path / "run", 12, space=f"{tmp_path / 'spaces.py'}:SPACE", grace_period=5)
    code, out, err = analyse("run")
    assert (code, err) == (0, "")
    assert re.search(printed, out) and on_page in (run / "report.html").read_text()


@pytest.mark.usefixtures("chrome")
def test_runs_are_compared(analyse: Analyse, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        make_run(tmp_path / name, 20, seed=seed)
    code, out, err = analyse("one", "two", "--png")
    assert (code, err) == (0, "")
    heading, *rows, sentence, empty, last = out.splitlines()
    assert re.fullmatch(
        r" run +trials +epochs +wall time +best +until \d+\.\d\d%: trials +epochs +seconds ", heading
    )
    assert [row.split()[:2] for row in rows] == [["one", "20"], ["two", "20"]]
    assert sentence.startswith("- ")
    assert sentence[2:].replace("'", "&#39;") in Path("comparison.html").read_text()
    assert empty == "" and last == "In .: comparison.html, 3 pictures in plots/"
    axes = ("epochs", "seconds", "trials")
    assert sorted(path.name for path in Path("plots").iterdir()) == [f"comparison-by-{a}.png" for a in axes]


def test_what_is_lost_is_said_and_the_rest_is_read(analyse: Analyse, run: Path) -> None:
    analyse("runs/blog")
    (run / "trials.parquet").write_bytes(b"PAR1 and then nothing")
    (run / "study.journal").write_text("{torn\n")
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "epoch")
    (run / "ledger.jsonl").write_text("".join([*lines[:place], "{torn\n", *lines[place + 1 :]]))
    code, out, err = analyse("runs/blog")
    assert (code, err) == (0, "")
    assert "ledger.jsonl has 1 line that can't be read; what they said is lost\n" in out
    assert len(pd.read_parquet(run / "trials.parquet")) == 20
    assert "ledger.jsonl has 1 line that can" in (run / "report.html").read_text()


@pytest.mark.parametrize("kept", [slice(1, None), slice(0, 1), slice(0, 0)])
def test_of_a_ledger_that_has_lost_most_the_rest_is_shown(analyse: Analyse, run: Path, kept: slice) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[kept]))  # no search space; no trial; nothing
    code, out, err = analyse("runs/blog", "--out", "rest")
    assert (code, err) == (0, "")
    assert len(pd.read_parquet("rest/trials.parquet")) == (20 if kept.start else 0)
    assert ("Best 10 trials" in out) == bool(kept.start)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["nowhere"], r"\S+/nowhere is not the folder of a run: it has no ledger.jsonl"),
        ([], "the following arguments are required: RUN"),
        (
            ["runs/blog", "--out", ""],
            "the empty name is not a run: it must be a folder or like s3://BUCKET/PATH",
        ),
        (["runs/blog", "--out", "s3://bucket"], "s3://bucket is not a run: it must be a folder or like .*"),
        (["runs/blog", "runs/blog"], "a run is named twice, but all must be different"),
        (["runs/blog", "nowhere"], r"\S+/nowhere is not the folder of a run: it has no ledger.jsonl"),
        (["runs/blog", "--pdf"], "unrecognized arguments: --pdf"),
        (["s4://bucket/run"], "s4://bucket/run can't be used as storage: .+"),
        (
            ["runs/blog", "error"],
            r"runs of different objectives cannot be compared: accuracy \(max\), error \(min\)",
        ),
    ],
)
def test_bad_input_is_one_line(
    analyse: Analyse, run: Path, flags: list[str], complaint: str, tmp_path: Path
) -> None:
    if "error" in flags:
        make_run(tmp_path / "error", 2, minimised=True)
    code, out, err = analyse(*flags)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"analyse.py: error: {complaint} \(--help lists the flags\)\n", err)


def test_a_place_that_cannot_be_written_is_one_line(analyse: Analyse, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = analyse("runs/blog", "--out", "file/below")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("analyse.py: error: ") and err.endswith("--out names another folder\n")
