"""Another network, with hyper-parameters of its own, on Fashion-MNIST, whose images MNIST's loader reads.

python scripts/tune.py --task examples/fashion.py:TASK --num-samples 8 --train-size 10000
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from tune_mnist import DivergedError, Objective, Save, Task, TestSet, Trial, option
from tune_mnist.mnist import data as mnist

SPACE = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "channels": IntDistribution(8, 32, step=8),
    "kernel": CategoricalDistribution((3, 5)),
    "batch_norm": CategoricalDistribution((True, False)),
}
BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the images are, and how many are used."""

    data_dir: Path = option(Path("data"), "folder of the data set, filled when empty", resumable=True)
    train_size: int | None = option(None, "training images (default: all but the validation part)")
    val_size: int = option(5000, "images of the training set that are kept for validation")


def load(options: Options, seed: int) -> dict:
    """Load the training and the validation images."""
    sizes = {"train_size": options.train_size, "val_size": options.val_size}
    train, validation = mnist.load_train_val("fashion-mnist", options.data_dir, seed=seed, **sizes)
    return {"train": train.arrays(), "validation": validation.arrays()}


def network(config: dict) -> nn.Module:
    """Build a network for images, uint8 [n, 28, 28]."""
    channels, kernel = config["channels"], config["kernel"]
    norm = nn.BatchNorm2d if config["batch_norm"] else nn.Identity
    return nn.Sequential(
        nn.Conv2d(1, channels, kernel, padding="same"), norm(channels), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(channels, 2 * channels, kernel, padding="same"), norm(2 * channels), nn.ReLU(),
        nn.MaxPool2d(7),
        nn.Flatten(), nn.Linear(2 * channels, 10),
    )  # fmt: skip


def accuracy(model: nn.Module, split: mnist.Split) -> float:
    """Give the fraction of images that are classified correctly."""
    model.eval()
    with torch.inference_mode():
        right = [
            (model(images[:, None] / 255).argmax(1) == labels).sum()
            for images, labels in zip(split.images.split(500), split.labels.split(500), strict=True)
        ]
    return int(sum(right)) / len(split)


def train(config: dict, data: dict, trial: Trial) -> Iterator[tuple[dict[str, float], Save]]:
    """Train one configuration, giving the accuracy on the validation images after each epoch."""
    torch.manual_seed(trial.seed)
    device = torch.device(trial.device)
    split, validation = (mnist.Split.from_arrays(**data[name]).to(device) for name in data)
    model = network(config).to(trial.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    if trial.checkpoint:
        state = torch.load(trial.checkpoint, map_location=trial.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(trial.epoch, trial.max_epochs):
        model.train()
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(trial.seed + epoch))
        for batch in order.to(trial.device).split(BATCH):
            loss = nn.functional.cross_entropy(model(split.images[batch, None] / 255), split.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not loss.isfinite():
            raise DivergedError(f"the loss is not finite after epoch {epoch + 1}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        yield {"accuracy": accuracy(model, validation)}, lambda path, state=state: torch.save(state, path)


def test(config: dict, checkpoint: Path, options: Options) -> TestSet:
    """Score a checkpoint on the test images, once, for the winner."""
    model = network(config)
    model.load_state_dict(torch.load(checkpoint, map_location="cpu")["model"])
    images = mnist.load_test("fashion-mnist", options.data_dir)
    return TestSet(metrics={"accuracy": accuracy(model, images)}, n=len(images))


TASK = Task(
    name="fashion",
    objective=Objective(metric="accuracy", format=".2%", axis="nines", standard_error="binomial"),
    spaces={"default": SPACE},
    load=load,
    options=Options,
    train=train,
    baseline={"lr": 0.001, "channels": 16, "kernel": 3, "batch_norm": True},
    test=test,
    describe=lambda options: "fashion-mnist",
    validation_examples=lambda options: options.val_size,
)
