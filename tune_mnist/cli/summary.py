"""The summary of a run on a terminal: its best trials, its winner, and what to run next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tune_mnist.cli.console import place_of
from tune_mnist.cli.parser import SCRIPTS, command
from tune_mnist.report.insights import (
    compare_with_baseline,
    count_epochs,
    count_states,
    facts,
    known_before,
    losses,
    say_how_it_ended,
)
from tune_mnist.report.learned import learned
from tune_mnist.report.rungs import describe_correlations
from tune_mnist.report.survival import describe_judgement, judgements_of, why_it_stopped
from tune_mnist.report.view import View
from tune_mnist.results.frames import TRIALS_TABLE, hyperparameter_names, trials_frame
from tune_mnist.run.records import EPOCH
from tune_mnist.run.words import count, duration, short_path, short_value
from tune_mnist.tuning.stop import REACHED
from tune_mnist.tuning.tuner import FINISHED, Outcome

REPORT = "report.html"
"""The page that analyse.py writes into the run's folder."""


def print_summary(console: Console, outcome: Outcome) -> None:
    """Print the best trials, the winner with its test score, what ASHA saved, and what to run next."""
    view, finished = View(outcome), outcome.stop_reason == FINISHED
    of_asked, took = f"{len(view.trials)} of {outcome.settings.num_samples}", duration(outcome.seconds)
    ended = "" if finished else f"; {say_how_it_ended(outcome)}"
    console.print(f"\n{of_asked} trials ({count_states(view)}) in {took}{ended}")
    print_losses(console, view)
    if known := known_before(view):
        console.print(f"Known before: {known.value} {known.note}", markup=False)
    _print_best(console, view, most=5)
    trained, of_planned = count_epochs(view)
    console.print(f"Epochs trained: {trained:,}{f' {of_planned}' if finished else ''}")
    _print_winner(console, view)
    _print_failures(console, view)
    print_learned(console, view, most=2)
    console.print("\n".join(["", *_ways_to_look(outcome)]), markup=False)


def print_analysis(console: Console, view: View) -> None:
    """Print an analysis of a run: its facts, what it learned, the ten best trials, what matters."""
    console.print(f"[bold]{escape(view.name)}[/bold]")
    for fact in facts(view):
        print_hanging(console, f"  {fact.label:<17} ", Text.assemble(fact.value, "  ", (fact.note, "dim")))
    print_learned(console, view)
    _print_best(console, view, most=10)
    levels = ", ".join(
        f"{level.name} ({len(level.trials)}{f' of {level.mixed}' if level.mixed else ''})"
        for level in view.levels
    )
    console.print(f"Trials can be compared at: {levels}; here {view.level.where}", markup=False)
    importance = view.importance(view.level)
    words = f"Importance: {importance.why_none(view.variable)}"
    if importance.shares:
        words = f"Importance ({importance.method}): {importance}"
    console.print(words, markup=False)
    if correlations := describe_correlations(view.levels):
        console.print(correlations, markup=False)
    _print_failures(console, view)
    print_losses(console, view)


def print_learned(console: Console, view: View, *, most: int = 6) -> None:
    """Print what a run has learned, in ``most`` sentences at most, and what to run next."""
    lessons = learned(view)
    console.print("[bold]What it learned[/bold]")
    for sentence in lessons.sentences[:most]:
        print_hanging(console, "- ", Text(sentence))
    if suggestion := next_command(view, lessons.next):
        console.print(f"Next: {suggestion}", markup=False, soft_wrap=True)


def print_hanging(console: Console, start: str, text: Text) -> None:
    """Print a line; on a terminal that is too narrow for it, the rest starts below its text."""
    lines = [text] if console.soft_wrap else text.wrap(console, max(20, console.width - len(start)))
    for number, line in enumerate(lines):
        console.print(Text.assemble(" " * len(start) if number else start, line))


def next_command(view: View, step: str | None = None) -> str:
    """Return the command to run next, ready to paste, for the step of `Learned`; "" if there is none."""
    step, where = step or learned(view).next, place_of(view.outcome.folder)
    search = "tune" if (SCRIPTS / "tune.py").exists() else "search"
    if step == "wait":
        return command("analyse", where)
    if step == "resume" and view.outcome.stop_reason not in REACHED:
        return command(search, "--resume", where)
    winner = view.outcome.winner
    if winner and winner.test and (step == "confirm" or view.outcome.stop_reason in REACHED):
        return command("finalize", where)
    if step == "confirm" or view.outcome.stop_reason in REACHED:
        return command("analyse", where, "--trial", str(view.best.number)) if view.best else ""
    return command(search, "--resume", where, "--num-samples", str(2 * view.settings.num_samples))


