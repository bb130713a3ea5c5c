"""What has changed in a task's hyper-parameters since the trials of a run were trained."""

from __future__ import annotations

from tune_mnist.run.ledger import Ledger
from tune_mnist.task import Task


def describe_changes(ledger: Ledger, task: Task) -> str:
    """Describe in one line which hyper-parameters are gone, new, or have another default; "" for none."""
    recorded = ledger.facts.defaults if ledger.facts else {}
    new = [name for name in task.defaults if recorded and name not in recorded]
    changes = _conflicts(ledger, task)
    changes += [f"{name} is new, {task.defaults[name]} by default" for name in new]
    return f"the hyper-parameters have changed since ({'; '.join(changes)})" if changes else ""


def check_unchanged(ledger: Ledger, task: Task, uri: str) -> None:
    """Check that trials can be trained as those of a run were.

    Raises:
        ValueError: if one of its hyper-parameters is gone, or has another default and was not drawn.
    """
    if conflicts := _conflicts(ledger, task):
        raise ValueError(
            f"{uri} cannot be resumed: the hyper-parameters have changed ({'; '.join(conflicts)})"
        )


def _conflicts(ledger: Ledger, task: Task) -> list[str]:
    if not task.defaults:
        return []
    recorded = ledger.facts.defaults if ledger.facts else {}
    drawn = dict.fromkeys(name for trial in ledger.trials.values() for name in trial.config)
    gone = [name for name in {**drawn, **recorded} if name not in task.defaults]
    return [f"{name} is gone" for name in gone] + [
        f"{name} is {task.defaults[name]} by default, was {value}"
        for name, value in recorded.items()
        if name not in gone and name not in drawn and value != task.defaults[name]
    ]
