"""The load that a search's earlier trials put on whatever resumes or reads it.

`make` writes these synthetic searches, in a different process from the one that is measured.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from optuna.distributions import json_to_distribution

from benchmarks.load import MAX_EPOCHS, SPACE, Load, peak_megabytes, started_ray
from benchmarks.pretence import made_up
from tests.made_runs import make_run
from tune_mnist import results
from tune_mnist.mnist.task import TASK
from tune_mnist.report.page import make_report
from tune_mnist.report.view import View
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.resuming import ResumeRequest
from tune_mnist.tuning import tuner
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.study import TrialStudy


def make(load: Load) -> None:
    """Make the run of a finished search with the load's number of trials."""
    make_run(load.folder, load.trials, space=SPACE, max_epochs=MAX_EPOCHS, workers=load.concurrent)


def known(load: Load) -> dict[str, float]:
    """Measure what depends on the number of trials that a search already has, on a synthetic one."""
    folder = RunFolder(load.folder)
    clocks: dict[str, float] = {}
    with _timed(clocks, "ledger read, s"):
        ledger = Ledger.open(load.folder / LEDGER)
    with _timed(clocks, "scheduler made, s"):
        asha = ASHA(load.settings, ledger)
    space = {name: json_to_distribution(one) for name, one in ledger.distributions.items()}
    with _timed(clocks, "study made, s"):
        study = TrialStudy(load.settings, TASK, space, ledger, folder)
    names = [f"new{number}" for number in range(min(10, load.concurrent))]
    taken, spent = [], time.process_time()
    for name in names:
        started = time.perf_counter()
        study.draw(name)
        taken.append(time.perf_counter() - started)
    clocks["suggestion, ms"] = 1000 * statistics.median(taken)
    clocks["suggestion, CPU ms"] = 1000 * (time.process_time() - spent) / len(names)
    taken = []
    for epoch, name in itertools.product((1, 2, 3), names):
        started = time.perf_counter()
        result = made_up(0, epoch)
        asha.stops(name, epoch, result["accuracy"])
        study.report(name, result)
        taken.append(time.perf_counter() - started)
    clocks["report, ms"] = 1000 * statistics.median(taken)
    return clocks


def resumed(load: Load) -> dict[str, float]:
    """Resume a synthetic search for one more trial, up to its suggestion."""
    changes = {"num_samples": load.trials + 1, "data_dir": load.data_dir, "max_concurrent_trials": 1}
    with started_ray(load, pretended=True), mock.patch.object(TrialStudy, "draw", _reached):
        started, spent = time.perf_counter(), time.process_time()
        try:
            tuner.resume(ResumeRequest(run=str(load.folder), changes=changes))
        except Reached:
            seconds, cpu = time.perf_counter() - started, time.process_time() - spent
            return {"resume, s": seconds, "resume, CPU s": cpu, "driver, MB": peak_megabytes()}
    raise RuntimeError("the resumed search has suggested nothing")


def read(load: Load) -> dict[str, float]:
    """Read a synthetic run as people do: its grid, its tables, its report."""
    clocks: dict[str, float] = {}
    with _timed(clocks, "results.load, s"):
        grid = results.load(load.folder)
    with _timed(clocks, "trials_frame, s"):
        results.trials_frame(grid)
    with _timed(clocks, "epochs_frame, s"):
        results.epochs_frame(grid)
    with _timed(clocks, "page, s"):
        page = make_report(View(tuner.load_run(str(load.folder))))
    return clocks | {"page, MB": len(page) / 1e6, "process, MB": peak_megabytes()}


class Reached(BaseException):
    """A resumed search has reached its first suggestion; nothing on the way catches this."""


def _reached(study: TrialStudy, trial_id: str) -> None:
    raise Reached


@contextmanager
def _timed(clocks: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    clocks[name] = time.perf_counter() - started
