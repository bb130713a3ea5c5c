"""One trial, against a stand-in for Ray: what it reports and writes, how it goes on, what it leaves."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from tests.mnist.test_training import TRAIN, VALIDATION
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.mnist.training import EpochResult, train
from tune_mnist.run.records import ATTEMPT, EPOCH, OPTUNA_NUMBER
from tune_mnist.run.saved import CHECKPOINT, REPORTS
from tune_mnist.tuning import trainable
from tune_mnist.tuning.device import DeviceMemoryError
from tune_mnist.tuning.trainable import FAILURE, SAVED, TRACEBACK

CONFIG = {"lr": 0.005, "momentum": 0.9, "optimizer": "sgd", "epochs": 3, OPTUNA_NUMBER: 7}


class FakeTune:
    """Keeps what a trial reports, and ends its thread after an epoch, as Ray does with a stopped trial."""

    def __init__(self, folder: Path, stop_after: int | None = None, resume_from: str | None = None) -> None:
        self.folder, self.stop_after, self.resume_from = folder, stop_after, resume_from
        self.reports: list[dict[str, Any]] = []

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Those that were reported, by epoch."""
        return {r["epoch"]: self.folder / "trial" / r[SAVED] for r in self.reports if SAVED in r}

    def report(self, metrics: dict[str, Any]) -> None:
        self.reports.append(metrics)
        if metrics["epoch"] == self.stop_after:
            raise SystemExit


