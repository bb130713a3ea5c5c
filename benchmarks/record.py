"""Records real learning curves of the wide space, to compare searches without training.

python -m benchmarks.record --configurations 300   # may be interrupted; writes benchmarks/data/curves.parquet
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch

from benchmarks.measure import cores
from tune_mnist.cli.parser import OneLineParser
from tune_mnist.mnist.data import DataError, load_train_val, prepare
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.spaces import WIDE, to_config
from tune_mnist.mnist.training import DivergedError, EpochResult, Training, fit
from tune_mnist.run.words import first_line
from tune_mnist.tuning.samplers import make_sampler

TABLE = Path(__file__).parent / "data" / "curves.parquet"
EPOCHS = 9
"""Epochs of each curve: with reduction factor 3, ASHA's rungs are 1, 3 and 9."""
TRAIN_SIZE, VAL_SIZE, SEED = 10_000, 5_000, 0
FIRST_REFINED = 1000
"""Number of the first configuration that benchmarks.refine chose, not a random draw."""
MOST = {"processes": 1000, "rounds": 1000, "train_size": 60_000 - VAL_SIZE, "configurations": FIRST_REFINED}
"""Largest values of the numeric flags."""
SAVE_EVERY = 10
"""Configurations trained between two writes of the table."""


def draw(configuration: int) -> dict[str, Any]:
    """Draw a point of the wide space by its number, at random."""
    study = optuna.create_study(sampler=make_sampler("random", SEED, configuration, WIDE))
    return study.ask(dict(WIDE)).params


def train(params: dict[str, Any], seed: int) -> list[EpochResult]:
    """Train a configuration, until it diverges, in an initialised process."""
    hyperparameters = Hyperparameters(**to_config(params, EPOCHS))
    results: list[EpochResult] = []
    with suppress(DivergedError):
        for result in fit(Training(hyperparameters, seed=seed), *_splits):
            results.append(result)
    return results


def curve(job: tuple[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Train a configuration; return a row per epoch, with accuracies NaN from its divergence on.

    Args:
        job: the configuration's number, which sets its seed, and its parameters.
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


def begin(data_dir: Path, train_size: int) -> None:
    """Load what a process needs for its trainings."""
    global _splits
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _splits = load_train_val("mnist", data_dir, val_size=VAL_SIZE, train_size=train_size, seed=SEED)


def add(
    table: Path,
    jobs: Sequence[Any],
    train_job: Callable[[Any], list[dict[str, Any]]],
    args: argparse.Namespace,
) -> None:
    """Train the jobs in parallel, and repeatedly add their rows to a table."""
    rows: list[Any] = pd.read_parquet(table).to_dict("records") if table.exists() else []
    context = multiprocessing.get_context("spawn")
    given = args.data_dir, args.train_size
    # A multiprocessing.Pool would wait forever for the curve of a killed process.
    with ProcessPoolExecutor(args.processes, context, begin, given) as pool:
        for count, new in enumerate(pool.map(train_job, jobs), start=1):
            rows += new
            done = f"{count}/{len(jobs)} configuration {new[-1]['configuration']}"
            print(f"{done}: {new[-1]['accuracy']:.4f}", flush=True)
            if count % SAVE_EVERY == 0 or count == len(jobs):
                write(table, pd.DataFrame(rows))


def write(table: Path, rows: pd.DataFrame) -> None:
    """Sort the rows, and atomically replace the table with them."""
    fresh = table.with_suffix(".new")
    keys = [name for name in ("configuration", "seed", "epoch") if name in rows]
    rows.sort_values(keys, ignore_index=True).to_parquet(fresh, index=False)
    fresh.replace(table)


def record(points: dict[int, dict[str, Any]], args: argparse.Namespace) -> None:
    """Train the points, by number, that are missing from the table."""
    known = set(pd.read_parquet(args.table)["configuration"]) if args.table.exists() else set()
    add(args.table, [job for job in points.items() if job[0] not in known], curve, args)


def arguments(
    doc: str | None, parser: argparse.ArgumentParser | None = None, *, recorded: bool = True
) -> argparse.Namespace:
    """Read the flags that record, repeats and refine share, and get MNIST; bad input is one line, code 2.

    Args:
        doc: the program's description.
        parser: with the program's own flags.
        recorded: whether the table must already exist.
    """
    parser = parser or OneLineParser(allow_abbrev=False)
    parser.description, parser.formatter_class = doc, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST is or goes")
    parser.add_argument("--table", type=Path, default=TABLE, help="the recorded curves, a parquet file")
    parser.add_argument("--train-size", type=int, default=TRAIN_SIZE, help="training images")
    parser.add_argument("--processes", type=int, default=cores(), help="concurrent trainings")
    args = parser.parse_args()
    for name, most in MOST.items():
        value = getattr(args, name, 1)
        if not 1 <= value <= most:
            parser.error(f"--{name.replace('_', '-')} is {value}, but must be 1 to {most:,}")
    if args.train_size != TRAIN_SIZE and args.table.resolve() == TABLE.resolve():
        parser.error(f"--train-size is {args.train_size}, but must be {TRAIN_SIZE} for {TABLE.name}")
    try:
        if recorded or args.table.exists():
            pd.read_parquet(args.table, columns=["configuration"])
        args.table.parent.mkdir(parents=True, exist_ok=True)
        prepare("mnist", args.data_dir)
    except DataError as error:  # may be a line a source
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except FileNotFoundError:
        parser.error(f"--table is {args.table}, which does not exist: python -m benchmarks.record makes one")
    except (OSError, ValueError) as error:
        parser.error(f"--table is {args.table}, but must be recorded curves: {first_line(error)}")
    return args


def main() -> None:
    """Record the table."""
    parser = OneLineParser(allow_abbrev=False)
    parser.add_argument("--configurations", type=int, default=300, help="how many are drawn")
    args = arguments(__doc__, parser, recorded=False)
    record({number: draw(number) for number in range(args.configurations)}, args)


if __name__ == "__main__":
    main()
