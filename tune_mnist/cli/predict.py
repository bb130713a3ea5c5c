"""Recognise the digits in images with the model that finalize.py wrote.

python scripts/predict.py runs/NAME/best/model.pt2 IMAGE.png t10k-images-idx3-ubyte.gz
"""

from __future__ import annotations

import signal
from pathlib import Path

if hasattr(signal, "SIGPIPE"):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head -1` ends it

import numpy as np
import torch

from tune_mnist.cli.parser import OneLineParser
from tune_mnist.mnist.export import quiet_load
from tune_mnist.mnist.images import INVERT, ImageError, NamedImage, read_images

BATCH = 250
"""Images that are classified at once."""


def main() -> int:
    """Classify images as the flags say; return the exit code."""
    parser = OneLineParser(description="Print the digit in each image, and how probable the model finds it.")
    parser.add_argument("model", type=Path, metavar="MODEL", help="best/model.pt2 of a run")
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="a picture of a digit (PNG and others, grey or colour), or IDX images, plain or .gz",
    )
    parser.add_argument(
        "--invert",
        choices=INVERT,
        default="auto",
        help="whether pictures are dark on light, unlike MNIST's (default: auto, by the brightness of the "
        "border)",
    )
    flags = parser.parse_args()
    try:
        model = quiet_load(flags.model.read_bytes())
        images = [image for path in flags.images for image in read_images(path, invert=flags.invert)]
    except OSError as error:
        parser.error(f"{flags.model} can't be read: {error.strerror}")
    except ImageError as error:
        parser.error(str(error))
    except ValueError as error:
        parser.error(f"{flags.model} can't be used: {error}")
    for start in range(0, len(images), BATCH):
        print_digits(model, images[start : start + BATCH])
    return 0


def print_digits(model: torch.nn.Module, images: list[NamedImage]) -> None:
    """Print a line for each image: its name, the digit, the probability, and what was done to the image."""
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(np.stack([image.pixels for image in images]))).exp()
    for image, probability, digit in zip(images, *probabilities.max(dim=1), strict=True):
        note = f"  ({image.note})" if image.note else ""
        print(f"{image.name}  {int(digit)}  {float(probability):.2%}{note}")
