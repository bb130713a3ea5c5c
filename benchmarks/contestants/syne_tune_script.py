"""The script that Syne Tune starts for each trial: its configuration comes as flags, epochs are reported."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from syne_tune import Reporter

from benchmarks.contestants import common

parser = argparse.ArgumentParser()
for name, kind in {"lr": float, "momentum": float, "epochs": int, "seed": int}.items():
    parser.add_argument(f"--{name}", type=kind, required=True)
for name in ("train_size", "val_size"):
    parser.add_argument(f"--{name}", type=int, required=True)
for name in ("optimizer", "data_dir", "log", "device"):
    parser.add_argument(f"--{name}", required=True)
args, _ = parser.parse_known_args()  # the backend adds flags of its own

torch.set_num_threads(1)
torch.manual_seed(args.seed)
report = Reporter()
train, validation = common.make_loaders(Path(args.data_dir), args.train_size, args.val_size, args.seed)
model = common.Net().to(args.device)
optimizer = common.make_optimizer(model, args.optimizer, args.lr, args.momentum)
for epoch in range(1, args.epochs + 1):
    common.train_epoch(model, optimizer, train)
    accuracy = common.accuracy_of(model, validation)
    common.log(Path(args.log), os.getpid(), epoch, accuracy)  # a process a trial
    report(epoch=epoch, accuracy=accuracy)
