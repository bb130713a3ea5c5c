"""The ledger: what is written is read again, even if lines are truncated, duplicated or corrupt."""

import json
from pathlib import Path
from typing import Any

import pytest

from tune_mnist.mnist.facts import FACTS
from tune_mnist.run.ledger import Ledger


def report(epoch: int, accuracy: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "accuracy": accuracy, "done": False, "checkpoint_dir_name": None, **more}


def written(path: Path) -> Ledger:
    """A run of three trials: one has ended, one has not, one has reported nothing."""
    ledger = Ledger.open(path)
    ledger.begin({"lr": "{}"}, FACTS)
    for number, name in enumerate("abc"):
        ledger.suggested(name, number, {"lr": 0.1}, {"lr": 0.1, "epochs": 2}, hand_set=number == 0)
    ledger.reported("a", report(1, 0.4))
    ledger.reported("b", report(1, 0.6, checkpoint_dir_name="checkpoint_000000"))
    ledger.reported("a", report(2, 0.7))
    assert ledger.ended("a", failed=False) == "COMPLETE"
    return ledger


def facts(ledger: Ledger) -> dict[str, Any]:
    return {**vars(ledger), "path": None, "lost_lines": 0}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    again = Ledger.open(tmp_path / "ledger.jsonl")
    assert facts(again) == facts(ledger)
    assert [(t.shown_state, t.epoch) for t in again.trials.values()] == [
        *(("COMPLETE", 2), ("RUNNING", 1), ("RUNNING", 0))
    ]
    assert again.order == [("a", 1), ("b", 1), ("a", 2)]
    assert [trial.trial_id for trial in again.unfinished()] == ["b", "c"]
    assert again.trials["a"].hand_set and not again.trials["b"].hand_set


def test_cut_at_any_byte_it_holds_what_is_whole_and_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(first, len(content), 7):
        path.write_bytes(content[:cut])
        whole = Ledger.parse(content[: content.rfind(b"\n", 0, cut) + 1])
        ledger = Ledger.open(path)
        assert facts(ledger) == facts(whole) and ledger.lost_lines == 0
        ledger.begin({"lr": "{}"}, FACTS)
        assert facts(Ledger.open(path)) == facts(ledger)


def test_of_two_reports_of_an_epoch_the_first_is_the_fact(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    assert not ledger.reported("b", report(1, 0.9, checkpoint_dir_name="checkpoint_000000"))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert not ledger.reported("b", report(1, 0.9, checkpoint_dir_name="checkpoint_000001"))
    (epoch,) = Ledger.open(tmp_path / "ledger.jsonl").trials["b"].epochs
    assert (epoch["accuracy"], epoch["checkpoint_dir_name"]) == (0.6, "checkpoint_000001")


def test_only_a_corrupt_line_is_lost_and_it_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = b"\x00\xff" + lines[4][2:]
    path.write_bytes(b"".join(lines))
    corrupt = Ledger.open(path)
    assert corrupt.lost_lines == 1
    assert [epoch["epoch"] for epoch in corrupt.trials["a"].epochs] == [2]
    assert corrupt.trials["b"] == ledger.trials["b"]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"7",
        b'{"event": 1, "time": 2}',
        b'{"event": "session", "time": 1, "distributions": 5}',
        b'{"event": "close", "time": "noon", "reason": "x"}',
        b'{"event": "trial", "time": 1}',
    ],
)
def test_a_line_that_is_json_but_no_fact_changes_nothing(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    before = facts(written(path))
    with path.open("ab") as file:
        file.write(line + b"\n")
    corrupt = Ledger.open(path)
    assert corrupt.lost_lines == 1
    assert corrupt.seconds() == pytest.approx(Ledger.parse(path.read_bytes()).seconds(), abs=10)
    assert {**facts(corrupt), "sessions": before["sessions"]} == before


def test_a_closed_session_shows_how_far_its_trials_came_and_a_new_one_continues_them(
    tmp_path: Path,
) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    ledger.close("SIGINT")
    assert ledger.stop_reason == "SIGINT"
    assert [trial.shown_state for trial in ledger.trials.values()] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial.stopped_by for trial in ledger.trials.values()] == [None, "SIGINT", "SIGINT"]
    assert len(ledger.unfinished()) == 2
    ledger = Ledger.open(tmp_path / "ledger.jsonl")
    ledger.begin({}, FACTS)
    assert ledger.stop_reason is None
    assert [trial.shown_state for trial in ledger.trials.values()] == ["COMPLETE", "RUNNING", "RUNNING"]


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (report(1, done=True), "PRUNED"),  # the scheduler had stopped it
        (report(2), "COMPLETE"),  # it had trained all its epochs
        (report(2, done=True), "COMPLETE"),
        (report(1), None),
    ],
)
def test_a_trial_that_was_over_when_the_driver_died_is_ended(last: dict[str, Any], state: str | None) -> None:
    ledger = Ledger()
    ledger.begin({}, FACTS)
    ledger.suggested("a", 0, {}, {"epochs": 2}, hand_set=False)
    ledger.reported("a", last)
    ledger.end_what_was_over()
    assert ledger.trials["a"].state == state


def test_a_config_does_not_go_into_every_line(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    ledger.reported("c", {**report(1), "config": {"lr": 1}, "config/lr": 1, "trial_id": "c"})
    line = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    assert set(line) == {"event", "time", "trial_id", *report(1)}


def test_the_wall_time_is_that_of_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 130.0, 1000.0, 1007.0])
    monkeypatch.setattr("time.time", lambda: next(now))
    ledger = Ledger()
    ledger.begin({}, FACTS)
    ledger.suggested("a", 0, {}, {"epochs": 2}, hand_set=False)
    ledger.reported("a", report(1))
    ledger.begin({}, FACTS)
    ledger.reported("a", report(2))
    assert ledger.seconds() == 30 + 7
