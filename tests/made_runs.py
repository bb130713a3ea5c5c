"""Handmade runs: a ledger and settings as a search of a given size and luck would have left them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Mapping
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json

from tune_mnist.mnist.spaces import to_config
from tune_mnist.mnist.task import TASK, Options
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import trial_state
from tune_mnist.run.settings import Settings
from tune_mnist.task import Objective
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.preflight import SETTINGS
from tune_mnist.tuning.tasks import load_space
from tune_mnist.tuning.tuner import describe_task

EPOCH_SECONDS = 10
START = 1_790_000_000.0
ERROR = Objective(metric="error", mode="min", format=".4f", axis="log")


def space_of(name: str, max_epochs: int = 5) -> dict[str, BaseDistribution]:
    """Return a space like that of a search on MNIST."""
    return load_space(Settings(space=name, max_epochs=max_epochs), TASK)[1]


def make_run(
    folder: Path,
    num_samples: int,
    *,
    space: str = "blog",
    max_epochs: int = 5,
    grace_period: int = 1,
    scheduler: str = "asha",
    workers: int = 4,
    every_trial_fails: bool = False,
    running: bool = False,
    minimised: bool = False,
    dead: Mapping[str, Any] | None = None,
    deadly: float = 1.0,
    seed: int = 0,
) -> Path:
    """Write a run of random draws, judged by ASHA, on workers that never wait.

    Accuracies grow with the epochs and depend on the learning rate. In a running one, the last trials have
    not ended and the run is not closed. A minimised one reports the error, whose standard error is unknown.
    A fraction ``deadly`` of the trials with a ``dead`` value of a parameter stays at 11.62 %.
    """
    settings = Settings(
        num_samples=num_samples,
        space=space,
        max_epochs=max_epochs,
        grace_period=grace_period,
        reduction_factor=2,
        scheduler=scheduler,
        name=folder.name,
    )
    distributions = space_of(space, max_epochs)
    facts = describe_task(TASK, Options(), distributions, max_epochs)
    if minimised:
        facts = dataclasses.replace(facts, objective=ERROR)
    ledger = Ledger()
    ledger.facts = facts
    asha = ASHA(settings, ledger)
    dice, luck = random.Random(seed), random.Random(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    numbers = itertools.count()  # len(study.trials) would copy them all
    at_work: list[tuple[float, int, _Made]] = []  # until when, worker, trial
    events: list[dict[str, Any]] = []

    def begin(worker: int, now: float) -> None:
        number = next(numbers)
        if number >= num_samples:
            return
        params = study.ask(distributions).params
        trial = _Made(number, to_config(params, max_epochs), dice.gauss(0, 0.002))
        if dead and any(params[name] == value for name, value in dead.items()) and luck.random() < deadly:
            trial.quality = None
        drawn = {"trial_id": trial.trial_id, "number": number, "params": params, "config": trial.config}
        events.append({"event": "trial", **drawn, "hand_set": number == 0, "time": now})
        heappush(at_work, (now + (1 if every_trial_fails else EPOCH_SECONDS), worker, trial))

    for worker in range(workers):
        begin(worker, START)
    now = START
    while at_work:
        now, worker, trial = heappop(at_work)
        end = {"event": "end", "trial_id": trial.trial_id, "time": now}
        if every_trial_fails:
            error = f"DivergedError: the loss is not finite at step {trial.number + 1} of epoch 1"
            events.append({"event": "error", "trial_id": trial.trial_id, "error": error, "time": now})
            events.append({**end, "state": "FAIL"})
            begin(worker, now)
            continue
        trial.epoch += 1
        report = _epoch(trial.trial_id, trial.epoch, trial.accuracy, now, worker)
        report["error"] = round(1 - trial.accuracy, 4)
        events.append(report)
        over = trial.epoch == trial.config["epochs"]
        if not (asha.stops(trial.trial_id, trial.epoch, report[facts.objective.metric]) or over):
            heappush(at_work, (now + EPOCH_SECONDS, worker, trial))
            continue
        if not running or trial.number < num_samples - workers:
            state = trial_state(trial.epoch, trial.config["epochs"], failed=False)
            events.append({**end, "state": state})
        begin(worker, now)
    session = {
        "distributions": {name: distribution_to_json(one) for name, one in distributions.items()},
        "task": dataclasses.asdict(facts),
    }
    events.insert(0, {"event": "session", **session, "time": START})
    if not running:
        events.append({"event": "close", "reason": "finished", "time": now + 1})
    folder.mkdir(parents=True)
    (folder / LEDGER).write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / SETTINGS).write_text(settings.to_json())
    return folder


class _Made:
    """A trial with the accuracy that it would approach if never stopped; None if it does not train."""

    def __init__(self, number: int, config: dict[str, Any], noise: float) -> None:
        self.number, self.config, self.epoch, self.trial_id = number, config, 0, f"{number:08x}"
        self.quality: float | None = 0.99 - 0.02 * abs(math.log10(config["lr"]) + 2.2) + noise

    def __lt__(self, other: _Made) -> bool:
        return self.number < other.number

    @property
    def accuracy(self) -> float:
        if self.quality is None:
            return 0.1162
        return round(min(self.quality * (1 - 0.3 * 2.0 ** -(2 * self.epoch)), 0.9994), 4)


def _epoch(trial_id: str, epoch: int, accuracy: float, now: float, worker: int) -> dict[str, Any]:
    return {
        "event": "epoch",
        "trial_id": trial_id,
        "epoch": epoch,
        "accuracy": accuracy,
        "val_loss": 3.5 * (1 - accuracy),
        "train_loss": 4 * (1 - accuracy),
        "epoch_seconds": float(EPOCH_SECONDS),
        "images_per_second": 5500.0,
        "timestamp": int(now),
        "checkpoint_dir_name": None,
        "done": False,
        "hostname": f"node-{worker // 4}",
        "pid": 1000 + worker,
        "time": now,
    }
