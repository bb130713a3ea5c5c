"""How often what a run is said to have learned is true, on synthetic runs whose truth is known.

python -m benchmarks.learned                # 20 seeds of each size; under a minute
python -m benchmarks.learned --seeds 100

A synthetic task has four parameters: only ``lr`` decides how good a trial ends; ``momentum`` and ``width`` do
nothing; the choice ``broken`` of ``optimizer`` stays at chance level, while ``sgd`` and ``adam`` are equal.
Results also have noise. ASHA stops trials early; parameters are drawn at random. This project's sentences are
compared with Optuna's own importance, of the finished trials, on the same runs.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.importance import get_param_importances

from tune_mnist.report.learned import dead_choices, leading
from tune_mnist.report.view import View
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import TaskFacts
from tune_mnist.run.settings import Settings
from tune_mnist.task import Objective
from tune_mnist.tuning import tuner
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.preflight import SETTINGS

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "momentum": FloatDistribution(0.0, 0.99),
    "width": IntDistribution(1, 16),
    "optimizer": CategoricalDistribution(("sgd", "adam", "broken")),
}
USELESS = {"momentum", "width"}
"""Parameters that change nothing."""
SIZES = (20, 64)
"""Trials of a run."""
CHANCE_LEVEL = 0.1
MAX_EPOCHS, REDUCTION_FACTOR = 9, 3.0


def make(folder: Path, trials: int, seed: int, *, lr_matters: bool = True, breaks: bool = True) -> View:
    """Make a synthetic run with eight concurrent trials, which take turns epoch by epoch.

    Args:
        folder: where to write it; it must not exist.
        trials: their number.
        seed: for draws and noise.
        lr_matters: whether lr has any effect.
        breaks: whether the choice ``broken`` does not train.
    """
    settings = Settings(
        num_samples=trials, max_epochs=MAX_EPOCHS, reduction_factor=REDUCTION_FACTOR, name=folder.name
    )
    objective = Objective(metric="accuracy", format=".2%", standard_error="binomial")
    folder.mkdir(parents=True)
    (folder / SETTINGS).write_text(settings.to_json())
    ledger = Ledger.open(folder / LEDGER)
    facts = TaskFacts(name="made-up", objective=objective, validation_examples=5000)
    ledger.begin({name: distribution_to_json(one) for name, one in SPACE.items()}, facts)
    asha, dice = ASHA(settings, ledger), random.Random(seed)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    at_work: dict[str, tuple[int, float | None]] = {}
    while len(ledger.trials) < trials or at_work:
        if len(ledger.trials) < trials and len(at_work) < 8:
            params = study.ask(SPACE).params
            trial_id = f"{len(ledger.trials):08x}"
            config = {**params, "epochs": MAX_EPOCHS}
            ledger.suggested(trial_id, len(ledger.trials), params, config, planned=MAX_EPOCHS, hand_set=False)
            end = 0.95 + dice.gauss(0, 0.01) - 0.02 * lr_matters * (math.log10(params["lr"]) + 2.5) ** 2
            at_work[trial_id] = 0, (None if breaks and params["optimizer"] == "broken" else end)
            continue
        trial_id, (epoch, quality) = next(iter(at_work.items()))
        del at_work[trial_id]
        epoch += 1
        value = CHANCE_LEVEL
        if quality is not None:
            value = min(0.9999, quality * (1 - 0.3 * 0.5**epoch) + dice.gauss(0, 0.002))
        ledger.reported(trial_id, {"epoch": epoch, "accuracy": round(value, 4), "timestamp": 1_790_000_000})
        if asha.stops(trial_id, epoch, round(value, 4)) or epoch == MAX_EPOCHS:
            ledger.ended(trial_id, failed=False)
        else:
            at_work[trial_id] = epoch, quality
    ledger.close("finished")
    return View(tuner.load_run(str(folder)))


def judge(view: View) -> dict[str, float]:
    """Compare what is said of a run with the truth: 1 for yes, NaN where nothing is said."""
    importance = view.importance(view.level)
    shares = {one.name: one for one in importance.shares}
    first = leading(importance)
    dead = [one.group.values for one in dead_choices(view)]
    optunas = optunas_importance(view)
    among = [name for name in ("lr", *sorted(USELESS)) if name in optunas]
    ours = max(("lr", *sorted(USELESS)), key=lambda name: shares[name].value) if "lr" in shares else ""
    return {
        "says that broken never survives": float("broken" in dead),
        "says so of a choice that trains": float(bool(set(dead) - {"broken"})),
        "says what mattered most": float(first is not None),
        "and names a parameter that does nothing": float(first.name in USELESS) if first else math.nan,
        "lr above what does nothing": float(ours == "lr") if shares else math.nan,
        "lr's interval above those": (
            float(shares["lr"].low > max(shares[name].high for name in USELESS)) if shares else math.nan
        ),
        "Optuna: lr above what does nothing": (
            float(max(among, key=lambda name: optunas[name]) == "lr") if among else math.nan
        ),
        "Optuna: names a parameter that does nothing as the first": (
            float(max(optunas, key=lambda name: optunas[name]) in USELESS) if optunas else math.nan
        ),
        "Optuna: optimizer at 0%": float(optunas["optimizer"] < 0.005) if optunas else math.nan,
    }


def optunas_importance(view: View) -> dict[str, float]:
    """Return the importance by Optuna's own function, of the finished trials; {} for fewer than two."""
    final = view.levels[-1]
    if len(final.trials) < 2 or final.epoch is not None:
        return {}
    return dict(get_param_importances(view.study(final), params=list(SPACE)))


def results(seeds: Sequence[int], sizes: Sequence[int] = SIZES) -> Iterator[dict[str, float | str]]:
    """Judge synthetic runs of each size and seed, and as many in which nothing matters."""
    with tempfile.TemporaryDirectory() as folder:
        for trials in sizes:
            for seed in seeds:
                for kind, truth in (("lr and broken", True), ("nothing matters", False)):
                    place = Path(folder) / f"{kind}-{trials}-{seed}".replace(" ", "-")
                    view = make(place, trials, seed, lr_matters=truth, breaks=truth)
                    yield {"run": f"{kind}, {trials} trials", **judge(view)}


def main() -> None:
    """Print the table, in Markdown: in how many of the runs where something is said it is true."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="runs of each kind and size (default: 20)")
    # The rules were set on the seeds 0 to 19.
    parser.add_argument("--first", type=int, default=100, help="the first seed (default: 100)")
    flags = parser.parse_args()
    seeds = range(flags.first, flags.first + flags.seeds)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    frame = pd.DataFrame(results(seeds))
    grouped = frame.groupby("run", sort=False)
    print("| | " + " | ".join(map(str, grouped.groups)) + " |")
    print("|---|" + "---|" * len(grouped))
    for name in frame.columns[1:]:
        cells = [f"{some[name].sum():.0f} of {some[name].count()}" for _, some in grouped]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
