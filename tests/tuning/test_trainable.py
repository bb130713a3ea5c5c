"""One trial, against a stand-in for Ray: what it reports and writes, how it resumes, what it leaves."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from tests.mnist.test_training import TRAIN, VALIDATION
from tune_mnist.mnist.data import Split
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.mnist.training import EpochResult, train
from tune_mnist.run.records import ATTEMPT, EPOCH, OPTUNA_NUMBER
from tune_mnist.run.saved import CHECKPOINT, REPORTS
from tune_mnist.tuning import trainable
from tune_mnist.tuning.device import DeviceMemoryError
from tune_mnist.tuning.trainable import FAILURE, SAVED, TRACEBACK

CONFIG = {"lr": 0.005, "momentum": 0.9, "optimizer": "sgd", "epochs": 3, OPTUNA_NUMBER: 7}
DATA = {"precision": "fp32", "cuda_graph": "on"}


def read_only(split: Split) -> dict[str, Any]:
    copies = {name: array.copy() for name, array in split.arrays().items()}
    for array in copies.values():
        array.flags.writeable = False
    return copies


class FakeTune:
    """Records a trial's reports, and ends its thread after an epoch, as Ray does with a stopped trial."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(trainable, "report_to_ray", self.report)

    def report(self, metrics: dict[str, Any]) -> None:
        self.reports.append(metrics)
        if metrics["epoch"] == self.stop_after:
            raise SystemExit

    def run(
        self,
        name: str = "trial",
        *,
        stop_after: int | None = None,
        resume_from: str | None = None,
        config: Mapping[str, Any] = CONFIG,
        data: Mapping[str, Any] = DATA,
        **changes: Any,
    ) -> list[dict[str, Any]]:
        """Run a trial in a folder with its name; return its reports."""
        self.name, self.stop_after = name, stop_after
        self.reports: list[dict[str, Any]] = []
        attempt = {"number": 1, "directory": name, "resume_from": resume_from}
        arguments: dict[str, Any] = {
            "train": train,
            "data": {**DATA, "train": read_only(TRAIN), "validation": read_only(VALIDATION), **data},
            "objective": OBJECTIVE,
            "fs": LocalFileSystem(),
            "run": str(self.folder),
            "seed": 0,
            "max_epochs": 5,
            "rungs": (1, 2),
            "checkpoint_seconds": 1e9,
            "target": None,
        }
        with pytest.raises(SystemExit) if stop_after else nullcontext():
            trainable.train_trial({**CONFIG, **config, ATTEMPT: attempt}, **{**arguments, **changes})
        return self.reports

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Those that the newest trial reported, by epoch."""
        return {r["epoch"]: self.folder / self.name / r[SAVED] for r in self.reports if SAVED in r}


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTune:
    return FakeTune(tmp_path, monkeypatch)


def outcomes(reports: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [(r["epoch"], r["accuracy"], r["val_loss"], r["train_loss"]) for r in reports]


def test_every_epoch_is_reported(tune: FakeTune) -> None:
    reports = tune.run()
    assert [r["epoch"] for r in reports] == [1, 2, 3]
    assert set(reports[0]) == {field.name for field in dataclasses.fields(EpochResult)} | {SAVED}


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
    changes: dict[str, Any], epochs: list[int], tune: FakeTune
) -> None:
    tune.run(**changes)
    assert list(tune.checkpoints) == epochs


def test_a_killed_trial_continues_as_if_it_had_not_been_killed(tune: FakeTune) -> None:
    whole = tune.run("whole")
    tune.run("killed", stop_after=2)
    first, second = tune.checkpoints.values()
    shutil.rmtree(second)
    resumed = tune.run("killed", resume_from=first.name)
    assert outcomes(resumed) == outcomes(whole)[1:]
    for epoch, checkpoint in tune.checkpoints.items():  # each has everything reported up to it
        reports = json.loads((checkpoint / REPORTS).read_text())
        assert [r["epoch"] for r in reports] == list(range(1, epoch + 1))
        assert [r["accuracy"] for r in reports] == [r["accuracy"] for r in whole[:epoch]]


def test_a_checkpoint_holds_plain_state_and_loads_with_weights_only(tune: FakeTune) -> None:
    tune.run()
    state = torch.load(tune.checkpoints[3] / CHECKPOINT, weights_only=True)
    assert set(state) == {"model", "optimizer", "epoch", "random_states"} and state["epoch"] == 3


def test_a_result_does_not_depend_on_the_trial_before_it_in_the_process(tune: FakeTune) -> None:
    alone = tune.run("alone")
    other = {"optimizer": "adamw", "activation": "gelu", "batch_size": 32, "epochs": 1, OPTUNA_NUMBER: 1}
    tune.run("other", config=other)
    tune.run("diverged", config={"lr": 1e30})
    assert outcomes(tune.run("again")) == outcomes(alone)


def test_trials_of_one_search_have_different_seeds(tune: FakeTune) -> None:
    assert outcomes(tune.run("one")) != outcomes(tune.run("two", config={OPTUNA_NUMBER: 8}))


def test_a_stray_key_of_a_space_fails_loudly(tune: FakeTune) -> None:
    (report,) = tune.run(config={"learning_rate": 0.1})
    assert "unexpected keyword argument 'learning_rate'" in report[FAILURE]
    assert report["epoch"] == 1 and math.isnan(report["accuracy"])
    assert "Traceback" in report[TRACEBACK]


def test_storage_that_is_away_is_no_fault_of_the_training(tune: FakeTune, tmp_path: Path) -> None:
    (tmp_path / "trial").write_text("in the way")
    with pytest.raises(OSError):
        tune.run()
    assert tune.reports == []


def test_a_gpu_trial_without_a_gpu_fails_and_never_trains(tune: FakeTune) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="sees no CUDA device"):
        tune.run(gpus=1.0)
    assert tune.reports == []


def test_a_fraction_of_a_gpu_is_set_as_its_limit_and_memory_errors_name_it(
    tune: FakeTune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    limits: list[float] = []
    monkeypatch.setattr(trainable, "prepare_gpu", limits.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceMemoryError, match=r"a fraction of 0.25: ask for --gpus-per-trial 0.5$"):
        tune.run(train=train, gpus=0.25)
    assert limits == [0.25]


@pytest.mark.parametrize(("flag", "wanted"), [("on", True), ("off", False)])
def test_the_setting_decides_whether_a_cuda_graph_is_used(
    flag: str, wanted: bool, tune: FakeTune, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def fit(*arguments: Any, cuda_graph: bool) -> list[Any]:
        asked.append(cuda_graph)
        return []

    monkeypatch.setattr("tune_mnist.mnist.training.fit", fit)
    tune.run(data={"cuda_graph": flag})
    assert asked == [wanted]


def test_a_diverged_training_says_it_in_its_last_report(tune: FakeTune) -> None:
    (report,) = tune.run(config={"lr": 1e30})  # it returns: the process lives on
    assert re.fullmatch(r"the loss is not finite at step \d of epoch 1", report[FAILURE])
    assert math.isnan(report[OBJECTIVE.metric]) and report[EPOCH] == 1


def test_shared_memory_is_not_written_and_no_warning_is_shown(tune: FakeTune) -> None:
    images = read_only(TRAIN)
    tune.run(data={"train": images}, config={"epochs": 1})
    assert all(np.array_equal(images[name], TRAIN.arrays()[name]) for name in images)
