"""The baseline, a blog post's study: Optuna alone, one trial after the other, each in full on all cores.

Rewritten from the post's description: a small CNN for MNIST, torchvision's data set with ToTensor and
Normalize in a DataLoader, TPE over lr, momentum, optimizer and epochs, the study pickled at the end. One
thing is improved: momentum reaches the optimizer.

python -m benchmarks.contestants.blog --num-samples 20 --max-epochs 5 --train-size 55000 --val-size 5000 \
    --seed 0 --data-dir data --log epochs.jsonl
"""

from __future__ import annotations

import pickle

import optuna
import torch

from benchmarks.contestants import common


def main() -> None:
    """Search."""
    args = common.flags(__doc__).parse_args()
    torch.set_num_threads(args.cores)  # torch's default if it may use the whole machine

    def objective(trial: optuna.Trial) -> float:
        epochs = list(common.train(args, common.suggest(trial, args.max_epochs), trial.number))
        _, reached = epochs[-1]
        return reached

    # Optuna's default sampler, with a seed: https://optuna.readthedocs.io/en/stable/tutorial/10_key_features/
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
    study.optimize(objective, n_trials=args.num_samples)
    args.log.with_name("study.pkl").write_bytes(pickle.dumps(study))
    print(study.best_trial)


if __name__ == "__main__":
    main()
