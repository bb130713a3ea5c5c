"""What the report's tests share: reading and rewriting handmade runs, and analyse.py in this process."""

import importlib.util
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SCRIPTS
from tune_mnist.report.view import View
from tune_mnist.tuning import tuner

Analyse = Callable[..., tuple[int, str, str]]


def view_of(run: Path) -> View:
    return View(tuner.load_run(str(run)))


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return a run's ledger lines of one kind."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> View:
    """Apply a function to each event of a run's ledger; return the resulting view."""
    path = run / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return view_of(run)


@pytest.fixture
def analyse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Analyse:
    """Run the script in this process: its imports take seconds."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["analyse.py", *flags])
        before = signal.getsignal(signal.SIGINT)
        spec = importlib.util.spec_from_file_location("analyse", SCRIPTS / "analyse.py")
        assert spec and spec.loader
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        signal.signal(signal.SIGINT, before)
        try:
            code = script.main()
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run
