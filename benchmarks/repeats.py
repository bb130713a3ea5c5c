"""Trains some recorded configurations again, with other seeds, to see how much of a curve is chance.

python -m benchmarks.repeats   # after benchmarks.record; writes benchmarks/data/repeats.parquet
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from benchmarks.record import EPOCHS, FIRST_REFINED, SEED, TABLE, add, arguments, draw, train, write

REPEATS = TABLE.with_name("repeats.parquet")
EVERY = 25
"""Every 25th recorded one is trained again; their accuracies range from the best to the worst."""
SEEDS = 2
"""Trainings of each in addition to the recorded one."""


def curve(job: tuple[int, int]) -> list[dict[str, Any]]:
    """Train a configuration with a seed that no recorded curve has; return a row per epoch."""
    configuration, seed = job
    accuracies = [result.accuracy for result in train(draw(configuration), seed)]
    accuracies += [math.nan] * (EPOCHS - len(accuracies))
    return [
        {"configuration": configuration, "seed": seed, "epoch": epoch, "accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


def main() -> None:
    """Train and write the table."""
    args = arguments(__doc__)
    table, recorded = args.table.with_name(REPEATS.name), pd.read_parquet(args.table)
    recorded = recorded.query(f"configuration < {FIRST_REFINED} and configuration % {EVERY} == 0")
    # The first training of each is the recorded one.
    rows = recorded.assign(seed=SEED + recorded["configuration"])[
        ["configuration", "seed", "epoch", "accuracy"]
    ]
    if table.exists():
        rows = pd.concat([pd.read_parquet(table), rows]).drop_duplicates(["configuration", "seed", "epoch"])
    write(table, rows)
    known = set(rows[["configuration", "seed"]].itertuples(index=False, name=None))
    numbers = sorted(set(recorded["configuration"]))
    jobs = [(number, 1_000_000 + seed) for seed in range(SEEDS) for number in numbers]
    add(table, [job for job in jobs if job not in known], curve, args)


if __name__ == "__main__":
    main()
