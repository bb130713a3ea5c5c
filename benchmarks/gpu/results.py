"""Writes the rows of a folder as parquet, with the machine's columns; on a GPU also to benchmarks/results.

python -m benchmarks.gpu.results gpu-out    # also after a killed run
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks import measure
from benchmarks.gpu.output import Output


def main() -> int:
    """Read the rows, write the parquet, print its path."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, default=measure.RESULTS, help="folder of the raw results")
    args = parser.parse_args()
    output = Output(args.folder)
    rows = output.rows()
    if not rows:
        parser.error(f"folder is {args.folder}, but there are no rows in it")
    frame = pd.DataFrame([{**row, "figures": json.dumps(row["figures"])} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        on_gpu = bool((frame["device"] == "cuda").any())
        path = measure.write("gpu", frame, args.results if on_gpu else Path(folder))
        shutil.copyfile(path, output.parquet_file)
    print(path if on_gpu else output.parquet_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
