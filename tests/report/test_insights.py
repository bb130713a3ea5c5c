"""What is computed from a run before it is drawn: scales, time, facts, importance, edges."""

import dataclasses
import io
import json
import math
import random
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.made_runs import EPOCH_SECONDS, make_run
from tests.report.conftest import rewrite, view_of
from tune_mnist.cli.summary import print_summary
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.report.comparison import comparison_sentences, run_labels
from tune_mnist.report.insights import edges, facts
from tune_mnist.report.scale import Scale, nines
from tune_mnist.report.timeline import best_so_far, elapsed, stretches
from tune_mnist.report.view import View
from tune_mnist.results.winner import Winner
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import InheritedTrial
from tune_mnist.task import Objective


@pytest.mark.parametrize(("accuracy", "count"), [(0.0, 0), (0.9, 1), (0.99, 2), (0.999, 3), (1.0, 6)])
def test_nines(accuracy: float, count: float) -> None:
    assert nines(accuracy) == pytest.approx(count)
    assert Scale(OBJECTIVE).value(count) == pytest.approx(accuracy, abs=1.1e-6)


@pytest.mark.parametrize(
    ("objective", "lows", "widths", "least"),
    [
        (OBJECTIVE, (0, 3), (0.1, 2.5), 2),
        (Objective(metric="error", mode="min", axis="log"), (-4, 1), (0.75, 6), 4),
    ],
)
def test_an_axis_has_a_few_marks_apart_from_each_other(
    objective: Objective, lows: tuple[int, int], widths: tuple[float, float], least: int
) -> None:
    dice = random.Random(0)
    for _ in range(100):
        low = dice.uniform(*lows)
        high = low + dice.uniform(*widths)
        places, texts = Scale(objective).ticks(low, high)
        assert least <= len(places) == len(texts) <= 10 and places == sorted(places)
        assert all(low <= place <= high for place in places)
        apart = [b - a for a, b in pairwise(places)]
        assert objective.axis == "log" or min(apart) >= (high - low) / 9 - 1e-9
    assert Scale(OBJECTIVE).ticks(0.9, 3.1)[1] == ["90%", "95%", "99%", "99.5%", "99.9%"]


def made_ledger() -> Ledger:
    """Two sessions an hour apart; two concurrent trials, the first of which continues in a new process."""
    ledger = Ledger()
    start = {"params": {}, "hand_set": False}
    epoch = {"epoch_seconds": 10.0, "hostname": "node"}
    for event in [
        {"event": "session", "distributions": {}, "time": 1000},
        {"event": "trial", "trial_id": "a", "number": 0, "config": {"epochs": 3}, **start, "time": 1000},
        {"event": "trial", "trial_id": "b", "number": 1, "config": {"epochs": 1}, **start, "time": 1000},
        {"event": "epoch", "trial_id": "b", "epoch": 1, "accuracy": 0.9, "pid": 2, "time": 1010},
        {"event": "end", "trial_id": "b", "state": "COMPLETE", "time": 1010},
        {"event": "epoch", "trial_id": "a", "epoch": 1, "accuracy": 0.8, "pid": 1, "time": 1012},
        {"event": "epoch", "trial_id": "a", "epoch": 2, "accuracy": 0.95, "pid": 1, "time": 1022},
        {"event": "session", "distributions": {}, "time": 5000},
        {"event": "epoch", "trial_id": "a", "epoch": 3, "accuracy": 0.94, "pid": 3, "time": 5015},
        {"event": "end", "trial_id": "a", "state": "COMPLETE", "time": 5016},
    ]:
        if event["event"] == "epoch":
            event |= {**epoch, "timestamp": event["time"]}
        ledger._apply(dict(event))
    return ledger


def test_the_time_between_sessions_does_not_count() -> None:
    ledger = made_ledger()
    assert [elapsed(ledger, moment) for moment in (900, 1000, 1010, 1022, 3000, 5000, 5015)] == [
        *(0, 0, 10, 22, 22, 22, 37),
    ]


