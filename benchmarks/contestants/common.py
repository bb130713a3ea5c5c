"""What the contestants share: flags, the baseline's network, space and training loop, a log of epochs.

Network and loop are those of PyTorch's own example (github.com/pytorch/examples, mnist/main.py), as are the
baseline's; nothing here is taken from tune_mnist except the choice of validation images.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

BATCH_SIZE, EVALUATION_BATCH = 64, 1000
LR, MOMENTUM, OPTIMIZERS, EPOCHS = (1e-3, 1e-2), (0.4, 0.99), ("sgd", "rmsprop"), (3, 5)
"""The space `blog`: lr on a log scale, momentum uniform, a choice, whole epochs; bounds included."""


def flags(description: str | None) -> argparse.ArgumentParser:
    """Make a parser for the flags of all contestants."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("--num-samples", "--max-epochs", "--train-size", "--val-size", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True, help="file that gets a JSON line an epoch")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--gpus-per-trial", type=float, default=1.0, help="with --device cuda")
    return parser


def workers(args: argparse.Namespace) -> int:
    """Count the concurrent trials: one per core, or as many as share the GPU."""
    return int(args.cores) if args.device == "cpu" else max(1, int(1 / args.gpus_per_trial))


def epochs_range(max_epochs: int) -> tuple[int, int]:
    """Limit the space's epochs to a budget."""
    return min(EPOCHS[0], max_epochs), min(EPOCHS[1], max_epochs)


def suggest(trial: Any, max_epochs: int) -> dict[str, Any]:
    """Draw a configuration with an Optuna trial."""
    return {
        "lr": trial.suggest_float("lr", *LR, log=True),
        "momentum": trial.suggest_float("momentum", *MOMENTUM),
        "optimizer": trial.suggest_categorical("optimizer", OPTIMIZERS),
        "epochs": trial.suggest_int("epochs", *epochs_range(max_epochs)),
    }


class Net(nn.Module):
    """The baseline's network: two convolutions, max-pool, dropout, dense 128, dropout, log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify normalised images, float [n, 1, 28, 28], into log-probabilities, float [n, 10]."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = self.dropout2(F.relu(self.fc1(torch.flatten(x, 1))))
        return F.log_softmax(self.fc2(x), dim=1)


def loaders(args: argparse.Namespace) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Load MNIST through torchvision, and split ``val_size`` images off the training set by the seed."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    whole = datasets.MNIST(args.data_dir, train=True, download=True, transform=transform)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(args.seed)).tolist()
    validation, rest = order[: args.val_size], order[args.val_size :]
    # As in the example: on a CPU no workers. They would take at most 6 % off a training step (0.15 of 2.35
    # CPU seconds for 1,920 images), on cores that are already training.
    gpu = {"num_workers": 1, "pin_memory": True, "persistent_workers": True}
    more: dict[str, Any] = gpu if args.device == "cuda" else {}
    train = DataLoader(Subset(whole, rest[: args.train_size]), batch_size=BATCH_SIZE, shuffle=True, **more)
    return train, DataLoader(Subset(whole, validation), batch_size=EVALUATION_BATCH, **more)


def make_optimizer(model: nn.Module, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer; momentum is passed to it."""
    kind = torch.optim.SGD if config["optimizer"] == "sgd" else torch.optim.RMSprop
    return kind(model.parameters(), lr=config["lr"], momentum=config["momentum"])


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any], device: str
) -> None:
    """Train one step per batch."""
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.nll_loss(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def accuracy(model: nn.Module, loader: DataLoader[Any], device: str) -> float:
    """Classify the validation images; return the fraction that is right, 0..1."""
    model.eval()
    right, count = 0, 0
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            right += int((model(images).argmax(dim=1) == labels).sum().item())
            count += len(labels)
    return right / count


def train(
    args: argparse.Namespace, config: Mapping[str, Any], trial: int | str
) -> Iterator[tuple[int, float]]:
    """Train a configuration; after each epoch, log it and yield it with its accuracy."""
    torch.manual_seed(args.seed)
    train_loader, validation_loader = loaders(args)
    model = Net().to(args.device)
    optimizer = make_optimizer(model, config)
    for epoch in range(1, config["epochs"] + 1):
        train_epoch(model, optimizer, train_loader, args.device)
        reached = accuracy(model, validation_loader, args.device)
        log(args.log, trial, epoch, reached)
        yield epoch, reached


def log(path: Path, trial: int | str, epoch: int, reached: float) -> None:
    """Append a line to the log, kept whole even if several processes write to it."""
    line = json.dumps({"trial": trial, "epoch": epoch, "accuracy": reached, "time": time.time()})
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)
