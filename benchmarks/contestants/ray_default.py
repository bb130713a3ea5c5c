"""Ray Tune as its documentation shows it: OptunaSearch, ASHA, a function with a DataLoader.

After docs.ray.io, "Getting Started with Ray Tune" and its examples mnist_pytorch and optuna_example: a
trainable function that makes its own loaders and reports after each epoch, one CPU per trial, Ray's defaults
for everything else.

python -m benchmarks.contestants.ray_default --num-samples 20 --max-epochs 5 --train-size 55000 \
    --val-size 5000 --seed 0 --data-dir data --log epochs.jsonl
"""

from __future__ import annotations

import argparse
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.contestants import common


def train_mnist(config: dict[str, Any], args: argparse.Namespace) -> None:
    """Train one configuration, as the trial of a fresh actor."""
    # Ray sets OMP_NUM_THREADS to a trial's CPUs, so that torch has one thread here.
    for _, reached in common.train(args, config, tune.get_context().get_trial_id()):
        tune.report({"accuracy": reached})


def main() -> None:
    """Search."""
    args = common.flags(__doc__).parse_args()
    args.data_dir, args.log = args.data_dir.absolute(), args.log.absolute()  # trials run in other folders
    ray.init(num_cpus=args.cores)
    low, high = common.epochs_range(args.max_epochs)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train_mnist, args=args),
            {"cpu": 1, "gpu": args.gpus_per_trial if args.device == "cuda" else 0},
        ),
        param_space={
            "lr": tune.loguniform(*common.LR),
            "momentum": tune.uniform(*common.MOMENTUM),
            "optimizer": tune.choice(common.OPTIMIZERS),
            "epochs": tune.randint(low, high + 1),
        },
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=args.num_samples,
            max_concurrent_trials=common.workers(args),  # else each suggestion is made a trial too early
            search_alg=OptunaSearch(seed=args.seed),
            # Its defaults are a grace period of 1 and a reduction factor of 4; max_t must be given.
            scheduler=ASHAScheduler(max_t=args.max_epochs),
        ),
        run_config=tune.RunConfig(storage_path=str(args.log.parent / "ray_results"), name="mnist"),
    )
    print(tuner.fit().get_best_result())


if __name__ == "__main__":
    main()
