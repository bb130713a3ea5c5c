"""Ray Tune as its documentation shows it, with trials that report once and return: its own overhead.

python -m benchmarks.contestants.ray_nothing FOLDER 20 SECONDS  # prints the times of its reports as JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch


def report_once(config: dict[str, Any]) -> None:
    """Do nothing, and report when."""
    tune.report({"accuracy": config["lr"], "at": time.time()})


def main() -> None:
    """Run the trials, within a time limit."""
    folder, trials, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    tuner = tune.Tuner(
        report_once,
        param_space={"lr": tune.loguniform(1e-3, 1e-2), "momentum": tune.uniform(0.4, 0.99)},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(),
            scheduler=ASHAScheduler(),
            num_samples=trials,
            max_concurrent_trials=2,
            time_budget_s=seconds,
        ),
        run_config=tune.RunConfig(name="nothing", storage_path=str(folder), verbose=0),
    )
    grid = tuner.fit()
    metrics = [grid[number].metrics or {} for number in range(len(grid))]
    at = sorted(one["at"] for one in metrics if "at" in one)
    print(json.dumps(at))


if __name__ == "__main__":
    main()
