"""What an Optuna user would do next: a process a core, all on one study in a journal file, with pruning.

As in Optuna's tutorials on parallel optimization (processes that load one study by name) and on pruners. The
pruner is its asynchronous successive halving, ASHA, with Optuna's defaults but for the least resource: one
epoch, as for all contestants.
"""

from __future__ import annotations

import multiprocessing

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback

from benchmarks.contestants import common

args = common.parse(__doc__)
storage_file = args.log.with_suffix(".journal")
device = "cuda" if args.gpus_per_trial else "cpu"


def work(number: int) -> None:
    """Run trials in one process, on one core, until the study has as many as were asked for."""
    torch.set_num_threads(1)
    torch.manual_seed(1000 * args.seed + number)
    train, validation = common.make_loaders(args.data_dir, args.train_size, args.val_size, args.seed)

    def objective(trial: optuna.Trial) -> float:
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
            trial.report(accuracy, epoch)
            if epoch < epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    study = optuna.create_study(
        study_name="blog",
        storage=JournalStorage(JournalFileBackend(str(storage_file))),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1000 * args.seed + number),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
        load_if_exists=True,
    )
    study.optimize(objective, callbacks=[MaxTrialsCallback(args.num_samples, states=None)])


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(number,)) for number in range(args.cores)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)
