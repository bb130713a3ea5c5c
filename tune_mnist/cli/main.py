"""The command `tune-mnist`, which does what the scripts do.

tune-mnist search --num-samples 64 --gpus-per-trial 0.5
"""

from __future__ import annotations

# ruff: noqa: E402 (the imports take seconds, in which Ctrl-C must not print a traceback)
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib
import sys

COMMANDS = {
    "search": "search hyper-parameters, or resume a search",
    "analyse": "show the outcome of a run, or compare runs",
    "finalize": "train the best configurations again, choose one, test it, and write the model",
    "train": "train one configuration of mnist, or a trial of any run again",
    "predict": "recognise the digits in images",
}


def main() -> int:
    """Run the named command; return its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: tune-mnist COMMAND ...  (COMMAND --help lists its flags)\n")
        print("\n".join(f"  {command:<10} {text}" for command, text in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(
            f"tune-mnist: error: the command is {name}, but must be one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    sys.argv[:2] = [f"tune-mnist {name}"]
    code: int = importlib.import_module(f"tune_mnist.cli.{name}").main()
    return code
