"""One bare training loop, timed, in its own process; `side_by_side` starts several at once.

python -m benchmarks.loop ours --precision bf16     # prints its figures as a line of JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import torch

LOOPS = ("ours", "blog", "matmul")
SIDE = 2048
"""Size of the square matrices whose product measures the machine's ceiling."""
HYPERPARAMETERS = {"lr": 0.001, "momentum": 0.5, "optimizer": "sgd"}
"""The baseline's hand-set ones, and its batch of 64."""


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-cuda-graph", dest="cuda_graph", action="store_false")
    parser.add_argument("--images", type=int, default=2560, help="training images of an epoch")
    parser.add_argument("--val-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1, help="measured after one of warm-up")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    return parser


def main() -> None:
    """Warm up, wait for a line on the standard input, measure the epochs."""
    args = _flags().parse_args()
    if args.loop == "matmul":
        begin = _matmul(args)
    elif args.loop == "ours":
        begin = _ours(args)
    else:
        begin = _blog(args)
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    figures = begin()
    figures["cpu_seconds"] = time.process_time() - before
    print(json.dumps(figures), flush=True)


def _ours(args: argparse.Namespace) -> Callable[[], dict[str, float]]:
    from tune_mnist.mnist.data import load_train_val
    from tune_mnist.mnist.hyperparameters import Hyperparameters
    from tune_mnist.mnist.training import Training, fit

    sizes = {"val_size": args.val_images, "train_size": args.images}
    train, validation = load_train_val("mnist", args.data_dir, **sizes)
    hyperparameters = Hyperparameters(epochs=1 + args.epochs)
    training = Training(hyperparameters, seed=0, device=args.device, precision=args.precision)
    epochs = fit(training, train, validation, cuda_graph=args.cuda_graph)
    next(epochs)  # the warm-up

    def measure() -> dict[str, float]:
        results = list(epochs)
        trained = sum(args.images / result.images_per_second for result in results)
        validated = sum(result.epoch_seconds for result in results) - trained
        return {
            "images_per_second": len(results) * args.images / trained,
            "validation_images_per_second": len(results) * args.val_images / validated,
        }

    return measure


def _blog(args: argparse.Namespace) -> Callable[[], dict[str, float]]:
    from benchmarks.contestants import common

    args.seed, args.val_size, args.train_size = 0, args.val_images, args.images
    train_loader, validation_loader = common.loaders(args)
    torch.manual_seed(0)
    model = common.Net().to(args.device)
    optimizer = common.make_optimizer(model, HYPERPARAMETERS)

    def epoch() -> tuple[float, float]:
        started = time.perf_counter()
        common.train_epoch(model, optimizer, train_loader, args.device)
        if args.device == "cuda":
            torch.cuda.synchronize()
        trained = time.perf_counter()
        common.accuracy(model, validation_loader, args.device)
        return trained - started, time.perf_counter() - trained

    def measure() -> dict[str, float]:
        trained, validated = map(sum, zip(*(epoch() for _ in range(args.epochs)), strict=True))
        return {
            "images_per_second": args.epochs * args.images / trained,
            "validation_images_per_second": args.epochs * args.val_images / validated,
        }

    epoch()  # the warm-up
    return measure


def _matmul(args: argparse.Namespace) -> Callable[[], dict[str, float]]:
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    left, right = (torch.randn(SIDE, SIDE, device=args.device).to(dtype) for _ in range(2))

    def products(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(left, right)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds = products(2) / 2
    count = max(3, round(2 / seconds))  # about two seconds
    return lambda: {"flops": 2 * SIDE**3 * count / products(count)}


def side_by_side(copies: int, flags: list[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run copies of a loop that measure at the same time; return the mean of their figures.

    Raises:
        RuntimeError: if one fails, with the last line of its output.
    """
    command = [sys.executable, "-m", "benchmarks.loop", *flags]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [
        subprocess.Popen(command, env=dict(environment), text=True, cwd=Path(__file__).parents[1], **pipes)
        for _ in range(copies)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # "ready", or nothing if it failed
        figures = []
        for process in processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # from a failed one, reported below
                process.stdin.write("\n")
                process.stdin.flush()
        for process in processes:
            out, error = process.communicate()
            if process.returncode:
                raise RuntimeError((error.strip().splitlines() or ["it was killed"])[-1])
            figures.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {key: mean(figure[key] for figure in figures) for key in figures[0]}


if __name__ == "__main__":
    main()
