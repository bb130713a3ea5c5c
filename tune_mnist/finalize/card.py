"""The card of a final model: its data, its protocol, its scores with their n, its versions."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata

from tune_mnist.finalize.protocol import SEARCH_SEEDS, Candidate, Verdict
from tune_mnist.finalize.scores import Scores
from tune_mnist.mnist.hyperparameters import Hyperparameters

TEMPLATE = """\
# {name}: the final model

A classifier of 28x28 grey images of {dataset} into ten classes, chosen and measured by `{command}` on {date}.

Test accuracy {model_test:.2%} (n = {test_size} images). The mean over {n} trainings, this one and others
that differ in their seeds only, is {mean}.

## Test accuracy

Trained on training + validation ({union_size} images), scored once on the test set ({test_size} images); n is
the number of seeds. The interval is Student's, for the mean over seeds; that other test images would come out
differently is not in it.

| configuration | mean | sd (points) | n | diverged | 95 % interval |
|---|---|---|---|---|---|
{test_rows}

## Validation accuracy, by which it was chosen

Trained on the training split ({train_size} images), scored once on the validation split ({val_size} images).
"Search" is what the trial had in the search, where the best of many noisy scores flatters its owner.

| configuration | search | mean | sd (points) | n | diverged |
|---|---|---|---|---|---|
{validation_rows}

## Hyper-parameters

| | {headings} |
|---|{dashes}
{hyperparameter_rows}

## Protocol

- Data: {dataset}. {val_size} validation images are cut from its training set by the run's seed, {split_seed};
  the training split has {train_size}.
- The {k} best finished configurations of the search (asked for: {top_k}) were trained again for all their
  epochs, with the seeds {choosing_seeds}.
- The highest mean validation accuracy chose trial {number}. A configuration of which a training diverged
  would have come after those of which none did.
- It and the blog's hand-set configuration were trained on training + validation, with the seeds
  {final_seeds}. Each of these trainings was scored on the test set once, in fp32 on a CPU.
  Nothing else here saw the test set.
- Seeds: 31-bit halves of the words of `numpy.random.SeedSequence({split_seed})`, dealt out to both kinds in
  turn, without {split_seed} to {last_search_seed}, which are the search's.
- The model is that of seed {model_seed}, {which}. So it was not chosen on the test set, and its own
  {model_test:.2%} is one draw of those in the first table.
- Training precision: {precision}.

## Files

- `model.pt2`, for torch alone:

      import torch
      model = torch.export.load("model.pt2").module()
      log_probabilities = model(images)  # uint8 [n, 28, 28], 0 background to 255 ink -> float32 [n, 10]

- `model.pt`, the state dict of `tune_mnist.mnist.model.Network(Hyperparameters(**values))`, where `values` is
  what `hyperparameters.json` has.

## Versions

{versions}
"""


def write_card(verdict: Verdict, *, name: str, command: str) -> str:
    """Write the card in Markdown.

    Args:
        verdict: what the finalization came to.
        name: of the run.
        command: that it was started with.
    """
    settings, winner = verdict.settings, verdict.winner
    scores = verdict.winner_test
    configurations = {f"trial {one.number}": one.hyperparameters for one in verdict.validation}
    configurations["the blog's"] = Hyperparameters()
    fields = {heading: asdict(one) for heading, one in configurations.items()}
    return TEMPLATE.format(
        name=name,
        dataset=verdict.options.dataset,
        command=command,
        date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        test_size=verdict.test_size,
        model_test=verdict.model_test,
        n=scores.n,
        mean=mean_and_interval(scores),
        union_size=verdict.train_size + verdict.val_size,
        train_size=verdict.train_size,
        val_size=verdict.val_size,
        test_rows="\n".join(_test_rows(verdict)),
        validation_rows="\n".join(_validation_row(one, verdict) for one in verdict.validation),
        headings=" | ".join(fields),
        dashes="---|" * len(fields),
        hyperparameter_rows="\n".join(
            f"| {key} | " + " | ".join(str(values[key]) for values in fields.values()) + " |"
            for key in asdict(Hyperparameters())
        ),
        split_seed=settings.seed,
        last_search_seed=settings.seed + SEARCH_SEEDS - 1,
        k=len(verdict.validation),
        top_k=verdict.protocol.top_k,
        choosing_seeds=", ".join(map(str, verdict.choosing_seeds)),
        final_seeds=", ".join(map(str, verdict.final_seeds)),
        number=winner.number,
        model_seed=verdict.model_seed,
        which=which_seed(verdict),
        precision=verdict.options.precision,
        versions="\n".join(f"- {package} {version}" for package, version in versions().items()),
    )


def percent(share: float) -> str:
    """Write a share as a percentage with two digits behind the point, "-" for NaN."""
    return f"{share:.2%}" if share == share else "-"


def points(share: float) -> str:
    """Write a share in percentage points, "-" for NaN."""
    return f"{100 * share:.2f}" if share == share else "-"


def interval(scores: Scores) -> str:
    """Write the interval of accuracies in per cent, "-" for fewer than two seeds."""
    low, high = scores.interval
    return f"{points(low)} to {points(high)}%" if low == low else "-"


def mean_and_interval(scores: Scores) -> str:
    """Write the mean with its interval in a sentence's words."""
    return percent(scores.mean) + (f" (95 % interval {interval(scores)})" if scores.n > 1 else "")


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
    scores = verdict.validation[candidate]
    heading = f"trial {candidate.number}" + (" (chosen)" if candidate == verdict.winner else "")
    cells = [heading, percent(candidate.accuracy), percent(scores.mean), points(scores.sd)]
    return "| " + " | ".join([*cells, str(scores.n), str(scores.failed)]) + " |"


def _test_rows(verdict: Verdict) -> list[str]:
    rows = []
    for heading, scores in (
        (f"trial {verdict.winner.number}", verdict.winner_test),
        ("the blog's", verdict.blog_test),
    ):
        if scores is not None:
            cells = [heading, percent(scores.mean), points(scores.sd), str(scores.n), str(scores.failed)]
            rows.append("| " + " | ".join([*cells, interval(scores)]) + " |")
    if verdict.difference is not None:
        gain = verdict.difference
        low, high = (f"{points(end)}" for end in gain.interval)
        ends = f"{low} to {high} points" if gain.n > 1 else "-"
        rows.append(
            f"| difference, by seed | {points(gain.mean)} points | {points(gain.sd)} | {gain.n} | | {ends} |"
        )
    return rows
