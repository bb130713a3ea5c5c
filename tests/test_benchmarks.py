"""The benchmarks: that they compare like with like, and what they make of a log. None times anything."""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks import measure
from benchmarks.contestants import common
from benchmarks.search import CONTESTANTS, OURS, SHORT, figures
from tests.conftest import ROOT
from tune_mnist.data import load_train_val
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.model import PIXEL_MEAN, PIXEL_STD, Network


def test_the_contestants_network_is_ours() -> None:
    torch.manual_seed(0)
    ours, theirs = Network(Hyperparameters()).eval(), common.Net().eval()
    theirs.conv1.load_state_dict(ours.conv1.state_dict())
    theirs.conv2.load_state_dict(ours.conv2.state_dict())
    theirs.fc2.load_state_dict(ours.dense2.state_dict())
    with torch.no_grad():  # ours flattens with the channels last
        weight = ours.dense1.weight.view(128, 12, 12, 64).permute(0, 3, 1, 2).flatten(1)
        theirs.fc1.weight.copy_(weight)
        theirs.fc1.bias.copy_(ours.dense1.bias)
    images = torch.randint(0, 256, (16, 28, 28), dtype=torch.uint8)
    normalised = images.unsqueeze(1).sub(PIXEL_MEAN).div(PIXEL_STD)
    torch.testing.assert_close(theirs(normalised), ours(images), atol=1e-4, rtol=1e-4)
    assert theirs.dropout1.p == ours.dropout_conv.p and theirs.dropout2.p == ours.dropout_dense.p


def test_the_contestants_split_is_ours(mnist_dir: Path) -> None:
    flags = {"data_dir": mnist_dir, "train_size": 130, "val_size": 70, "seed": 3, "device": "cpu"}
    train, validation = common.loaders(argparse.Namespace(**flags))
    ours = load_train_val("mnist", mnist_dir, train_size=130, val_size=70, seed=3)
    for loader, split in zip((train, validation), ours, strict=True):
        dataset: Any = loader.dataset
        images = torch.stack([image for image, _ in dataset])
        expected = split.images.unsqueeze(1).sub(PIXEL_MEAN).div(PIXEL_STD)
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
        assert [label for _, label in dataset] == split.labels.tolist()


@pytest.mark.parametrize("name", ["blog", "optuna_processes"])
def test_a_contestant_runs_the_trials_it_is_told(name: str, mnist_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "epochs.jsonl"
    flags = ["--num-samples", "3", "--max-epochs", "2", "--train-size", "128", "--val-size", "50"]
    flags += ["--seed", "0", "--data-dir", str(mnist_dir), "--log", str(log)]
    command = [sys.executable, "-m", f"benchmarks.contestants.{name}", *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = pd.DataFrame([json.loads(line) for line in log.read_text().splitlines()])
    started = lines["trial"].nunique()  # processes that look at the count at once may start one more
    assert started == 3 or (name == "optuna_processes" and started == 4)
    assert lines["accuracy"].between(0, 1).all()
    epochs = lines.groupby("trial")["epoch"].agg(list)
    assert all(of == list(range(1, len(of) + 1)) for of in epochs)
    assert name != "blog" or all(len(of) == 2 for of in epochs)


def test_every_contestant_is_a_program_here() -> None:
    folder = ROOT / "benchmarks" / "contestants"
    assert all((folder / f"{name}.py").is_file() for name in CONTESTANTS if name != OURS)


def test_figures_are_read_from_a_log_in_the_order_of_time() -> None:
    log = pd.DataFrame(
        [(105.0, 1, 1, 0.95), (103.0, 0, 1, 0.90), (109.0, 0, 2, 0.93)],
        columns=["time", "trial", "epoch", "accuracy"],
    )
    work = dataclasses.replace(SHORT, thresholds=(0.92, 0.99))
    found = figures(log, 100.0, work)
    assert (found["epochs"], found["trials"], found["best_accuracy"]) == (3, 2, 0.95)
    assert found["seconds_to_1"] == 5.0 and math.isnan(found["seconds_to_2"])
    nothing = figures(log[:0], 100.0, work)
    assert nothing["epochs"] == 0 and math.isnan(nothing["best_accuracy"])


def test_measures_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def note(name: str, number: int) -> dict[str, float]:
        calls.append((name, number))
        return {"seconds": {"a": 3.0, "b": 2.0}[name] * (number + 1)}

    rows = measure.interleaved({"a": lambda n: note("a", n), "b": lambda n: note("b", n)}, 2, lambda _: None)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert measure.ratios(rows, "seconds", "a", "b").tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("values", "text"), [([3.0, 1.0, 2.0], "2 s (1 s to 3 s)"), ([1.5], "1.5 s"), ([math.nan], "–")]
)
def test_a_spread_is_a_median_with_its_ends(values: list[float], text: str) -> None:
    assert measure.spread(values, " s") == text


def test_results_say_where_and_when(tmp_path: Path) -> None:
    path = measure.write("some", pd.DataFrame({"what": ["a"], "seconds": [1.0]}), tmp_path)
    (row,) = pd.read_parquet(path).to_dict("records")
    assert row["seconds"] == 1.0 and row["torch"] == torch.__version__.partition("+")[0] and row["cores"] >= 1
