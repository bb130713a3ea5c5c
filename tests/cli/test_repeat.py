"""train.py --run: a trial that is trained again has the search's values, to the last bit."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, Runner, WarmRunner
from tune_mnist import search
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import TrialRecord
from tune_mnist.tuning.repeat import load_repeat


@pytest.fixture(scope="module")
def toy(joining: Runner, joined: None) -> Path:
    """A run of the toy task in which some trials diverge."""
    runs = joining.folder / "runs"
    sizes = {"num_samples": 6, "max_epochs": 3, "epoch_seconds": 0.0}
    task = f"{ROOT / 'tests' / 'toy.py'}:TASK"
    search(task, space="half_diverges", seed=2, name="toy", storage_path=str(runs), **sizes)
    return runs / "toy"


def trials(run: Path) -> list[TrialRecord]:
    return list(RunFolder(run).ledger().trials.values())


def test_every_trial_of_a_task_is_repeated_to_the_last_bit(toy: Path) -> None:
    states = set()
    for record in trials(toy):
        *steps, last = load_repeat(str(toy), record.number, {}).train()
        values = [step.value for step in steps]
        assert values[: record.epoch] == [epoch["loss"] for epoch in record.epochs]
        assert (last.error, len(values)) == (record.error, 0 if record.error else 3)
        states.add(record.state)
    assert states == {"COMPLETE", "PRUNED", "FAIL"}


def test_a_trial_of_mnist_is_repeated_on_images_that_have_moved(
    finished: tuple[Path, str, str], warm_runner: WarmRunner, mnist_dir: Path, tmp_path: Path
) -> None:
    run, _, _ = finished
    (tmp_path / "images").symlink_to(mnist_dir)
    whole = max(trials(run), key=lambda record: record.epoch)
    pruned = next(record for record in trials(run) if record.state == "PRUNED")
    repeat = load_repeat(str(run), whole.number, {"data_dir": tmp_path / "images"})
    assert [step.value for step in repeat.train()][:-1] == [epoch["accuracy"] for epoch in whole.epochs]
    flags = ("--run", "runs/finished", "--trial", str(pruned.number), "--data-dir", str(mnist_dir))
    code, out, err = warm_runner.run(*flags, script="train.py")
    assert (code, err) == (0, "")
    first, *lines, last = out.splitlines()
    assert first.startswith(f"trial {pruned.number} of runs/finished: lr=")
    assert len(lines) == pruned.epochs_planned
    assert lines[0] == f"epoch 1: validation accuracy {pruned.epochs[0]['accuracy']:.2%}"
    assert last.startswith("epoch") and last.endswith(": as in the search, which stopped the trial there")


def test_other_values_are_reported_with_the_difference(
    toy: Path, warm_runner: WarmRunner, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy, run)
    record = next(record for record in trials(run) if record.state == "COMPLETE")
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == "epoch" and line["trial_id"] == record.trial_id and line["epoch"] > 1:
            line["loss"] += 0.25 if line["epoch"] == 2 else 0.125
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, _ = warm_runner.run("--run", str(run), "--trial", str(record.number), script="train.py")
    assert code == 0
    assert out.endswith("epochs 1 to 3: up to 0.25 from those of the search, from epoch 2 on\n")


def test_a_trial_that_diverged_diverges_again(toy: Path, warm_runner: WarmRunner) -> None:
    failed = next(record for record in trials(toy) if record.state == "FAIL")
    flags = ("--run", "runs/toy", "--trial", str(failed.number))
    code, out, err = warm_runner.run(*flags, script="train.py")
    assert (code, out.count("\n")) == (1, 1)
    assert err == f"train.py: error: trial {failed.number} failed: {failed.error}, as in the search\n"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            "--run runs/nowhere --trial 0 --lr 1",
            "/nowhere is not the folder of a run: it has no ledger.jsonl",
        ),
        ("--run runs/toy --trial 6", "trial is 6, but must be 0 to 5"),
        ("--run runs/toy --trial=-1", "trial is -1, but must be 0 to 5"),
        ("--run runs/toy", "the following arguments are required: --trial"),
        ("--trial 0", "trial is 0, but must be given with --run"),
        (
            "--run runs/toy --trial 0 --lr 1 --seed 3",
            "--lr 1 --seed 3 must be left out: a repeated trial has its own",
        ),
    ],
)
def test_what_cannot_be_repeated_is_one_line(
    flags: str, complaint: str, toy: Path, warm_runner: WarmRunner
) -> None:
    code, out, err = warm_runner.run(*flags.split(), script="train.py")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("train.py: error: ") and complaint in err


def test_a_trial_whose_line_is_lost_cannot_be_repeated(
    toy: Path, warm_runner: WarmRunner, tmp_path: Path
) -> None:
    lines = (toy / "ledger.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"number": 1' not in line]
    (tmp_path / "ledger.jsonl").write_text("".join(kept))
    shutil.copy(toy / "settings.json", tmp_path)
    code, _, err = warm_runner.run("--run", str(tmp_path), "--trial", "1", script="train.py")
    where = f"{tmp_path}/ledger.jsonl"
    assert code == 2 and f"trial is 1, but must be one whose configuration is in {where}" in err
