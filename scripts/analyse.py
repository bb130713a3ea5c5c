"""Show the outcome of a run, ended or not: on the console, as tables and as one page; or compare runs.

python scripts/analyse.py runs/NAME
python scripts/analyse.py s3://BUCKET/runs/NAME --out NAME
python scripts/analyse.py runs/NAME1 runs/NAME2
"""

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C must not print a traceback)
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)

from tune_mnist.cli.analyse import main

if __name__ == "__main__":
    sys.exit(main())
