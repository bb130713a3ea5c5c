"""Simulates several machines, or an autoscaling cluster, on one machine, for the tests that need them."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import pytest

from tests.lab.lab import install_packages

LAB = Path(__file__).parent
ROOT = LAB.parents[1]
P = ParamSpec("P")


def isolated(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a separate process under isolated.sh; it may start Ray clusters and leave them running.

    If namespaces are not available it is skipped, unless CI is set in the environment.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        reason = _why_not()
        if reason and not os.environ.get("CI"):
            pytest.skip(reason)
        call = (
            f"import {test.__module__} as tests\ntests.{test.__name__}.__wrapped__(*{args!r}, **{kwargs!r})"
        )
        process = subprocess.Popen(
            [str(LAB / "isolated.sh"), sys.executable, "-c", call],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=150)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, out[-10_000:]

    return run


@functools.cache
def _why_not() -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for namespaces"
    if os.environ.get("CI"):
        install_packages()
    probe = subprocess.run([str(LAB / "isolated.sh"), "true"], capture_output=True, text=True)
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else None