def test_the_best_so_far_by_epochs_trials_and_seconds() -> None:
    frame = best_so_far(made_ledger())
    assert frame.to_dict("list") == {
        "epochs": [1, 2, 3, 4],
        "trials": [1, 1, 1, 2],
        "seconds": [10.0, 12.0, 22.0, 37.0],
        "accuracy": [0.9, 0.9, 0.95, 0.95],
    }
    assert best_so_far(Ledger()).empty


def test_a_host_has_as_many_places_as_trials_at_a_time() -> None:
    made = stretches(made_ledger())
    assert [(one.worker, one.trial.number, one.start, one.end, one.process) for one in made] == [
        ("node 1", 1, 0.0, 10.0, "node, process 2"),
        ("node 2", 0, 2.0, 22.0, "node, process 1"),
        ("node 1", 0, 27.0, 37.0, "node, process 3"),
    ]


@pytest.mark.parametrize(
    ("trial_id", "epoch", "workers"),
    [
        ("b", 1, ["unknown 1", "node 1", "node 1"]),
        ("a", 2, ["node 1", "node 2", "node 1"]),  # it followed the one before without a pause
        ("a", 3, ["node 1", "node 2", "unknown 1"]),
    ],
)
def test_the_worker_of_an_epoch_known_only_from_a_checkpoint(
    trial_id: str, epoch: int, workers: list[str]
) -> None:
    ledger = made_ledger()
    for key in ("hostname", "pid"):
        del ledger.trials[trial_id].epochs[epoch - 1][key]
    assert [one.worker for one in stretches(ledger)] == workers


def test_a_run_in_a_few_lines(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20))
    lines = {fact.label: (fact.value, fact.note) for fact in facts(view)}
    states = [trial.shown_state for trial in view.trials]
    epochs = sum(len(trial.epochs) for trial in view.trials)
    seconds = view.outcome.seconds
    assert lines["Trials"] == (
        "20 of 20",
        f"{states.count('COMPLETE')} COMPLETE, {states.count('PRUNED')} PRUNED, 0 FAIL",
    )
    assert lines["Epochs"][0] == str(epochs)
    assert lines["Wall time"][1] == "1 session; at most 4 trials in parallel"
    assert lines["Pace"][0] == f"{20 * 3600 / seconds:.0f} trials an hour"
    assert seconds == pytest.approx(epochs * EPOCH_SECONDS / 4, rel=0.5)
    best = max(epoch["accuracy"] for trial in view.trials for epoch in trial.epochs)
    assert lines["Best, validation"][0].startswith(f"{best:.2%} ± ")


def test_a_run_of_an_older_version_is_recognised_by_its_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    values = json.loads((run / "settings.json").read_text())
    del values["options"]
    (run / "settings.json").write_text(json.dumps({**values, "val_size": 500, "train_size": 512}))
    view = rewrite(run, lambda event: event.pop("task", None))
    lines = {fact.label: fact.note for fact in facts(view)}
    assert "; mnist, 512 training images; " in lines["Search"]
    assert lines["Best, validation"].endswith("; n = 500, ± standard error")


def with_winner(view: View, test: float) -> View:
    """The run with a winner that did not have to be trained."""
    assert view.best is not None
    report = view.best_epoch(view.best)
    winner = Winner(
        trial_id=view.best.trial_id,
        number=view.best.number,
        config={},
        epoch=report["epoch"],
        value=report["accuracy"],
        n=5000,
        test={"accuracy": test, "loss": 0.1},
        test_n=10_000,
    )
    return View(dataclasses.replace(view.outcome, winner=winner))


def printed_summary(view: View) -> list[str]:
    """What tune.py prints at the end of the run."""
    file = io.StringIO()
    print_summary(Console(file=file, soft_wrap=True), with_winner(view, 0.98).outcome)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("folder", ["a folder", "user's $HOME"])
