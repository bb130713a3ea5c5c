"""What the benchmarks share: turns, ratios, spreads, raw results. None of these tests times anything."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import measure


def test_measures_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def note(name: str, number: int) -> dict[str, float]:
        calls.append((name, number))
        return {"seconds": {"a": 3.0, "b": 2.0}[name] * (number + 1)}

    rows = measure.interleaved({"a": lambda n: note("a", n), "b": lambda n: note("b", n)}, 2, lambda _: None)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert measure.ratios(rows, "seconds", "a", "b").tolist() == [1.5, 1.5]


def test_ctrl_c_keeps_what_was_measured() -> None:
    said: list[str] = []

    def interrupt(number: int) -> dict[str, float]:
        raise KeyboardInterrupt

    rows = measure.interleaved({"a": lambda n: {"seconds": 3.0}, "b": interrupt}, 2, said.append)
    assert rows[["what", "seconds"]].values.tolist() == [["a", 3.0]] and rows.attrs["interrupted"]
    assert "Ctrl-C" in said[-1] and measure.ratios(rows, "seconds", "a", "b").empty


@pytest.mark.parametrize(
    ("values", "text"),
    [([3.0, 1.0, 2.0], "2 (1 to 3) s"), ([1.5], "1.5 s"), ([14770.0], "14,770 s"), ([math.nan], "–")],
)
def test_a_spread_is_a_median_with_its_ends(values: list[float], text: str) -> None:
    assert measure.spread(values, " s") == text


def test_results_say_where_and_when(tmp_path: Path) -> None:
    path = measure.write("some", pd.DataFrame({"what": ["a"], "seconds": [1.0]}), tmp_path)
    (row,) = pd.read_parquet(path).to_dict("records")
    assert row["seconds"] == 1.0 and row["torch"] == torch.__version__.partition("+")[0] and row["cores"] >= 1
