"""House rules: what a file may import at its start, and names that are written once."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import tune_mnist
from tune_mnist.mnist.facts import OBJECTIVE, TABLES
from tune_mnist.mnist.training import EpochResult

PACKAGE = Path(tune_mnist.__file__).parent
HEAVY = {"optuna", "pandas", "plotly", "torchvision", "scipy", "kaleido", "sqlalchemy", "jinja2", "boto3"}


def imported_by(code: str) -> set[str]:
    """Return the top-level packages that a process has imported after some code."""
    code += "\nprint(*{name.split('.')[0] for name in __import__('sys').modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_trial_imports_nothing_heavy_but_torch_and_ray() -> None:
    """Each process that trains pays for it before its first epoch."""
    imported = imported_by(
        "import sys; from ray import tune\n"
        # Ray Tune imports pandas itself, so drop it: whoever imports it again is one of ours.
        "for name in [name for name in sys.modules if name.startswith('pandas')]: del sys.modules[name]\n"
        "import tune_mnist.tuning.trainable, tune_mnist.mnist.training"
    )
    assert {"tune_mnist", "torch", "ray"} <= imported and not imported & HEAVY


def test_a_search_starts_without_what_only_its_report_or_a_bucket_needs() -> None:
    imported = imported_by(
        "from tune_mnist.cli import console, summary; from tune_mnist.tuning import tuner\n"
        "import tune_mnist.mnist.task"
    )
    assert {"optuna", "torch"} <= imported
    assert not imported & {"boto3", "jinja2", "kaleido", "scipy", "sklearn", "torchvision"}


def test_every_file_opens_with_its_role() -> None:
    for file in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]:
        assert ast.get_docstring(ast.parse(file.read_text())), file


def test_metric_names_are_fields_of_an_epoch_result() -> None:
    fields = {field.name for field in dataclasses.fields(EpochResult)}
    assert {OBJECTIVE.metric, OBJECTIVE.time_attr, *TABLES} <= fields
