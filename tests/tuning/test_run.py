"""The real scripts on real MNIST with small numbers: the run folder, the exit codes, the ways to stop."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ray.tune import Result

from tests.conftest import Runner, WarmRunner
from tests.invariants import study_of
from tests.searches import begun_trials
from tune_mnist import results
from tune_mnist.mnist.data import load_test
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.model import Network
from tune_mnist.mnist.task import TASK, splits
from tune_mnist.mnist.training import Training, evaluate, fit
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import TrialRecord
from tune_mnist.tuning.preflight import read_settings
from tune_mnist.tuning.tasks import make_options


def reported(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """What each trial reported, by trial id, straight from the files in its folder."""
    return {
        folder.name.split("_")[2]: [
            json.loads(line) for line in (folder / "result.json").read_text().splitlines()
        ]
        for folder in run_dir.glob("trial_*_*")
    }


def state_of(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return "FAIL"
    return "COMPLETE" if lines[-1]["epoch"] == lines[-1]["config"]["epochs"] else "PRUNED"


def test_the_console_is_quiet(finished: tuple[Path, str, str]) -> None:
    _, out, err = finished
    assert err == ""
    lines = out.splitlines()
    assert sum(bool(re.match(r" +\d/8 trial \d +(COMPLETE|PRUNED|FAIL) ", line)) for line in lines) == 8
    assert len(lines) < 8 + 25
    assert "\x1b" not in out and "Warning" not in out


def test_the_summary_names_the_winner_with_its_errors(finished: tuple[Path, str, str]) -> None:
    run_dir, out, _ = finished
    metrics = json.loads((run_dir / "best" / "metrics.json").read_text())
    assert f"Winner, trial {metrics['number']} at epoch {metrics['epoch']}: " in out
    error = (metrics["test_accuracy"] * (1 - metrics["test_accuracy"]) / 10_000) ** 0.5
    assert f"test {metrics['test_accuracy']:.2%} ± {error:.2%} (n = 10,000" in out
    assert "Baseline: " in out or metrics["number"] == 0


def test_the_study_agrees_with_rays_own_files(finished: tuple[Path, str, str]) -> None:
    run_dir = finished[0]
    rows = reported(run_dir)
    trials = study_of(run_dir)
    assert len(trials) == len(rows) == 8
    for trial in trials:
        lines = rows[trial.user_attrs["ray_trial_id"]]
        assert trial.state.name == state_of(lines)
        assert trial.intermediate_values == {line["epoch"]: line["accuracy"] for line in lines}
        assert trial.value == lines[-1]["accuracy"]
        assert lines[0]["config"]["optuna_trial_number"] == trial.number
        assert trial.params["lr"] == lines[0]["config"]["lr"]
    assert {trial.state.name for trial in trials} >= {"COMPLETE", "PRUNED"}


def test_the_tables_agree_with_the_study(finished: tuple[Path, str, str]) -> None:
    run_dir = finished[0]
    trials, epochs = pd.read_parquet(run_dir / "trials.parquet"), pd.read_parquet(run_dir / "epochs.parquet")
    study = study_of(run_dir)
    assert trials["number"].tolist() == list(range(8))
    assert trials["state"].tolist() == [trial.state.name for trial in study]
    assert trials["accuracy"].tolist() == [trial.value for trial in study]
    assert trials["trial_id"].tolist() == [trial.user_attrs["ray_trial_id"] for trial in study]
    assert trials["epochs_trained"].sum() == len(epochs) == sum(map(len, reported(run_dir).values()))
    assert not epochs.duplicated(["trial_id", "epoch"]).any()
    assert set(vars(Hyperparameters())) - {"epochs"} <= set(trials.columns)
    assert epochs["accuracy"].between(0, 1).all() and epochs["images_per_second"].gt(0).all()


def test_a_run_can_be_loaded_again(finished: tuple[Path, str, str]) -> None:
    run_dir = finished[0]
    grid = results.load(run_dir)
    pd.testing.assert_frame_equal(results.trials_frame(grid), pd.read_parquet(run_dir / "trials.parquet"))
    pd.testing.assert_frame_equal(results.epochs_frame(grid), pd.read_parquet(run_dir / "epochs.parquet"))
    assert [grid[i].path for i in range(8)] == [str(folder) for folder in sorted(run_dir.glob("trial_*"))]
    best = grid.get_best_result()
    assert best.metrics is not None and best.metrics["accuracy"] == grid.get_dataframe()["accuracy"].max()
    read = Result.from_path(best.path)  # only with Ray, from the trial's folder
    assert read.metrics is not None and read.metrics["accuracy"] == best.metrics["accuracy"]
    assert read.checkpoint is not None and best.checkpoint is not None
    assert read.checkpoint.path == best.checkpoint.path
    with pytest.raises(ValueError, match="is not the folder of a run"):
        results.load(run_dir / "best")


def test_the_winner_is_the_best_trial_and_its_model_scores_what_it_says(
    finished: tuple[Path, str, str], mnist_dir: Path
) -> None:
    run_dir = finished[0]
    metrics = json.loads((run_dir / "best" / "metrics.json").read_text())
    drawn = json.loads((run_dir / "best" / "hyperparameters.json").read_text())
    epochs = pd.read_parquet(run_dir / "epochs.parquet").set_index(["trial_id", "epoch"])  # all were saved
    assert metrics["accuracy"] == epochs["accuracy"].max()
    assert metrics["accuracy"] == epochs["accuracy"][metrics["trial_id"], metrics["epoch"]]
    trials = pd.read_parquet(run_dir / "trials.parquet").set_index("trial_id")
    assert drawn["lr"] == trials["lr"][metrics["trial_id"]]
    network = Network(Hyperparameters(**drawn))
    network.load_state_dict(torch.load(run_dir / "best" / "model.pt", weights_only=True))
    accuracy, loss = evaluate(network, load_test("mnist", mnist_dir))
    assert accuracy == metrics["test_accuracy"]
    assert loss == pytest.approx(metrics["test_loss"])


def test_settings_are_written_and_the_best_trials_keep_a_checkpoint(finished: tuple[Path, str, str]) -> None:
    run_dir = finished[0]
    settings = json.loads((run_dir / "settings.json").read_text())
    assert settings["num_samples"] == 8 and settings["gpus_per_trial"] == 0
    trials = pd.read_parquet(run_dir / "trials.parquet")
    epochs = pd.read_parquet(run_dir / "epochs.parquet")  # all were saved
    best = epochs.groupby("number")["accuracy"].max().sort_values(ascending=False, kind="stable")
    kept = {int(folder.parent.name.split("_")[1]) for folder in run_dir.glob("trial_*/checkpoint_*")}
    assert len(trials) == 8 and kept == set(best.index[: settings["keep_checkpoints"]])
    assert len(list(run_dir.glob("trial_*/*checkpoint_*"))) == settings["keep_checkpoints"] == 5


def test_the_run_folder_holds_no_token(finished: tuple[Path, str, str]) -> None:
    token = Path.home() / ".ray" / "auth_token"
    if not token.exists():
        pytest.skip("Ray has made no token for this user")
    secret = token.read_bytes().strip()
    assert secret and not [
        file for file in finished[0].rglob("*") if file.is_file() and secret in file.read_bytes()
    ]


def assert_as_plain(run_dir: Path, trials: Sequence[TrialRecord]) -> None:
    """Train some of a run's trials again with the plain loop; each epoch must give the same values."""
    settings = read_settings(RunFolder(run_dir))
    train, validation = splits(make_options(TASK, settings.options), settings.seed)
    assert trials and all(trial.epochs for trial in trials)
    for trial in trials:
        training = Training(Hyperparameters(**trial.config), seed=settings.seed + trial.number)
        for epoch, plain in zip(trial.epochs, fit(training, train, validation), strict=False):
            assert (epoch["accuracy"], epoch["val_loss"]) == (plain.accuracy, plain.val_loss)
            assert (epoch["epoch"], epoch["train_loss"]) == (plain.epoch, plain.train_loss)


