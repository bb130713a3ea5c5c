"""Does the search find better models per epoch of compute? Regret of search methods, on known curves.

python -m benchmarks quality          # a few methods, 8 workers
python -m benchmarks quality --full   # all methods, 1, 8 and 64 workers, a second surrogate
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pandas as pd
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from rich.console import Console
from rich.table import Table

from benchmarks import surrogate
from benchmarks.measure import cores
from benchmarks.record import EPOCHS, TABLE
from benchmarks.repeats import REPEATS
from benchmarks.simulate import Variant, simulate
from tune_mnist.tuning.samplers import stream

BUDGETS = (50, 100, 200, 400, 600)
"""Epochs trained by all workers together at which the search is asked for its choice."""
SHORT_SEEDS, FULL_SEEDS, GP_SEEDS = 20, 30, 20
"""Searches of each method; Optuna's Gaussian process takes some 0.1 s per suggestion, TPE a tenth of that."""
FIRST_SEED = 300
"""Lower ones were used to choose the defaults, and would favour them."""
NO_STOPPING = {"grace_period": EPOCHS}


def tpe(name: str, seed: int, number: int, space: object, **options: Any) -> BaseSampler:
    """Make a TPE sampler as the project does, with other options."""
    return TPESampler(seed=stream(seed, number), **{"multivariate": False, **options})


def gp(name: str, seed: int, number: int, space: object) -> BaseSampler:
    """Make Optuna's Gaussian process. It uses only COMPLETE trials: from pruned ones it learns nothing."""
    return GPSampler(seed=stream(seed, number))


