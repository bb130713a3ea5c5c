"""The verdicts of the GPU benchmark's steps, on synthetic measurements: none of these tests needs a GPU."""

import dataclasses
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import cuda_tests, loop, memory, mps, reuse, search
from benchmarks.gpu.output import Output
from benchmarks.gpu.step import Setup, SkippedError, StepError
from tune_mnist.mnist.training import EpochResult
from tune_mnist.tuning.device import DeviceMemoryError, device_memory_errors


@pytest.fixture
def setup(tmp_path: Path, mnist_dir: Path) -> Setup:
    output = Output(tmp_path / "out")
    output.prepare([], keep=False)
    return Setup(device="cpu", data_dir=mnist_dir, output=output)


def on_gpu(setup: Setup) -> Setup:
    return dataclasses.replace(setup, device="cuda")


def result(train_loss: float, *, cuda_graph: bool) -> EpochResult:
    measured = {"epoch_seconds": 1.0, "images_per_second": 100.0, "accuracy": 0.9, "val_loss": 0.3}
    return EpochResult(epoch=1, train_loss=train_loss, cuda_graph=cuda_graph, **measured)


@pytest.mark.parametrize(
    ("graph_losses", "replayed", "fault"),
    [
        ((1.0, 0.51), (True, True), None),
        ((1.04, 0.5), (True, True), "bf16 sgd: losses of eager and graph differ by 4.0%"),
        ((1.0, float("nan")), (True, True), "losses of eager and graph differ by nan"),
        ((1.0, 0.5), (True, False), "bf16 sgd: an epoch was not replayed from a CUDA graph"),
    ],
)
def test_the_loop_compares_graphs_with_eager_steps(
    graph_losses: tuple[float, float],
    replayed: tuple[bool, bool],
    fault: str | None,
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(*args: Any) -> list[EpochResult]:
        if not args[-1].cuda_graph:
            return [result(1.0, cuda_graph=False), result(0.5, cuda_graph=False)]
        pairs = zip(graph_losses, replayed, strict=True)
        return [result(loss, cuda_graph=cuda_graph) for loss, cuda_graph in pairs]

    monkeypatch.setattr(loop, "_train", train)
    monkeypatch.setattr(loop, "_profiles", lambda *args: iter(["a profile"]))
    monkeypatch.setattr(loop, "_context_memory", lambda: {"context MB": 500.0})
    monkeypatch.setattr(loop, "resolve_precision", lambda *args: "bf16")
    figures: dict[str, Any] = {}
    steps = loop.run(on_gpu(setup))
    if fault is None:
        figures = {name: value for some in steps for name, value in some.items()}
        assert figures["bf16 sgd graph loss differs by"] == pytest.approx(0.02)
        assert figures["tf32 adamw graph of 10 images/s"] == 100.0
    else:
        with pytest.raises(StepError) as raised:
            list(steps)
        assert fault in str(raised.value)
    assert setup.output.profile_file.read_text() == "a profile"


def write_search(folder: Path, lines: list[dict[str, Any]], code: int) -> None:
    """Replace scripts/tune.py with a script that leaves a ledger."""
    text = "\n".join(json.dumps(line) for line in lines) + "\n"
    (folder / "scripts").mkdir()
    (folder / "scripts" / "tune.py").write_text(
        "import pathlib, sys\n"
        "run = pathlib.Path(sys.argv[sys.argv.index('--storage-path') + 1]) / 'run'\n"
        "run.mkdir()\n"
        f"(run / 'ledger.jsonl').write_text({text!r})\n"
        "print('the last line')\n"
        f"sys.exit({code})\n"
    )


LOST = "The actor died unexpectedly"


def ledger(trials: int, errors: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    for number in range(trials):
        epoch = {"trial_id": str(number), "epoch": 1, "epoch_seconds": 0.5, "time": 10.0 + number, "pid": 7}
        yield {"event": "epoch", "accuracy": 0.9, "cuda_graph": False, **epoch}
        yield {"event": "end", "trial_id": str(number), "state": "COMPLETE", "time": 10.0 + number}
    for error in errors:
        event = "lost" if error == LOST else "error"
        yield {"event": event, "trial_id": "0", "error": error, "time": 20.0}


@pytest.mark.parametrize(
    ("trials", "errors", "code", "fault"),
    [
        (4, (), 0, None),
        (4, ("the loss is not finite at step 3 of epoch 1",), 0, None),
        (4, (), 1, "the search ended with code 1: the last line"),
        (3, (), 0, "3 of 4 trials have ended"),
        (4, ("the GPU has no memory left",), 0, "a trial failed: the GPU has no memory left"),
        (4, (LOST,), 0, f"a trial failed: {LOST}"),
    ],
)
def test_a_search_must_end_well_with_all_its_trials(
    trials: int,
    errors: tuple[str, ...],
    code: int,
    fault: str | None,
    setup: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_search(tmp_path, list(ledger(trials, errors)), code)
    monkeypatch.setattr(search, "ROOT", tmp_path)
    figures: dict[str, Any] = {}
    try:
        for some in search.run(setup, gpus=0.5):
            figures |= some
    except StepError as error:
        assert str(error) == fault
    else:
        assert fault is None
    assert figures["epochs"] == figures["trials COMPLETE"] == trials
    assert figures["idle seconds between trials, median"] == 0.5


def test_an_interrupted_search_keeps_the_figures_that_it_had(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_search(tmp_path, list(ledger(2)), 0)
    script = tmp_path / "scripts" / "tune.py"
    interrupts = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)\n"
    script.write_text(script.read_text().replace("print(", f"{interrupts}print("))
    monkeypatch.setattr(search, "ROOT", tmp_path)
    figures: dict[str, Any] = {}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a step
    try:
        with pytest.raises(StepError, match="ended with code 130"):
            for some in search.run(setup, gpus=0.5):
                figures |= some
    finally:
        signal.signal(signal.SIGINT, before)
    assert figures["epochs"] == 2 and figures["seconds to the first epoch"] < figures["seconds to the end"]


def test_a_search_without_a_ledger_is_a_verdict_too(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "tune.py").write_text("raise SystemExit('there is no GPU')")
    monkeypatch.setattr(search, "ROOT", tmp_path)
    with pytest.raises(StepError, match=r"^the search ended with code 1: there is no GPU$"):
        list(search.run(setup, gpus=0.5))


@pytest.mark.parametrize(
    ("added", "fault", "text"),
    [
        (0.0, "", None),
        (20.0, "", "memory grows by 160 MB from trial 4 to 12"),
        (0.0, "the loss was 1 and is 2", "rmsprop, cpu to cpu: the loss was 1 and is 2"),
    ],
)
def test_memory_that_grows_or_a_bad_resume_fails_the_reuse(
    added: float, fault: str, text: str | None, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    megabytes = iter(500.0 + added * number for number in range(reuse.TRIALS))
    monkeypatch.setattr(reuse, "_train_one", lambda *args: None)
    monkeypatch.setattr(reuse, "_megabytes", lambda setup: next(megabytes))
    monkeypatch.setattr(reuse, "_resume", lambda source, target, optimizer, *splits: fault)
    steps = reuse.run(setup)
    if text is None:
        list(steps)
    else:
        with pytest.raises(StepError, match=text):
            list(steps)


def test_the_sentence_about_memory_is_the_one_that_a_trial_says() -> None:
    with pytest.raises(DeviceMemoryError) as raised, device_memory_errors(memory.FRACTION):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 MiB")
    assert re.fullmatch(memory.SENTENCE, str(raised.value))


@pytest.mark.parametrize("sentence", [memory.NO_ERROR, "RuntimeError: CUDA error: unknown error"])
def test_another_sentence_about_memory_is_a_failure(
    sentence: str, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceMemoryError) as raised, device_memory_errors(memory.FRACTION):
        raise RuntimeError("CUDA error: out of memory")
    good = str(raised.value)
    monkeypatch.setattr(memory, "_fill_but", lambda left: torch.zeros(1))
    monkeypatch.setattr(memory, "_sentence", lambda case, data_dir: sentence if case == "full" else good)
    with pytest.raises(StepError, match=r"^not the expected sentence: full card, fuller card$"):
        list(memory.run(on_gpu(setup)))


@pytest.mark.parametrize(
    ("tests", "counts", "fault"),
    [
        ("def test_a(): pass\n", (1, 0, 0), None),
        ("def test_a(): pass\ndef test_b(): assert 0\n", (1, 1, 0), "failed: test_b"),
        ("import pytest\ndef test_a(): pytest.skip('no GPU')\n", (0, 0, 1), "0 tests passed"),
        ("import nothing_of_that_name\n", (0, 1, 0), "failed: "),
    ],
)
def test_the_tests_step_counts_what_pytest_reports(
    tests: str,
    counts: tuple[int, int, int],
    fault: str | None,
    setup: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "test_made.py").write_text(tests)
    monkeypatch.setattr(cuda_tests, "TEST_FILE", str(tmp_path / "test_made.py"))
    steps = cuda_tests.run(setup)
    assert next(steps) == dict(zip(("passed", "failed", "skipped_tests"), counts, strict=True))
    if fault is None:
        assert list(steps) == []
    else:
        with pytest.raises(StepError, match=fault):
            next(steps)


# A daemon that starts, or does not, and logs its requests.
CONTROL = """#!{python}
import pathlib, sys, time
if sys.argv[1:] == ["-d"]:
    {start}
else:
    with open({asked!r}, "a") as file:
        file.write(sys.stdin.readline())
    {answer}
"""


@pytest.mark.parametrize(
    ("start", "answer", "kernel", "fault", "asked"),
    [
        ("pass", "pass", "pass", None, ["get_server_list", "quit"]),
        ("sys.exit(3)", "pass", "pass", "nvidia-cuda-mps-control -d ended with code 3", ["quit"]),
        ("time.sleep(60)", "pass", "pass", "MPS does not start in 1 s", ["quit"]),
        ("pass", "time.sleep(60)", "pass", "MPS does not answer in 1 s", ["get_server_list", "quit"]),
        ("pass", "pass", "1 / 0", "through MPS: ZeroDivisionError", ["get_server_list", "quit"]),
    ],
)
def test_mps_is_used_where_it_starts_and_always_shut_down(
    start: str,
    answer: str,
    kernel: str,
    fault: str | None,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control = tmp_path / mps.CONTROL
    notes = tmp_path / "asked.txt"
    control.write_text(CONTROL.format(python=sys.executable, start=start, answer=answer, asked=str(notes)))
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mps, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(mps, "KERNEL", kernel)
    if fault is None:
        with mps.started() as environment:
            assert environment["CUDA_MPS_PIPE_DIRECTORY"]
    else:
        with pytest.raises(SkippedError, match=fault), mps.started():
            pass
    assert notes.read_text().split() == asked


def test_without_mps_the_step_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SkippedError, match=r"^there is no nvidia-cuda-mps-control$"), mps.started():
        pass
