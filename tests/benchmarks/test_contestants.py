"""The tuners that the benchmarks compare with: the same work, the same measurement."""

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from benchmarks import process, search, throughput
from benchmarks.contestants import common
from benchmarks.loop import side_by_side
from tests.conftest import ROOT
from tests.made_runs import space_of
from tune_mnist.mnist.data import load_train_val
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.model import Network
from tune_mnist.mnist.training import evaluate

WORK = search.Work(
    rounds=2,
    num_samples=3,
    max_epochs=3,
    train_size=256,
    val_size=200,
    thresholds=(0.9, 0.95),
    limit_seconds=200,
)


def run_contestant(name: str, mnist_dir: Path, folder: Path, cores: int) -> pd.DataFrame:
    command = search.command(name, WORK, mnist_dir, seed=0, cores=cores, folder=folder)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    epochs = search.read_log(folder / "epochs.jsonl")
    assert epochs["accuracy"].between(0, 1).all()
    assert epochs["trial"].nunique() == WORK.num_samples
    for _, of_trial in epochs.groupby("trial"):
        assert list(of_trial["epoch"]) == list(range(1, len(of_trial) + 1))
        assert of_trial["time"].is_monotonic_increasing
    return epochs


def loader_flags(mnist_dir: Path, **changes: Any) -> argparse.Namespace:
    sizes = {"train_size": 55_000, "val_size": 5000, "seed": 3}
    return argparse.Namespace(data_dir=mnist_dir, device="cpu", **{**sizes, **changes})


def test_the_blogs_study_trains_every_trial_to_its_end(mnist_dir: Path, tmp_path: Path) -> None:
    epochs = run_contestant("blog", mnist_dir, tmp_path, cores=1)
    study = pickle.loads((tmp_path / "study.pkl").read_bytes())
    assert (epochs.groupby("trial")["epoch"].max() == 3).all()
    last = epochs[epochs["epoch"] == 3]
    assert list(last["accuracy"]) == [trial.value for trial in study.trials]


def test_optunas_processes_share_the_budget_and_prune(mnist_dir: Path, tmp_path: Path) -> None:
    epochs = run_contestant("optuna_processes", mnist_dir, tmp_path, cores=2)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    trials = optuna.load_study(study_name="mnist", storage=storage).trials
    assert len({str(trial.params) for trial in trials}) == len(trials) == WORK.num_samples
    for trial in trials:
        logged = epochs[epochs["trial"] == trial.number].set_index("epoch")["accuracy"]
        assert logged.to_dict() == trial.intermediate_values
        assert (trial.state.name == "COMPLETE") or (trial.state.name == "PRUNED" and len(logged) < 3)


@pytest.mark.parametrize("max_epochs", [1, 4, 9])
def test_the_contestants_space_is_ours(max_epochs: int) -> None:
    trial = optuna.create_study().ask()
    common.suggest(trial, max_epochs)
    assert trial.distributions == space_of("blog", max_epochs)


def test_the_contestants_split_is_ours(mnist_dir: Path) -> None:
    loaders = common.loaders(loader_flags(mnist_dir, train_size=2000))
    splits = load_train_val("mnist", mnist_dir, val_size=5000, train_size=2000, seed=3)
    for loader, split in zip(loaders, splits, strict=True):
        subset: Any = loader.dataset
        assert torch.equal(subset.dataset.data[subset.indices], split.images)
        assert torch.equal(subset.dataset.targets[subset.indices], split.labels)