RANDOM = Variant(name="random, no stopping", settings={"sampler": "random", **NO_STOPPING})
RANDOM_ASHA = Variant(name="random + ASHA", settings={"sampler": "random"})
TPE = Variant(name="TPE, no stopping", settings=NO_STOPPING)
TPE_RAY = Variant(name="TPE + ASHA, as Ray reports it", plain=True)
OURS = Variant(name="TPE + ASHA, as we report it")
SHORT = (RANDOM, RANDOM_ASHA, TPE, TPE_RAY, OURS)
WAYS = (
    *SHORT,
    Variant(name="QMC + ASHA", settings={"sampler": "qmc"}),
    Variant(name="random + ASHA, factor 2", settings={"sampler": "random", "reduction_factor": 2}),
    Variant(name="ours, factor 2", settings={"reduction_factor": 2}),
    Variant(name="ours, factor 3", settings={"reduction_factor": 3}),
    Variant(name="ours, grace period 3", settings={"grace_period": 3}),
    Variant(name="ours, 5 start-up trials", make_sampler=partial(tpe, n_startup_trials=5)),
    Variant(name="ours, 20 start-up trials", make_sampler=partial(tpe, n_startup_trials=20)),
    Variant(name="ours, no constant liar", make_sampler=partial(tpe, constant_liar=False)),
    Variant(name="ours, multivariate", make_sampler=partial(tpe, multivariate=True)),
    Variant(
        name="ours, multivariate, factor 2",
        settings={"reduction_factor": 2},
        make_sampler=partial(tpe, multivariate=True),
    ),
)
"""All except the Gaussian process. "ours" is TPE + ASHA as we report it, with the named changes."""
GP_WAYS = (
    Variant(name="GP, no stopping", settings=NO_STOPPING, make_sampler=gp),
    Variant(name="GP + ASHA, as Ray reports it", make_sampler=gp, plain=True),
    Variant(name="GP + ASHA, as we report it", make_sampler=gp),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One search."""

    variant: Variant
    workers: int
    seed: int
    budget: int
    kind: str = "gp"
    "Of the surrogate."


def jobs(full: bool) -> list[Job]:
    """List the searches; those of one seed together, so that an interrupted run is balanced."""
    if not full:
        ways: Any = [(variant, 8, 200, SHORT_SEEDS, "gp") for variant in SHORT]
    else:
        ways = [(variant, workers, 600, FULL_SEEDS, "gp") for variant in WAYS for workers in (1, 8, 64)]
        ways += [(variant, 8, 400, GP_SEEDS, "gp") for variant in GP_WAYS]
        ways += [(variant, 8, 600, GP_SEEDS, "trees") for variant in SHORT]
    return [
        Job(variant=variant, workers=workers, seed=FIRST_SEED + number, budget=budget, kind=kind)
        for number in range(FULL_SEEDS)
        for variant, workers, budget, seeds, kind in ways
        if number < seeds
    ]


def search(job: Job) -> list[dict[str, Any]]:
    """Simulate one search; return a row per budget."""
    curves, best = _curves[job.kind]
    rows = []
    for step in simulate(
        job.variant, curves, workers=job.workers, seed=job.seed, budget=job.budget, max_epochs=EPOCHS
    ):
        if step.epochs in BUDGETS:
            rows.append(
                {
                    "surrogate": job.kind,
                    "variant": job.variant.name,
                    "workers": job.workers,
                    "seed": job.seed,
                    "epochs": step.epochs,
                    "time": step.time,
                    "trial": step.trial,
                    "regret": best - step.truth,
                    "truth": step.truth,
                }
            )
    return rows


_curves: dict[str, tuple[surrogate.Surrogate, float]] = {}


def _begin(curves: dict[str, tuple[surrogate.Surrogate, float]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _curves.update(curves)


def run(console: Console, *, full: bool, data_dir: Path) -> Iterator[dict[str, Any]]:
    """Simulate all searches, in one process per core; yield a row per budget of each."""
    for table, maker in ((TABLE, "record"), (REPEATS, "repeats")):
        if not table.exists():
            console.print(f"  {table.name} is not there: python -m benchmarks.{maker} makes it")
            return
    planned = jobs(full)
    curves = {}
    for kind in sorted({job.kind for job in planned}):
        fitted = surrogate.load(kind)
        curves[kind] = fitted, fitted.best()
        console.print(f"surrogate {kind}: best known accuracy {curves[kind][1]:.4f}")
    one_thread = mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    context = multiprocessing.get_context("spawn")
    with one_thread, ProcessPoolExecutor(cores(), context, _begin, (curves,)) as pool:
        for count, rows in enumerate(pool.map(search, planned), start=1):
            yield from rows
            if count % 100 == 0 or count == len(planned):
                console.print(f"  {count} of {len(planned)} searches")


def show(console: Console, rows: pd.DataFrame) -> None:
    """Print the regrets, a table per number of workers, and each method's compared with ours."""
    for kind, workers in sorted(set(zip(rows["surrogate"], rows["workers"], strict=True))):
        group = rows[(rows["surrogate"] == kind) & (rows["workers"] == workers)]
        times = group.groupby("epochs")["time"].median()
        console.print(
            f"\n{workers} worker{'s' * (workers > 1)}, surrogate {kind}: regret in accuracy points against "
            "epochs trained, mean ± standard error; less ours: paired by seed, at the last budget of both"
        )
        table = Table("", "n", *(f"{epochs} epochs" for epochs in times.index), "less ours")
        for variant in dict.fromkeys([*(way.name for way in (*WAYS, *GP_WAYS)), *group["variant"]]):
            of_variant = group[group["variant"] == variant]
            if len(of_variant):
                budgets = [of_variant[of_variant["epochs"] == epochs]["regret"] for epochs in times.index]
                count, beside = of_variant["seed"].nunique(), _points(beside_ours(group, variant), "+.3f")
                table.add_row(variant, str(count), *map(_points, budgets), beside)
        table.add_row("virtual time, epochs", "", *(f"{time:.1f}" for time in times), "")
        console.print(table)


def beside_ours(group: pd.DataFrame, variant: str) -> pd.Series:
    """Return a variant's regret minus ours, seed by seed, at the last budget that both have reached."""
    table = group.pivot(index=["epochs", "seed"], columns="variant", values="regret")
    if variant not in table or OURS.name not in table:
        return pd.Series(dtype=float)
    differences = (table[variant] - table[OURS.name]).dropna()
    return differences.xs(differences.index.get_level_values("epochs").max())


def _points(values: pd.Series, form: str = ".3f") -> str:
    points = 100 * values.to_numpy(float)
    if len(points) < 2:
        return "–"
    return f"{points.mean():{form}} ± {points.std(ddof=1) / math.sqrt(len(points)):.3f}"