def print_trial(console: Console, view: View, number: int) -> None:
    """Print one trial: its configuration, its epochs, how it was judged at each rung, why it stopped.

    Raises:
        ValueError: if the run has no such trial.
    """
    trial = next((record for record in view.trials if record.number == number), None)
    if trial is None:
        known = [record.number for record in view.trials]
        rule = f"one of 0..{max(known)}" if known else "left out: the run has no trial"
        raise ValueError(f"--trial is {number}, but must be {rule}")
    baseline = ", the baseline" if trial.hand_set else ""
    console.print(f"[bold]Trial {number} of {escape(view.name)}[/bold], {trial.shown_state}{baseline}")
    for name, value in trial.config.items():
        console.print(f"  {name:<17} {short_value(value)}", markup=False)
    at_rungs = {judgement.rung: judgement for judgement in judgements_of(view, trial)}
    for epoch in trial.epochs:
        value = f"  epoch {epoch[EPOCH]:<11} {view.objective.write(epoch[view.metric])}"
        judged = at_rungs.get(epoch[EPOCH])
        said = describe_judgement(view, judged).partition(": ")[2] if judged else ""
        console.print(f"{value}  {said}".rstrip(), markup=False)
    console.print(why_it_stopped(view, trial), markup=False)


def print_losses(console: Console, view: View) -> None:
    """Print what is unreadable in the ledger, if anything."""
    if lost := losses(view):
        console.print(lost)


def _ways_to_look(outcome: Outcome) -> list[str]:
    """List the lines that tell where the run is, and which commands show more of it."""
    python = shlex.quote(str(short_path(Path(sys.executable))))
    where = place_of(outcome.folder)
    table = f"import pandas as pd; print(pd.read_parquet({str(Path(where) / TRIALS_TABLE)!r}))"
    if outcome.folder.remote or outcome.stop_reason is None:
        table = f"from tune_mnist import results; print(results.trials_frame(results.load({where!r})))"
    analyse = f"  {command('analyse', where)}  # writes {REPORT}"
    quoted = shlex.quote(table) if set(table) & set('"$`\\!') else f'"{table}"'
    return [f"Run folder: {where}", analyse, f"  {python} -c {quoted}"]


def exit_code(outcome: Outcome) -> int:
    """Return 0 for a search that did what was asked; 130 and 143 for Ctrl-C and SIGTERM; else 1."""
    signals = {"SIGINT": 130, "SIGTERM": 143}
    if outcome.stop_reason in signals:
        return signals[outcome.stop_reason]
    short = outcome.stop_reason == FINISHED and len(outcome.grid) < outcome.settings.num_samples
    return 1 if short or outcome.winner is None else 0


def _print_best(console: Console, view: View, *, most: int) -> None:
    trials, metric = trials_frame(view.outcome.grid), view.metric
    ranked = trials[trials["state"] != "FAIL"].dropna(subset=[metric])
    ranked = ranked.sort_values(metric, ascending=view.objective.mode == "min", kind="stable").head(most)
    if ranked.empty:
        return
    names = hyperparameter_names(view.outcome.grid)
    drawn = [name for name in names if name != "epochs" and trials[name].nunique() > 1]
    console.print(f"[bold]Best {count(len(ranked), 'trial')}[/bold]")
    columns = {
        "trial": ranked["number"].astype(str),
        "state": ranked["state"],
        view.metric: ranked[view.metric].map(view.objective.write),
        "epochs": ranked["epochs_trained"].astype(str) + "/" + ranked["epochs_planned"].astype(str),
        **{name: ranked[name].map(short_value).map(escape) for name in drawn},
    }
    if sum(2 + max(map(len, [heading, *values])) for heading, values in columns.items()) <= console.width:
        table = Table(box=None, header_style="bold")
        for heading in columns:
            table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        console.print(table)
        return
    for start in range(0, len(ranked), 5):  # a trial is a column, however many hyper-parameters there are
        if start:
            console.print()
        table = Table(box=None, show_header=False)
        table.add_column(min_width=max(map(len, columns)))
        for _ in ranked.index[start : start + 5]:
            table.add_column(justify="right", min_width=8)
        for heading, values in columns.items():
            table.add_row(heading, *values[start : start + 5])
        console.print(table)


def _print_winner(console: Console, view: View) -> None:
    winner = view.outcome.winner
    if winner is None:
        ended = view.outcome.stop_reason is not None
        why = "No trial has a checkpoint that can be read" if ended else "The search has not ended"
        console.print(f"{why}, so there is no winner.")
        return
    objective = view.objective
    if baseline := compare_with_baseline(view):
        console.print(f"Baseline: {baseline.value}, {baseline.note}")
    shown = [f"validation {objective.write_with_error(winner.value, winner.n)}{_examples(winner.n)}"]
    if objective.metric in winner.test:
        test = objective.write_with_error(winner.test[objective.metric], winner.test_n)
        shown.append(f"test {test}{_examples(winner.test_n)}")
    line = f"Winner, trial {winner.number} at epoch {winner.epoch}: {', '.join(shown)}"
    console.print(line.removesuffix(")") + "; ± standard error)" if "±" in line else line)


def _examples(n: int | None) -> str:
    return f" (n = {n:,})" if n else ""


def _print_failures(console: Console, view: View) -> None:
    failed = [trial for trial in view.of_state("FAIL") if trial.error]
    if failed:
        first, where = failed[0], place_of(view.outcome.folder)
        error = f"{first.error} ({where}/{first.directory}/error.txt)"
        console.print(f"{len(failed)} failed; the first error: {error}", markup=False)