def test_the_commands_that_end_the_summary_work_where_they_are_printed(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    analyse, table = printed_summary(view_of(make_run(tmp_path / folder / "run", 2)))[-2:]
    page = tmp_path / folder / "run" / analyse.rpartition("  # writes ")[2]
    assert page.suffix == ".html" and not page.exists()
    subprocess.run(analyse, shell=True, check=True, capture_output=True)
    assert page.stat().st_size > 100_000
    shown = subprocess.run(table, shell=True, check=True, capture_output=True, text=True)
    assert "[2 rows x " in shown.stdout


def test_the_summary_says_what_the_facts_say(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 20)
    view = view_of(run)
    pruned = view.of_state("PRUNED")[0]
    assert view.best is not None and view.best is not pruned

    def set_by_hand(event: dict[str, Any]) -> None:
        event["hand_set"] = event.get("number") == pruned.number

    view = rewrite(run, set_by_hand)
    told = {fact.label: fact for fact in facts(view)}
    lines = printed_summary(view)
    assert lines[1] == f"{told['Trials'].value} trials ({told['Trials'].note}) in {told['Wall time'].value}"
    assert f"Epochs trained: {told['Epochs'].value} {told['Epochs'].note}" in lines
    baseline, then = told["Baseline"], view.best and view.best.find(pruned.epoch)
    assert then and baseline.value == f"{pruned.last['accuracy']:.2%}"
    best_then = f"where the best trial had {then['accuracy']:.2%}"
    assert baseline.note == f"stopped at epoch {pruned.epoch}, {best_then}"
    assert f"Baseline: {baseline.value}, {baseline.note}" in lines
    (line,) = (line for line in lines if line.startswith("Winner, "))
    best = told["Best, validation"].value
    assert f": validation {best} (n = 5,000), test 98.00% ± 0.14% (n = 10,000" in line


def test_the_baseline_that_finished_is_compared_with_the_best_as_they_are(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20, grace_period=5))  # all finish, the baseline first
    first = view.trials[0]
    assert view.best is not None and view.best is not first
    points = 100 * (view.best_epoch(view.best)["accuracy"] - first.last["accuracy"])
    expected = f"{first.last['accuracy']:.2%}, epoch {first.epoch}; the best is {points:.2f} points above it"
    assert f"Baseline: {expected}" in printed_summary(view)


