"""Train a trial of a run again, and compare its values with those of the search.

python scripts/train.py --run runs/NAME --trial 3
"""

from __future__ import annotations

import argparse
import traceback
from contextlib import suppress

from rich.console import Console

from tune_mnist.cli.console import PatientConsole
from tune_mnist.cli.flags import task_of_run
from tune_mnist.cli.parser import OF_THE_MACHINE, OneLineParser, add_flags, complain
from tune_mnist.run.words import describe, first_line
from tune_mnist.task import Objective
from tune_mnist.tuning.device import DeviceMemoryError
from tune_mnist.tuning.repeat import Repeat, load_repeat
from tune_mnist.tuning.tasks import resumable_options
from tune_mnist.tuning.tuner import InputError


def main() -> int:
    """Repeat a trial as the flags say; return the exit code."""
    parser = OneLineParser(
        description="Train a trial of a run again, with its own seed, data and settings, and compare its "
        "values with those of the search.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--run", metavar="RUN", required=True, help="its folder, or its URI")
    parser.add_argument("--trial", type=int, metavar="N", required=True, help="number of the trial, from 0")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="(default: as in the search)")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--run", default="")
    task = None
    with suppress(argparse.ArgumentError):  # a flag without its value; the real parser reports it
        task = task_of_run(first.parse_known_args()[0].run)
    if task and task.options:
        add_flags(parser, task.options, resumable_options(task), OF_THE_MACHINE)
    flags, others = parser.parse_known_args()
    if task and others:
        parser.error(f"{' '.join(others)} must be left out: a repeated trial has its own")
    options = vars(flags)
    run, number, device = options.pop("run"), options.pop("trial"), options.pop("device")
    try:
        repeat = load_repeat(run, number, options, device)
    except InputError as error:
        parser.error(str(error))
    console = PatientConsole(markup=False)
    console.print(f"trial {number} of {run}: {describe(repeat.record.config)}; seed {repeat.trial.seed}")
    if repeat.changes:
        console.print(repeat.changes)
    return _train(repeat, console)


def _train(repeat: Repeat, console: Console) -> int:
    objective, record = repeat.objective, repeat.record
    values: dict[int, float] = {}
    failure = None
    try:
        for step in repeat.train():
            if step.ended:
                failure = step.error
            elif step.value is not None:
                values[step.epoch] = step.value
                console.print(f"epoch {step.epoch}: {objective.name} {objective.write(step.value)}")
    except Exception as error:  # of the task's code
        failure = first_line(error)
        if not isinstance(error, DeviceMemoryError):
            traceback.print_exc()
    known = {epoch: float(report[objective.metric]) for epoch in values if (report := record.find(epoch))}
    if known:
        pruned = record.shown_state == "PRUNED" and record.epoch in known
        stopped = ", which stopped the trial there" if pruned else ""
        console.print(f"{_epochs(list(known))}: {_compare(values, known, objective)}{stopped}")
    if failure is None:
        if record.error and record.state == "FAIL":
            console.print(f"in the search the trial failed: {record.error}")
        return 0
    same = ", as in the search" if failure == record.error else ""
    return complain(f"error: trial {record.number} failed: {failure}{same}", 1)


def _epochs(epochs: list[int]) -> str:
    return f"epochs {epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"epoch {epochs[0]}"


def _compare(values: dict[int, float], known: dict[int, float], objective: Objective) -> str:
    """Describe whether values equal those of the search to the last bit, or by how much they differ."""
    differences = {epoch: abs(values[epoch] - value) for epoch, value in known.items()}
    largest = max(differences.values())
    if largest == 0:
        return "as in the search"
    amount = objective.write_difference(largest)
    if amount == objective.write_difference(0.0):  # it is rounded to 0
        amount = f"{100 * largest if objective.unit else largest:.1g}"
    first = next(epoch for epoch, difference in differences.items() if difference)
    return f"up to {amount}{objective.unit} from those of the search, from epoch {first} on"
