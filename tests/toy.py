"""A task that is minimised and needs no torch, for tests about trials and not about their training."""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from tune_mnist import Objective, Save, Task, Trial
from tune_mnist.task import option


@dataclass(frozen=True, kw_only=True)
class Options:
    epoch_seconds: float = option(0.2, "time that an epoch takes")


def train(
    config: dict[str, Any], epoch_seconds: float, trial: Trial
) -> Iterator[tuple[dict[str, float], Save]]:
    """Let x shrink by two noisy steps an epoch; a rate of 1e200 makes it infinite at once."""
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
