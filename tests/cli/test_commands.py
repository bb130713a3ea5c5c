"""What all commands have in common."""

import importlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tune_mnist.cli import finalize
from tune_mnist.cli.parser import OF_THE_MACHINE


@pytest.fixture
def kept_signals() -> Iterator[None]:
    """Some commands change how their process handles a broken pipe."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)


@pytest.mark.usefixtures("kept_signals")
@pytest.mark.parametrize("command", ["search", "analyse", "finalize", "train", "repeat", "predict"])
def test_what_the_output_cannot_encode_is_replaced(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("sys.argv", [command, "--help"])
    monkeypatch.setattr("sys.path", sys.path.copy())  # some add the working folder
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tune_mnist.cli.{command}").main()
    print("98.86% ± 0.15%, → trial 1", flush=True)
    assert ended.value.code == 0 and written.getvalue().endswith(b"98.86% ? 0.15%, ? trial 1\n")


def test_flags_that_default_to_the_search_tell_no_other_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["finalize.py", "--help"])
    with pytest.raises(SystemExit):
        finalize.main()
    own, _, shared = capsys.readouterr().out.partition(OF_THE_MACHINE)
    assert "(default: 5)" in own and "--cpus-per-trial" in shared and "default" not in shared


def test_the_package_lists_its_commands() -> None:
    start = [sys.executable, "-m", "tune_mnist"]
    plain, helped, wrong = (
        subprocess.run([*start, *arguments], cwd=ROOT, capture_output=True, text=True)
        for arguments in ([], ["--help"], ["serch"])
    )
    assert (plain.returncode, plain.stderr, plain.stdout) == (0, "", helped.stdout)
    assert (helped.returncode, helped.stderr) == (0, "")
    usage, *lines = plain.stdout.splitlines()
    commands = [line.split()[0] for line in lines if line.startswith("  ")]
    assert usage.startswith("usage: tune-mnist COMMAND")
    assert commands == ["search", "analyse", "finalize", "train", "predict"]
    complaint = "tune-mnist: error: the command is serch, but must be one of " + ", ".join(commands)
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", f"{complaint}\n")
