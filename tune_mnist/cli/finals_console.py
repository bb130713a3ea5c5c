"""What a person sees of a finalization: a bar or a line a training, then two small tables."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from tune_mnist.cli.console import PatientConsole
from tune_mnist.cli.parser import command
from tune_mnist.finalize.card import interval, percent, points, which_seed
from tune_mnist.finalize.protocol import UNION, Job, Verdict
from tune_mnist.finalize.scores import Scores
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.retraining import Step
from tune_mnist.results.winner import BEST, CARD, EXPORTED, MODEL
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.words import describe, duration


class TimeLeft(ProgressColumn):
    """What the rest of a phase takes, at the pace of its epochs so far."""

    max_refresh = 1.0

    def render(self, task: Task) -> Text:
        """Write it in a few words."""
        if not task.completed or task.total is None or task.elapsed is None:
            return Text("")
        return Text(f"about {duration(task.elapsed / task.completed * (task.total - task.completed))} left")


class FinalsConsole:
    """Shows a finalization as a bar, or as a line per ended training where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to ``console``, or to standard output."""
        self.console = console or PatientConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[ended]}/{task.fields[jobs]} trainings"),
            TimeLeft(),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.names: dict[Job, str] = {}
        self.jobs = self.ended = 0

    def __enter__(self) -> FinalsConsole:
        """Start the bar."""
        if self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("starting Ray", total=None, ended=0, jobs="-")
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the bar away."""
        if self.task is not None:
            self.bar.stop()

    def on_message(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def on_phase(self, title: str, names: dict[Job, str], to_do: list[Job]) -> None:
        """Show a phase from its beginning."""
        self.names = names
        self.jobs, self.ended = len(names), len(names) - len(to_do)
        if self.ended:
            self.on_message(f"{title}: {self.ended} of {self.jobs} trainings were there already")
        if self.task is not None:
            total = sum(job.hyperparameters.epochs for job in to_do)
            self.bar.reset(self.task, description=title, total=total, ended=self.ended, jobs=self.jobs)

    def on_step(self, job: Job, step: Step) -> None:
        """Count an epoch, or print a line for an ended training, where there is no bar to show it."""
        self.ended += step.ended
        if self.task is not None:
            rest = job.hyperparameters.epochs - step.epoch if step.ended else 1  # those of a diverged one
            self.bar.update(self.task, advance=rest, ended=self.ended)
        elif step.ended:
            what = "test" if job.part == UNION else "validation"
            came_to = f"{what} {percent(step.accuracy)}" if step.accuracy is not None else step.error
            self.on_message(
                f"{self.ended:>4}/{self.jobs} {self.names[job]}, seed {job.seed}: {came_to} "
                f"after {step.epoch}/{job.hyperparameters.epochs} epochs in {duration(step.seconds)}"
            )


def print_verdict(console: Console, verdict: Verdict, folder: RunFolder, seconds: float) -> None:
    """Print how it was chosen, what it scored on the test set, and where the model is."""
    winner = verdict.winner
    console.print()
    console.print(_validation_table(verdict))
    blog = vars(Hyperparameters())
    own = {name: value for name, value in vars(winner.hyperparameters).items() if value != blog[name]}
    rest = "; the rest is the blog's" if own and len(own) < len(blog) else ""
    console.print(f"Chosen by the mean: trial {winner.number} {describe(own)}{rest}\n", markup=False)
    console.print(_test_table(verdict))
    if verdict.difference is None:
        console.print("The chosen configuration is the blog's own.")
    tried = [*verdict.validation.values(), verdict.winner_test, verdict.blog_test]
    if diverged := sum(scores.failed for scores in tried if scores is not None):
        console.print(f"{diverged} trainings diverged; the means are without them.")
    console.print(
        "± is one standard deviation over the seeds, in points, as the difference is. The interval is for "
        "the mean over seeds (Student's t); that other test images would come out differently is not in it.\n"
        f"The model is the training of seed {verdict.model_seed}, {which_seed(verdict)}: "
        f"test {percent(verdict.model_test)}\n",
        markup=False,
    )
    where = Path(folder.uri)
    if not folder.remote and where.is_relative_to(Path.cwd()):
        where = where.relative_to(Path.cwd())
    best = f"{folder.uri if folder.remote else where}/{BEST}"
    console.print(f"Written in {duration(seconds)}: {best}/{MODEL}, {EXPORTED}, {CARD}", markup=False)
    if not folder.remote:
        console.print(f"  {command('predict', f'{best}/{EXPORTED}')} IMAGE...", markup=False)


def _validation_table(verdict: Verdict) -> Table:
    table = _table(f"Validation accuracy ({verdict.val_size} images)")
    for heading in ("", "search", "mean", "sd", "seeds"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for one, scores in verdict.validation.items():
        mark = "→ " if one == verdict.winner else "  "
        cells = percent(one.accuracy), percent(scores.mean), points(scores.sd), _count(scores)
        table.add_row(f"{mark}trial {one.number}", *cells)
    return table


def _test_table(verdict: Verdict) -> Table:
    table = _table(f"Test accuracy ({verdict.test_size} images)")
    for heading in ("", "mean ± sd", "seeds", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    rows = {f"trial {verdict.winner.number}": verdict.winner_test, "the blog's": verdict.blog_test}
    for name, scores in rows.items():
        if scores is not None:
            mean = f"{percent(scores.mean)} ± {points(scores.sd)}"
            table.add_row(f"  {name}", mean, _count(scores), interval(scores))
    if verdict.difference is not None:
        gain = verdict.difference
        low, high = gain.interval
        ends = f"{100 * low:+.2f} to {100 * high:+.2f}" if gain.n > 1 else "-"
        mean = f"{100 * gain.mean:+.2f} ± {points(gain.sd)}" if gain.n else "-"
        table.add_row("  difference", mean, str(gain.n), ends)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _count(scores: Scores) -> str:
    return f"{scores.n} of {scores.n + scores.failed}" if scores.failed else str(scores.n)
