"""Trains some of the recorded configurations again, with other seeds, to see how much of a curve is chance.

python -m benchmarks.repeats   # after benchmarks.record; writes benchmarks/data/repeats.parquet
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pandas as pd

from benchmarks.record import EPOCHS, SEED, TABLE, begin, draw, train

REPEATS = TABLE.with_name("repeats.parquet")
CONFIGURATIONS = range(0, 300, 25)
"""Every 25th of the recorded ones: by accuracy from the best ones to the worst."""
SEEDS = 2
"""Trainings of each beside the recorded one."""


def curve(job: tuple[int, int]) -> list[dict[str, Any]]:
    """Train a configuration with a seed that no recorded curve has; give a row an epoch."""
    configuration, seed = job
    accuracies = [result.accuracy for result in train(draw(configuration), seed)]
    accuracies += [math.nan] * (EPOCHS - len(accuracies))
    return [
        {"configuration": configuration, "seed": seed, "epoch": epoch, "accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


def main() -> None:
    """Train and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    rows: list[Any] = pd.read_parquet(REPEATS).to_dict("records") if REPEATS.exists() else _recorded()
    known = {(row["configuration"], row["seed"]) for row in rows}
    jobs = [(number, 1_000_000 + seed) for seed in range(SEEDS) for number in CONFIGURATIONS]
    lacking = [job for job in jobs if job not in known]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, context, begin, (args.data_dir,)) as pool:
        for count, new in enumerate(pool.map(curve, lacking), start=1):
            rows += new
            print(f"{count}/{len(lacking)}", *new[-1].values(), flush=True)
            frame = pd.DataFrame(rows).sort_values(["configuration", "seed", "epoch"], ignore_index=True)
            frame.to_parquet(REPEATS, index=False)


def _recorded() -> list[Any]:
    """Take the first training of each from the table."""
    table = pd.read_parquet(TABLE)
    table = table[table["configuration"].isin(CONFIGURATIONS)].assign(seed=SEED + table["configuration"])
    return table[["configuration", "seed", "epoch", "accuracy"]].to_dict("records")


if __name__ == "__main__":
    main()