def read_only(arrays: dict[str, Any]) -> dict[str, Any]:
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def run(fake: FakeTune, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> FakeTune:
    monkeypatch.setattr(trainable, "report_to_ray", fake.report)
    attempt = {"number": 1, "directory": "trial", "resume_from": fake.resume_from}
    config = {**CONFIG, ATTEMPT: attempt, **changes.pop("config", {})}
    data = {
        "train": read_only({name: array.copy() for name, array in TRAIN.arrays().items()}),
        "validation": read_only({name: array.copy() for name, array in VALIDATION.arrays().items()}),
        "precision": "fp32",
        "cuda_graph": "on",
    }
    arguments: dict[str, Any] = {
        "train": train,
        "data": {**data, **changes.pop("data", {})},
        "objective": OBJECTIVE,
        "fs": LocalFileSystem(),
        "run": str(fake.folder),
        "seed": 0,
        "max_epochs": 5,
        "rungs": (1, 2),
        "checkpoint_seconds": 1e9,
        "target": None,
    }
    trainable.train_trial(config, **{**arguments, **changes})
    return fake


def outcomes(fake: FakeTune) -> list[tuple[float, ...]]:
    return [(r["epoch"], r["accuracy"], r["val_loss"], r["train_loss"]) for r in fake.reports]


def test_every_epoch_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = run(FakeTune(tmp_path), monkeypatch)
    assert [r["epoch"] for r in fake.reports] == [1, 2, 3]
    assert set(fake.reports[0]) == {field.name for field in dataclasses.fields(EpochResult)} | {SAVED}


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"rungs": (1, 2)}, [1, 2, 3]),
        ({"rungs": (2,)}, [2, 3]),
        ({"rungs": ()}, [3]),
        ({"rungs": (), "checkpoint_seconds": 0}, [1, 2, 3]),
        ({"rungs": (), "target": 0.01}, [1, 2, 3]),
    ],
)
def test_checkpoints_are_written_at_rungs_at_the_end_and_when_due(
    changes: dict[str, Any], epochs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(run(FakeTune(tmp_path), monkeypatch, **changes).checkpoints) == epochs


def test_a_trial_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(FakeTune(tmp_path / "whole"), monkeypatch)
    killed = FakeTune(tmp_path / "killed", stop_after=2)
    with pytest.raises(SystemExit):
        run(killed, monkeypatch)
    shutil.rmtree(killed.checkpoints[2])
    resumed = run(FakeTune(killed.folder, resume_from=killed.checkpoints[1].name), monkeypatch)
    assert outcomes(resumed) == outcomes(whole)[1:]
    for epoch, checkpoint in resumed.checkpoints.items():  # each tells all that was reported up to it
        reports = json.loads((checkpoint / REPORTS).read_text())
        assert [r["epoch"] for r in reports] == list(range(1, epoch + 1))
        assert [r["accuracy"] for r in reports] == [r["accuracy"] for r in whole.reports[:epoch]]


def test_a_checkpoint_holds_plain_state_and_loads_with_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = run(FakeTune(tmp_path), monkeypatch)
    state = torch.load(fake.checkpoints[3] / CHECKPOINT, weights_only=True)
    assert set(state) == {"model", "optimizer", "epoch", "random_states"} and state["epoch"] == 3


def test_a_result_does_not_depend_on_the_trial_before_it_in_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(FakeTune(tmp_path / "alone"), monkeypatch)
    other = {"optimizer": "adamw", "activation": "gelu", "batch_size": 32, "epochs": 1, OPTUNA_NUMBER: 1}
    run(FakeTune(tmp_path / "other"), monkeypatch, config=other)
    run(FakeTune(tmp_path / "diverged"), monkeypatch, config={"lr": 1e30})
    again = run(FakeTune(tmp_path / "again"), monkeypatch)
    assert outcomes(again) == outcomes(alone)


def test_trials_of_one_search_have_different_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(FakeTune(tmp_path / "one"), monkeypatch)
    two = run(FakeTune(tmp_path / "two"), monkeypatch, config={OPTUNA_NUMBER: 8})
    assert outcomes(one) != outcomes(two)


def test_a_stray_key_of_a_space_fails_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (report,) = run(FakeTune(tmp_path), monkeypatch, config={"learning_rate": 0.1}).reports
    assert "unexpected keyword argument 'learning_rate'" in report[FAILURE]
    assert report["epoch"] == 1 and math.isnan(report["accuracy"])
    assert "Traceback" in report[TRACEBACK]


def test_storage_that_is_away_is_no_fault_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trial").write_text("in the way")
    fake = FakeTune(tmp_path)
    with pytest.raises(OSError):
        run(fake, monkeypatch)
    assert fake.reports == []


def test_a_gpu_trial_without_a_gpu_fails_and_never_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    fake = FakeTune(tmp_path)
    with pytest.raises(RuntimeError, match="sees no CUDA device"):
        run(fake, monkeypatch, gpus=1.0)
    assert fake.reports == []


def test_a_fraction_of_a_gpu_is_set_as_its_limit_and_memory_errors_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    limits: list[float] = []
    monkeypatch.setattr(trainable, "prepare_gpu", limits.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceMemoryError, match=r"a fraction of 0.25: ask for --gpus-per-trial 0.5$"):
        run(FakeTune(tmp_path), monkeypatch, train=train, gpus=0.25)
    assert limits == [0.25]


@pytest.mark.parametrize(("flag", "wanted"), [("on", True), ("off", False)])
def test_the_setting_decides_whether_a_cuda_graph_is_used(
    flag: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def fit(*arguments: Any, cuda_graph: bool) -> list[Any]:
        asked.append(cuda_graph)
        return []

    monkeypatch.setattr("tune_mnist.mnist.training.fit", fit)
    run(FakeTune(tmp_path), monkeypatch, data={"cuda_graph": flag})
    assert asked == [wanted]


def test_a_training_that_diverges_says_so_in_its_last_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = run(FakeTune(tmp_path), monkeypatch, config={"lr": 1e30})  # which returns: the process lives on
    (report,) = fake.reports
    assert re.fullmatch(r"the loss is not finite at step \d of epoch 1", report[FAILURE])
    assert math.isnan(report[OBJECTIVE.metric]) and report[EPOCH] == 1


def test_shared_memory_is_not_written_and_no_warning_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = read_only({name: array.copy() for name, array in TRAIN.arrays().items()})
    run(FakeTune(tmp_path), monkeypatch, data={"train": images}, config={"epochs": 1})
    assert all(np.array_equal(images[name], TRAIN.arrays()[name]) for name in images)
