"""An existing Ray Tune function, unchanged, with its space in Ray's terms.

python scripts/tune.py --trainable examples/ray_function.py:train --space examples/ray_function.py:SPACE \
    --metric loss --mode min --max-epochs 20
"""

import json
import tempfile
from pathlib import Path

from ray import tune

SPACE = {
    "lr": tune.loguniform(1e-3, 1.0),
    "momentum": tune.uniform(0.0, 0.99),
    "start": tune.choice([1.0, 2.0]),
    "steps": 20,  # a constant
}


def train(config):
    """Descend a parabola, and report the height after each step."""
    x, speed, first = config["start"], 0.0, 1
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as directory:
            x, speed, first = json.loads((Path(directory) / "state.json").read_text())
    for step in range(first, config["steps"] + 1):
        speed = config["momentum"] * speed - config["lr"] * 2 * x
        x += speed
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "state.json").write_text(json.dumps([x, speed, step + 1]))
            tune.report({"loss": x**2}, checkpoint=tune.Checkpoint.from_directory(directory))
