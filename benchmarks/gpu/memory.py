"""Step `memory`: trials with too small a fraction, or on a full card, say so in one clear sentence.

python -m benchmarks.gpu.memory too-small data    # the trial, in a separate process
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.step import Setup, StepError
from tune_mnist.mnist.data import load_train_val
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.training import Training, fit
from tune_mnist.tuning.device import DeviceMemoryError, device_memory_errors

SENTENCE = (
    r"the GPU has no memory left for this trial, which has a fraction of 0\.25: ask for --gpus-per-trial 0\.5"
)
FRACTION = 0.25
"""Of the GPU, that the trials believe they have."""
TOO_SMALL_BYTES = 48 * 2**20
"""The trial's limit: the images alone need more."""
LEFT_BYTES = {"full": 400 * 2**20, "fuller": 1200 * 2**20}
"""Free on the full card: too little for CUDA's context, and enough for that but not for the training."""
TRIAL_SECONDS = 30.0
NO_ERROR = "the trial has trained, though its memory should have been too small"


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield the sentence of each trial.

    Raises:
        StepError: if one is not the expected sentence.
    """
    sentences = {"too small a fraction": _sentence("too-small", setup.data_dir)}
    yield dict(sentences)
    for name, left in LEFT_BYTES.items():
        ballast = _fill_but(left)
        sentences[f"{name} card"] = _sentence("full", setup.data_dir)
        yield {f"{name} card": sentences[f"{name} card"]}
        del ballast
        torch.cuda.empty_cache()
    wrong = [name for name, sentence in sentences.items() if not re.fullmatch(SENTENCE, sentence)]
    if wrong:
        raise StepError(f"not the expected sentence: {', '.join(wrong)}")


def _fill_but(left: int) -> torch.Tensor:
    """Fill the GPU's memory except for some bytes."""
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(0, free - left), dtype=torch.uint8, device="cuda")


def _sentence(case: str, data_dir: Path) -> str:
    """Run a trial in a separate process; return the last line of its output."""
    command = [sys.executable, "-m", "benchmarks.gpu.memory", case, str(data_dir)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"not done after {TRIAL_SECONDS:.0f} s"
    print(done.stdout)  # for the log
    return (done.stdout.strip().splitlines() or [f"nothing, exit code {done.returncode}"])[-1]


def main() -> None:
    """Train as a trial does, and print the text of its error."""
    case, data_dir = sys.argv[1:]
    train, validation = load_train_val("mnist", Path(data_dir), val_size=5000)
    try:
        with device_memory_errors(FRACTION):
            if case == "too-small":
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(TOO_SMALL_BYTES / total)
            training = Training(Hyperparameters(epochs=1, shift=2, batch_size=4096), seed=0, device="cuda")
            for _ in fit(training, train, validation):
                pass
    except DeviceMemoryError as error:
        print(error)
    else:
        print(NO_ERROR)


if __name__ == "__main__":
    main()
