"""What a user sees of a search, from handmade counts."""

import io
import re
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import TOY, Runner
from tune_mnist import results
from tune_mnist.cli.console import SearchConsole
from tune_mnist.cli.summary import exit_code
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.settings import Settings
from tune_mnist.run.words import describe, duration, first_line
from tune_mnist.tuning import rounds
from tune_mnist.tuning.progress import EndedTrial, Progress, ProgressKeeper
from tune_mnist.tuning.rounds import _waiting_for
from tune_mnist.tuning.tuner import FINISHED, Outcome

counts = partial(Progress, objective=OBJECTIVE)


def live_line(progress: Progress | None, *, seconds: float = 0.0) -> str:
    console = SearchConsole(Console(file=io.StringIO()))
    if progress is not None:
        console.on_progress(progress)
    console.started -= seconds
    return console._line().plain


def ended(number: int, state: str) -> EndedTrial:
    return EndedTrial(number=number, state=state, epochs=1, epochs_planned=5, value=0.5, config={})


def test_the_live_line_counts() -> None:
    progress = counts(
        num_samples=12,
        running=2,
        epochs=9,
        ended=[ended(0, "COMPLETE"), ended(1, "PRUNED"), ended(2, "FAIL")],
        best_value=0.98765,
        best_config={"lr": 0.0012345, "optimizer": "sgd"},
    )
    assert live_line(progress, seconds=60) == (
        "3/12 trials done · 2 running · 1 pruned · 1 failed · 9 epochs · "
        "best 98.77% (lr=0.00123 optimizer=sgd) · about 3 min 00 s left"
    )
    progress.deadline = time.monotonic() + 30.2
    assert live_line(progress, seconds=60).endswith("about 30 s left")
    assert live_line(counts(num_samples=3), seconds=7).endswith("0 epochs · 7 s")
    progress.deadline, progress.resumed, progress.retries = None, 2, 1
    assert live_line(progress, seconds=60).endswith(" · about 9 min 00 s left")  # one trial in this session
    assert " · 1 retried · " in live_line(progress)
    progress.waiting = "waiting for 2 nodes of type gpu"
    assert live_line(progress).endswith(" · waiting for 2 nodes of type gpu")
    assert live_line(None, seconds=3) == "starting Ray, reading the data ... 3 s"
    assert "scoring the winner" in live_line(counts(num_samples=1, ended=[ended(0, "COMPLETE")]))


def test_it_is_said_what_trials_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    words, progress, out = "", counts(num_samples=3), io.StringIO()
    console = SearchConsole(Console(file=out))
    nodes = "waiting for 2 nodes of type gpu, 1 node of type cpu"
    keeper = ProgressKeeper(progress, Ledger(), console, lambda idle: words or "waiting for room" * idle)
    for seconds, running, coming, said in [
        (1, 0, "", ""),  # Ray is starting a process
        (5, 0, nodes, nodes),
        (5, 1, "", ""),
        (25, 0, "", "waiting for room"),
        (5, 1, "", ""),
    ]:
        now, words = now + seconds, coming
        keeper.stepped(running=running, pending=1)
        assert progress.waiting == said
    lines = [nodes, "no longer waiting", "waiting for room", "no longer waiting"]
    assert out.getvalue().splitlines() == lines


def test_what_the_search_waits_for_is_put_into_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, nodes = RunFolder(tmp_path / "run"), {"gpu": 2, "cpu": 1}
    monkeypatch.setattr("tune_mnist.cluster.autoscaler.pending_nodes", lambda: nodes)
    assert _waiting_for(folder, False) == "waiting for 2 nodes of type gpu, 1 node of type cpu"
    nodes.clear()
    assert _waiting_for(folder, False) == ""
    for place, words in (
        (False, "waiting for a node that has room"),
        (True, "waiting for a worker to start"),
    ):
        monkeypatch.setattr(rounds, "has_place", lambda place=place: place)
        assert _waiting_for(folder, True) == words
    folder.mirror.error = "Connection refused"
    assert _waiting_for(folder, False) == f"waiting for {folder.uri}: Connection refused"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (duration(0), "0 s"),
        (duration(59.6), "1 min 00 s"),
        (duration(185), "3 min 05 s"),
        (duration(4320), "1 h 12 min"),
        (describe({"lr": 1e-05, "momentum": 0.52345, "epochs": 3}), "lr=1e-05 momentum=0.523 epochs=3"),
        (first_line(ValueError("one\ntwo")), "one"),
        (first_line(OSError(2, "gone")), "[Errno 2] gone"),
        (first_line(OSError("\n")), "OSError"),
    ],
)
def test_how_things_are_written_for_people(written: str, text: str) -> None:
    assert written == text


@pytest.mark.parametrize(
    ("stop_reason", "asked", "code"),
    [(FINISHED, 8, 0), (FINISHED, 9, 1), ("time budget", 9, 0), ("SIGINT", 9, 130), ("SIGTERM", 9, 143)],
)
def test_exit_codes(stop_reason: str, asked: int, code: int, finished: tuple[Path, str, str]) -> None:
    outcome = Outcome(
        settings=Settings(num_samples=asked),
        folder=RunFolder(finished[0]),
        grid=results.load(finished[0]),
        stop_reason=stop_reason,
        seconds=1.0,
        winner=object(),  # type: ignore[arg-type]
    )
    assert exit_code(outcome) == code


def test_a_reader_who_leaves_costs_nothing(joining: Runner) -> None:
    process = joining.start(*TOY, "--num-samples", "3", "--name", "unread")
    assert process.stdout is not None and process.stderr is not None
    assert any(re.match(r" +1/3 trial", line) for line in process.stdout)
    process.stdout.close()
    assert (process.wait(timeout=100), process.stderr.read()) == (0, "")
    assert (joining.folder / "runs" / "unread" / "trials.parquet").exists()
    assert (joining.folder / "runs" / "unread" / "best" / "metrics.json").exists()
