"""Recognise the digits in images with the model that finalize.py wrote.

python scripts/predict.py runs/NAME/best/model.pt2 IMAGE.png t10k-images-idx3-ubyte.gz
"""

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C must not print a traceback)
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)

from tune_mnist.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
