"""MNIST as a task: its objective, its spaces, its data, and its options.

The baseline is the hand-set configuration of the blog post that this project began as.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tune_mnist.mnist import data
from tune_mnist.mnist.facts import DEFAULTS, OBJECTIVE, TABLES
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.model import Network
from tune_mnist.mnist.precision import PRECISIONS
from tune_mnist.mnist.spaces import SPACES, baseline, to_config
from tune_mnist.mnist.training import evaluate, load_network, train
from tune_mnist.task import Task, TestSet, option, require

GROUP = "mnist, as in --dataset fashion-mnist --train-size 10000"
"""The heading of its flags in ``--help``."""
WATCHED = 250
"""Training images that a final training is checked on, as no data is held out from it."""
USAGE = """\
A classifier of 28x28 grey images into ten classes, scored in fp32 on a CPU. `model.pt2` needs only torch:

    import torch
    model = torch.export.load("model.pt2").module()
    log_probabilities = model(images)  # uint8 [n, 28, 28], 0 background to 255 ink -> float32 [n, 10]

`model.pt` is the state dict of `tune_mnist.mnist.model.Network(Hyperparameters(**values))`, where `values` is
the content of `hyperparameters.json`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a search on MNIST, for its data and its training.

    Raises:
        ValueError: for a value out of range.
    """

    dataset: str = option("mnist", "mnist, fashion-mnist or kmnist", group=GROUP)
    data_dir: Path = option(
        Path("data"), "folder of the data set, filled when empty", group=GROUP, resumable=True
    )
    train_size: int | None = option(
        None, "training images (default: all but the validation part)", group=GROUP
    )
    val_size: int = option(5000, "images of the training set that are kept for validation", group=GROUP)
    precision: str = option("auto", "fp32, bf16, or auto: bf16 where the hardware has it", group=GROUP)
    cuda_graph: str = option(
        "on",
        "on or off: whether a GPU replays the training steps from CUDA graphs",
        group=GROUP,
        resumable=True,
    )

    def __post_init__(self) -> None:
        rules = {"dataset": data.DATASETS, "precision": PRECISIONS, "cuda_graph": ("on", "off")}
        for name, choices in rules.items():
            value = getattr(self, name)
            require(value in choices, name, value or "empty", f"one of {', '.join(choices)}")
        for name in ("train_size", "val_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")


def load(options: Options, seed: int) -> dict[str, Any]:
    """Load the training and the validation part. Raises the errors of `data.load_train_val`."""
    return _shared(*splits(options, seed), options)


def load_all(options: Options, seed: int) -> dict[str, Any]:
    """Load both parts as one to train on; a few of its images show whether a training has diverged."""
    train, validation = splits(options, seed)
    watched = data.Split(images=train.images[:WATCHED], labels=train.labels[:WATCHED])
    union = data.Split(
        images=torch.cat([train.images, validation.images]),
        labels=torch.cat([train.labels, validation.labels]),
    )
    return _shared(union, watched, options)


def _shared(train: data.Split, validation: data.Split, options: Options) -> dict[str, Any]:
    return {
        "train": train.arrays(),
        "validation": validation.arrays(),
        "precision": options.precision,
        "cuda_graph": options.cuda_graph,
    }


def splits(options: Options, seed: int) -> tuple[data.Split, data.Split]:
    """Return the training and the validation part."""
    return data.load_train_val(
        options.dataset, options.data_dir, val_size=options.val_size, train_size=options.train_size, seed=seed
    )


def test(config: dict[str, Any], checkpoint: Path, options: Options) -> TestSet:
    """Score a checkpoint on the test set, in fp32 on the CPU."""
    images = data.load_test(options.dataset, options.data_dir)
    network = load_network(checkpoint, Hyperparameters(**config))
    accuracy, loss = evaluate(network, images)
    metrics = {"accuracy": accuracy, "loss": loss}
    return TestSet(metrics=metrics, n=len(images), files={"model.pt": _weights(network)})


def export(config: dict[str, Any], checkpoint: Path, options: Options) -> dict[str, bytes]:
    """Return the weights of a checkpoint, and a file that torch alone can run."""
    from tune_mnist.mnist.export import export_network  # torch.export is slow to import

    network = load_network(checkpoint, Hyperparameters(**config))
    return {"model.pt": _weights(network), "model.pt2": export_network(network)}


def _weights(network: Network) -> bytes:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.getvalue()


def describe(options: Options) -> str:
    """Describe in words what is trained on."""
    size = f"{options.train_size:,} training images" if options.train_size else "all training images"
    return f"{options.dataset}, {size}"


TASK = Task(
    name="mnist",
    objective=OBJECTIVE,
    spaces=SPACES,
    train=train,
    load=load,
    options=Options,
    baseline=baseline,
    complete=to_config,
    load_all=load_all,
    test=test,
    export=export,
    usage=USAGE,
    describe=describe,
    validation_examples=lambda options: options.val_size,
    tables=TABLES,
    defaults=DEFAULTS,
    preload=("tune_mnist.mnist.training",),
)