def test_the_contestants_network_and_measure_are_ours(mnist_dir: Path) -> None:
    theirs, ours = common.Net(), Network(Hyperparameters())
    with torch.no_grad():
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        for name, (own, other) in zip(dict(ours.named_parameters()), pairs, strict=True):
            if name == "dense1.weight":  # ours flattens rows, columns, channels; theirs channels first
                own.copy_(other.view(128, 64, 12, 12).permute(0, 2, 3, 1).flatten(1))
            else:
                own.copy_(other)
    _, loader = common.loaders(loader_flags(mnist_dir, val_size=500))
    _, split = load_train_val("mnist", mnist_dir, val_size=500, seed=3)
    images, _ = next(iter(loader))
    theirs.eval(), ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(split.images), theirs(images), atol=1e-4, rtol=1e-4)
    assert common.accuracy(theirs, loader, "cpu") == evaluate(ours, split)[0]


@pytest.mark.parametrize("optimizer", common.OPTIMIZERS)
def test_the_contestants_hand_momentum_on(optimizer: str) -> None:
    made = common.make_optimizer(common.Net(), {"optimizer": optimizer, "lr": 0.004, "momentum": 0.7})
    assert type(made).__name__.lower() == optimizer
    assert (made.param_groups[0]["lr"], made.param_groups[0]["momentum"]) == (0.004, 0.7)


# ---- what is measured


def test_the_time_to_an_accuracy_is_read_from_the_log(tmp_path: Path) -> None:
    lines = [(0, 1, 0.80, 110.0), (1, 1, 0.97, 190.0), (0, 2, 0.92, 130.0), (0, 3, 0.91, 150.0)]
    log = tmp_path / "epochs.jsonl"
    log.write_text(
        "".join(
            json.dumps(dict(zip(("trial", "epoch", "accuracy", "time"), line, strict=True))) + "\n"
            for line in lines
        )
    )
    figures = search.figures(search.read_log(log), 100.0, WORK)
    assert (figures["trials"], figures["epochs"], figures["images"]) == (2, 4, 4 * 256)
    assert (figures["best_accuracy"], figures["seconds_to_1"], figures["seconds_to_2"]) == (0.97, 30.0, 90.0)


def test_an_accuracy_never_reached_has_no_time(tmp_path: Path) -> None:
    figures = search.figures(search.read_log(tmp_path / "no.jsonl"), 100.0, WORK)
    assert figures["epochs"] == 0 and math.isnan(figures["seconds_to_1"])


def test_our_own_epochs_come_from_the_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger.jsonl"
    ledger.parent.mkdir()
    events = [
        {"event": "trial", "trial_id": "a", "time": 1.0},
        {"event": "epoch", "trial_id": "a", "epoch": 1, "accuracy": 0.5, "timestamp": 2, "time": 2.5},
    ]
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    (row,) = search.epochs_of_ours(tmp_path).to_dict("records")
    assert row == {"trial": "a", "epoch": 1, "accuracy": 0.5, "time": 2.5}


