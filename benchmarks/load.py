"""The load on a search's driver: from our own parts, from Ray's loop with them, from real processes.

Trials report at once, or sleep before they do; their accuracies are synthetic. Each function needs its own
process, and returns its figures by name.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import ray
from optuna.distributions import distribution_to_json
from ray._private import worker
from ray.tune.execution import tune_controller

from benchmarks.pretence import PretendedActors, made_up, sleeper
from tune_mnist.mnist.facts import FACTS
from tune_mnist.mnist.task import TASK
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.settings import Settings
from tune_mnist.tuning import preflight, rounds, tuner
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.points import first_points
from tune_mnist.tuning.study import TrialStudy
from tune_mnist.tuning.tasks import load_space

MAX_EPOCHS = 9
SPACE = "wide"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much work a driver gets."""

    trials: int
    concurrent: int
    seconds: float = 0.0
    "How long a trial sleeps before each report."
    folder: Path
    "The run folder; removed afterwards."
    data_dir: Path

    @property
    def settings(self) -> Settings:
        """Return the settings of such a search."""
        return Settings(
            num_samples=self.trials,
            max_concurrent_trials=self.concurrent,
            max_epochs=MAX_EPOCHS,
            space=SPACE,
            gpus_per_trial=0,
            name=self.folder.name,
            storage_path=str(self.folder.parent),
            options={"data_dir": self.data_dir, "train_size": 512, "val_size": 500},
        )


def parts(load: Load) -> dict[str, float]:
    """Drive searcher, scheduler, ledger and journal as Ray's loop would, with nothing in between."""
    folder = RunFolder(load.folder)
    settings, space = load_space(load.settings, TASK)
    load.folder.mkdir(parents=True)
    ledger = Ledger.open(load.folder / LEDGER)
    ledger.begin({name: distribution_to_json(one) for name, one in space.items()}, FACTS)
    ledger.plan(first_points(settings, TASK, space))
    study = TrialStudy(settings, TASK, space, ledger, folder)
    asha = ASHA(settings, ledger)
    running: deque[tuple[str, int]] = deque()
    digesting = 0.0
    begun = time.perf_counter()
    for number in itertools.count():
        while running and (len(running) >= load.concurrent or number >= load.trials):
            started = time.perf_counter()
            name, epoch = running.popleft()
            result = made_up(int(name), epoch)
            study.report(name, result)
            if asha.stops(name, epoch, result["accuracy"]):
                study.end(name)
            else:
                running.append((name, epoch + 1))
            digesting += time.perf_counter() - started
        if number >= load.trials:
            break
        name = f"{number:08d}"
        study.draw(name)
        running.append((name, 1))
    seconds = time.perf_counter() - begun
    study.close("finished")
    figures = {"reports a second": len(ledger.order) / digesting, "seconds a trial": seconds / load.trials}
    return figures | _sizes(load.folder, ledger) | {"driver, MB": peak_megabytes()}


def search(load: Load, *, pretended: bool) -> dict[str, float]:
    """Run a whole search whose trials sleep in Ray's processes, or answer at once without any."""
    with started_ray(load, pretended=pretended):
        begun = time.perf_counter()
        spent = sum(os.times()[:2])
        with _clock(TrialStudy, "draw") as moments:
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
    if not pretended:  # processes take time to start
        figures["reports a second, all at work"] = _steady_rate(load)
    return figures | _sizes(load.folder, ledger) | {"driver, MB": peak_megabytes()}


@contextmanager
def started_ray(load: Load, *, pretended: bool) -> Iterator[None]:
    """Start Ray at the load's size, with trials that sleep instead of training."""
    with ExitStack() as stack:
        if pretended:
            stack.enter_context(mock.patch.object(tune_controller, "RayActorManager", PretendedActors))
        # With many processes Ray prints coloured paragraphs, and has no switch for that.
        stack.enter_context(mock.patch.object(worker, "print_to_stdstream", lambda *_, **__: None))
        # Each node's agent would need the dashboard's packages; 150 MB of objects are plenty here.
        ray.init(
            address="local",
            num_cpus=1 if pretended else load.concurrent,
            include_dashboard=False,
            object_store_memory=150 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        stack.callback(ray.shutdown)
        stack.enter_context(mock.patch.object(rounds, "train_trial", sleeper(load.seconds)))
        slots = SimpleNamespace(cpus=1.0, gpus=0.0, slots=load.concurrent)
        stack.enter_context(mock.patch.object(preflight, "fit_resources", lambda *_: slots))
        yield


@contextmanager
def _clock(owner: type, method: str) -> Iterator[list[float]]:
    """Record the seconds of each call of a method, within a block."""
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


def _steady_rate(load: Load) -> float:
    """Return the reports per second between all concurrent trials' first reports and the last trial."""
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
    """Return the run folder's bytes per trial, and the ledger's per report."""
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


def peak_megabytes() -> float:
    """Return this process's peak memory; its current memory if not on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float(psutil.Process().memory_info().rss / 1e6)
    # Not `ru_maxrss`, which starts at the parent's value: all figures would be the parent's.
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 / 1e6


def clean(load: Load) -> None:
    """Remove the run."""
    shutil.rmtree(load.folder, ignore_errors=True)
