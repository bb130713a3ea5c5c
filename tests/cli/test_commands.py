"""What all commands have in common."""

import importlib
import io
import signal
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def kept_signals() -> Iterator[None]:
    """Some commands set what a broken pipe does to their process."""
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
