"""The summary of a run on a terminal: its best trials, its winner, and how to look further."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tune_mnist.curves import run_labels
from tune_mnist.grid import ledger_of, records
from tune_mnist.hyperparameters import HYPERPARAMETER_NAMES, METRIC
from tune_mnist.inherited import describe_inherited
from tune_mnist.insights import MIN_FINISHED, View, edges, facts
from tune_mnist.ledger import LEDGER, UNENDED
from tune_mnist.results import TRIALS_TABLE, trials_frame
from tune_mnist.timeline import best_so_far
from tune_mnist.tuner import FINISHED, Outcome
from tune_mnist.words import count, duration, short_path, short_value, standard_error

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
    print_losses(console, View(outcome))
    _print_inherited(console, outcome, trials)
    _print_best(console, trials, most=5)
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


def print_analysis(console: Console, view: View) -> None:
    """Print what a run teaches: its facts, the ten best trials, what matters, which ranges to widen."""
    console.print(f"[bold]{escape(view.name)}[/bold]")
    for fact in facts(view):
        console.print(f"  {fact.label:<17} {fact.value}  [dim]{escape(fact.note)}[/dim]")
    _print_best(console, trials_frame(view.outcome.grid), most=10)
    if view.importances:
        shares = ", ".join(f"{name} {value:.0%}" for name, value in view.importances.items())
        console.print(f"Importance (PED-ANOVA, {len(view.finished)} finished trials): {shares}")
    else:
        finished = count(len(view.finished), "finished trial")
        console.print(f"Importance: {finished}, but it takes {MIN_FINISHED} that differ")
    for edge in edges(view):
        console.print(f"[yellow]At the edge of its range:[/yellow] {edge}")
    _print_failures(console, view.outcome)
    print_losses(console, view)


def print_losses(console: Console, view: View) -> None:
    """Say what of a ledger can't be read."""
    if lost := view.ledger.lost_lines:
        console.print(f"{LEDGER} has {count(lost, 'line')} that can't be read; what they said is lost")


def print_comparison(console: Console, views: Sequence[View]) -> None:
    """Print runs side by side: their size, their best, and what it took to get within reach of it."""
    frames = [best_so_far(view.ledger) for view in views]
    reach = min((frame[METRIC].max() for frame in frames if len(frame)), default=math.nan)
    reach = math.floor(reach * 1000) / 1000 if reach == reach else reach
    table = Table(box=None, header_style="bold")
    headings = (
        "run",
        "trials",
        "epochs",
        "wall time",
        "best",
        f"until {reach:.1%}: trials",
        "epochs",
        "seconds",
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for label, view, frame in zip(run_labels(views), views, frames, strict=True):
        row = [label, str(len(view.trials)), str(len(frame)), duration(view.outcome.seconds)]
        there = frame[frame[METRIC] >= reach].head(1)
        best = f"{frame[METRIC].max():.2%}" if len(frame) else "--"
        when = [f"{value:.0f}" for name in ("trials", "epochs", "seconds") for value in there[name]]
        table.add_row(*row, best, *(when or ["--"] * 3))
    console.print(table)
    for view in views:
        print_losses(console, view)


def _ways_to_look(outcome: Outcome) -> list[str]:
    """Say where the run is, and which commands look into it."""
    folder = outcome.folder
    python = shlex.quote(str(short_path(Path(sys.executable))))
    run_dir = short_path(folder.local)
    where = folder.uri if folder.remote else str(run_dir)
    table = f"import pandas as pd; print(pd.read_parquet({str(run_dir / TRIALS_TABLE)!r}))"
    if folder.remote or outcome.ended_by is None:
        table = f"from tune_mnist import results; print(results.trials_frame(results.load({where!r})))"
    analyse = [f"  {python} {shlex.quote(str(short_path(ANALYSE)))} {shlex.quote(where)}"] * ANALYSE.exists()
    return [f"Run folder: {where}", *analyse, f'  {python} -c "{table}"']


def exit_code(outcome: Outcome) -> int:
    """Give 0 for a search that came to what was asked; 130 and 143 for Ctrl-C and SIGTERM; else 1."""
    signals = {"SIGINT": 130, "SIGTERM": 143}
    if outcome.ended_by in signals:
        return signals[outcome.ended_by]
    short = outcome.ended_by == FINISHED and len(outcome.grid) < outcome.settings.num_samples
    return 1 if short or outcome.winner is None else 0


def _print_inherited(console: Console, outcome: Outcome, trials: pd.DataFrame) -> None:
    """Count the trials of earlier runs, and compare the best of them with the best of this run's own."""
    known = ledger_of(outcome.grid).inherited
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


def _print_best(console: Console, trials: pd.DataFrame, *, most: int) -> None:
    ranked = trials[trials["state"] != "FAIL"].dropna(subset=[METRIC])
    ranked = ranked.sort_values(METRIC, ascending=False).head(most)
    if ranked.empty:
        return
    drawn = [name for name in HYPERPARAMETER_NAMES if name != "epochs" and trials[name].nunique() > 1]
    console.print(f"[bold]Best {count(len(ranked), 'trial')}[/bold]")
    for start in range(0, len(ranked), 5):
        if start:
            console.print()
        # A trial is a column: so the table stays narrow, however many hyper-parameters there are.
        console.print(_columns(ranked.iloc[start : start + 5], drawn))


def _columns(trials: pd.DataFrame, drawn: Sequence[str]) -> Table:
    table = Table(box=None, show_header=False)
    rows = {
        "trial": trials["number"].astype(str),
        "state": trials["state"],
        "validation": trials[METRIC].map("{:.2%}".format),
        "epochs": trials["epochs_trained"].astype(str) + "/" + trials["epochs_planned"].astype(str),
        **{name: trials[name].map(short_value) for name in drawn},
    }
    table.add_column(min_width=max(map(len, HYPERPARAMETER_NAMES)))
    for _ in range(len(trials)):
        table.add_column(justify="right", min_width=8)
    for heading, values in rows.items():
        table.add_row(heading, *values)
    return table


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
        where = f"{short_path(outcome.folder.local) if not outcome.folder.remote else outcome.folder.uri}"
        console.print(
            f"{len(failed)} failed; the first error: {first.error} ({where}/{first.directory}/error.txt)",
            markup=False,
        )
