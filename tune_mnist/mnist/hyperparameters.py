"""The contract between what a search draws and what training reads. Nothing here imports torch or Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tune_mnist.task import require

OPTIMIZERS = ("sgd", "rmsprop", "adam", "adamw")
MAX_SHIFT = 4
"""Largest shift: MNIST's digits have a margin of 4 pixels, so no part of one is lost."""
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Everything that decides how one network is trained; the defaults are the baseline's hand-set values.

    Raises:
        TypeError: for an unknown name, so that a stray key of a search space fails loudly.
        ValueError: for a value out of range; the text states the value and the rule.
    """

    lr: float = 0.001
    "Learning rate, above 0."
    momentum: float = 0.5
    "Momentum of sgd and rmsprop, first beta of adam and adamw; 0 up to, not including, 1."
    optimizer: str = "sgd"
    "One of OPTIMIZERS."
    epochs: int = 5
    "Passes over the training split, at least 1."
    batch_size: int = 64
    "Images per step, at least 1."
    activation: str = "relu"
    "One of ACTIVATIONS, used after both convolutions and the dense layer."
    dropout_conv: float = 0.25
    "Fraction of features dropped after the convolutions; 0 up to, not including, 1."
    dropout_dense: float = 0.5
    "Fraction of features dropped after the dense layer; 0 up to, not including, 1."
    weight_decay: float = 0.0
    "Decay of the weights, at least 0: an L2 term of the gradient, decoupled for adamw."
    lr_end_factor: float = 1.0
    "Final learning rate over the initial one, from which it falls linearly; above 0, at most 1."
    shift: int = 0
    "Most pixels by which a training image is moved at random, on each axis; 0 to MAX_SHIFT."

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "lr", self.lr, "above 0")
        for name, choices in (("optimizer", OPTIMIZERS), ("activation", ACTIVATIONS)):
            value = getattr(self, name)
            require(value in choices, name, value, f"one of {', '.join(choices)}")
        require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0")
        require(0 < self.lr_end_factor <= 1, "lr_end_factor", self.lr_end_factor, "above 0 and at most 1")
        shifts = isinstance(self.shift, int) and 0 <= self.shift <= MAX_SHIFT
        require(shifts, "shift", self.shift, f"a whole number from 0 to {MAX_SHIFT}")
        for name in ("momentum", "dropout_conv", "dropout_dense"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "at least 0 and below 1")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, name, value, "a whole number of at least 1")


HYPERPARAMETER_NAMES = tuple(field.name for field in fields(Hyperparameters))
