"""Train the best configurations of a search again, choose one on validation, test it, and write the model.

python scripts/finalize.py runs/NAME
python scripts/finalize.py s3://BUCKET/runs/NAME --top-k 3 --seeds 5
"""

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C must not print a traceback)
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)

from tune_mnist.cli.finalize import main

if __name__ == "__main__":
    sys.exit(main())