def test_contestants_take_turns(mnist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def note(name: str, work: search.Work, data_dir: Path, seed: int) -> dict[str, Any]:
        order.append((seed, name))
        return {"seed": seed}

    monkeypatch.setattr(search, "search", note)
    monkeypatch.setattr(search, "SHORT", WORK)
    monkeypatch.setattr(search, "SYNE_TUNE", Path("/nowhere"))
    console = Console(file=StringIO(), width=200)
    rows = pd.DataFrame(search.run(console, full=False, data_dir=mnist_dir))
    names = [name for name in search.CONTESTANTS if name != "synetune"]
    assert order == [(seed, name) for seed in (0, 1) for name in names]
    assert list(rows["what"]) == 2 * names
    assert "without" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_shown_is_relative_to_ours_and_names_the_failures() -> None:
    row = {"round": 0, **vars(WORK), "cpu_seconds": 8.0, "error": ""}
    epochs = pd.DataFrame({"trial": [0], "epoch": [1], "accuracy": [0.99], "time": [20.0]})
    rows = [
        {**row, "what": "blog", "wall_seconds": 60.0, **search.figures(epochs, 10.0, WORK)},
        {**row, "what": "ours", "wall_seconds": 15.0, **search.figures(epochs, 15.0, WORK)},
        {**row, "what": "synetune", "wall_seconds": 1.0, **search.figures(epochs[:0], 0.0, WORK)},
    ]
    rows[-1]["error"] = "ValueError: no"
    console = Console(file=StringIO(), width=200)
    search.show(console, pd.DataFrame(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4×" in text and "2×" in text  # of 60 s to 15 s, and of 10 s to 5 s
    assert "synetune, round 0: ValueError: no" in text


def run_python(code: str, folder: Path, limit_seconds: float = 100) -> process.Ran:
    environment: Mapping[str, str] = dict(os.environ)
    return process.run(
        [sys.executable, "-c", code],
        folder / "output.txt",
        folder=folder,
        environment=environment,
        limit_seconds=limit_seconds,
    )


def test_a_failed_program_is_described_by_its_last_line(tmp_path: Path) -> None:
    assert run_python("print('a'); raise KeyError('b')", tmp_path).error == "KeyError: 'b'"
    assert run_python("print('a')", tmp_path).error == ""
    assert "1 s" in run_python("import time; time.sleep(90)", tmp_path, limit_seconds=1).error


def test_the_cpu_seconds_of_what_a_program_starts_count(tmp_path: Path) -> None:
    spin = "import time\\nwhile time.process_time() < 2: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{spin}'])"
    ran = run_python(code, tmp_path)
    assert ran.cpu_seconds >= 2 - process.LOOK_SECONDS
    assert ran.own_cpu_seconds < 0.7 and 1 < ran.peak_megabytes < 1000


def test_nothing_outlives_a_program(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen(['sleep', '90'], start_new_session=True);"
        "print(child.pid, flush=True); time.sleep(2)"
    )
    run_python(code, tmp_path)
    pid = int((tmp_path / "output.txt").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_an_image_takes_as_many_flop_as_counted_by_hand() -> None:
    conv1, conv2 = 2 * 26 * 26 * 32 * 9, 2 * 24 * 24 * 64 * 32 * 9
    dense = 2 * (12 * 12 * 64 * 128 + 128 * 10)
    # Backward takes two products of the same size for each forward one, but no gradient of the images.
    assert throughput.flop_per_image() == 3 * (conv1 + conv2 + dense) - conv1


def test_throughput_is_given_per_core_and_as_a_fraction_of_the_matmul() -> None:
    common_columns = {"round": 0, "precision": "fp32", "flop_per_image": 1000, "cpu_seconds": 2.0}
    blog = {"images_per_second": 200.0, "validation_images_per_second": 400.0, "flops": math.nan}
    ours = {**blog, "images_per_second": 600.0}
    matmul = {"images_per_second": math.nan, "validation_images_per_second": math.nan, "flops": 1.2e6}
    rows = [
        {**common_columns, "what": throughput.BASE, "loop": "blog", "threads": 2, **blog},
        {**common_columns, "what": "ours fp32", "loop": "ours", "threads": 1, **ours},
        {**common_columns, "what": "matmul fp32", "loop": "matmul", "threads": 1, **matmul},
    ]
    console = Console(file=StringIO(), width=200)
    throughput.show(console, pd.DataFrame(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "n = 1" in text and " 100 " in text and "6×" in text and "50 %" in text


def test_a_loop_is_timed_in_its_own_process(mnist_dir: Path) -> None:
    flags = ["ours", "--images", "128", "--val-images", "250", "--data-dir", str(mnist_dir)]
    figures = side_by_side(1, flags, os.environ)
    assert set(figures) == {"images_per_second", "validation_images_per_second", "cpu_seconds"}
    assert min(figures.values()) > 0


def test_a_loop_that_fails_says_why(mnist_dir: Path) -> None:
    flags = ["ours", "--images", "0", "--data-dir", str(mnist_dir)]
    with pytest.raises(RuntimeError, match="train_size is 0, but must be 1 to 58000"):
        side_by_side(1, flags, os.environ)
