"""The load on a search's driver: of the parts that are ours, of Ray's loop with them, of real processes.

Trials report at once, or sleep before they do; their accuracies are made up. Each function wants a process of
its own, and gives its figures by name.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import resource
import shutil
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import ray
from optuna.distributions import distribution_to_json, json_to_distribution
from ray.tune.execution import tune_controller

from benchmarks.pretence import PretendedActors, made_up, sleeper
from tests.made_runs import make_run
from tune_mnist import cluster, results, tuner
from tune_mnist.folder import RunFolder
from tune_mnist.insights import View
from tune_mnist.ledger import LEDGER, Ledger
from tune_mnist.points import first_points
from tune_mnist.report import make_report
from tune_mnist.search import JOURNAL, SteadfastASHA, TruthfulOptunaSearch
from tune_mnist.settings import ResumeRequest, Settings
from tune_mnist.spaces import load_space

MAX_EPOCHS = 9
SPACE = "wide"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much a driver is given to do."""

    trials: int
    concurrent: int
    seconds: float = 0.0
    "What a trial sleeps before each report."
    folder: Path
    "Where the run goes; removed afterwards."
    data_dir: Path

    @property
    def settings(self) -> Settings:
        """The settings of such a search."""
        return Settings(
            num_samples=self.trials,
            max_concurrent_trials=self.concurrent,
            max_epochs=MAX_EPOCHS,
            space=SPACE,
            gpus_per_trial=0,
            name=self.folder.name,
            storage_path=str(self.folder.parent),
            data_dir=self.data_dir,
            train_size=512,
            val_size=500,
        )


def parts(load: Load) -> dict[str, float]:
    """Drive searcher, scheduler, ledger and journal as Ray's loop would, with nothing in between."""
    settings, folder = load.settings, RunFolder(load.folder)
    space = load_space(settings.space, settings.max_epochs)
    load.folder.mkdir(parents=True)
    ledger = Ledger.open(load.folder / LEDGER)
    ledger.begin({name: distribution_to_json(one) for name, one in space.items()})
    ledger.plan(first_points(settings, space))
    searcher = TruthfulOptunaSearch(settings, space, ledger, folder)
    scheduler = SteadfastASHA(settings, ledger)
    controller: Any = None
    running: deque[tuple[str, int]] = deque()
    digesting = 0.0
    begun = time.perf_counter()
    for number in itertools.count():
        while running and (len(running) >= load.concurrent or number >= load.trials):
            started = time.perf_counter()
            name, epoch = running.popleft()
            trial = cast(Any, SimpleNamespace(trial_id=name))
            result = made_up(int(name), epoch)
            if scheduler.on_trial_result(controller, trial, result) == "STOP":
                scheduler.on_trial_complete(controller, trial, result)
                searcher.on_trial_complete(name, result)
            else:
                searcher.on_trial_result(name, result)
                running.append((name, epoch + 1))
            digesting += time.perf_counter() - started
        if number >= load.trials:
            break
        name = f"{number:08d}"
        searcher.suggest(name)
        scheduler.on_trial_add(controller, cast(Any, SimpleNamespace(trial_id=name)))
        running.append((name, 1))
    seconds = time.perf_counter() - begun
    searcher.close("finished")
    figures = {"reports a second": len(ledger.order) / digesting, "seconds a trial": seconds / load.trials}
    return figures | _sizes(load.folder, ledger) | {"driver, MB": _megabytes()}


def search(load: Load, *, pretended: bool) -> dict[str, float]:
    """Run a whole search whose trials sleep: in processes of Ray's, or in none, where they answer at once."""
    with _ray(load, pretended=pretended):
        begun = time.perf_counter()
        spent = sum(os.times()[:2])
        with _clock(TruthfulOptunaSearch, "suggest") as moments:
            tuner.run(load.settings)
        seconds, cpu = time.perf_counter() - begun, sum(os.times()[:2]) - spent
    ledger = RunFolder(load.folder).ledger()
    first = min(trial.started for trial in ledger.trials.values())
    last = max(trial.ended or 0 for trial in ledger.trials.values())
    figures = {
        "reports a second": len(ledger.order) / (last - first),
        "reports a driver's CPU second": len(ledger.order) / cpu,
        "seconds a trial": (last - first) / load.trials,
        "seconds in all": seconds,
        "suggestion, ms": 1000 * statistics.median(moments[-100:]),
    }
    if not pretended:  # processes take their time to start
        figures["reports a second, all at work"] = _steady_rate(load)
    return figures | _sizes(load.folder, ledger) | {"driver, MB": _megabytes()}


