"""Train the MNIST network once, without a search, and score it on the test set; or repeat a trial of a run.

python scripts/train.py --lr 0.001 --momentum 0.5 --optimizer sgd --epochs 1
python scripts/train.py --run runs/NAME --trial 3
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from tune_mnist.cli.parser import OneLineParser, add_flags, complain
from tune_mnist.mnist.data import DATASETS, load_test, load_train_val
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.precision import PRECISIONS
from tune_mnist.mnist.training import DivergedError, GraphCaptureError, Training, evaluate, fit


def main() -> int:
    """Train as the flags say; return the exit code."""
    if any(argument.partition("=")[0] == "--run" for argument in sys.argv[1:]):
        from tune_mnist.cli import repeat  # it imports what reads runs, which takes a second

        return repeat.main()
    parser = OneLineParser(description="Train an MNIST network once.")
    add_flags(parser, Hyperparameters)
    parser.add_argument("--dataset", default="mnist", choices=DATASETS)
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="filled when empty (default: data)"
    )
    parser.add_argument(
        "--train-size", type=int, help="training images (default: all but the validation part)"
    )
    parser.add_argument("--val-size", type=int, default=5000, help="images for validation (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--cuda-graph", choices=("on", "off"), default="on")
    parser.add_argument(
        "--run",
        metavar="RUN",
        help="repeat a trial of this run, of any task, with the trial's own seed, data and settings; "
        "--run RUN --help lists the few flags that it allows",
    )
    parser.add_argument("--trial", type=int, metavar="N", help="number of that trial")
    flags = parser.parse_args()
    if flags.trial is not None:
        parser.error(f"trial is {flags.trial}, but must be given with --run")
    try:
        names = [field.name for field in dataclasses.fields(Hyperparameters)]
        hyperparameters = Hyperparameters(**{name: getattr(flags, name) for name in names})
        training = Training(hyperparameters, seed=flags.seed, device=flags.device, precision=flags.precision)
        sizes = {"train_size": flags.train_size, "val_size": flags.val_size}
        train, validation = load_train_val(flags.dataset, flags.data_dir, seed=flags.seed, **sizes)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    try:
        for result in fit(training, train, validation, cuda_graph=flags.cuda_graph == "on"):
            print(
                f"epoch {result.epoch}: validation accuracy {result.accuracy:.2%}, "
                f"validation loss {result.val_loss:.4f}; "
                f"training loss {result.train_loss:.4f}; {result.epoch_seconds:.1f} s, "
                f"{result.images_per_second:,.0f} images/s",
                flush=True,
            )
    except DivergedError as error:
        return complain(f"error: {error}; a lower --lr may help", 1)
    except GraphCaptureError as error:
        return complain(f"error: {error}", 1)
    accuracy, loss = evaluate(training.model, load_test(flags.dataset, flags.data_dir))
    print(f"test accuracy {accuracy:.2%}, loss {loss:.4f}")
    return 0
