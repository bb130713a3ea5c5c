"""Search the hyper-parameters of a training loop with Ray Tune, Optuna and ASHA.

python scripts/tune.py --num-samples 64 --gpus-per-trial 0.5
python scripts/tune.py --resume RUN
"""

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C must not print a traceback)
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)

from tune_mnist.cli.search import main

if __name__ == "__main__":
    sys.exit(main())
