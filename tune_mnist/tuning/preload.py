"""Imports what a trial with torch needs, in a worker process that waits for its first trial.

A worker imports this before Ray assigns it a GPU, so nothing here may touch CUDA: the process would see all
GPUs from then on.
"""

from __future__ import annotations

import torch

import tune_mnist.tuning.trainable  # noqa: F401 (Ray Tune: 1 s)

torch.optim.SGD(
    [torch.zeros(1, requires_grad=True)]
)  # torch imports torch._dynamo for its first optimizer: 1 s
