"""predict.py: pictures and IDX files as people have them, and its errors for other files."""

import gzip
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SCRIPTS, WarmRunner
from tests.mnist.test_data import idx
from tune_mnist.mnist.data import Split, load_test, load_train_val
from tune_mnist.mnist.export import export_network
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.mnist.images import ImageError, Pixels, read_images, to_mnist_form
from tune_mnist.mnist.model import Network
from tune_mnist.mnist.training import Training, evaluate, fit


@pytest.fixture(scope="module")
def model(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    hyperparameters = Hyperparameters(optimizer="adam", lr=0.002, momentum=0.9, epochs=1)
    train, validation = load_train_val("mnist", mnist_dir, train_size=4096, val_size=250)
    training = Training(hyperparameters, seed=0)
    list(fit(training, train, validation))
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    path.write_bytes(export_network(training.model))
    return path


@pytest.fixture(scope="module")
def test_set(mnist_dir: Path) -> Split:
    return load_test("mnist", mnist_dir)


def predict(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script, which must exit with 0 and import no more than it needs."""
    flags = [str(SCRIPTS / "predict.py"), *map(str, arguments)]
    program = (
        f"import runpy, sys; sys.argv = {flags!r}\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'ray', 'optuna', 'pandas', 'torchvision'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def pixels_of(path: Path, invert: str = "auto") -> Pixels:
    (image,) = read_images(path, invert=invert)
    return image.pixels


def test_pictures_and_idx_files_are_classified_alike(model: Path, test_set: Split, tmp_path: Path) -> None:
    images = test_set.images[:20].numpy()
    (tmp_path / "some.gz").write_bytes(gzip.compress(idx(images)))
    for index, image in enumerate(images[:3]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    Image.fromarray(255 - images[0]).resize((280, 280)).save(tmp_path / "large.png")
    names = [*(f"{index}.png" for index in range(3)), "large.png", "some.gz"]
    done = predict(model, *(tmp_path / name for name in names))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 24
    rows = [re.fullmatch(r"(.*)  (\d)  (\d+\.\d\d%)(  \(.*\))?", line) for line in lines]
    assert all(rows)
    named = [(Path(row[1]).name, row[2], row[3], row[4]) for row in rows if row]
    assert [row[0] for row in named[:5]] == ["0.png", "1.png", "2.png", "large.png", "some.gz[0]"]
    assert [row[1:] for row in named[:3]] == [row[1:] for row in named[4:7]]
    assert named[3][1] == named[0][1] and named[3][3] == "  (inverted, resized from 280x280)"
    network = torch.export.load(model).module()
    expected = network(test_set.images[:20]).exp().max(dim=1)
    assert [int(row[1]) for row in named[4:]] == expected.indices.tolist()
    assert named[4][2] == f"{expected.values[0].item():.2%}"
    right = expected.indices == test_set.labels[:20]
    assert right.float().mean() > 0.8


def test_a_reader_may_leave(model: Path, mnist_dir: Path) -> None:
    images = mnist_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    command = f"{sys.executable} {SCRIPTS / 'predict.py'} {model} {images} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.fixture
def seven(test_set: Split) -> Pixels:
    image: Pixels = test_set.images[0].numpy()
    return image


def test_a_picture_of_28x28_is_taken_as_it_is(seven: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    for kind in ("L", "RGB", "P", "LA", "RGBA"):
        Image.fromarray(seven).convert(kind).save(path)
        assert np.array_equal(pixels_of(path), seven), kind
    Image.fromarray(seven.astype(np.uint16) * 257).save(path)
    assert np.array_equal(pixels_of(path), seven)


def test_dark_ink_is_turned_to_light(seven: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    Image.fromarray(255 - seven).save(path)
    (image,) = read_images(path)
    assert np.array_equal(image.pixels, seven) and image.note == "inverted"
    assert np.array_equal(pixels_of(path, "no"), 255 - seven)
    black_on_nothing = np.zeros((28, 28, 4), dtype=np.uint8)
    black_on_nothing[..., 3] = seven
    Image.fromarray(black_on_nothing).save(path)
    assert np.array_equal(pixels_of(path), seven)
    Image.fromarray(seven).save(path)
    assert np.array_equal(pixels_of(path, "yes"), 255 - seven)
    path.write_bytes(idx(seven[None]))
    assert np.array_equal(pixels_of(path), seven) and np.array_equal(pixels_of(path, "yes"), 255 - seven)


def test_larger_pictures_come_back_as_mnist_has_them(model: Path, test_set: Split) -> None:
    images = test_set.images[:100].numpy()
    brought = []
    for image in images:
        large = np.pad(np.kron(image, np.ones((5, 5), dtype=np.uint8)), ((60, 10), (0, 200)))
        paper = (40 + large * (180 / 255)).astype(np.uint8)  # grey background, pale ink, off centre
        brought.append(to_mnist_form(paper))
    alike = [
        np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(brought, images, strict=True)
    ]
    assert np.median(alike) > 0.9
    network = torch.export.load(model).module()
    same = network(torch.from_numpy(np.stack(brought))).argmax(1) == network(test_set.images[:100]).argmax(1)
    assert same.float().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 1), (28, 1), (3, 500), (400, 400)])
def test_a_picture_without_ink_is_blank(shape: tuple[int, int]) -> None:
    for grey in (0, 100):
        assert not to_mnist_form(np.full(shape, grey, dtype=np.uint8)).any()


BAD_FILES = {
    "missing.png": (None, "No such file or directory"),
    "text.png": (b"no picture", "is neither a picture nor an IDX file of images"),
    "empty": (b"", "is neither a picture nor an IDX file of images"),
    "labels": (b"\0\0\x08\x01\0\0\0\x01\x07", "is an IDX file of labels, but must be one of images"),
    "short": (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "has 1583 bytes, but 2 images must have 1584"),
    "head": (b"\x00\x00\x08\x03\x00", "is a truncated IDX file"),
    "wide": (idx(np.zeros((2, 28, 29), np.uint8)), "has images of 28x29, but an IDX file's must be 28x28"),
    "torn.gz": (gzip.compress(bytes(5000))[:-9], "can't be read: "),
    "folder": (None, "Is a directory"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_image_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    content, complaint = BAD_FILES[name]
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        list(read_images(path))
    assert str(error.value).startswith(f"{path} ") and complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_png_is_named_in_one_line(seven: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    Image.fromarray(np.tile(seven, (9, 9))).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match="can't be read: "):
        list(read_images(path))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("missing.pt2", "can't be read: No such file or directory"),
        ("", "can't be read: Is a directory"),
        (
            "weights.pt",
            "can't be used: it is not a torch.export file like best/model.pt2, or is from another version "
            "of torch",
        ),
        ("text", "can't be used: it is not a torch.export file"),
        ("other.pt2", "can't be used: for 3 images it returns (3, 28), but must return (3, 10)"),
    ],
)
def test_what_is_no_model_gets_one_line_and_exit_code_2(
    name: str,
    complaint: str,
    tmp_path: Path,
    warm_runner: WarmRunner,
) -> None:
    (tmp_path / "text").write_text("no model")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    if name == "other.pt2":
        program = torch.export.export(MeanRow(), (torch.zeros((3, 28, 28), dtype=torch.uint8),))
        torch.export.save(program, tmp_path / name)
    Image.new("L", (28, 28)).save(tmp_path / "blank.png")
    handler = signal.getsignal(signal.SIGPIPE)
    flags = str(tmp_path / name), str(tmp_path / "blank.png")
    code, out, err = warm_runner.run(*flags, script="predict.py")
    signal.signal(signal.SIGPIPE, handler)
    assert (code, out) == (2, "")
    assert err.startswith("predict.py: error: ") and complaint in err and err.count("\n") == 1


class MeanRow(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=1)


def run_with_torch_alone(model: Path, images: torch.Tensor) -> torch.Tensor:
    """Return the exported model's output in a process that cannot have imported this package."""
    program = (
        "import io, sys, torch\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "with torch.inference_mode():\n"
        "    given = model(torch.load(io.BytesIO(sys.stdin.buffer.read())))\n"
        "assert not {'tune_mnist', 'ray'} & {name.split('.')[0] for name in sys.modules}\n"
        "torch.save(given, sys.stdout.buffer)\n"
    )
    file = io.BytesIO()
    torch.save(images, file)
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)], input=file.getvalue(), capture_output=True, check=True
    )
    given: torch.Tensor = torch.load(io.BytesIO(done.stdout))
    return given


def test_a_network_runs_with_torch_alone_and_scores_what_the_card_says(
    finished: tuple[Path, str, str], warm_joining: WarmRunner, mnist_dir: Path
) -> None:
    best = finished[0].parent / "network" / "best"
    shutil.copytree(finished[0], best.parent)
    flags = (str(best.parent), "--top-k", "1", "--seeds", "1", "--data-dir", str(mnist_dir))
    code, out, err = warm_joining.run(*flags, script="finalize.py")
    assert (code, err) == (0, ""), out
    written = json.loads((best / "hyperparameters.json").read_text())
    network = Network(Hyperparameters(**written))
    network.load_state_dict(torch.load(best / "model.pt", weights_only=True))
    accuracy, _ = evaluate(network, load_test("mnist", mnist_dir))
    assert f"Test accuracy {accuracy:.2%} (n = 10,000)" in (best / "card.md").read_text()
    images = load_test("mnist", mnist_dir).images[:64]
    with torch.inference_mode():
        expected = network.eval()(images)
    assert torch.equal(run_with_torch_alone(best / "model.pt2", images), expected)
