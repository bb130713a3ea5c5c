"""What a search costs by its size, in calls instead of seconds; and that cheaper ways decide the same."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from benchmarks import load, made, scale
from tests.made_runs import make_run
from tests.tuning.test_search import complete, read_study, result, searcher, suggest
from tune_mnist import results
from tune_mnist.report.page import make_report
from tune_mnist.report.view import View
from tune_mnist.run.journal import JOURNAL, Journal
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.tuning import tuner


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts disk syncs, and how often all trials of a study are requested."""
    counts: Counter[str] = Counter()

    def counted(name: str, owner: Any, method: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, call)

    counted("sync", os, "fsync")
    counted("all trials", JournalStorage, "get_all_trials")
    return counts


def test_a_report_syncs_no_disk_and_looks_at_no_other_trial(tmp_path: Path, calls: Counter[str]) -> None:
    search = searcher(tmp_path)
    names = [f"trial{number}" for number in range(12)]
    for name in names:
        suggest(search, name)
    calls.clear()
    for epoch in (1, 2, 3):
        for name in names:
            search.report(name, result(epoch, epoch / 10))
    assert not calls
    assert all(trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3} for trial in read_study(tmp_path).trials)


def test_a_trial_syncs_its_suggestion_before_it_starts_and_its_end(
    tmp_path: Path, calls: Counter[str]
) -> None:
    search = searcher(tmp_path)
    for number in range(12):
        calls.clear()
        suggest(search, str(number))
        assert calls["sync"] == 1
        assert str(number) in Ledger.parse((tmp_path / LEDGER).read_bytes()).trials
        complete(search, str(number), result(5, 0.5))
        assert calls["sync"] == 2


@pytest.mark.parametrize("trials", [3, 30])
def test_a_resume_syncs_as_often_with_many_trials_as_with_few(
    trials: int, tmp_path: Path, calls: Counter[str]
) -> None:
    search = searcher(tmp_path)
    for number in range(trials):
        suggest(search, str(number))
        complete(search, str(number), result(5, 0.5))
    calls.clear()
    searcher(tmp_path)
    assert calls["sync"] == 2  # the session's line in the ledger, and the journal
    assert len(read_study(tmp_path).trials) == trials


def test_the_journal_has_each_operation_as_soon_as_it_is_done(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(3):
        suggest(search, str(number))
        assert read_study(tmp_path).trials[number].state == TrialState.RUNNING
        search.report(str(number), result(1, 0.5))
        assert read_study(tmp_path).trials[number].intermediate_values == {1: 0.5}
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob(".*"))


def test_a_journal_in_the_making_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_text("the old one\n")
    journal = Journal(print)
    study = optuna.create_study(storage=JournalStorage(journal), study_name="new")
    study.add_trial(optuna.create_trial(value=1.0))
    assert path.read_text() == "the old one\n"
    journal.put_in_place(path)
    assert [json.loads(line)["op_code"] for line in path.read_text().splitlines()] == [0, 4]
    study.add_trial(optuna.create_trial(value=2.0))
    assert [trial.value for trial in study.trials] == [1.0, 2.0]


def test_a_run_is_read_without_a_table_for_each_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = make_run(tmp_path / "run", 30), Counter[str]()
    original = pd.json_normalize

    def normalize(*args: Any, **kwargs: Any) -> pd.DataFrame:
        made["tables"] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(pd, "json_normalize", normalize)
    grid = results.load(run)
    assert len(results.trials_frame(grid)) == len(grid) == 30 and not made
    table = grid[7].metrics_dataframe
    assert made["tables"] == 1 and table is not None
    record = grid.records[7]
    assert table["accuracy"].tolist() == [epoch["accuracy"] for epoch in record.epochs]
    assert (table["trial_id"] == record.trial_id).all()
    metrics = [grid[place].metrics for place in range(len(grid))]
    assert [one["trial_id"] for one in metrics if one] == [one.trial_id for one in grid.records]


