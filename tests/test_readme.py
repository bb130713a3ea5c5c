"""What the README says is so: its commands, its flags, its packages and its Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SCRIPTS
from tune_mnist.cli.flags import parse_settings
from tune_mnist.finalize.protocol import FinalsSettings
from tune_mnist.mnist.spaces import BLOG
from tune_mnist.mnist.task import Options
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.points import read_points

README = (ROOT / "README.md").read_text()
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]


def test_nothing_is_left_to_be_filled_in() -> None:
    assert not re.findall(r"@@|TODO|\bLABTABLE\b|\bSTRESS\b", README)


def test_the_training_command_runs(mnist_dir: Path) -> None:
    (command,) = (line for line in COMMANDS if line.startswith("python scripts/train.py"))
    flags = [
        *shlex.split(command)[2:],
        "--train-size",
        "640",
        "--val-size",
        "500",
        "--data-dir",
        str(mnist_dir),
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "train.py"), *flags], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("epoch 1: validation accuracy ") and done.stderr == ""


def test_the_search_commands_parse() -> None:
    commands = [line for line in COMMANDS if line.startswith("python scripts/tune.py")]
    assert commands
    for command in commands:
        parse_settings(shlex.split(command)[2:], description="")


def test_the_final_commands_have_flags_that_there_are() -> None:
    commands = [line for line in COMMANDS if line.startswith("python scripts/finalize.py")]
    assert commands
    known = set(vars(FinalsSettings()) | vars(Settings()) | vars(Options()))
    for command in commands:
        flags = re.findall(r"--([a-z-]+)", command)
        assert {flag.replace("-", "_") for flag in flags} <= known


def test_what_is_submitted_to_a_cluster_is_a_script_with_flags_that_parse() -> None:
    commands = [shlex.split(line, comments=True) for line in COMMANDS if line.startswith("ray submit")]
    assert {command[2] for command in commands} == {"cluster.yaml", "cluster-onprem.yaml"}
    for command in commands:
        assert (ROOT / command[2]).is_file() and (ROOT / command[3]).is_file()
        parse_settings(command[4:], description="")


def test_the_make_commands_are_targets_and_pass_flags_that_parse() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [shlex.split(line, comments=True) for line in COMMANDS if line.startswith("make ")]
    assert {command[1] for command in commands} == {"tune", "test"} <= targets
    for command in commands:
        for argument in command[2:]:
            parse_settings(shlex.split(argument.removeprefix("ARGS=")), description="")


def test_the_named_scripts_exist() -> None:
    for script in re.findall(r"scripts/\w+\.py", README):
        assert (ROOT / script).is_file()


def test_the_flags_and_their_defaults_are_the_settings() -> None:
    defaults = vars(Settings()) | vars(Options())
    rows = re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", README, re.MULTILINE)
    assert len(rows) >= 8
    for flags, default in rows:
        names = [flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", flags)]
        if names == ["resume"]:
            continue
        assert set(names) <= set(defaults)
        shown = default.replace("`", "").split(", ")
        for name, value in zip(names, shown, strict=False):
            own = defaults[name]
            expected = f"{own:g}" if isinstance(own, int | float) else str(own)
            assert own in (None, (), False, "") or value == expected


def test_every_package_has_its_row() -> None:
    table = README.split("## The packages")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+)\|", table, re.MULTILINE)))
    packages = {file.parent.name for file in (ROOT / "tune_mnist").glob("*/__init__.py")}
    assert sorted(named) == sorted({*packages, "task"})


def test_the_python_of_the_readme_runs_on_a_finished_run(
    finished: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished[0].parents[1])
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "NAME" in block]
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("NAME", "finished"), names)
    assert len(names["trials"]) == len(names["study"].trials) == 8  # type: ignore[arg-type, attr-defined]
    assert "momentum" in capsys.readouterr().out


def test_the_points_are_points_of_the_blogs_space(tmp_path: Path) -> None:
    (block,) = re.findall(r"^    (\[\{.*?\}\])$", README, re.DOTALL | re.MULTILINE)
    (tmp_path / "points.json").write_text(block)
    assert len(read_points(tmp_path / "points.json", BLOG)) == 2
