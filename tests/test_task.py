"""Custom tasks, minimised and maximised, through every command; and an existing Ray Tune function."""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray import cloudpickle

import tune_mnist
from tests.conftest import ROOT, Runner, WarmRunner
from tests.invariants import fingerprint, study_of
from tests.searches import kill, wait_for_epochs
from tune_mnist import Objective, Task, Trial, results
from tune_mnist.mnist.data import Split
from tune_mnist.mnist.task import TASK
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import checked_space, to_config
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.functions import THREAD, convert_space
from tune_mnist.tuning.tasks import find_task, load_object, send_by_value

EXAMPLES = ROOT / "examples"
FUNCTION = EXAMPLES / "ray_function.py"


@dataclass
class Searched:
    """A run of a task that was killed and resumed, and its best result."""

    run_dir: Path
    task: str
    metric: str
    best: Callable[[Iterable[float]], float]


@pytest.fixture(scope="module", params=["min", "max"])
def searched(request: pytest.FixtureRequest, joining: Runner, joined: None) -> Searched:
    shutil.copy(ROOT / "tests" / "toy.py", joining.folder / "own_toy.py")
    name, metric, best = ("FINAL", "loss", min) if request.param == "min" else ("MAXIMISED", "gain", max)
    task, run = f"own_toy.py:{name}", f"searched-{request.param}"
    flags = ("--task", task, "--num-samples", "8", "--name", run, "--checkpoint-seconds", "0")
    process = joining.start(*flags)
    wait_for_epochs(6, joining.folder / "runs" / run / "ledger.jsonl", process)
    kill(process)
    tune_mnist.resume(str(joining.folder / "runs" / run), max_concurrent_trials=2)
    return Searched(joining.folder / "runs" / run, task, metric, best)


def test_the_best_value_wins_everywhere(searched: Searched) -> None:
    grid, metric = results.load(searched.run_dir), searched.metric
    epochs = results.epochs_frame(grid)
    best = epochs[epochs[metric] == searched.best(epochs[metric])].iloc[0]
    winner = json.loads((searched.run_dir / "best" / "metrics.json").read_text())
    found = (winner["trial_id"], winner["epoch"], winner[metric])
    assert found == (best.trial_id, best.epoch, best[metric])
    by_ray = grid.get_best_result(scope="all")
    assert by_ray.metrics is not None and by_ray.metrics["trial_id"] == best.trial_id


def test_no_trial_is_lost_or_repeated_and_pruned_ones_are_the_worse(searched: Searched) -> None:
    trials = results.trials_frame(results.load(searched.run_dir))
    study = study_of(searched.run_dir)
    assert len(trials) == len(study) == 8
    assert trials["state"].tolist() == [trial.state.name for trial in study]
    assert trials[searched.metric].tolist() == [trial.value for trial in study]
    assert set(trials["state"]) == {"COMPLETE", "PRUNED"}
    epochs = results.epochs_frame(results.load(searched.run_dir))
    assert not epochs.duplicated(["trial_id", "epoch"]).any()
    first = epochs[epochs["epoch"] == 1].set_index("number")[searched.metric]
    finished = trials.set_index("number")["state"] == "COMPLETE"
    means = first[finished].mean(), first[~finished].mean()
    assert searched.best(means) == means[0]


def test_it_is_analysed_compared_and_learned_from(searched: Searched, warm_joining: WarmRunner) -> None:
    run_dir, taught = searched.run_dir, f"taught-{searched.metric}"
    code, out, err = warm_joining.run(f"runs/{run_dir.name}", script="analyse.py")
    assert (code, err) == (0, "") and searched.metric in (run_dir / "report.html").read_text()
    best = searched.best(pd.read_parquet(run_dir / "epochs.parquet")[searched.metric])
    assert re.search(rf"Best, validation +{best:.4g} ", out)
    flags = ("--task", searched.task, "--warm-start", f"runs/{run_dir.name}", "--num-samples", "2")
    code, out, err = warm_joining.run(*flags, "--name", taught)
    assert (code, err) == (0, ""), out
    assert f"8 trials of runs/{run_dir.name} are known (" in out
    code, out, err = warm_joining.run(f"runs/{run_dir.name}", f"runs/{taught}", script="analyse.py")
    assert (code, err) == (0, "") and f"{best:.4g}" in out


def test_it_is_finalized_by_the_best_mean(searched: Searched, warm_joining: WarmRunner) -> None:
    flags = (f"runs/{searched.run_dir.name}", "--top-k", "2", "--seeds", "3")
    code, out, err = warm_joining.run(*flags, script="finalize.py")
    assert (code, err) == (0, ""), out
    lines = [json.loads(line) for line in (searched.run_dir / "finals.jsonl").read_text().splitlines()]
    means = pd.DataFrame(
        {"config": json.dumps(line["job"]["config"]), "part": line["job"]["part"], **line["result"]}
        for line in lines
    ).pivot_table("value", "config", "part")
    chosen = json.loads((searched.run_dir / "best" / "hyperparameters.json").read_text())["rate"]
    validated = means["training"].dropna()
    best = validated[validated == searched.best(validated)].index[0]
    assert json.loads(best)["rate"] == chosen
    assert means["training + validation"].count() == 2  # it and the baseline
    assert f"{means['training + validation'][best]:.4g}" in out