def known(load: Load) -> dict[str, float]:
    """Measure what depends on the number of trials that a search has already, here of one made up."""
    make_run(load.folder, load.trials, space=SPACE, max_epochs=MAX_EPOCHS, workers=load.concurrent)
    folder = RunFolder(load.folder)
    clocks: dict[str, float] = {}
    with _timed(clocks, "ledger read, s"):
        ledger = Ledger.open(load.folder / LEDGER)
    with _timed(clocks, "scheduler made, s"):
        scheduler = SteadfastASHA(load.settings, ledger)
    space = {name: json_to_distribution(one) for name, one in ledger.distributions.items()}
    with _timed(clocks, "study made, s"):
        searcher = TruthfulOptunaSearch(load.settings, space, ledger, folder)
    names = [f"new{number}" for number in range(min(10, load.concurrent))]
    taken, spent = [], time.process_time()
    for name in names:
        started = time.perf_counter()
        searcher.suggest(name)
        taken.append(time.perf_counter() - started)
        scheduler.on_trial_add(cast(Any, None), cast(Any, SimpleNamespace(trial_id=name)))
    clocks["suggestion, ms"] = 1000 * statistics.median(taken)
    clocks["suggestion, CPU ms"] = 1000 * (time.process_time() - spent) / len(names)
    taken = []
    for epoch, name in itertools.product((1, 2, 3), names):
        started = time.perf_counter()
        result = made_up(0, epoch)
        scheduler.on_trial_result(cast(Any, None), cast(Any, SimpleNamespace(trial_id=name)), result)
        searcher.on_trial_result(name, result)
        taken.append(time.perf_counter() - started)
    clocks["report, ms"] = 1000 * statistics.median(taken)
    return clocks


def resumed(load: Load) -> dict[str, float]:
    """Resume a made-up search for one more trial, up to where that is to be suggested."""
    make_run(load.folder, load.trials, space=SPACE, max_epochs=MAX_EPOCHS, workers=load.concurrent)
    changes = {"num_samples": load.trials + 1, "data_dir": load.data_dir, "max_concurrent_trials": 1}
    with _ray(load, pretended=True), mock.patch.object(TruthfulOptunaSearch, "suggest", _reached):
        started, spent = time.perf_counter(), time.process_time()
        try:
            tuner.resume(ResumeRequest(run=str(load.folder), changes=changes))
        except Reached:
            seconds, cpu = time.perf_counter() - started, time.process_time() - spent
            return {"resume, s": seconds, "resume, CPU s": cpu, "driver, MB": _megabytes()}
    raise RuntimeError("the resumed search has suggested nothing")


def read(load: Load) -> dict[str, float]:
    """Read a made-up run as people do: its grid, its tables, its report."""
    make_run(load.folder, load.trials, space=SPACE, max_epochs=MAX_EPOCHS, workers=load.concurrent)
    clocks: dict[str, float] = {}
    with _timed(clocks, "results.load, s"):
        grid = results.load(load.folder)
    with _timed(clocks, "trials_frame, s"):
        results.trials_frame(grid)
    with _timed(clocks, "epochs_frame, s"):
        results.epochs_frame(grid)
    with _timed(clocks, "page, s"):
        page = make_report(View(tuner.look(str(load.folder))))
    return clocks | {"page, MB": len(page) / 1e6, "process, MB": _megabytes()}


class Reached(BaseException):
    """A resumed search has come to its first suggestion; nothing on the way catches this."""


def _reached(searcher: TruthfulOptunaSearch, trial_id: str) -> None:
    raise Reached


@contextmanager
def _ray(load: Load, *, pretended: bool) -> Iterator[None]:
    """Start Ray as large as the load says, with trials that sleep in place of ours."""
    with ExitStack() as stack:
        if pretended:
            stack.enter_context(mock.patch.object(tune_controller, "RayActorManager", PretendedActors))
        # An agent a node would ask for the dashboard's packages; 150 MB of objects are plenty here.
        ray.init(
            address="local",
            num_cpus=1 if pretended else load.concurrent,
            include_dashboard=False,
            object_store_memory=150 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        stack.callback(ray.shutdown)
        stack.enter_context(mock.patch.object(tuner, "train_trial", sleeper(load.seconds)))
        slots = SimpleNamespace(cpus=1.0, gpus=0.0, slots=load.concurrent)
        stack.enter_context(mock.patch.object(cluster, "fit_resources", lambda *_: slots))
        yield


@contextmanager
def _clock(owner: type, method: str) -> Iterator[list[float]]:
    """Note the seconds of each call of a method, for a block."""
    seconds: list[float] = []
    original = getattr(owner, method)

    def clocked(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        answer = original(*args, **kwargs)
        if answer is not None:
            seconds.append(time.perf_counter() - started)
        return answer

    with mock.patch.object(owner, method, clocked):
        yield seconds


@contextmanager
def _timed(clocks: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    clocks[name] = time.perf_counter() - started


def _steady_rate(load: Load) -> float:
    """Count the reports a second from when as many trials as may run have reported, until the last begins."""
    lines = map(json.loads, (load.folder / LEDGER).read_bytes().splitlines())
    begun: set[str] = set()
    times = []
    for line in lines:
        if line["event"] == "trial" and line["number"] == load.trials - 1:
            break
        if line["event"] == "epoch":
            begun.add(line["trial_id"])
            times += [line["time"]] if len(begun) >= load.concurrent else []
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else math.nan


def _sizes(folder: Path, ledger: Ledger) -> dict[str, float]:
    """Give the bytes of the run folder's files a trial, and the ledger's a report."""
    trials = len(ledger.trials)
    lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
    reports = [len(line) for line in lines if b'"event": "epoch"' in line[:20]]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        "reports a trial": len(reports) / trials,
        "ledger, bytes a report": sum(reports) / len(reports),
        "ledger, bytes a trial": sum(map(len, lines)) / trials,
        "journal, bytes a trial": (folder / JOURNAL).stat().st_size / trials,
        "run folder, bytes a trial": sum(file.stat().st_size for file in files) / trials,
        "run folder, files a trial": len(files) / trials,
    }


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def clean(load: Load) -> None:
    """Remove the run."""
    shutil.rmtree(load.folder, ignore_errors=True)
