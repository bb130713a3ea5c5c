"""A minimised task without torch, for tests about trials, not about their training."""

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from tune_mnist import Objective, Save, Task, TestSet, Trial
from tune_mnist.task import option


@dataclass(frozen=True, kw_only=True)
class Options:
    epoch_seconds: float = option(0.2, "time that an epoch takes")


def train(
    config: dict[str, Any], epoch_seconds: float, trial: Trial
) -> Iterator[tuple[dict[str, float], Save]]:
    """Let x shrink by two noisy steps per epoch; a rate of 1e200 makes it infinite at once."""
    x = json.loads(trial.checkpoint.read_text()) if trial.checkpoint else 1.0
    for epoch in range(trial.epoch, trial.max_epochs):
        time.sleep(epoch_seconds)
        for step in range(2):
            x -= config["rate"] * x * random.Random(f"{trial.seed} {epoch} {step}").uniform(0.5, 1)
        yield {"loss": abs(x)}, lambda path, x=x: path.write_text(json.dumps(x))  # type: ignore[misc]


TASK = Task(
    name="toy",
    objective=Objective(metric="loss", mode="min"),
    spaces={
        "default": {"rate": FloatDistribution(0.01, 1.0, log=True)},
        "half_diverges": {"rate": CategoricalDistribution((0.1, 1e200))},
        "all_diverge": {"rate": FloatDistribution(1e200, 1e201, log=True)},
    },
    train=train,
    options=Options,
    load=lambda options, seed: options.epoch_seconds,
)


def test(config: dict[str, Any], checkpoint: Path, options: Options) -> TestSet:
    """Score a checkpoint: a little worse than on validation."""
    return TestSet(metrics={"loss": 1.1 * abs(json.loads(checkpoint.read_text()))}, n=70)


FINAL = dataclasses.replace(
    TASK,
    baseline={"rate": 0.1},
    test=test,
    load_all=TASK.load,
    export=lambda config, checkpoint, options: {"model.json": checkpoint.read_bytes()},
    usage="`model.json` is x.",
    validation_examples=lambda options: 50,
    describe=lambda options: "toys",
    defaults={"rate": 0.5, "color": "red"},
)
"""The same with everything that a final model needs."""


def train_for_gain(
    config: dict[str, Any], epoch_seconds: float, trial: Trial
) -> Iterator[tuple[dict[str, float], Save]]:
    """Report how much smaller x has become: more is better."""
    for report, save in train(config, epoch_seconds, trial):
        yield {"gain": 1 - report["loss"]}, save


def test_for_gain(config: dict[str, Any], checkpoint: Path, options: Options) -> TestSet:
    """Score a checkpoint likewise."""
    return TestSet(metrics={"gain": 1 - test(config, checkpoint, options).metrics["loss"]}, n=70)


MAXIMISED = dataclasses.replace(
    FINAL, name="gain", objective=Objective(metric="gain"), train=train_for_gain, test=test_for_gain
)
"""The same, maximised."""
