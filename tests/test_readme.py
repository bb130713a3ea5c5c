"""What the README and docs/ say is true: their commands, flags, packages, links, pictures and Python."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, SCRIPTS, Runner, WarmRunner
from tests.invariants import fingerprint
from tests.report.test_report import find_chromium
from tune_mnist import Trial
from tune_mnist.cli.flags import parse_settings
from tune_mnist.finalize.protocol import FinalsSettings
from tune_mnist.mnist.spaces import BLOG
from tune_mnist.mnist.task import Options
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.points import read_points

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
TEXTS = {page.name: page.read_text() for page in PAGES}
COMMANDS = [line.strip() for text in TEXTS.values() for line in text.splitlines() if line.startswith("    ")]


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)


def own_loop() -> str:
    (block,) = (block for block in python_of("README.md") if "Task(" in block)
    return block


def test_nothing_is_left_to_be_filled_in() -> None:
    assert not re.findall(r"@@|TODO|\bLABTABLE\b|\bSTRESS\b", "".join(TEXTS.values()))


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150
    assert {f"docs/{page.name}" for page in DOCS} <= set(re.findall(r"\]\(([\w/.-]+)\)", TEXTS["README.md"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_starts_with_what_the_reader_wants(page: Path) -> None:
    heading, empty, first = page.read_text().splitlines()[:3]
    assert heading.startswith("# ") and empty == "" and first.startswith(("You ", "Your "))


def test_the_pictures_are_small_and_load_nothing() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXTS["README.md"])
    assert sorted(Path(picture).suffix for picture in pictures) == [".png", ".svg"]
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 300_000
        if picture.endswith(".svg"):
            assert not re.search(r"url\(\"?http|href=\"http", (ROOT / picture).read_text())


def test_the_pictures_can_be_made_again(finished: tuple[Path, str, str], tmp_path: Path) -> None:
    if find_chromium() is None:
        pytest.skip("needs Chromium: apt install chromium")
    command = [sys.executable, str(ROOT / "docs" / "screenshots.py"), str(finished[0])]
    before = fingerprint(finished[0])
    subprocess.run([*command, "--out", str(tmp_path)], check=True, cwd=tmp_path)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert "finished" in (tmp_path / "console.svg").read_text()
    assert fingerprint(finished[0]) == before


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


def test_the_search_commands_parse(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(own_loop())
    commands = [line for line in COMMANDS if line.startswith("python scripts/tune.py")]
    assert len(commands) > 8
    for command in commands:
        parse_settings(shlex.split(command.replace(own.name, str(own)))[2:], description="")


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
    assert {command[1] for command in commands} == {"tune", "test", "bench", "gpu"} <= targets
    for command in commands:
        if command[1] == "tune":
            for argument in command[2:]:
                parse_settings(shlex.split(argument.removeprefix("ARGS=")), description="")
    for target in re.findall(r"`make\s+([\w-]+)", "".join(TEXTS.values())):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_the_named_scripts_exist() -> None:
    for script in re.findall(r"(?:scripts|examples|tune_mnist|tests)/[\w/]+\.py", "".join(TEXTS.values())):
        assert (ROOT / script).is_file()


def test_the_flags_and_their_defaults_are_the_settings() -> None:
    defaults = vars(Settings()) | vars(Options())
    rows = re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", TEXTS["search.md"], re.MULTILINE)
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
    table = TEXTS["method.md"].split("## The packages")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+)\|", table, re.MULTILINE)))
    packages = {file.parent.name for file in (ROOT / "tune_mnist").glob("*/__init__.py")}
    assert sorted(named) == sorted({*packages, "task"})


@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("results.md", 3)])
def test_the_python_that_reads_a_run_reads_a_finished_one(
    page: str,
    count: int,
    finished: tuple[Path, str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished[0].parents[1])
    blocks = [block for block in python_of(page) if "NAME" in block]
    assert len(blocks) == count
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("NAME", "finished"), names)
    assert len(names["trials"]) == 8 and len(names["epochs"]) > 8
    assert page == "README.md" or len(names["study"].trials) == 8
    assert "momentum" in capsys.readouterr().out


def test_all_python_compiles() -> None:
    blocks = [block for page in TEXTS for block in python_of(page)]
    assert len(blocks) == 6
    for block in blocks:
        compile(block, "docs", "exec")


def test_the_loop_of_the_readme_is_tuned_and_resumes(joining: Runner, warm_joining: WarmRunner) -> None:
    assert sum(bool(line) for line in own_loop().splitlines()) <= 30
    (joining.folder / "own.py").write_text(own_loop())
    (command,) = (command for command in COMMANDS if "own.py:TASK" in command)
    code, out, err = warm_joining.run(*shlex.split(command)[2:], "--num-samples", "2", "--max-epochs", "2")
    assert (code, err) == (0, "") and "2 of 2 trials" in out and "0 FAIL" in out, out

    names: dict[str, Any] = {}
    exec(own_loop(), names)
    task, checkpoint = names["TASK"], joining.folder / "own.pt"
    data, config = task.load(None, 0), {"lr": 0.01, "width": 8}
    _, save = next(task.train(config, data, Trial(seed=0, max_epochs=2)))
    save(checkpoint)
    first = torch.load(checkpoint)["optimizer"]["state"][0]["step"]
    later = Trial(seed=0, max_epochs=2, epoch=1, checkpoint=checkpoint)
    ((_, save),) = task.train(config, data, later)
    save(checkpoint)
    assert torch.load(checkpoint)["optimizer"]["state"][0]["step"] == 2 * first > 0


def test_the_points_are_points_of_the_blogs_space(tmp_path: Path) -> None:
    pattern = r"^    (\[\{.*?\}\])$"
    (block,) = re.findall(pattern, TEXTS["warm-start.md"], re.DOTALL | re.MULTILINE)
    (tmp_path / "points.json").write_text(block)
    assert len(read_points(tmp_path / "points.json", BLOG)) == 2
