"""Ray Tune as its documentation shows it: a Tuner with OptunaSearch and ASHAScheduler over a function.

One core a trial, a fresh actor for each, Ray's defaults for the rest (reduction factor 4, and its loggers).
Each trial makes its own DataLoader, as in Ray's guide for PyTorch, which loads the data in the trainable.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.contestants import common


def train_mnist(config: dict[str, Any]) -> None:
    """Train one configuration, reporting each epoch."""
    args = config["args"]
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    train, validation = common.make_loaders(args.data_dir, args.train_size, args.val_size, args.seed)
    model = common.Net().to("cuda" if args.gpus_per_trial else "cpu")
    optimizer = common.make_optimizer(model, config["optimizer"], config["lr"], config["momentum"])
    for epoch in range(1, config["epochs"] + 1):
        common.train_epoch(model, optimizer, train)
        accuracy = common.accuracy_of(model, validation)
        common.log(args.log, tune.get_context().get_trial_id(), epoch, accuracy)
        tune.report({"accuracy": accuracy})


def main() -> None:
    """Run the search."""
    args = common.parse(__doc__)
    args.data_dir, args.log = args.data_dir.resolve(), args.log.resolve()
    root = Path(__file__).parents[2]
    ray.init(num_cpus=args.cores, runtime_env={"env_vars": {"PYTHONPATH": str(root)}})
    resources = {"cpu": 1, "gpu": args.gpus_per_trial}
    tuner = tune.Tuner(
        tune.with_resources(train_mnist, resources),
        param_space={
            "lr": tune.loguniform(1e-3, 1e-2),
            "momentum": tune.uniform(0.4, 0.99),
            "optimizer": tune.choice(["sgd", "rmsprop"]),
            "epochs": tune.randint(min(3, args.max_epochs), args.max_epochs + 1),
            "args": args,
        },
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=args.num_samples,
            search_alg=OptunaSearch(seed=args.seed),
            scheduler=ASHAScheduler(max_t=args.max_epochs),
        ),
        run_config=tune.RunConfig(
            name=args.log.stem, storage_path=os.fspath(args.log.parent / "ray_results"), verbose=1
        ),
    )
    print(tuner.fit().get_best_result().metrics)


if __name__ == "__main__":
    main()
