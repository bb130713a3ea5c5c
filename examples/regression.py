"""A task of one's own: the root mean squared error of a small network on tabular data, minimised.

python scripts/tune.py --task examples/regression.py:TASK --num-samples 20
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune_mnist import Objective, Save, Task, TestSet, Trial

SPACE = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "width": IntDistribution(8, 128, log=True),
    "activation": CategoricalDistribution(("ReLU", "Tanh")),
}


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make up points of a curved surface with noise: 1,500 to train on, 500 to choose by, 500 to test."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (2500, 4)).astype(np.float32)
    y = np.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.1 * random.standard_normal((2500, 1))
    return x, y.astype(np.float32)


def load(options: None, seed: int) -> dict[str, np.ndarray]:
    """Load the training and the validation points."""
    x, y = points(0)
    return {"x": x[:1500], "y": y[:1500], "val_x": x[1500:2000], "val_y": y[1500:2000]}


def network(config: dict) -> torch.nn.Sequential:
    """Make the network of a configuration."""
    first, last = torch.nn.Linear(4, config["width"]), torch.nn.Linear(config["width"], 1)
    return torch.nn.Sequential(first, getattr(torch.nn, config["activation"])(), last)


def train(config: dict, data: dict[str, np.ndarray], trial: Trial) -> Iterator[tuple[dict[str, float], Save]]:
    """Train one configuration, giving the error on the validation points after each epoch."""
    torch.manual_seed(trial.seed)
    model = network(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    if trial.checkpoint:
        state = torch.load(trial.checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    x, y, val_x, val_y = (torch.tensor(data[name]) for name in ("x", "y", "val_x", "val_y"))
    for epoch in range(trial.epoch, trial.max_epochs):
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            rmse = torch.nn.functional.mse_loss(model(val_x), val_y).sqrt().item()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        yield {"rmse": rmse}, lambda path, state=state: torch.save(state, path)


# All that a search needs is above; what follows is for the winner.
def load_all(options: None, seed: int) -> dict[str, np.ndarray]:
    """Load the validation points as training points, too."""
    x, y = points(0)
    return load(options, seed) | {"x": x[:2000], "y": y[:2000]}


def test(config: dict, checkpoint: Path, options: None) -> TestSet:
    """Score a checkpoint on the test points."""
    model = network(config)
    model.load_state_dict(torch.load(checkpoint)["model"])
    x, y = (torch.tensor(part[2000:]) for part in points(0))
    with torch.no_grad():
        rmse = torch.nn.functional.mse_loss(model(x), y).sqrt().item()
    return TestSet(metrics={"rmse": rmse}, n=len(x))


TASK = Task(
    name="regression",
    objective=Objective(metric="rmse", mode="min", label="validation RMSE", format=".4f", axis="log"),
    spaces={"default": SPACE},
    load=load,
    train=train,
    load_all=load_all,
    test=test,
)
