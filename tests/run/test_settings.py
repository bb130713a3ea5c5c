"""The settings: each bad value gets its one-line error, each flag its field."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tune_mnist.cli.flags import parse_settings
from tune_mnist.mnist.data import DATASETS
from tune_mnist.mnist.precision import PRECISIONS
from tune_mnist.mnist.task import TASK, Options
from tune_mnist.run.resuming import RESUMABLE, ResumeRequest
from tune_mnist.run.settings import GROUPS, LEGACY_DEFAULTS, Settings
from tune_mnist.tuning.samplers import make_sampler
from tune_mnist.tuning.tasks import resumable_options

OPTIONS = resumable_options(TASK)

BAD_FLAGS = [
    ("--frobnicate 1", "unrecognized arguments: --frobnicate 1"),
    ("--num 3", "unrecognized arguments: --num 3"),
    ("--num-samples 0", "num_samples is 0, but must be at least 1"),
    ("--num-samples many", "argument --num-samples: invalid int value: 'many'"),
    ("--num-samples 2.5", "argument --num-samples: invalid int value: '2.5'"),
    ("--max-epochs 0", "max_epochs is 0, but must be at least 1"),
    ("--grace-period 6", "grace_period is 6, but must be at most max_epochs, 5"),
    ("--grace-period 0", "grace_period is 0, but must be at least 1"),
    ("--reduction-factor 1", "reduction_factor is 1.0, but must be at least 2"),
    ("--reduction-factor nan", "reduction_factor is nan, but must be at least 2"),
    ("--gpus-per-trial -1", "gpus_per_trial is -1.0, but must be 0, a fraction of 1 or a whole number"),
    ("--gpus-per-trial 1.5", "gpus_per_trial is 1.5, but must be 0, a fraction of 1 or a whole number"),
    ("--gpus-per-trial nan", "gpus_per_trial is nan, but must be 0, a fraction of 1 or a whole number"),
    ("--cpus-per-trial 0", "cpus_per_trial is 0.0, but must be above 0: a fraction of 1 or a whole number"),
    ("--max-concurrent-trials 0", "max_concurrent_trials is 0, but must be at least 1"),
    ("--train-size 0", "train_size is 0, but must be at least 1"),
    ("--val-size -5", "val_size is -5, but must be at least 1"),
    ("--seed -1", "seed is -1, but must be 0 to 2147483647"),
    ("--dataset cifar", "dataset is cifar, but must be one of mnist, fashion-mnist, kmnist"),
    ("--sampler cma", "sampler is cma, but must be tpe, random, qmc, FILE.py:NAME or package.module:NAME"),
    ("--precision fp16", "precision is fp16, but must be one of auto, fp32, bf16"),
    ("--time-budget soon", "'soon' is not a number of seconds, nor a duration like 90s, 10m or 2h"),
    ("--time-budget 0", "time_budget is 0.0, but must be above 0 seconds"),
    ("--target-accuracy nan", "target is nan, but must be a finite number"),
    ("--checkpoint-seconds -1", "checkpoint_seconds is -1.0, but must be at least 0"),
    ("--name a/b", "name is a/b, but must be letters, digits"),
    ("--name=", "name is empty, but must be letters, digits"),
    ("--name ..", "name is .., but must be letters, digits"),
    ("--storage-path=", "storage_path is empty, but must be a folder or a URI such as s3://BUCKET/runs"),
    (
        "--storage-path s3://me:s3cret@bucket/x",
        "error: storage_path holds a key, but must not: give it in the",
    ),
    ("--warm-start", "argument --warm-start: expected at least one argument"),
    ("--warm-start a --warm-start=", "warm_start is empty, but must be the folder or the URI of a run"),
    ("--max-failures -1", "max_failures is -1, but must be at least 0"),
    ("--storage-path s3://", "storage_path is s3://, but must be a folder or a URI such as s3://BUCKET/runs"),
    ("--log comet", "log is comet, but must be mlflow, wandb, both, or none"),
    ("--log mlflow,", "log is empty, but must be mlflow, wandb, both, or none"),
    ("--resume=", "--resume is empty, but must be the folder or the URI of a run"),
    ("--resume runs/x --num-samples 0", "num_samples is 0, but must be at least 1"),
]


@pytest.mark.parametrize(("flags", "complaint"), BAD_FLAGS, ids=[flags for flags, _ in BAD_FLAGS])
def test_a_bad_flag_gets_one_line_and_exit_code_2(
    flags: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_settings(flags.split(), description="")
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert complaint in printed.err
    assert printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400)]
)
def test_a_time_budget_may_have_a_unit(text: str, seconds: float) -> None:
    settings = parse_settings(["--time-budget", text], description="")
    assert isinstance(settings, Settings) and settings.time_budget == seconds


def test_trackers_are_named_in_lists_or_one_by_one() -> None:
    both = Settings(log=("mlflow", "wandb"))
    for flags in ("--log mlflow,wandb", "--log mlflow --log wandb", "--log mlflow wandb"):
        assert parse_settings(flags.split(), description="") == both
    assert Settings.from_json(both.to_json()) == both
    changed = {log: resume("--log", log).settings_of(both, OPTIONS).log for log in ("none", "wandb")}
    assert changed == {"none": (), "wandb": ("wandb",)}


def test_no_flags_give_the_defaults_of_the_python_api() -> None:
    assert parse_settings([], description="") == Settings()


def test_every_field_is_a_flag_with_a_group_and_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_settings(["--help"], description="")
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    fields = [field for field in dataclasses.fields(Settings) if field.name != "options"]
    for field in [*fields, *dataclasses.fields(Options)]:
        assert f"--{field.name.replace('_', '-')}" in shown
        assert field.metadata["group"] in shown


def test_the_help_fits_on_two_screens_with_an_example_that_parses_for_each_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_settings(["--help"], description="Search.")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 100
    headings = [line.removesuffix(":") for line in lines if line.endswith(":") and line[0] not in " -"]
    titles, examples = zip(*(line.split(", as in ") for line in headings[1:]), strict=True)
    assert list(titles) == [*GROUPS, "mnist"]
    for example in examples:
        if example != GROUPS["task"]:  # its file is in the README
            assert parse_settings(example.split(), description="") != Settings()


def test_settings_as_json_have_every_field_and_absolute_paths() -> None:
    values = json.loads(Settings(name="x", options=vars(Options())).to_json())
    assert list(values) == [field.name for field in dataclasses.fields(Settings)]
    assert Path(values["options"]["data_dir"]).is_absolute()


def test_shares_that_ray_can_give_are_taken() -> None:
    for gpus in (0, 0.125, 0.5, 1, 2):
        assert Settings(gpus_per_trial=gpus).gpus_per_trial == gpus


def test_the_names_are_those_that_the_code_knows() -> None:
    for field, known in (("dataset", DATASETS), ("precision", PRECISIONS)):
        with pytest.raises(ValueError, match=f"must be one of {', '.join(known)}$"):
            Options(**{field: "other"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sampler is other") as here:
        Settings(sampler="other")
    with pytest.raises(ValueError) as there:
        make_sampler("other", seed=0, number=0, space={})
    assert str(here.value) == str(there.value)


def test_settings_come_back_from_json() -> None:
    options = {"data_dir": "/d", "train_size": 512}
    settings = Settings(
        name="x", options=options, storage_path="s3://b/runs", time_budget=3, gpus_per_trial=0.5
    )
    assert Settings.from_json(settings.to_json()) == settings
    values = json.loads(settings.to_json())
    older = {name: value for name, value in values.items() if name not in LEGACY_DEFAULTS}
    older |= {"target_accuracy": older.pop("target"), **options}  # MNIST's options used to be settings
    assert Settings.from_json(json.dumps(older)) == settings
    corrupt: list[Any] = [{**values, "num_samples": n} for n in (0, 2.5, "8", None)] + [{}, []]
    for text in ("{", "", *map(json.dumps, corrupt), json.dumps({"data_dir": "d", "seed": 1})):
        with pytest.raises(ValueError):
            Settings.from_json(text)
    assert Settings.from_json(json.dumps({**values, "time_budget": 3})) == settings  # 3 is 3.0 in JSON


def test_earlier_runs_and_points_come_back_from_json_with_absolute_paths() -> None:
    flags = "--warm-start runs/a s3://b/runs/c --num-samples 3 --warm-start /d --points p"
    parsed = parse_settings(flags.split(), description="")
    assert isinstance(parsed, Settings) and parsed.warm_start == ("runs/a", "s3://b/runs/c", "/d")
    again = Settings.from_json(parsed.to_json())
    assert again.warm_start == (str(Path("runs/a").absolute()), "s3://b/runs/c", "/d")
    assert again.points == Path("p").absolute()


def test_a_resume_opens_no_browser_unasked() -> None:
    settings = Settings(open_dashboard=True)
    assert not resume().settings_of(settings, OPTIONS).open_dashboard
    assert resume("--open-dashboard").settings_of(settings, OPTIONS).open_dashboard


def resume(*flags: str) -> ResumeRequest:
    request = parse_settings(["--resume", "runs/x", *flags], description="")
    assert isinstance(request, ResumeRequest)
    return request


def test_a_resume_changes_what_was_asked_and_nothing_else() -> None:
    settings = Settings(num_samples=8, seed=3, name="x", time_budget=60)
    assert resume().settings_of(settings, OPTIONS) == settings
    flags = ["--num-samples", "9", "--time-budget", "2m", "--max-concurrent-trials", "1", "--data-dir", "/d"]
    assert resume(*flags).settings_of(settings, OPTIONS) == dataclasses.replace(
        settings, num_samples=9, time_budget=120, max_concurrent_trials=1, options={"data_dir": Path("/d")}
    )


@pytest.mark.parametrize("name", [name for name in vars(Settings()) | vars(Options()) if name != "options"])
def test_what_a_resume_may_not_change_is_refused_by_name(name: str) -> None:
    settings = Settings(name="x", options=vars(Options()))
    values = {**vars(settings), **settings.options, "warm_start": ("a", "b")}
    values |= {"time_budget": 5.0, "gpus_per_trial": 0.0, "max_concurrent_trials": 2}
    request = ResumeRequest(run="runs/x", changes={name: values[name]})
    if name in (*RESUMABLE, "data_dir", "cuda_graph"):
        request.settings_of(settings, OPTIONS)
        return
    complaint = f"^--{name.replace('_', '-')} is .*, but must be left out: a"
    with pytest.raises(ValueError, match=complaint) as error:
        request.settings_of(settings, OPTIONS)
    assert name != "warm_start" or "--warm-start is a b, but" in str(error.value)


def test_a_file_is_named_so_that_it_is_found_from_any_folder() -> None:
    values = json.loads(Settings(task="own/task.py:TASK", space="module:SPACE").to_json())
    assert (values["task"], values["space"]) == (f"{Path.cwd()}/own/task.py:TASK", "module:SPACE")
