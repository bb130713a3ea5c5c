"""What a finalization shows on the console: a bar or one line per training, then two small tables."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from tune_mnist.cli.console import PatientConsole, place_of
from tune_mnist.finalize.card import examples, interval, interval_of_difference, which_seed
from tune_mnist.finalize.protocol import MIN_SEEDS, Job, Scores, Verdict
from tune_mnist.results.winner import BEST, CARD
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.words import describe, duration
from tune_mnist.tuning.retrain import Step


class TimeLeft(ProgressColumn):
    """The time left in a phase, at the pace of its epochs so far."""

    max_refresh = 1.0

    def render(self, task: Task) -> Text:
        """Write it in a few words."""
        if not task.completed or task.total is None or task.elapsed is None:
            return Text("")
        return Text(f"about {duration(task.elapsed / task.completed * (task.total - task.completed))} left")


class FinalsConsole:
    """Shows a finalization as a bar, or as a line per ended training if the output is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PatientConsole()
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
        if self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("starting Ray", total=None, ended=0, jobs="-")
        return self

    def __exit__(self, *exception: object) -> None:
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
            self.on_message(f"{title}: {self.ended} of {self.jobs} trainings were done already")
        if self.task is not None:
            total = sum(job.epochs for job in to_do)
            self.bar.reset(self.task, description=title, total=total, ended=self.ended, jobs=self.jobs)

    def on_step(self, job: Job, step: Step, outcome: str) -> None:
        """Count an epoch, or print a line for an ended training if there is no bar to show it."""
        self.ended += step.ended
        if self.task is not None:
            rest = job.epochs - step.epoch if step.ended else 1  # the epochs that a diverged one skips
            self.bar.update(self.task, advance=rest, ended=self.ended)
        elif step.ended:
            self.on_message(
                f"{self.ended:>4}/{self.jobs} {self.names[job]}, seed {job.seed}: {outcome} "
                f"after {step.epoch}/{job.epochs} epochs in {duration(step.seconds)}"
            )


def print_verdict(console: Console, verdict: Verdict, folder: RunFolder, seconds: float) -> None:
    """Print how it was chosen, what it scored on the test set, and where the model is."""
    winner, objective = verdict.winner, verdict.facts.objective
    console.print()
    console.print(_validation_table(verdict))
    baseline = {} if verdict.baseline is None else verdict.full(verdict.baseline)
    config = verdict.full(winner.config)
    own = {name: value for name, value in config.items() if name not in baseline or value != baseline[name]}
    rest = "; the rest is the baseline's" if own and len(own) < len(config) else ""
    console.print(f"Chosen by the mean: trial {winner.number} {describe(own)}{rest}\n", markup=False)
    console.print(_test_table(verdict))
    if verdict.baseline is not None and verdict.baseline_test is None:
        console.print("The chosen configuration is the baseline.")
    tried = [*(scores for _, scores in verdict.validation), verdict.winner_test, verdict.baseline_test]
    if diverged := sum(scores.failed for scores in tried if scores is not None):
        console.print(f"{diverged} trainings diverged; the means leave them out.")
    in_points = ", in points like the difference" if objective.unit else ""
    console.print(
        f"± is one standard deviation over the seeds{in_points}. The interval is for the mean over seeds "
        f"(Student's t, from {MIN_SEEDS} seeds on); it does not cover how results differ between test sets.\n"
        f"The model is the training of seed {verdict.model_seed}, {which_seed(verdict)}: "
        f"test {objective.write(verdict.model_test)}\n",
        markup=False,
    )
    files = f"{place_of(folder)}/{BEST}/{', '.join([*verdict.files, CARD])}"
    console.print(f"Written in {duration(seconds)}: {files}", markup=False)


def _validation_table(verdict: Verdict) -> Table:
    objective = verdict.facts.objective
    title = f"{objective.metric} on validation{examples(verdict.facts.validation_examples)}"
    table = _table(title, "search", "mean", "sd", "seeds")
    for trial, scores in verdict.validation:
        mark = "→ " if trial == verdict.winner else "  "
        mean, sd = objective.write(scores.mean), objective.write_difference(scores.sd)
        searched = objective.write(trial.last[objective.metric])
        table.add_row(f"{mark}trial {trial.number}", searched, mean, sd, _count(scores))
    return table


def _test_table(verdict: Verdict) -> Table:
    objective = verdict.facts.objective
    title = f"{objective.metric} on the test set{examples(verdict.test_n)}"
    table = _table(title, "mean ± sd", "seeds", "95 % interval")
    rows = {f"trial {verdict.winner.number}": verdict.winner_test, "baseline": verdict.baseline_test}
    for name, scores in rows.items():
        if scores is not None:
            mean = f"{objective.write(scores.mean)} ± {objective.write_difference(scores.sd)}"
            table.add_row(f"  {name}", mean, _count(scores), interval(scores, objective))
    if gain := verdict.difference:
        mean = f"{objective.write_difference(gain.mean, sign='+')} ± {objective.write_difference(gain.sd)}"
        ends = interval_of_difference(gain, objective, sign="+")
        table.add_row("  difference", mean if gain.n else "--", str(gain.n), ends)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _count(scores: Scores) -> str:
    return f"{scores.n} of {scores.n + scores.failed}" if scores.failed else str(scores.n)
