"""The overhead benchmark: what it computes from the times of a search, and real tiny searches."""

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from benchmarks import overhead


def test_seconds_a_trial_leave_out_the_start_of_the_processes() -> None:
    # Two slots whose processes take 5 s, then a report every half second.
    assert overhead._seconds_a_trial([5.0, 5.2, 5.7, 6.2, 6.7]) == pytest.approx(0.5)


def test_both_searches_are_measured_and_shown(
    monkeypatch: pytest.MonkeyPatch, mnist_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "SHORT", (4,))
    monkeypatch.setattr(overhead, "ROUNDS", 1)
    console = Console(width=200)
    rows = pd.DataFrame(overhead.run(console, full=False, data_dir=mnist_dir))
    done = {key: set(group["done"]) for key, group in rows.groupby(["what", "trials"])}
    assert done == {(what, 4): {4} for what in ("ours", "ray-default")}
    ours = rows[rows["what"] == "ours"]
    stages = ours[["folder_s", "first_trial_s", "first_report_s", "wall_s"]].to_numpy()
    assert (stages[:, 1:] > stages[:, :-1]).all()
    assert (ours["training_s"] > 0).all() and (ours["files"] >= 5).all()
    overhead.show(console, pd.concat([rows, rows.assign(trials=8, trial_s=2 * rows["trial_s"])]))
    assert "ours: with 8 trials one takes 2.00 times as long as with 4" in capsys.readouterr().out
