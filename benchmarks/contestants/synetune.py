"""Syne Tune with its local backend: ASHA with configurations proposed by its quantile regression (CQR).

After Syne Tune's README, "Running Syne Tune on your python script": a script that reports after each epoch
(synetune_trial.py) and this launcher. (Not named syne_tune: the script, whose folder comes first in Python's
path, would import the launcher instead of the package.) Of its methods with ASHA and a model, this one uses
the model within 20 trials, from the sixth on: its BOHB fits none to fewer than 34 trials of four parameters.

PYTHONPATH=.:.venv/syne-tune python -m benchmarks.contestants.synetune --num-samples 20 --max-epochs 5 \
    --train-size 55000 --val-size 5000 --seed 0 --data-dir data --log epochs.jsonl
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from syne_tune import Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.baselines import ASHACQR

from benchmarks.contestants import common


class Budgeted(ASHACQR):  # type: ignore[misc]
    """ASHACQR that proposes a fixed number of trials.

    A stopping criterion is checked after all free workers have got a trial, and would start one too many if
    two become free at once.
    """

    left: int

    def suggest(self) -> Any:
        """Propose a trial, or None when the budget is spent; the tuner then awaits the running ones."""
        self.left -= 1
        return super().suggest() if self.left >= 0 else None


def main() -> None:
    """Search."""
    args = common.flags(__doc__).parse_args()
    # A trial is a process on one core.
    os.environ["OMP_NUM_THREADS"] = "1"
    np.random.seed(args.seed)  # its model draws from NumPy's global state, whatever random_seed is
    os.environ["SYNETUNE_FOLDER"] = str(args.log.parent / "syne-tune")
    low, high = common.epochs_range(args.max_epochs)
    constants = {name.replace("_", "-"): value for name, value in vars(args).items()}
    scheduler = Budgeted(
        {
            "lr": loguniform(*common.LR),
            "momentum": uniform(*common.MOMENTUM),
            "optimizer": choice(list(common.OPTIMIZERS)),
            "epochs": randint(low, high),
            **{name: str(value) if isinstance(value, Path) else value for name, value in constants.items()},
        },
        # Its defaults are a grace period of 1 and a reduction factor of 3; max_t must be given.
        metric="accuracy",
        do_minimize=False,
        time_attr="epoch",
        max_t=args.max_epochs,
        random_seed=args.seed,
    )
    scheduler.left = args.num_samples
    Tuner(
        trial_backend=LocalBackend(
            entry_point=str(Path(__file__).with_name("synetune_trial.py")), rotate_gpus=False
        ),
        scheduler=scheduler,
        stop_criterion=lambda status: False,  # the scheduler ends it
        n_workers=common.workers(args),
        # The tuner checks its trials every 5 seconds by default: long for an epoch of a minute.
        sleep_time=1.0,
    ).run()


if __name__ == "__main__":
    main()
