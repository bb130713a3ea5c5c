"""Syne Tune on its local backend: ASHA with its TPE-like searcher, which it calls BOHB, a worker a core.

As in its examples: a tuner that starts a training script anew for each trial. It has a virtual environment of
its own, which sees the packages of .venv (`install_syne_tune` in benchmarks/search.py). It polls every half a
second instead of every five, for which short epochs would have to wait.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.baselines import BOHB

from benchmarks.contestants import common


def main(args: argparse.Namespace) -> None:
    """Run the search."""
    config_space = {
        "lr": loguniform(1e-3, 1e-2),
        "momentum": uniform(0.4, 0.99),
        "optimizer": choice(["sgd", "rmsprop"]),
        "epochs": randint(min(3, args.max_epochs), args.max_epochs),
        "train_size": args.train_size,
        "val_size": args.val_size,
        "seed": args.seed,
        "data_dir": str(args.data_dir.resolve()),
        "log": str(args.log.resolve()),
        "device": "cuda" if args.gpus_per_trial else "cpu",
    }
    scheduler = BOHB(
        config_space,
        metric="accuracy",
        do_minimize=False,
        time_attr="epoch",
        max_t=args.max_epochs,
        random_seed=args.seed,
    )
    tuner = Tuner(
        trial_backend=LocalBackend(str(Path(__file__).parent / "syne_tune_script.py")),
        scheduler=scheduler,
        stop_criterion=StoppingCriterion(max_num_trials_finished=args.num_samples),
        n_workers=args.cores,
        sleep_time=0.5,
        results_update_interval=0.5,
        trial_backend_path=str(args.log.parent / "syne_tune"),
        tuner_name=args.log.stem.replace("_", "-"),
    )
    tuner.run()


if __name__ == "__main__":
    main(common.parse(__doc__))