def test_a_run_is_read_without_its_tasks_code(
    searched: Searched, joining: Runner, warm_joining: WarmRunner
) -> None:
    before = fingerprint(searched.run_dir)
    hidden = joining.folder / "own_toy.py"
    hidden.rename(hidden.with_suffix(".hidden"))
    try:
        flags = (f"runs/{searched.run_dir.name}", "--out", "elsewhere")
        code, out, err = warm_joining.run(*flags, script="analyse.py")
        assert (code, err) == (0, "") and "8 of 8" in out
    finally:
        hidden.with_suffix(".hidden").rename(hidden)
    assert fingerprint(searched.run_dir) == before


def trial(**changes: Any) -> Trial:
    return Trial(**{"seed": 0, "max_epochs": 20, **changes})


@pytest.fixture
def function() -> Task:
    settings = Settings(
        trainable=f"{FUNCTION}:train", space=f"{FUNCTION}:SPACE", metric="loss", mode="min", max_epochs=20
    )
    return find_task(settings)


def test_a_ray_function_is_resumed_from_its_own_checkpoint(function: Task, tmp_path: Path) -> None:
    config = to_config(function, {"lr": 0.1, "momentum": 0.5, "start": 2.0}, 20)
    assert config == {"lr": 0.1, "momentum": 0.5, "start": 2.0, "steps": 20}
    whole, saved = [], tmp_path / "saved"
    for number, (report, save) in enumerate(function.train(config, None, trial()), 1):
        whole.append(report["loss"])
        if number == 7 and save:
            save(saved)
    rest = [report["loss"] for report, _ in function.train(config, None, trial(checkpoint=saved, epoch=7))]
    assert len(whole) == 20 and rest == whole[7:]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def test_a_ray_function_that_is_stopped_leaves_no_thread(function: Task) -> None:
    reports = function.train(
        to_config(function, {"lr": 0.1, "momentum": 0.5, "start": 2.0}, 20), None, trial()
    )
    assert isinstance(reports, Iterator)
    next(reports)
    (thread,) = threads()
    reports.close()  # type: ignore[attr-defined]
    thread.join(5)
    assert not threads()


def test_a_ray_function_is_searched_as_it_is(warm_joining: WarmRunner) -> None:
    flags = ("--trainable", f"{FUNCTION}:train", "--space", f"{FUNCTION}:SPACE", "--metric", "loss")
    rest = ("--mode", "min", "--max-epochs", "20", "--num-samples", "4", "--name", "function")
    code, out, err = warm_joining.run(*flags, *rest)
    assert (code, err) == (0, ""), out
    assert out.count("A Ray Tune function chooses its own seeds") == 1
    run_dir = warm_joining.runner.folder / "runs" / "function"
    trials = results.trials_frame(results.load(run_dir))
    assert set(trials["state"]) <= {"COMPLETE", "PRUNED"} and (trials["steps"] == 20).all()
    winner = json.loads((run_dir / "best" / "metrics.json").read_text())
    assert winner["loss"] == results.epochs_frame(results.load(run_dir))["loss"].min()
    code, out, err = warm_joining.run("--run", "runs/function", "--trial", "1", script="train.py")
    assert (code, err) == (0, "") and ": as in the search" in out.splitlines()[-1]


def test_another_network_on_images_trains_resumes_and_is_tested(tmp_path: Path) -> None:
    task = find_task(Settings(task=f"{EXAMPLES / 'fashion.py'}:TASK"))
    made = Split(images=torch.randint(256, (256, 28, 28), dtype=torch.uint8), labels=torch.arange(256) % 10)
    data = {"train": made.arrays(), "validation": made.arrays()}
    config = {"lr": 0.001, "channels": 8, "kernel": 3, "batch_norm": True}
    whole = []
    for report, save in task.train(config, data, trial(max_epochs=3)):
        whole.append(report["accuracy"])
        if len(whole) == 1 and save:
            save(tmp_path / "saved")
    resumed = task.train(config, data, trial(max_epochs=3, checkpoint=tmp_path / "saved", epoch=1))
    assert [report["accuracy"] for report, _ in resumed] == whole[1:]
    assert set(config) == set(task.spaces["default"])


def test_what_a_ray_function_raises_is_raised() -> None:
    (task,) = [find_task_of("def train(config):\n    raise KeyError('lost')\n")]
    with pytest.raises(KeyError, match="lost"):
        list(task.train({}, None, trial()))


def find_task_of(text: str) -> Task:
    from tune_mnist.tuning.functions import _train

    names: dict[str, Any] = {}
    exec(text, names)
    return Task(
        name="made",
        objective=Objective(metric="loss", mode="min"),
        spaces={"default": {"lr": FloatDistribution(0.1, 1.0)}},
        train=lambda config, data, trial: _train(names["train"], config, data, trial),
    )


