"""The house: which file may import which, and names that are written once."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import tune_mnist
from tune_mnist.mnist.hyperparameters import METRIC, TIME_ATTR
from tune_mnist.mnist.training import EpochResult

PACKAGE = Path(tune_mnist.__file__).parent

# Each file, and what it may import of the package: only files to its left.
HOUSE = {
    "hyperparameters": set(),
    "words": {"hyperparameters"},
    "settings": set(),
    "spaces": {"hyperparameters"},
    "model": {"hyperparameters"},
    "data": set(),
    "device": set(),
    "steps": {"hyperparameters", "words", "model", "data", "device"},
    "training": {"hyperparameters", "words", "model", "data", "device", "steps"},
    "inherited": set(),
    "ledger": {"hyperparameters", "inherited"},
    "points": {"settings", "spaces", "ledger"},
    "folder": {"words", "ledger"},
    "checkpoints": {"hyperparameters", "ledger", "folder"},
    "trainable": {"hyperparameters", "data", "device", "training", "checkpoints"},
    "preload": {"trainable"},
    "samplers": set(),
    "journal": set(),
    "study": {
        *("hyperparameters", "settings", "spaces", "inherited", "ledger", "points", "folder", "samplers"),
        "journal",
    },
    "asha": {"hyperparameters", "settings", "ledger"},
    "curves_log": {"hyperparameters", "ledger", "folder"},
    "grid": {"hyperparameters", "ledger", "folder", "checkpoints"},
    "results": {"hyperparameters", "ledger", "grid"},
    "ray_private": set(),
    "autoscaler": {"ray_private"},
    "cluster": {"words", "ray_private", "autoscaler"},
    "shared": {"autoscaler", "cluster"},
    "progress": {"hyperparameters", "ledger"},
    "stop": {"settings", "progress"},
    "attempts": {
        *("hyperparameters", "words", "settings", "ledger", "folder", "checkpoints", "trainable", "study"),
        *("asha", "curves_log", "progress", "stop"),
    },
    "winner": {"hyperparameters", "settings", "data", "training", "ledger", "folder", "grid"},
    "preflight": {
        *("settings", "data", "device", "ledger", "folder", "ray_private", "cluster", "shared", "progress"),
        "stop",
    },
    "warm_start": {
        *("hyperparameters", "words", "settings", "spaces", "inherited", "ledger", "folder", "preflight"),
    },
    "dashboard": set(),
    "versions": set(),
    "live": {"words", "folder", "journal"},
    "tuner": {
        *("hyperparameters", "words", "settings", "spaces", "data", "ledger", "points", "folder"),
        *("checkpoints", "trainable", "journal", "study", "asha", "grid", "results", "cluster", "progress"),
        *("stop", "attempts", "winner", "preflight", "warm_start", "dashboard", "live", "versions"),
    },
    "timeline": {"hyperparameters", "ledger"},
    "scale": set(),
    "insights": {
        *("hyperparameters", "words", "spaces", "inherited", "ledger", "grid", "timeline", "tuner", "scale"),
    },
    "panels": {"hyperparameters", "ledger", "scale"},
    "curves": {"hyperparameters", "ledger", "asha", "timeline", "scale", "insights", "panels"},
    "plots": {"hyperparameters", "words", "scale", "insights", "panels", "curves"},
    "pictures": {
        *("hyperparameters", "asha", "timeline", "scale", "insights", "panels", "curves", "plots"),
    },
    "report": {
        *("hyperparameters", "words", "ledger", "results", "insights", "panels", "curves", "plots"),
    },
    "summary": {
        *("hyperparameters", "words", "ledger", "results", "timeline", "tuner", "insights", "curves"),
    },
    "console": {"words", "progress"},
    "scores": set(),
    "protocol": {"hyperparameters", "settings", "ledger", "scores"},
    "finals": {"hyperparameters", "folder", "protocol"},
    "retraining": {"hyperparameters", "data", "device", "training"},
    "pool": {"words", "cluster", "protocol", "retraining"},
    "export": {"hyperparameters", "model"},
    "card": {"hyperparameters", "scores", "protocol"},
    "finalizer": {
        *("hyperparameters", "settings", "data", "device", "folder", "cluster", "stop", "winner"),
        *("preflight", "tuner", "scores", "protocol", "finals", "retraining", "pool", "export", "card"),
    },
    "finals_console": {
        *("hyperparameters", "words", "folder", "winner", "console", "scores", "protocol", "retraining"),
        "card",
    },
    "images": set(),
}
WITHOUT_RAY = {
    *("hyperparameters", "settings", "spaces", "model", "data", "device", "steps", "training", "ledger"),
    "folder",
    *("inherited", "points", "checkpoints", "samplers", "journal", "study", "asha", "curves_log"),
    *("progress", "warm_start", "dashboard", "live"),
    *("words", "stop", "results", "preflight", "timeline", "scale", "insights", "panels", "curves", "plots"),
    *("pictures", "report", "summary", "console", "scores", "protocol", "finals", "retraining"),
    *("export", "card", "finalizer", "finals_console", "images"),
}
WITHOUT_TORCH = set(HOUSE) - {
    *("model", "data", "device", "steps", "training", "preload", "retraining", "export"),
}


def imports(file: Path) -> tuple[set[str], set[str]]:
    """What a file imports anywhere in it: top-level packages, and files of this package."""
    packages, own = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            modules = [node.module or ""]
            if node.module == "tune_mnist":
                modules = [f"tune_mnist.{alias.name}" for alias in node.names]
        for module in modules:
            packages.add(module.split(".")[0])
            if module.startswith("tune_mnist."):
                own.add(module.split(".")[1])
    return packages, own


def test_every_file_has_its_place_in_the_house() -> None:
    assert {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"} == set(HOUSE)


@pytest.mark.parametrize("name", HOUSE)
def test_a_file_imports_only_files_to_its_left(name: str) -> None:
    packages, own = imports(PACKAGE / f"{name}.py")
    assert own <= HOUSE[name]
    left = list(HOUSE)[: list(HOUSE).index(name)]
    assert HOUSE[name] <= set(left)
    if name in WITHOUT_RAY:
        assert "ray" not in packages
    if name in WITHOUT_TORCH:
        assert not packages & {"torch", "torchvision"}


HEAVY = {"optuna", "pandas", "plotly", "torchvision", "scipy", "matplotlib", "sqlalchemy", "jinja2", "boto3"}


def test_a_trial_imports_nothing_heavy_but_torch_and_ray() -> None:
    """Each process that trains pays for what `trainable` imports, before its first epoch."""
    code = (
        "import sys; from ray import tune\n"
        # Ray Tune imports pandas for itself, so it is forgotten: who imports it again is one of ours.
        "for name in [name for name in sys.modules if name.startswith('pandas')]: del sys.modules[name]\n"
        "import tune_mnist.tuning.trainable\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"tune_mnist", "torch", "ray"} <= imported and not imported & HEAVY


def test_a_search_starts_without_what_only_its_report_or_a_bucket_needs() -> None:
    code = (
        "import sys; from tune_mnist import console, summary, tuner\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"optuna", "torch"} <= imported
    assert not imported & {"boto3", "jinja2", "matplotlib", "scipy", "sklearn", "torchvision"}


def test_every_file_opens_with_its_role() -> None:
    for file in [*PACKAGE.glob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]:
        assert ast.get_docstring(ast.parse(file.read_text())), file.name


def test_metric_names_are_fields_of_an_epoch_result() -> None:
    assert {METRIC, TIME_ATTR} <= {field.name for field in dataclasses.fields(EpochResult)}