def test_trials_in_reused_processes_equal_the_plain_loop(
    finished: tuple[Path, str, str],
) -> None:
    trials, seen, reused = begun_trials(finished[0]), set(), []
    for trial in trials:
        if trial.last["pid"] in seen:
            reused.append(trial)
        seen.add(trial.last["pid"])
    assert len(seen) == 2 and len(reused) == 6
    assert_as_plain(finished[0], reused[::2])


@pytest.fixture
def corrupt_data(tmp_path: Path, mnist_dir: Path) -> Path:
    raw = mnist_dir / "MNIST" / "raw"
    for file in raw.glob("*-ubyte*"):
        shutil.copy(file, tmp_path)
    images = next(iter(sorted(tmp_path.glob("train-images*"))))
    images.write_bytes(images.read_bytes()[:-1])
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--gpus-per-trial", "0.5"], r"asks for 1 CPU and 0.5 GPU, .* and 0 GPU: use --gpus-per-trial 0"),
        (
            ["--name", "finished"],
            r"name is finished, but must be a new one: \S+ exists \(--resume \S+ continues it",
        ),
        (["--resume", "runs/none"], r"runs/none is not the folder of a run: it has no ledger.jsonl"),
        (["--resume", "runs/finished", "--seed", "1"], r"--seed is 1, but must be left out: a resumed run"),
        (["--resume", "runs/finished", "--num-samples", "3"], r"num_samples is 3, but must be at least 8"),
        (
            ["--storage-path", "a-file"],
            r"storage_path is \S+a-file, but must be a folder that can be written \(\S.*\)",
        ),
        (["--space", "wild"], r"space is wild, but must be blog, wide, FILE.py:NAME or package.module:NAME"),
        (["--target-accuracy", "99"], r"target is 99, but must be above 0 and at most 1"),
        (["--val-size", "70000"], r"val_size is 70000, but must be 1 to 59999"),
        (["--train-size", "59000"], r"train_size is 59000, but must be 1 to 55000"),
        (
            ["--data-dir", "CORRUPT"],
            r"train-images-idx3-ubyte can't be read .*; delete it, or give another --data-dir",
        ),
        (["--address", "127.0.0.1:1"], r"no Ray cluster answers at 127.0.0.1:1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_refused_in_one_line(
    flags: list[str],
    complaint: str,
    runner: Runner,
    joining: Runner,
    warm_runner: WarmRunner,
    finished: tuple[Path, str, str],
    corrupt_data: Path,
) -> None:
    if torch.cuda.is_available() and "--gpus-per-trial" in flags:
        pytest.skip("this machine has a GPU")
    (runner.folder / "a-file").touch()
    before = {path: path.stat().st_mtime_ns for path in (runner.folder / "runs").rglob("*")}
    # These two with all output of their processes: the first joins Ray, the second ends before that.
    run = joining.run if flags[0] in ("--gpus-per-trial", "--name") else warm_runner.run
    code, out, err = run(*[str(corrupt_data) if flag == "CORRUPT" else flag for flag in flags])
    assert code == 2
    assert re.search(complaint, err) and err.count("\n") == 1 and err.startswith("tune.py: error: ")
    assert out == ""
    assert {path: path.stat().st_mtime_ns for path in (runner.folder / "runs").rglob("*")} == before