def test_spaces_in_rays_terms_are_converted_or_refused_in_one_line() -> None:
    from ray import tune

    space = convert_space(
        "s", {"lr": tune.loguniform(1e-3, 1), "net": {"width": tune.choice([8, 16])}, "n": 3}
    )
    assert space == {
        "lr": FloatDistribution(1e-3, 1, log=True),
        "net/width": CategoricalDistribution((8, 16)),
    }
    for spec, complaint in (
        ({"lr": tune.grid_search([1, 2])}, "Grid"),
        ({"lr": 1}, "has nothing to draw"),
        (3, "is a int"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            convert_space("s", spec)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["state", "node", "loss", "optuna_trial_number", "attempt"])
def test_a_hyper_parameter_cannot_have_the_name_of_a_column(name: str) -> None:
    space = {name: FloatDistribution(0.1, 1.0)}
    task = Task(name="t", objective=Objective(metric="loss"), spaces={"s": space}, train=lambda *_: iter(()))
    with pytest.raises(ValueError, match=f"^space s: parameter {name} must have another name"):
        checked_space(task, "s", space, 5)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_asha_keeps_the_better_ones(mode: str) -> None:
    from tune_mnist.run.ledger import Ledger
    from tune_mnist.run.records import TaskFacts

    ledger = Ledger()
    ledger.facts = TaskFacts(name="t", objective=Objective(metric="m", mode=mode))
    asha = ASHA(Settings(max_epochs=4, reduction_factor=2), ledger)
    assert [asha.stops(str(value), 1, float(value)) for value in (3, 2, 4, 1, 5)] == (
        [False, True, False, True, False] if mode == "max" else [False, False, True, False, True]
    )


def test_an_objective_writes_and_compares_values() -> None:
    accuracy = Objective(metric="accuracy", format=".2%", standard_error="binomial")
    assert accuracy.write_with_error(0.9886, 5000) == "98.86% ± 0.15%"
    assert accuracy.compare(0.9886, 0.9834) == "0.52 points above it"
    loss = Objective(metric="loss", mode="min", format=".3f")
    assert (loss.write(0.12345), loss.compare(0.1, 0.3), loss.best([3.0, 1.0])) == (
        "0.123",
        "0.200 below it",
        1.0,
    )
    assert Objective(metric="cost", format=",.1f").compare(2345.0, 1000.0) == "1,345.0 above it"
    assert loss.score({"loss": 1.0}) > loss.score({"loss": 2.0}) > loss.score({"loss": float("nan")})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mode": "maximise"}, "mode is maximise, but must be max or min"),
        ({"axis": "cubic"}, "axis is cubic, but must be one of linear, log, nines"),
        ({"format": ".2q"}, "format is .2q, but must be a format of numbers"),
        ({"metric": ""}, "metric is empty, but must be the name of a reported value"),
    ],
)
def test_a_wrong_objective_is_refused_by_name(fields: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Objective(**{"metric": "m", **fields})


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mnistt", "must be mnist, FILE.py:NAME or package.module:NAME"),
        ("none.py:TASK", "FileNotFoundError: there is no file"),
        ("json:loads", "must be a tune_mnist.Task: it is a function"),
    ],
)
def test_a_task_that_is_none_is_one_line(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        find_task(Settings(task=name))
    assert "\n" not in str(error.value)


def test_a_training_brings_the_modules_next_to_it_along(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_it.py").write_text("def half(x):\n    return x / 2\n")
    text = "import neighbour_of_it\ndef train(x):\n    return neighbour_of_it.half(x)\n"
    (tmp_path / "sent_by_value.py").write_text(text)
    train = load_object("task", f"{tmp_path / 'sent_by_value.py'}:train")
    send_by_value(functools.partial(train))
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(3))"
    pickled = cloudpickle.dumps(train)  # type: ignore[no-untyped-call]
    done = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True)
    assert float(done.stdout) == 1.5
    send_by_value(TASK.train)
    assert b"neighbour" not in cloudpickle.dumps(TASK.train)  # type: ignore[no-untyped-call]


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "loaded_once.py").write_text("VALUE = object()\n")
    name = f"{tmp_path / 'loaded_once.py'}:VALUE"
    assert load_object("task", name) is load_object("task", name)


OF_MNIST = re.compile(
    r"\bimages?\b|accurac|\bper cent\b|\bblog\b|momentum|dropout|lr_scale|batch_size", re.IGNORECASE
)
ALLOWED = {"train.py", "predict.py", "scale.py"}


def test_only_mnists_own_packages_speak_of_images() -> None:
    package = Path(tune_mnist.__file__).parent
    for file in package.rglob("*.py"):
        if file.relative_to(package).parts[0] == "mnist" or file.name in ALLOWED:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                known = node.value in ("target_accuracy", "target accuracy", "recognise the digits in images")
                known |= "(mnist: blog, wide)" in node.value
                assert known or not OF_MNIST.search(node.value), f"{file.name}: {node.value}"
