"""What the benchmarks share: turns, ratios, spreads, raw results. None of these tests measures time."""

import importlib
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from benchmarks import measure
from benchmarks.__main__ import main
from tests.conftest import ROOT


def test_measures_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def note(name: str, number: int) -> dict[str, float]:
        calls.append((name, number))
        return {"seconds": {"a": 3.0, "b": 2.0}[name] * (number + 1)}

    measures = {"a": lambda n: note("a", n), "b": lambda n: note("b", n)}
    rows = pd.DataFrame(measure.interleaved(measures, 2, lambda _: None))
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert measure.ratios(rows, "seconds", "a", "b").tolist() == [1.5, 1.5]


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pd.read_parquet(max(measure.RESULTS.glob("search-*.parquet")))

    def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[Any, Any]]:
        yield from whole.drop(columns=list(measure.machine())).to_dict("records")[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.search.run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "search", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^130$"):
        main()
    assert "interrupted" in capsys.readouterr().out
    (written,) = tmp_path.iterdir()
    assert pd.read_parquet(written)["wall_seconds"].tolist() == whole["wall_seconds"].tolist()[:2]


def test_a_benchmark_that_fails_leaves_the_next_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[Any, Any]]:
        called.append(full)
        raise RuntimeError("the loop has no [data]")

    for name in ("throughput", "overhead"):
        monkeypatch.setattr(f"benchmarks.{name}.run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "throughput", "overhead", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^1$"):
        main()
    assert called == [False, False] and not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("failed: the loop has no [data]") == 2


@pytest.mark.parametrize("name", ["throughput", "search"])
def test_data_that_can_not_be_had_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").touch()
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--data-dir", str(tmp_path / "data")])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capsys.readouterr().err
    assert error.startswith("benchmarks: ") and str(tmp_path / "data") in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["serch"], "NAME is serch, but must be one of throughput, search"),
        (["search", "--only", "our"], "WHO is our, but must be one of ours, blog"),
        (["scale", "--only", "ours"], "--only goes with search alone"),
    ],
)
def test_a_wrong_word_is_named(
    flags: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert text in capsys.readouterr().err


def written_commands() -> list[str]:
    """Collect the flags of the benchmark commands in the pages and docstrings."""
    folder = measure.RESULTS.parent
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), folder / "README.md")
    texts = [path.read_text() for path in (*pages, *folder.glob("*.py"))]
    pattern = r'^(?: *make bench ARGS="([^"]+)"|(?: {4})?python -m benchmarks ([a-z][^#\n]*))'
    return [made or plain for text in texts for made, plain in re.findall(pattern, text, re.M)]


@pytest.mark.parametrize("flags", written_commands())
def test_a_command_that_is_written_down_is_understood(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def run(console: Console, *, full: bool, data_dir: Path, only: Sequence[str] = ()) -> list[Any]:
        called.append(list(only))
        return []

    name, *rest = flags.split()
    monkeypatch.setattr(f"benchmarks.{name}.run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, *rest])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    assert called == [rest[rest.index("--only") + 1 :] if "--only" in rest else []]


@pytest.mark.parametrize("path", sorted(measure.RESULTS.glob("*.parquet")), ids=lambda path: path.stem)
def test_the_beginning_of_a_measurement_can_be_shown(path: Path) -> None:
    module = importlib.import_module(f"benchmarks.{path.stem.partition('-')[0]}")
    whole = pd.read_parquet(path)
    for length in (*range(1, min(len(whole), 12)), len(whole)):
        out = io.StringIO()
        module.show(Console(file=out, width=200), whole[:length])
        assert str(whole["what" if "what" in whole else "variant"].iloc[0]) in out.getvalue()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([3.0, 1.0, 2.0], "2 (1 to 3) s"),
        ([1.5], "1.5 s"),
        ([14770.0], "14,770 s"),
        ([999.7], "1,000 s"),
        ([99.96], "100 s"),
        ([math.nan], "–"),
    ],
)
def test_a_spread_is_a_median_with_its_ends(values: list[float], text: str) -> None:
    assert measure.spread(values, " s") == text


def test_results_say_where_and_when(tmp_path: Path) -> None:
    path = measure.write("some", pd.DataFrame({"what": ["a"], "seconds": [1.0]}), tmp_path)
    (row,) = pd.read_parquet(path).to_dict("records")
    assert row["seconds"] == 1.0 and row["torch"] == torch.__version__.partition("+")[0] and row["cores"] >= 1
