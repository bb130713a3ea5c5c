"""The blog's study: Optuna alone, one trial after the other, each to its end; the study pickled afterwards.

Torch has all cores for the one trial. Optuna's defaults; the momentum that it draws reaches the optimizer.
"""

from __future__ import annotations

import pickle

import optuna
import torch

from benchmarks.contestants import common

args = common.parse(__doc__)
torch.set_num_threads(args.cores)
device = "cuda" if args.gpus_per_trial else "cpu"
train, validation = common.make_loaders(args.data_dir, args.train_size, args.val_size, args.seed)


def objective(trial: optuna.Trial) -> float:
    """Train one configuration; give its accuracy after the last epoch."""
    lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
    momentum = trial.suggest_float("momentum", 0.4, 0.99)
    optimizer_name = trial.suggest_categorical("optimizer", ["sgd", "rmsprop"])
    epochs = trial.suggest_int("epochs", min(3, args.max_epochs), args.max_epochs)
    model = common.Net().to(device)
    optimizer = common.make_optimizer(model, optimizer_name, lr, momentum)
    accuracy = 0.0
    for epoch in range(1, epochs + 1):
        common.train_epoch(model, optimizer, train)
        accuracy = common.accuracy_of(model, validation)
        common.log(args.log, trial.number, epoch, accuracy)
    return accuracy


torch.manual_seed(args.seed)
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
study.optimize(objective, n_trials=args.num_samples)
args.log.with_suffix(".pkl").write_bytes(pickle.dumps(study))
print(study.best_trial)
