"""Search the hyper-parameters of a training loop with Ray Tune, Optuna and ASHA.

python scripts/tune.py --num-samples 64 --gpus-per-trial 0.5
python scripts/tune.py --resume RUN
"""

from __future__ import annotations

from tune_mnist.cli.console import SearchConsole
from tune_mnist.cli.flags import parse_settings
from tune_mnist.cli.parser import complain
from tune_mnist.cli.summary import exit_code, print_summary
from tune_mnist.cluster.address import ClusterError
from tune_mnist.results.winner import ScoringError
from tune_mnist.run.folder import FolderError
from tune_mnist.run.resuming import ResumeRequest
from tune_mnist.tuning import tuner


def main() -> int:
    """Search, or resume a search, as the flags say; return the exit code."""
    asked = parse_settings(description="Search the hyper-parameters of a training loop.")
    with SearchConsole() as console:
        try:
            if isinstance(asked, ResumeRequest):
                outcome = tuner.resume(asked, console)
            else:
                outcome = tuner.run(asked, console)
        except (tuner.InputError, FolderError, ClusterError, ScoringError) as error:
            console.live.stop()
            return complain(f"error: {error}", 2 if isinstance(error, tuner.InputError) else 1)
    if outcome is None:
        assert isinstance(asked, ResumeRequest)  # a new search has something to do
        console.console.print("The run has finished; there is nothing to resume, and nothing was changed.")
        return 0 if tuner.load_run(asked.run).winner else 1
    print_summary(console.console, outcome)
    return exit_code(outcome)
