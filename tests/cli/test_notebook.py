"""The example notebook, run as Jupyter runs it, and the Python API that it shows."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, Runner
from tune_mnist import load_run, search
from tune_mnist.tuning.tuner import InputError

STOPPED = f"""
import os, pathlib, sys
sys.path.append({str(ROOT / "tests")!r})
from toy import TASK as TOY
pathlib.Path("pid").write_text(str(os.getpid()))
stopped = search(TOY, name="stopped", num_samples=500, max_epochs=4)
print("RUNNING" in set(stopped.trials["state"]), 0 < len(stopped.trials) < 500)
"""


@pytest.fixture(scope="module")
def cells(joining: Runner, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The cells of the notebook with their outputs, run in a folder with the task next to it."""
    folder = tmp_path_factory.mktemp("notebook")
    for name in ("notebook.ipynb", "regression.py"):
        shutil.copy(ROOT / "examples" / name, folder)
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    notebook.cells.append(nbformat.v4.new_code_cell(STOPPED))  # type: ignore[no-untyped-call]
    interrupter = threading.Thread(target=interrupt, args=(folder,), daemon=True)
    interrupter.start()
    client = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder)}})
    client.execute(env=joining.environment)
    return [dict(cell) for cell in notebook.cells if cell["cell_type"] == "code"]


def interrupt(folder: Path) -> None:
    """Interrupt the kernel as Jupyter's stop button does, once the last cell's search has an epoch."""
    ledger = folder / "runs" / "stopped" / "ledger.jsonl"
    while not (ledger.exists() and b'"event": "epoch"' in ledger.read_bytes()):
        time.sleep(0.05)
    os.kill(int((folder / "pid").read_text()), signal.SIGINT)


def texts(cell: dict[str, Any]) -> str:
    return json.dumps(cell["outputs"])


def test_the_first_lines_stay_and_one_line_is_updated_in_place(cells: list[dict[str, Any]]) -> None:
    outputs = cells[0]["outputs"]
    printed = {output["name"]: output["text"] for output in outputs if output["output_type"] == "stream"}
    assert printed.pop("stdout").startswith("Run folder: ")
    assert "IProgress not found" in printed.pop("stderr", "IProgress not found")  # torch's own, of tqdm
    shown = [output for output in outputs if output["output_type"] == "display_data"]
    assert len(shown) == 1 and "6/6 trials done" in shown[0]["data"]["text/plain"]


def test_a_run_is_shown_as_a_summary(cells: list[dict[str, Any]]) -> None:
    (output,) = cells[1]["outputs"]
    html = output["data"]["text/html"]
    assert "6 of 6" in html and "rmse" in html and "<table" in html


def test_a_second_search_in_the_same_kernel_learns_from_the_first(cells: list[dict[str, Any]]) -> None:
    assert "6 trials of" in texts(cells[4]) and "Winner(" in texts(cells[4])
    (output,) = cells[5]["outputs"]
    assert Path(output["data"]["text/plain"].strip("'")).read_text().startswith("<!DOCTYPE html>")


def test_an_interrupt_ends_the_search_in_order(cells: list[dict[str, Any]]) -> None:
    assert "False True" in texts(cells[-1])


def test_a_run_is_read_in_python(finished: tuple[Path, str, str]) -> None:
    run = load_run(str(finished[0]))
    assert len(run.trials) == len(run.grid) == 8 and len(run.epochs) >= 8
    assert run.best is not None and run.best.value == run.epochs["accuracy"].max()
    assert repr(run).endswith("8 trials)") and run.folder == str(finished[0])


def test_a_search_in_python_refuses_as_the_script_does() -> None:
    with pytest.raises(InputError, match="space is no, but must be"):
        search("mnist", space="no")
    with pytest.raises(ValueError, match="num_samples is 0, but must be at least 1"):
        search("mnist", num_samples=0)
