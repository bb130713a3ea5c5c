"""What the contestants share: their flags, the blog's network and data, one epoch, and the log of epochs.

All of it is as a PyTorch user writes it: torchvision's MNIST, PIL transforms, a DataLoader, fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

Loaders = tuple[DataLoader[Any], DataLoader[Any]]


def parse(description: str | None) -> argparse.Namespace:
    """Read the flags that every contestant has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--num-samples", type=int, default=20, help="trials")
    parser.add_argument("--max-epochs", type=int, default=5, help="most epochs of a trial")
    parser.add_argument("--train-size", type=int, default=55_000)
    parser.add_argument("--val-size", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus-per-trial", type=float, default=0.0, help="0: on the CPU")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="torchvision's folders")
    parser.add_argument("--log", type=Path, required=True, help="file that gets a line for each epoch")
    return parser.parse_args()


class Net(nn.Module):
    """The blog's CNN: two convolutions, max-pool, dropout, dense 128, dropout, log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, float32 [n, 1, 28, 28], into log-probabilities [n, 10]."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        x = self.dropout2(F.relu(self.fc1(x)))
        return F.log_softmax(self.fc2(x), dim=1)


def make_loaders(data_dir: Path, train_size: int, val_size: int, seed: int) -> Loaders:
    """Load training and validation images: the same split, by the same permutation, as tune_mnist's.

    No loader processes: where all cores train already they take time from it. The transforms of an image take
    a tenth of what its training does.
    """
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    whole = datasets.MNIST(str(data_dir), train=True, transform=transform)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist()
    train, validation = order[val_size : val_size + train_size], order[:val_size]
    return (
        DataLoader(Subset(whole, train), batch_size=64, shuffle=True),
        DataLoader(Subset(whole, validation), batch_size=1000),
    )


def make_optimizer(model: nn.Module, name: str, lr: float, momentum: float) -> torch.optim.Optimizer:
    """Build SGD or RMSprop, each with the momentum that was drawn."""
    optimizer = torch.optim.SGD if name == "sgd" else torch.optim.RMSprop
    return optimizer(model.parameters(), lr=lr, momentum=momentum)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> None:
    """Train one epoch."""
    device = next(model.parameters()).device
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.nll_loss(model(images.to(device)), labels.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def accuracy_of(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Give the share of images that are classified rightly, 0..1."""
    device = next(model.parameters()).device
    model.eval()
    right, count = 0, 0
    for images, labels in loader:
        right += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
        count += len(labels)
    return right / count


def log(path: Path, trial: int | str, epoch: int, accuracy: float) -> None:
    """Append an epoch to the log, with the time; several processes may do so at once."""
    line = json.dumps({"time": time.time(), "trial": trial, "epoch": epoch, "accuracy": accuracy})
    with path.open("a") as file:
        file.write(line + "\n")
