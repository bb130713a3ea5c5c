"""Runs whose task now has different hyper-parameters."""

import dataclasses
from typing import Any

import pytest

from tune_mnist.mnist.facts import FACTS
from tune_mnist.mnist.task import TASK
from tune_mnist.run.ledger import Ledger
from tune_mnist.tuning.changes import check_unchanged, describe_changes


def recorded(drawn: dict[str, Any], **changes: Any) -> Ledger:
    """A run of one trial, whose session had other defaults; None for those that it did not have."""
    defaults = {name: value for name, value in {**TASK.defaults, **changes}.items() if value is not None}
    ledger = Ledger()
    ledger.begin({}, dataclasses.replace(FACTS, defaults=defaults))
    ledger.suggested("a", 0, drawn, drawn, planned=1, hand_set=False)
    return ledger


@pytest.mark.parametrize(
    ("drawn", "changes", "named"),
    [
        ({"lr": 0.1}, {}, ""),
        ({"batch_size": 32}, {"batch_size": 128}, ""),  # drawn, so its new default does not matter
        ({"lr": 0.1}, {"shift": None}, "shift is new, 0 by default"),
    ],
)
def test_new_hyperparameters_hinder_nothing_and_are_named(
    drawn: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    ledger = recorded(drawn, **changes)
    check_unchanged(ledger, TASK, "run")
    assert describe_changes(ledger, TASK) == (named and f"the hyper-parameters have changed since ({named})")


@pytest.mark.parametrize(
    ("drawn", "changes", "conflict"),
    [
        ({"nesterov": True}, {}, "nesterov is gone"),
        ({"lr": 0.1}, {"decay_old": 0.5}, "decay_old is gone"),
        ({"lr": 0.1}, {"batch_size": 32}, "batch_size is 64 by default, was 32"),
    ],
)
def test_a_run_that_could_not_be_trained_as_before_is_not_resumed(
    drawn: dict[str, Any], changes: dict[str, Any], conflict: str
) -> None:
    ledger = recorded(drawn, **changes)
    with pytest.raises(ValueError) as error:
        check_unchanged(ledger, TASK, "run")
    assert str(error.value) == f"run cannot be resumed: the hyper-parameters have changed ({conflict})"
    assert conflict in describe_changes(ledger, TASK)
