"""The summary of a run on a terminal: its best trials, its winner, and how to look further."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from tune_mnist.grid import inherited, lost_lines, records
from tune_mnist.hyperparameters import HYPERPARAMETER_NAMES, METRIC
from tune_mnist.inherited import describe_inherited
from tune_mnist.ledger import LEDGER, UNENDED
from tune_mnist.live import short
from tune_mnist.results import TRIALS_TABLE, trials_frame
from tune_mnist.tuner import FINISHED, Outcome

ANALYSE = Path(__file__).parents[1] / "scripts" / "analyse.py"
"""The script that looks into a run; it is not installed with the package."""


def print_summary(console: Console, outcome: Outcome) -> None:
    """Print the best trials, the winner with its test score, what ASHA saved, and how to look further."""
    trials = trials_frame(outcome.grid)
    counts = trials["state"].value_counts()
    states = ", ".join(f"{counts.get(state, 0)} {state}" for state in ("COMPLETE", "PRUNED", "FAIL"))
    if unended := counts.get(UNENDED, 0):
        states += f", {unended} {UNENDED}"
    ended = "" if outcome.ended_by == FINISHED else f"; ended by {outcome.ended_by}"
    if outcome.ended_by is None:
        ended = "; it runs, or was killed"
    asked, took = outcome.settings.num_samples, duration(outcome.seconds)
    console.print(f"\n{len(trials)} of {asked} trials ({states}) in {took}{ended}")
    if lost := lost_lines(outcome.grid):
        console.print(f"{LEDGER} has {lost} lines that can't be read; what they said is lost")
    _print_inherited(console, outcome, trials)
    _print_best(console, trials)
    trained, planned = trials["epochs_trained"].sum(), trials["epochs_planned"].sum()
    cut = trials[trials["state"] == "PRUNED"]
    saved = (cut["epochs_planned"] - cut["epochs_trained"]).sum()
    console.print(
        f"Epochs trained: {trained}"
        + (f" of {planned} planned; ASHA saved {saved}" if outcome.ended_by == FINISHED else "")
    )
    _print_winner(console, outcome, trials)
    _print_failures(console, outcome)
    console.print("\n".join(["", *_ways_to_look(outcome)]), markup=False)


def _ways_to_look(outcome: Outcome) -> list[str]:
    """Say where the run is, and which commands look into it."""
    folder = outcome.folder
    python = shlex.quote(str(short(Path(sys.executable))))
    run_dir = short(folder.local)
    where = folder.uri if folder.remote else str(run_dir)
    table = f"import pandas as pd; print(pd.read_parquet({str(run_dir / TRIALS_TABLE)!r}))"
    if folder.remote or outcome.ended_by is None:
        table = f"from tune_mnist import results; print(results.trials_frame(results.load({where!r})))"
    analyse = [f"  {python} {shlex.quote(str(short(ANALYSE)))} {shlex.quote(where)}"] * ANALYSE.exists()
    return [f"Run folder: {where}", *analyse, f'  {python} -c "{table}"']


def exit_code(outcome: Outcome) -> int:
    """Give 0 for a search that came to what was asked; 130 and 143 for Ctrl-C and SIGTERM; else 1."""
    signals = {"SIGINT": 130, "SIGTERM": 143}
    if outcome.ended_by in signals:
        return signals[outcome.ended_by]
    short = outcome.ended_by == FINISHED and len(outcome.grid) < outcome.settings.num_samples
    return 1 if short or outcome.winner is None else 0


def describe(config: Mapping[str, Any]) -> str:
    """Write a configuration in a few words, in the order of the fields of `Hyperparameters`."""
    names = [name for name in HYPERPARAMETER_NAMES if name in config]
    return " ".join(f"{name}={_short_value(config[name])}" for name in names)


def standard_error(share: float, n: int) -> float:
    """Standard error of a share of n independent images: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / n)


def duration(seconds: float) -> str:
    """Write seconds as a person would: 42 s, 3 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _print_inherited(console: Console, outcome: Outcome, trials: pd.DataFrame) -> None:
    """Count the trials of earlier runs, and compare the best of them with the best of this run's own."""
    known = inherited(outcome.grid)
    if not known:
        return
    runs = ", ".join(dict.fromkeys(trial.run for trial in known))
    line = f"Beside them {len(known)} inherited from {runs} ({describe_inherited(known)})"
    best = trials.loc[trials["state"] != "FAIL", METRIC].max()
    if not math.isnan(best):
        ahead = 100 * (best - max(trial.value for trial in known))
        where = f"{abs(ahead):.2f} points {'above' if ahead > 0 else 'below'} it" if ahead else "equal to it"
        line += f"; the best of this run's own, {best:.2%}, is {where}"
    console.print(line, markup=False)


def _print_best(console: Console, trials: pd.DataFrame) -> None:
    ranked = trials[trials["state"] != "FAIL"].dropna(subset=[METRIC])
    ranked = ranked.sort_values(METRIC, ascending=False).head(5)
    if ranked.empty:
        return
    drawn = [name for name in HYPERPARAMETER_NAMES if name != "epochs" and trials[name].nunique() > 1]
    # A trial is a column: so the table stays narrow, however many hyper-parameters there are.
    table = Table(title=f"Best {len(ranked)} trials", title_justify="left", title_style="bold", box=None)
    table.show_header = False
    rows = {
        "trial": ranked["number"].astype(str),
        "state": ranked["state"],
        "validation": ranked[METRIC].map("{:.2%}".format),
        "epochs": ranked["epochs_trained"].astype(str) + "/" + ranked["epochs_planned"].astype(str),
        **{name: ranked[name].map(_short_value) for name in drawn},
    }
    table.add_column()
    for _ in range(len(ranked)):
        table.add_column(justify="right")
    for heading, values in rows.items():
        table.add_row(heading, *values)
    console.print(table)


def _print_winner(console: Console, outcome: Outcome, trials: pd.DataFrame) -> None:
    winner = outcome.winner
    if winner is None:
        why = "No trial has a checkpoint that can be read" if outcome.ended_by else "The search has not ended"
        console.print(f"{why}, so there is no winner.")
        return
    hand_set = [record for record in records(outcome.grid) if record.hand_set]
    row = trials.iloc[0] if hand_set else {"epochs_trained": 0}
    if row["epochs_trained"] and winner.number != 0:
        console.print(
            f"The blog's hand-set configuration: {row[METRIC]:.2%} at epoch {row['epochs_trained']} "
            f"({row['state']}); the winner is {100 * (winner.accuracy - row[METRIC]):.2f} points above it"
        )
    validation_error = standard_error(winner.accuracy, winner.val_size)
    test_error = standard_error(winner.test_accuracy, winner.test_size)
    console.print(
        f"Winner, trial {winner.number} at epoch {winner.epoch}: "
        f"validation {winner.accuracy:.2%} ± {validation_error:.2%} (n = {winner.val_size}), "
        f"test {winner.test_accuracy:.2%} ± {test_error:.2%} (n = {winner.test_size}; ± standard error)"
    )


def _print_failures(console: Console, outcome: Outcome) -> None:
    failed = [record for record in records(outcome.grid) if record.shown_state == "FAIL" and record.error]
    if failed:
        first = failed[0]
        where = f"{short(outcome.folder.local) if not outcome.folder.remote else outcome.folder.uri}"
        console.print(
            f"{len(failed)} failed; the first error: {first.error} ({where}/{first.directory}/error.txt)",
            markup=False,
        )


def _short_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
