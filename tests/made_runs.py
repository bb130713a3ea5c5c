"""Runs made by hand: a ledger and settings as a search of a given size and luck would have left them."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json

from tune_mnist.mnist.spaces import to_config
from tune_mnist.mnist.task import TASK, Options
from tune_mnist.run.ledger import LEDGER
from tune_mnist.run.records import trial_state
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.asha import rungs
from tune_mnist.tuning.preflight import SETTINGS
from tune_mnist.tuning.tasks import load_space
from tune_mnist.tuning.tuner import describe_task

EPOCH_SECONDS = 10
START = 1_790_000_000.0


def space_of(name: str, max_epochs: int = 5) -> dict[str, BaseDistribution]:
    """A space as a search on MNIST has it."""
    return load_space(Settings(space=name, max_epochs=max_epochs), TASK)[1]


def make_run(
    folder: Path,
    num_samples: int,
    *,
    space: str = "blog",
    max_epochs: int = 5,
    grace_period: int = 1,
    workers: int = 4,
    every_trial_fails: bool = False,
    running: bool = False,
    seed: int = 0,
) -> Path:
    """Write a run of random draws, judged by a scheduler like ASHA, on workers that never wait.

    Accuracies grow with the epochs and depend on the learning rate. Of a running one, the last trials have
    not ended and the run is not closed.
    """
    settings = Settings(
        num_samples=num_samples,
        space=space,
        max_epochs=max_epochs,
        grace_period=grace_period,
        reduction_factor=2,
        name=folder.name,
    )
    distributions = space_of(space, max_epochs)
    dice = random.Random(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    scores: dict[int, list[float]] = {rung: [] for rung in rungs(settings)}
    free = [START] * workers
    events: list[dict[str, Any]] = []
    for number in range(num_samples):
        params = study.ask(distributions).params
        config = to_config(params, max_epochs)
        trial_id, worker = f"{number:08x}", free.index(min(free))
        now = free[worker]
        trial = {"trial_id": trial_id, "number": number, "params": params, "config": config}
        events.append({"event": "trial", **trial, "hand_set": number == 0, "time": now})
        quality = 0.99 - 0.02 * abs(math.log10(config["lr"]) + 2.2) + dice.gauss(0, 0.002)
        epoch = 0
        while not every_trial_fails and epoch < config["epochs"]:
            epoch += 1
            now += EPOCH_SECONDS
            accuracy = round(min(quality * (1 - 0.3 * 2.0 ** -(2 * epoch)), 0.9994), 4)
            events.append(_epoch(trial_id, epoch, accuracy, now, worker))
            if epoch in scores:
                scores[epoch].append(accuracy)
                if accuracy < sorted(scores[epoch])[len(scores[epoch]) // 2]:
                    break
        free[worker] = now
        if running and number >= num_samples - workers:
            continue
        if every_trial_fails:
            now += 1
            error = f"DivergedError: the loss is not finite at step {number + 1} of epoch 1"
            events.append({"event": "error", "trial_id": trial_id, "error": error, "time": now})
            free[worker] = now
        state = trial_state(epoch, config["epochs"], failed=every_trial_fails)
        events.append({"event": "end", "trial_id": trial_id, "state": state, "time": now})
    events.sort(key=lambda event: event["time"])
    session = {
        "distributions": {name: distribution_to_json(one) for name, one in distributions.items()},
        "task": dataclasses.asdict(describe_task(TASK, Options(), distributions, max_epochs)),
    }
    events.insert(0, {"event": "session", **session, "time": START})
    if not running:
        events.append({"event": "close", "reason": "finished", "time": max(free) + 1})
    folder.mkdir(parents=True)
    (folder / LEDGER).write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / SETTINGS).write_text(settings.to_json())
    return folder


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