@pytest.mark.parametrize(
    ("best_known", "difference"),
    [(0.5, "{:.2f} points above it"), (0.9999, "{:.2f} points below it"), (None, "equal to it")],
)
def test_the_best_is_compared_with_what_was_known_before(
    best_known: float | None, difference: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", 6, grace_period=5)
    best = max(trial.last["accuracy"] for trial in view_of(run).trials)
    value = best if best_known is None else best_known
    known = [
        InheritedTrial(
            run=name, number=0, state=state, params={}, epochs=[(1, value)], started=0.0, ended=1.0
        )
        for name, state in (("first", "COMPLETE"), ("first", "PRUNED"), ("second", "PRUNED"))
    ]
    Ledger.open(run / "ledger.jsonl").inherit(known)
    view = view_of(run)
    (fact,) = (fact for fact in facts(view) if fact.label == "Known before")
    assert fact.value == "3 trials"
    assert fact.note == (
        f"of first, second (1 COMPLETE, 2 PRUNED; best {value:.2%}), counted nowhere else; "
        f"this run's own best, {best:.2%}, is {difference.format(100 * abs(best - value))}"
    )
    assert f"Known before: {fact.value} {fact.note}" in printed_summary(view)


@pytest.mark.parametrize(
    ("space", "state", "params", "advice"),
    [
        ("blog", "", {"lr": 0.0098}, ["widen lr: 0.0098 of 0.001..0.01"]),
        ("blog", "", {"lr": 0.00102}, ["widen lr: 0.00102 of 0.001..0.01"]),
        ("blog", "", {"momentum": 0.985}, ["widen momentum: 0.985 of 0.4..0.99"]),
        ("blog", "", {"epochs": 5}, ["widen epochs: 5 of 3..5"]),
        ("blog", "PRUNED", {"epochs": 3}, []),  # it was not trained in full
        ("blog", "", {}, []),
        ("blog", "", {"optimizer": "sgd"}, []),
        # The others cannot be widened.
        (
            "wide",
            "",
            {"dropout_conv": 0.0, "dropout_dense": 0.7, "shift": 0, "lr_end_factor": 1.0},
            ["widen dropout_dense: 0.7 of 0..0.7"],
        ),
    ],
)
def test_a_best_value_at_the_edge_of_its_range_is_mentioned(
    space: str, state: str, params: dict[str, Any], advice: list[str], tmp_path: Path
) -> None:
    middle: dict[str, Any] = {"lr": 0.003, "momentum": 0.7, "epochs": 4}
    if space == "wide":
        middle = {"lr_scale": 0.2, "momentum": 0.7, "batch_size": 128, "weight_decay": 3e-5}

    def place(event: dict[str, Any]) -> None:
        if event["event"] == "trial":
            event["params"] |= {**middle, **params}
        if event["event"] == "end" and state:
            event["state"] = state

    assert list(edges(rewrite(make_run(tmp_path / "run", 6, space=space), place)).values()) == advice


@pytest.mark.parametrize("minimised", [False, True])
def test_a_leading_run_is_reported_with_the_noise(minimised: bool, tmp_path: Path) -> None:
    views = [
        view_of(make_run(tmp_path / name, n, seed=n, minimised=minimised))
        for name, n in (("a", 20), ("b", 12))
    ]
    metric, sign = ("error", -1) if minimised else ("accuracy", 1)
    best = {
        view.name: max(sign * epoch[metric] for trial in view.trials for epoch in trial.epochs)
        for view in views
    }
    first, other = sorted(best, key=lambda name: -best[name])
    (sentence,) = comparison_sentences(views)
    lead = best[first] - best[other]
    if minimised:
        assert sentence.startswith(f"{first} ({-best[first]:.4f}, the best of ")
        assert f" by {lead:.4f} on " in sentence and sentence.endswith("; the noise is not known.")
    else:
        noise = 2 * math.sqrt(sum(p * (1 - p) / 5000 for p in best.values()))
        verdict = "more than" if lead > noise else "within"
        assert f" leads {other} ({best[other]:.2%} ± " in sentence
        assert sentence.endswith(
            f" by {100 * lead:.2f} points on validation: {verdict} the noise (2 standard errors of a "
            f"difference, {100 * noise:.2f} points)."
        )


def test_a_comparison_says_what_is_not_equal_and_what_the_test_set_says(tmp_path: Path) -> None:
    views = [view_of(make_run(tmp_path / name, 6)) for name in ("a", "b")]
    assert comparison_sentences(views)[0].startswith("a (") and len(comparison_sentences(views)) == 1

    def shrink(event: dict[str, Any]) -> None:
        if event["event"] == "session":
            event["task"]["data"] = "mnist, 512 training images"

    rewrite(tmp_path / "b", shrink)
    views = [with_winner(view_of(tmp_path / name), test) for name, test in (("a", 0.98), ("b", 0.9))]
    lead, unequal = comparison_sentences(views)
    noise = 200 * math.sqrt((0.98 * 0.02 + 0.9 * 0.1) / 10_000)
    said = f"more than the noise (2 standard errors of a difference, {noise:.2f} points)."
    assert lead.endswith(f" On the test set they have 98.00% and 90.00% (n = 10,000): {said}")
    assert unequal.startswith("They differ in their data, ") and "b: mnist, 512 training images" in unequal


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    views = [view_of(make_run(tmp_path / folder / "run", 2)) for folder in ("a", "b")]
    assert run_labels(views[:1]) == ["run"]
    assert run_labels(views) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
