"""Trains what the surrogates predict to be the best, so that their optimum is observed, not extrapolated.

python -m benchmarks.refine   # after benchmarks.record, to whose table it adds; may be interrupted
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.record import FIRST_REFINED, arguments, record
from benchmarks.surrogate import KINDS, optimum, regression
from tune_mnist.cli.parser import OneLineParser

ROUNDS = 16
"""Rounds: each fits the surrogates to everything trained so far and trains the optimum of each."""


def main() -> None:
    """Train and write the table."""
    parser = OneLineParser(allow_abbrev=False)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="fits, each also to what was trained before it"
    )
    args = arguments(__doc__, parser)
    for first in range(FIRST_REFINED, FIRST_REFINED + args.rounds * len(KINDS), len(KINDS)):
        table = pd.read_parquet(args.table)
        known = table[table["configuration"] < first]
        points: dict[int, dict[str, Any]] = {}
        for number, kind in enumerate(KINDS, start=first):
            points[number], accuracy = optimum(regression(kind, known), draws=5000, seed=number)
            print(f"configuration {number}: {accuracy:.4f} by {kind}", flush=True)
        record(points, args)


if __name__ == "__main__":
    main()