def test_one_plain_training(warm_runner: WarmRunner) -> None:  # in a separate process: test_readme.py
    setting = ["--lr", "0.02", "--momentum", "0.9", "--optimizer", "sgd", "--epochs", "2"]
    code, out, err = warm_runner.run(*setting, "--train-size", "3000", "--val-size", "500", script="train.py")
    assert (code, err) == (0, "")
    first, second, test = out.splitlines()
    assert first.startswith("epoch 1: validation accuracy ") and second.startswith("epoch 2: ")
    accuracy = re.match(r"test accuracy (\d\d\.\d\d)%", test)
    assert accuracy and float(accuracy[1]) > 85


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        ("--optimizer lion", 2, "optimizer is lion, but must be one of sgd, rmsprop, adam, adamw"),
        ("--lr 0", 2, "lr is 0.0, but must be above 0"),
        ("--epochs 0", 2, "epochs is 0, but must be a whole number of at least 1"),
        ("--lr 1e30 --train-size 640", 1, "the loss is not finite at step 2 of epoch 1"),
    ],
)
def test_a_training_that_cannot_be(flags: str, code: int, complaint: str, warm_runner: WarmRunner) -> None:
    ended, _, err = warm_runner.run(*flags.split(), script="train.py")
    assert ended == code
    assert complaint in err and err.count("\n") == 1
