"""The tested versions: the notice about others, and that all places name the same ones."""

import importlib.metadata
import re

import pytest

from tests.conftest import ROOT
from tests.lab.compat import TESTS
from tune_mnist.tuning.versions import PAIRS, TRIED, notices


@pytest.mark.parametrize(
    ("ray", "optuna", "said"),
    [
        ("2.60.0", "5.0.0", []),
        ("2.50.1", "4.0.0", []),
        ("2.49.2", "5.1.0.dev0", ["ray 2.49.2 was not tested", "optuna 5.1.0.dev0 was not tested"]),
        ("3.0.0", "4.9.0", ["ray 3.0.0 was not tested with this search; 2.50 to 2.60 were"]),
    ],
)
def test_versions_outside_the_tried_ones_are_named(
    ray: str, optuna: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"ray": ray, "optuna": optuna}.get)
    assert [line[: len(start)] for line, start in zip(notices(), said, strict=True)] == said


def test_the_dependencies_begin_with_the_oldest_pair_the_newest_is_pinned_and_the_pages_name_all() -> None:
    required = (ROOT / "pyproject.toml").read_text()
    pinned = (ROOT / "constraints.txt").read_text()
    page = (ROOT / "docs" / "search.md").read_text()
    for package, versions in zip(TRIED, zip(*PAIRS, strict=True), strict=True):
        assert re.search(rf'"{package}(?:\[tune\])?>={re.escape(versions[0].rpartition(".")[0])}"', required)
        assert re.search(rf"^{package}=={re.escape(versions[-1])}$", pinned, re.MULTILINE)
    assert ", ".join(f"{ray} with {optuna}" for ray, optuna in PAIRS) in " ".join(page.split())
    for oldest, newest in TRIED.values():
        said = "{}.{} to {}.{}".format(*oldest, *newest)
        assert said in page and said in (ROOT / "README.md").read_text()


def test_the_core_that_make_compat_runs_is_there() -> None:
    for file, names in TESTS.items():
        text = (ROOT / "tests" / f"{file}.py").read_text()
        assert all(f"def test_{name.partition('[')[0]}(" in text for name in names), file
