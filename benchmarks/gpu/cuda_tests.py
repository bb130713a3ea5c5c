"""Step `tests`: the tests that need CUDA. (The rest of the suite would move its searches to the GPU.)"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.step import Setup, StepError

TEST_FILE = "tests/mnist/test_cuda.py"
TEST_SECONDS = 40
"""Longest time of one test, after which its stack is logged."""


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield how many passed, failed and were skipped.

    Raises:
        StepError: if one failed, or none passed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", f"timeout={TEST_SECONDS}", f"--junitxml={report}"]
        code = subprocess.run([sys.executable, "-m", "pytest", TEST_FILE, *options]).returncode
        suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    if suite is None:
        raise StepError(f"pytest ended with code {code} and no report")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    yield {"passed": passed, "failed": failed, "skipped_tests": counts["skipped"]}
    names = [case.get("name", "?") for case in suite.iter("testcase") if _failed(case)]
    if names:
        raise StepError(f"failed: {', '.join(names)}")
    if code or not passed:
        raise StepError(f"{passed} tests passed and pytest ended with code {code}")


def _failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None
