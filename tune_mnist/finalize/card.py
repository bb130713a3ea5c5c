"""The card of a final model: its data, its protocol, its scores with their n, its versions."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata

from tune_mnist.finalize.protocol import MIN_SEEDS, SEARCH_SEEDS, Candidate, Scores, Verdict
from tune_mnist.task import Objective

TEMPLATE = """\
# {name}: the final model

Trained on {data}; chosen and measured by `{command}` on {date}.

Test {metric} {model_test}{test_n}. The mean over {n} trainings, this one and others that differ in their
seeds only, is {mean}.

## Test {metric}

Trained on training + validation, scored once on the test set{test_n}; n is the number of seeds. The interval
is Student's, for the mean over seeds; that another test set would give another result is not in it.

| configuration | mean | sd{unit} | n | diverged | 95 % interval |
|---|---|---|---|---|---|
{test_rows}

## Validation {metric}, by which it was chosen

Trained on the training part, scored on the validation part{validation_n}. "Search" is what the trial had in
the search, where the best of many noisy scores is optimistically biased.

| configuration | search | mean | sd{unit} | n | diverged |
|---|---|---|---|---|---|
{validation_rows}

## Hyper-parameters

| | {headings} |
|---|{dashes}
{hyperparameter_rows}

## Protocol

- The best finished configurations of the search, {k} of the {top_k} asked for, were trained again for all
  their epochs, with the seeds {choosing_seeds}.
- The {best} mean validation {metric} chose trial {number}. A configuration of which a training diverged
  would have come after those of which none did.
- {trained} trained on training + validation, with the seeds {final_seeds}.
  Each of these trainings was scored on the test set once. Nothing else here saw the test set.
- Seeds: 31-bit halves of the words of `numpy.random.SeedSequence({seed})`, dealt out to both kinds in
  turn, without {seed} to {last_search_seed}, which are the search's.
- The model is that of seed {model_seed}, {which}. So it was not chosen on the test set, and its own
  {model_test} is one draw of those in the first table.

## Files

{files}
{usage}
## Versions

{versions}
"""


def write_card(verdict: Verdict, *, name: str, command: str) -> str:
    """Write the card in Markdown.

    Args:
        verdict: the outcome of the finalization.
        name: of the run.
        command: that it was started with.
    """
    objective, winner, scores = verdict.objective, verdict.winner, verdict.winner_test
    configurations = {f"trial {one.number}": one.config for one in verdict.validation}
    if verdict.baseline is not None:
        configurations["baseline"] = verdict.baseline
    columns = {heading: verdict.full(config) for heading, config in configurations.items()}
    parameters = dict.fromkeys(name for values in columns.values() for name in values)
    return TEMPLATE.format(
        name=name,
        data=verdict.data,
        command=command,
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        metric=objective.metric,
        model_test=objective.write(verdict.model_test),
        test_n=examples(verdict.test_n),
        validation_n=examples(verdict.validation_n),
        n=scores.n,
        mean=objective.write(scores.mean)
        + (f" (95 % interval {interval(scores, objective)})" if scores.n >= MIN_SEEDS else ""),
        unit=f" ({objective.unit.strip()})" if objective.unit else "",
        test_rows="\n".join(_test_rows(verdict)),
        validation_rows="\n".join(_validation_row(one, verdict) for one in verdict.validation),
        headings=" | ".join(columns),
        dashes="---|" * len(columns),
        hyperparameter_rows="\n".join(
            f"| {key} | " + " | ".join(str(values.get(key, "")) for values in columns.values()) + " |"
            for key in parameters
        ),
        seed=verdict.seed,
        last_search_seed=verdict.seed + SEARCH_SEEDS - 1,
        k=len(verdict.validation),
        top_k=verdict.protocol.top_k,
        choosing_seeds=", ".join(map(str, verdict.choosing_seeds)),
        final_seeds=", ".join(map(str, verdict.final_seeds)),
        best="highest" if objective.mode == "max" else "lowest",
        trained="It was" if verdict.baseline_test is None else "It and the baseline were",
        number=winner.number,
        model_seed=verdict.model_seed,
        which=which_seed(verdict),
        files="\n".join(f"- `{file}`" for file in verdict.files),
        usage=f"\n{verdict.usage}\n" if verdict.usage else "",
        versions="\n".join(f"- {package} {version}" for package, version in versions().items()),
    )


def examples(n: int | None) -> str:
    """Write a number of examples behind what was measured on them; nothing where it is unknown."""
    return f" (n = {n})" if n is not None else ""


def interval(scores: Scores, objective: Objective) -> str:
    """Write the interval of a mean, "--" for fewer than MIN_SEEDS; of a fraction, what lies from 0 to 1."""
    low, high = scores.interval
    if objective.standard_error == "binomial":
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{objective.write(low)} to {objective.write(high)}" if low == low else "--"


def interval_of_difference(scores: Scores, objective: Objective, *, sign: str = "") -> str:
    """Write the interval of a mean difference, without its unit, "--" for fewer than MIN_SEEDS."""
    low, high = (objective.write_difference(end, sign=sign) for end in scores.interval)
    return f"{low} to {high}" if scores.n >= MIN_SEEDS else "--"


def which_seed(verdict: Verdict) -> str:
    """Say which of the final trainings the model is."""
    first = verdict.model_seed == verdict.final_seeds[0]
    return "the first one, fixed beforehand" if first else "the first one that did not diverge"


def versions() -> dict[str, str]:
    """Give the versions of what decides the model."""
    found = {"python": platform.python_version()}
    for package in ("torch", "ray", "optuna", "tune-mnist"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed, run from its sources"
    return found


def _validation_row(candidate: Candidate, verdict: Verdict) -> str:
    scores, objective = verdict.validation[candidate], verdict.objective
    heading = f"trial {candidate.number}" + (" (chosen)" if candidate == verdict.winner else "")
    cells = [heading, objective.write(candidate.value), *_mean_and_sd(scores, objective)]
    return "| " + " | ".join(cells) + " |"


def _mean_and_sd(scores: Scores, objective: Objective) -> list[str]:
    sd = objective.write_difference(scores.sd)
    return [objective.write(scores.mean), sd, str(scores.n), str(scores.failed)]


def _test_rows(verdict: Verdict) -> list[str]:
    rows, objective = [], verdict.objective
    for heading, scores in (
        (f"trial {verdict.winner.number}", verdict.winner_test),
        ("baseline", verdict.baseline_test),
    ):
        if scores is not None:
            cells = [heading, *_mean_and_sd(scores, objective), interval(scores, objective)]
            rows.append("| " + " | ".join(cells) + " |")
    if gain := verdict.difference:
        mean = objective.write_difference(gain.mean) + objective.unit
        sd, ends = objective.write_difference(gain.sd), interval_of_difference(gain, objective)
        rows.append(f"| difference, by seed | {mean} | {sd} | {gain.n} | | {ends}{objective.unit} |")
    return rows
