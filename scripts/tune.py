"""Search the hyper-parameters of the MNIST network with Ray Tune, Optuna and ASHA.

python scripts/tune.py --num-samples 64 --gpus-per-trial 0.5
"""

from __future__ import annotations

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C shall not print a traceback)
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)

from tune_mnist import results, tuner
from tune_mnist.console import SearchConsole, exit_code, print_summary
from tune_mnist.settings import parse_settings


def main() -> int:
    """Search as the flags say; return the exit code."""
    sys.path.append(str(Path.cwd()))  # where a --space of one's own lies
    settings = parse_settings(description="Search the hyper-parameters of an MNIST network.")
    with SearchConsole() as console:
        try:
            outcome = tuner.run(settings, console)
        except tuner.InputError as error:
            console.live.stop()
            print(f"tune.py: error: {error}", file=sys.stderr)
            return 2
    results.write_tables(outcome.grid, outcome.run_dir)
    print_summary(console.console, outcome)
    return exit_code(outcome)


if __name__ == "__main__":
    sys.exit(main())
