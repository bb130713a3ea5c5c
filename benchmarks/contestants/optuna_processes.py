"""What an Optuna user would do next: one process per core on a shared journal, bad trials pruned.

After Optuna's tutorial "Easy Parallelization", multi-process optimization with JournalStorage
(optuna.readthedocs.io/en/stable/tutorial/10_key_features/004_distributed.html), and its tutorial on pruning,
with the pruner that does asynchronous successive halving.

python -m benchmarks.contestants.optuna_processes --num-samples 20 --max-epochs 5 --train-size 55000 \
    --val-size 5000 --seed 0 --data-dir data --log epochs.jsonl
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.contestants import common

NAME = "mnist"


def work(args: argparse.Namespace, journal: Path, budget: Any, worker: int) -> None:
    """Run trials, in a separate process, until the budget is spent."""
    torch.set_num_threads(1)  # the processes fill the cores; with more, threads would wait for each other

    def objective(trial: optuna.Trial) -> float:
        reached = 0.0
        for epoch, reached in common.train(args, common.suggest(trial, args.max_epochs), trial.number):
            trial.report(reached, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return reached

    study = optuna.load_study(
        study_name=NAME,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        # Each process needs its own seed, or all would draw the same. The constant liar, which keeps
        # processes apart, is Optuna 5's default.
        sampler=optuna.samplers.TPESampler(seed=1000 * args.seed + worker),
        # Optuna's Hyperband, its other pruner of this kind, needs more trials than these for its brackets.
        # The first rung is one epoch. Its docs ask for min_resource if the last step varies, as it does here
        # (3 to 5 epochs); a reduction factor of 4 is its default.
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
    )
    # One trial at a time from a common budget: with Optuna's MaxTrialsCallback two processes may both begin
    # the last one, and with a fixed number each, one would idle at the end.
    while budget.acquire(block=False):
        study.optimize(objective, n_trials=1)


def main() -> None:
    """Search."""
    args = common.flags(__doc__).parse_args()
    journal = args.log.with_name("study.journal")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(study_name=NAME, direction="maximize", storage=storage)
    context = multiprocessing.get_context("spawn")
    budget = context.Semaphore(args.num_samples)
    processes = [
        context.Process(target=work, args=(args, journal, budget, worker))
        for worker in range(min(common.workers(args), args.num_samples))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise SystemExit(f"a worker ended with exit code {failed[0]}")
    print(study.best_trial)


if __name__ == "__main__":
    main()
