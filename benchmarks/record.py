"""Records real learning curves of the wide space, on which searches are then compared without training.

python -m benchmarks.record --configurations 300   # may be interrupted; writes benchmarks/data/curves.parquet
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch

from tune_mnist.data import load_train_val
from tune_mnist.hyperparameters import Hyperparameters
from tune_mnist.samplers import make_sampler
from tune_mnist.spaces import WIDE, to_config
from tune_mnist.training import DivergedError, EpochResult, Training, fit

TABLE = Path(__file__).parent / "data" / "curves.parquet"
EPOCHS = 9
"""Epochs of each curve: with reduction factor 3, ASHA's rungs are 1, 3 and 9."""
TRAIN_SIZE, VAL_SIZE, SEED = 10_000, 5_000, 0
FIRST_REFINED = 1000
"""Number of the first configuration that was not drawn at random, but by benchmarks.refine."""
SAVE_EVERY = 10
"""Configurations between two writes of the table."""


def draw(configuration: int) -> dict[str, Any]:
    """Draw a point of the wide space by its number: scrambled Sobol numbers, choices at random."""
    study = optuna.create_study(sampler=make_sampler("qmc", SEED, configuration))
    return study.ask(dict(WIDE)).params


def train(params: dict[str, Any], seed: int) -> list[EpochResult]:
    """Train a configuration, up to where it diverges, in a process that has begun."""
    hyperparameters = Hyperparameters(**to_config(params, EPOCHS))
    results: list[EpochResult] = []
    with suppress(DivergedError):
        for result in fit(Training(hyperparameters, seed=seed), *_splits):
            results.append(result)
    return results


def curve(job: tuple[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Train a configuration; give a row an epoch, with accuracies NaN from where it has diverged.

    Args:
        job: the configuration's number, which makes its seed, and its parameters.
    """
    configuration, params = job
    of_epoch = {result.epoch: result for result in train(params, SEED + configuration)}
    rows = []
    for epoch in range(1, EPOCHS + 1):
        found = of_epoch.get(epoch)
        rows.append(
            {
                "configuration": configuration,
                **params,
                "epoch": epoch,
                "accuracy": found.accuracy if found else math.nan,
                "val_loss": found.val_loss if found else math.nan,
                "train_loss": found.train_loss if found else math.nan,
                "epoch_seconds": found.epoch_seconds if found else math.nan,
            }
        )
    return rows


_splits: Any = None


def begin(data_dir: str) -> None:
    """Load what the trainings of a process need."""
    global _splits
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _splits = load_train_val("mnist", Path(data_dir), val_size=VAL_SIZE, train_size=TRAIN_SIZE, seed=SEED)


def record(points: dict[int, dict[str, Any]], data_dir: str, processes: int) -> None:
    """Train those of the points, by number, that the table lacks, and write it again and again."""
    known = pd.read_parquet(TABLE) if TABLE.exists() else pd.DataFrame({"configuration": []})
    lacking = [job for job in points.items() if job[0] not in set(known["configuration"])]
    rows: list[Any] = known.to_dict("records")
    context = multiprocessing.get_context("spawn")
    # A multiprocessing.Pool would wait for ever for the curve of a process that was killed.
    with ProcessPoolExecutor(processes, context, begin, (data_dir,)) as pool:
        for count, new in enumerate(pool.map(curve, lacking), start=1):
            rows += new
            last = new[-1]["accuracy"]
            print(f"{count}/{len(lacking)} configuration {new[0]['configuration']}: {last:.4f}", flush=True)
            if count % SAVE_EVERY == 0 or count == len(lacking):
                _write(rows)


def _write(rows: list[dict[str, Any]]) -> None:
    TABLE.parent.mkdir(exist_ok=True)
    fresh = TABLE.with_suffix(".new")
    frame = pd.DataFrame(rows).sort_values(["configuration", "epoch"], ignore_index=True)
    frame.to_parquet(fresh, index=False)
    fresh.replace(TABLE)


def main() -> None:
    """Record the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=300)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    points = {number: draw(number) for number in range(args.configurations)}
    record(points, args.data_dir, args.processes)


if __name__ == "__main__":
    main()
