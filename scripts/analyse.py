"""Print what a run has come to: one that has ended, was stopped or killed, or is still running.

python scripts/analyse.py runs/NAME
python scripts/analyse.py s3://BUCKET/runs/NAME
"""

from __future__ import annotations

import sys

from tune_mnist import tuner
from tune_mnist.console import PatientConsole
from tune_mnist.folder import FolderError
from tune_mnist.settings import OneLineParser
from tune_mnist.summary import print_summary


def main() -> int:
    """Look at a run as the flags say; return the exit code."""
    parser = OneLineParser(description="Print what a run has come to.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="its folder, or its URI such as s3://BUCKET/runs/NAME")
    try:
        outcome = tuner.look(parser.parse_args().run)
    except (FolderError, ValueError) as error:
        parser.error(str(error))
    print_summary(PatientConsole(highlight=False, soft_wrap=not sys.stdout.isatty()), outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
