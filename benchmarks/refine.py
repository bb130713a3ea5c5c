"""Trains what the surrogates hold for the best, so that their optimum is one that was seen and not hoped for.

python -m benchmarks.refine   # after benchmarks.record, to whose table it adds; may be interrupted
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import pandas as pd

from benchmarks.record import FIRST_REFINED, TABLE, record
from benchmarks.surrogate import KINDS, optimum, regression

ROUNDS = 16
"""Fits, each to what was trained before it too; a round trains the optimum of each surrogate."""


def main() -> None:
    """Train and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    for first in range(FIRST_REFINED, FIRST_REFINED + ROUNDS * len(KINDS), len(KINDS)):
        table = pd.read_parquet(TABLE)
        known = table[table["configuration"] < first]
        points: dict[int, dict[str, Any]] = {}
        for number, kind in enumerate(KINDS, start=first):
            points[number], accuracy = optimum(regression(kind, known), draws=5000, seed=number)
            print(f"configuration {number}: {accuracy:.4f} by {kind}", flush=True)
        record(points, args.data_dir, args.processes)


if __name__ == "__main__":
    main()
