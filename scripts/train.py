"""Train the MNIST network once, without a search, and score it on the test set; or repeat a trial of a run.

python scripts/train.py --lr 0.001 --momentum 0.5 --optimizer sgd --epochs 1
python scripts/train.py --run runs/NAME --trial 3
"""

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C must not print a traceback)
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)

from tune_mnist.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
