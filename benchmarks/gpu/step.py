"""The process of one step: runs it, and prints its figures as JSON lines as soon as it has them.

python -m benchmarks.gpu.step probe --device cpu
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.output import Output
from benchmarks.gpu.plan import PLAN
from benchmarks.gpu.runner import SKIPPED


class StepError(RuntimeError):
    """A verdict: the measured value is not the required one; the text states both."""


class SkippedError(RuntimeError):
    """The step cannot be run on this machine; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a step is run with."""

    device: str
    "cuda or cpu; on a CPU a step does the same in miniature."
    data_dir: Path
    "Where MNIST is."
    output: Output
    "Where the profile goes."

    @property
    def on_gpu(self) -> bool:
        """Whether this runs on a GPU, not as a rehearsal."""
        return self.device == "cuda"


def main() -> int:
    """Run a step; return 0 if it passed or was skipped, else 1 with the reason in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PLAN)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    args = parser.parse_args()
    # A program that a shell starts in the background ignores SIGINT, and so does all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    setup = Setup(device=args.device, data_dir=args.data_dir, output=Output(args.out))
    planned = PLAN[args.name]
    try:
        if planned.needs_cuda and not setup.on_gpu:
            raise SkippedError("no CUDA")
        module = importlib.import_module(f"benchmarks.gpu.{planned.module}")
        for figures in module.run(setup, **planned.options):
            print(json.dumps(figures), flush=True)
    except SkippedError as reason:
        print(json.dumps({SKIPPED: str(reason)}), flush=True)
    except StepError as verdict:
        print(verdict, file=sys.stderr)
        return 1
    except Exception as error:  # CUDA's have several lines, of which the first says what
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # This file is run as __main__: the exceptions that the steps raise must be those that it catches.
    from benchmarks.gpu import step

    sys.exit(step.main())
