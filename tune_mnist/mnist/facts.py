"""What a ledger states about MNIST; runs of older versions, all of MNIST, are missing it."""

from __future__ import annotations

from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.run.records import TaskFacts
from tune_mnist.task import Objective

OBJECTIVE = Objective(
    metric="accuracy",
    mode="max",
    label="validation accuracy",
    format=".2%",
    axis="nines",
    standard_error="binomial",
)
TABLES = ("val_loss",)
DEFAULTS = vars(Hyperparameters())
FACTS = TaskFacts(
    name="mnist", objective=OBJECTIVE, validation_examples=5000, tables=TABLES, defaults=DEFAULTS
)