def test_rays_grid_knows_its_best_result(tmp_path: Path) -> None:
    grid = results.load(make_run(tmp_path / "run", 30))
    trials = results.trials_frame(grid).set_index("trial_id")
    epochs = results.epochs_frame(grid).set_index("trial_id")
    best = grid.get_best_result()
    assert best.metrics and best.metrics["trial_id"] == trials["accuracy"].idxmax()
    assert best.metrics["accuracy"] == trials["accuracy"].max()
    lowest = grid.get_best_result("val_loss", "min", scope="all").metrics
    assert lowest and lowest["trial_id"] == epochs["val_loss"].idxmin()
    averages = epochs.groupby("trial_id")["accuracy"].mean()
    steady = grid.get_best_result(scope="avg").metrics
    assert steady and averages[steady["trial_id"]] == pytest.approx(averages.max())


def test_a_study_that_is_looked_at_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(tuner.load_run(str(make_run(tmp_path / "run", 30))))
    study = view.study(view.level)
    first = study.trials[0]
    monkeypatch.setattr(FrozenTrial, "__deepcopy__", None, raising=False)  # copying raises
    assert study.trials[0] is first
    assert "<!DOCTYPE html>" in make_report(view)


@pytest.mark.parametrize("kind", ["parts", "loop"])
def test_the_benchmark_drives_all_trials_to_their_ends(kind: str, tmp_path: Path, mnist_dir: Path) -> None:
    given = load.Load(trials=6, concurrent=4, folder=tmp_path / "run", data_dir=mnist_dir)
    with (
        tempfile.TemporaryDirectory(prefix="tm", dir="/tmp") as short,
        mock.patch.dict(os.environ, {"RAY_TMPDIR": short}),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        figures = pool.submit(scale.KINDS[kind][1], given).result()
    ledger = Ledger.parse((given.folder / LEDGER).read_bytes())
    assert [trial.state is not None for trial in ledger.trials.values()] == [True] * 6
    assert figures["reports a trial"] == len(ledger.order) / 6
    assert [len(trial.intermediate_values) for trial in read_study(given.folder).trials] == [
        len(trial.epochs) for trial in ledger.trials.values()
    ]
    rungs_reached = Counter(epoch for _, epoch in ledger.order)
    assert rungs_reached[1] == 6 and rungs_reached[load.MAX_EPOCHS] < 6  # ASHA has stopped some


@pytest.mark.parametrize(("kind", "figure"), [("known", "suggestion, ms"), ("read", "page, MB")])
def test_the_benchmark_measures_what_a_made_up_search_costs(kind: str, figure: str, tmp_path: Path) -> None:
    given = load.Load(trials=6, concurrent=4, folder=tmp_path / "run", data_dir=tmp_path)
    made.make(given)
    assert scale.KINDS[kind][1](given)[figure] > 0


def test_the_benchmark_measures_a_resume(tmp_path: Path, mnist_dir: Path) -> None:
    given = load.Load(trials=6, concurrent=4, folder=tmp_path / "run", data_dir=mnist_dir)
    with (
        tempfile.TemporaryDirectory(prefix="tm", dir="/tmp") as short,
        mock.patch.dict(os.environ, {"RAY_TMPDIR": short}),
    ):
        figures = scale.measured("resumed", given)
    assert figures["resume, s"] > 0 and not given.folder.exists()


def test_the_limit_of_a_suggestion_goes_by_the_largest_sizes() -> None:
    known = {"what": "known", "figure": "suggestion, CPU ms", "concurrent": 64, "round": 0}
    rows = pd.DataFrame([{**known, "trials": n, "value": ms} for n, ms in ((10, 90), (100, 10), (1000, 100))])
    console = Console(width=200, record=True, file=io.StringIO())
    scale.show(console, rows)
    assert "1 s from some 10,000 on, going by 100 and 1,000" in console.export_text()
