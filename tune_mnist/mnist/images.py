"""Reads images to be classified, in the form of MNIST's: white ink on black, 28x28."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

SIDE = 28
INK_SIDE = 20
"""Longest side of the ink's box in MNIST, whose makers scaled it to that, then centred the ink's mass."""
INVERT = ("auto", "yes", "no")
IDX_IMAGES, IDX_LABELS = b"\x00\x00\x08\x03", b"\x00\x00\x08\x01"
"""First bytes of IDX files of bytes in three dimensions, and in one."""

Pixels = npt.NDArray[np.uint8]


class ImageError(ValueError):
    """A file cannot be read as images; the text is one line that names it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedImage:
    """An image to classify."""

    name: str
    "Its file, with its index if the file has many."
    pixels: Pixels
    "[28, 28], 0 (background) to 255 (ink)."
    note: str = ""
    "What was done to it, in words."


def read_images(path: Path, *, invert: str = "auto") -> Iterator[NamedImage]:
    """Read a file: a PNG or another picture that Pillow knows, or the images of an IDX file, plain or .gz.

    A picture of 28x28 is taken as it is, any other is brought to MNIST's form. A bright border means dark ink
    on a light background, and the picture is inverted; an IDX file's images are left as they are.

    Args:
        path: the file.
        invert: auto, or yes or no for all images.

    Raises:
        ImageError: if it cannot be read as images.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path} can't be read: {reason}") from error
    if content[:4] == IDX_LABELS:
        raise ImageError(f"{path} is an IDX file of labels, but must be one of images")
    if content[:4] == IDX_IMAGES:
        for index, pixels in enumerate(_idx_images(path, content)):
            pixels = 255 - pixels if invert == "yes" else pixels
            yield NamedImage(name=f"{path}[{index}]", pixels=pixels)
        return
    pixels = _grey(path, content)
    notes = []
    if invert == "yes" or (invert == "auto" and _border(pixels) > 127):
        pixels = 255 - pixels
        notes.append("inverted")
    if pixels.shape != (SIDE, SIDE):
        height, width = pixels.shape
        notes.append(f"resized from {width}x{height}")
        pixels = to_mnist_form(pixels)
    yield NamedImage(name=str(path), pixels=pixels, note=", ".join(notes))


def to_mnist_form(pixels: Pixels) -> Pixels:
    """Bring an image of any size (uint8, ink bright) to 28x28, as MNIST's were made.

    The background is subtracted; the ink's box is scaled to 20 pixels at its longest side, and placed so that
    the ink's centre of mass is within half a pixel of (14, 14), counted from 0.
    """
    ground = int(_border(pixels))
    ink = np.clip((pixels.astype(np.float32) - ground) * (255 / max(255 - ground, 1)), 0, 255)
    strong = ink > max(0.25 * float(ink.max()), 8.0)  # paler: noise of a camera, or a shadow
    if not strong.any():
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
    rows, columns = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    scale = INK_SIDE / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    small = np.asarray(Image.fromarray(box).resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    small *= 255 / max(float(small.max()), 1.0)  # thin lines fade when they shrink
    mass = small / small.sum()
    at_row = float((mass.sum(axis=1) * np.arange(height)).sum())
    at_column = float((mass.sum(axis=0) * np.arange(width)).sum())
    top = min(max(round(SIDE / 2 - at_row), 0), SIDE - height)
    left = min(max(round(SIDE / 2 - at_column), 0), SIDE - width)
    canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = small.round().astype(np.uint8)
    return canvas


def _idx_images(path: Path, content: bytes) -> Pixels:
    if len(content) < 16:
        raise ImageError(f"{path} is a truncated IDX file")
    count, *sides = (int(number) for number in np.frombuffer(content, ">i4", count=3, offset=4))
    if sides != [SIDE, SIDE]:
        raise ImageError(f"{path} has images of {sides[0]}x{sides[1]}, but an IDX file's must be 28x28")
    if len(content) != 16 + count * SIDE * SIDE:
        raise ImageError(
            f"{path} has {len(content)} bytes, but {count} images must have {16 + count * SIDE * SIDE}"
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, SIDE, SIDE)


def _grey(path: Path, content: bytes) -> Pixels:
    """Read a picture as grey levels [height, width]; transparent parts are white, like paper."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            image: Any = ImageOps.exif_transpose(picture)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                return (np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
            if image.has_transparency_data:
                paper = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(paper, image.convert("RGBA"))
            return np.asarray(image.convert("L"), dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is neither a picture nor an IDX file of images") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} can't be read: {str(error).partition(chr(10))[0]}") from error


def _border(pixels: Pixels) -> float:
    """Measure the brightness of the background: the median of the outermost pixels."""
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return float(np.median(np.concatenate(edges)))
