"""The outcome of a run as a ResultGrid and as pandas frames."""

from tune_mnist.results.frames import EPOCHS_TABLE, TRIALS_TABLE, epochs_frame, trials_frame, write_tables
from tune_mnist.results.grid import load_grid as load

__all__ = ["EPOCHS_TABLE", "TRIALS_TABLE", "epochs_frame", "load", "trials_frame", "write_tables"]
