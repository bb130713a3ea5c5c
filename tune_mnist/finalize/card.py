"""The card of a final model: its data, its protocol, its scores with their n, its versions."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata

from tune_mnist.finalize.protocol import MIN_SEEDS, SEARCH_SEEDS, Scores, Verdict
from tune_mnist.task import Objective


def write_card(verdict: Verdict, *, name: str, command: str) -> str:
    """Write the card in Markdown.

    Args:
        verdict: the outcome of the finalization.
        name: of the run.
        command: that started the finalization.
    """
    facts, winner, scores = verdict.facts, verdict.winner, verdict.winner_test
    objective, metric = facts.objective, facts.objective.metric
    n, seed = scores.n, verdict.seed
    mean, model_test = objective.write(scores.mean), objective.write(verdict.model_test)
    if n >= MIN_SEEDS:
        mean += f" (95 % interval {interval(scores, objective)})"
    data, date = facts.data or facts.name, f"{datetime.now(timezone.utc):%Y-%m-%d}"
    unit = f" ({objective.unit.strip()})" if objective.unit else ""
    test_n, validation_n = examples(verdict.test_n), examples(facts.validation_examples)
    tried = f"{len(verdict.validation)} of the {verdict.protocol.top_k} asked for"
    chosen = f"trial {winner.number}"
    best = "highest" if objective.mode == "max" else "lowest"
    trained = "It and the baseline were" if verdict.baseline_test else "It was"
    choosing_seeds, final_seeds = (
        ", ".join(map(str, one.by_seed)) for one in (verdict.validation[0][1], scores)
    )
    model = f"that of seed {verdict.model_seed}, {which_seed(verdict)}"
    files = "\n".join(f"- `{file}`" for file in verdict.files)
    usage = f"\n{verdict.usage}\n" if verdict.usage else ""
    return f"""\
# {name}: the final model

Trained on {data}; chosen and measured by `{command}` on {date}.

Test {metric} {model_test}{test_n}. The mean over {n} trainings, this one and others that differ only in
their seeds, is {mean}.

## Test {metric}

Trained on training + validation, scored once on the test set{test_n}; n is the number of seeds. The interval
is Student's, for the mean over seeds; it does not cover how results differ between test sets.

| configuration | mean | sd{unit} | n | diverged | 95 % interval |
|---|---|---|---|---|---|
{_test_rows(verdict)}

## Validation {metric}, by which it was chosen

Trained on the training part, scored on the validation part{validation_n}. "Search" is the trial's score in
the search, where the best of many noisy scores is optimistically biased.

| configuration | search | mean | sd{unit} | n | diverged |
|---|---|---|---|---|---|
{_validation_rows(verdict)}

## Hyper-parameters

{_hyperparameters(verdict)}

## Protocol

- The best finished configurations of the search, {tried}, were trained again for all
  their epochs, with the seeds {choosing_seeds}.
- The {best} mean validation {metric} chose {chosen}. A configuration with a diverged training
  would have ranked below those without.
- {trained} trained on training + validation, with the seeds {final_seeds}.
  Each of these trainings was scored on the test set once. Nothing else here saw the test set.
- Seeds: 31-bit halves of the words of `numpy.random.SeedSequence({seed})`, dealt to both kinds in turn,
  without {seed} to {seed + SEARCH_SEEDS - 1}, which belong to the search.
- The model is {model}. So it was not chosen on the test set, and its own
  {model_test} is one of the scores behind the first table.

## Files

{files}
{usage}
## Versions

{_versions()}
"""


def examples(n: int | None) -> str:
    """Write the number of examples behind a score; nothing if it is unknown."""
    return f" (n = {n:,})" if n is not None else ""


def interval(scores: Scores, objective: Objective) -> str:
    """Write the interval of a mean, "--" for fewer than MIN_SEEDS; that of a fraction is clipped to 0..1."""
    low, high = scores.interval
    if objective.standard_error == "binomial":
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{objective.write(low)} to {objective.write(high)}" if scores.n >= MIN_SEEDS else "--"


def interval_of_difference(scores: Scores, objective: Objective, *, sign: str = "") -> str:
    """Write the interval of a mean difference, without its unit, "--" for fewer than MIN_SEEDS."""
    low, high = (objective.write_difference(end, sign=sign) for end in scores.interval)
    return f"{low} to {high}" if scores.n >= MIN_SEEDS else "--"


def which_seed(verdict: Verdict) -> str:
    """Describe which of the final trainings the model is."""
    first = verdict.model_seed == next(iter(verdict.winner_test.by_seed))
    return "the first one, fixed beforehand" if first else "the first one that did not diverge"


def _versions() -> str:
    """List the versions of Python and of the packages that decide the model."""
    lines = [f"- python {platform.python_version()}"]
    for package in ("torch", "ray", "optuna", "tune-mnist"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed, run from its sources"
        lines.append(f"- {package} {version}")
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _mean_and_sd(scores: Scores, objective: Objective) -> list[object]:
    sd = objective.write_difference(scores.sd)
    return [objective.write(scores.mean), sd, scores.n, scores.failed]


def _validation_rows(verdict: Verdict) -> str:
    objective, rows = verdict.facts.objective, []
    for trial, scores in verdict.validation:
        heading = f"trial {trial.number}" + (" (chosen)" if trial == verdict.winner else "")
        searched = objective.write(trial.last[objective.metric])
        rows.append(_row(heading, searched, *_mean_and_sd(scores, objective)))
    return "\n".join(rows)


def _test_rows(verdict: Verdict) -> str:
    objective, rows = verdict.facts.objective, []
    tested = {f"trial {verdict.winner.number}": verdict.winner_test, "baseline": verdict.baseline_test}
    for heading, scores in tested.items():
        if scores is not None:
            rows.append(_row(heading, *_mean_and_sd(scores, objective), interval(scores, objective)))
    if gain := verdict.difference:
        mean = objective.write_difference(gain.mean) + objective.unit
        sd, ends = objective.write_difference(gain.sd), interval_of_difference(gain, objective)
        rows.append(f"| difference, by seed | {mean} | {sd} | {gain.n} | | {ends}{objective.unit} |")
    return "\n".join(rows)


def _hyperparameters(verdict: Verdict) -> str:
    columns = {f"trial {trial.number}": verdict.full(trial.config) for trial, _ in verdict.validation}
    if verdict.baseline is not None:
        columns["baseline"] = verdict.full(verdict.baseline)
    rows = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in dict.fromkeys(name for values in columns.values() for name in values):
        rows.append(_row(name, *(values.get(name, "") for values in columns.values())))
    return "\n".join(rows)
