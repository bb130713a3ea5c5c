"""The fixture that several test files share: the real MNIST, fetched once into the checkout's data folder."""

from pathlib import Path

import pytest

from tune_mnist.data import prepare


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    data_dir = Path(__file__).resolve().parents[1] / "data"
    prepare("mnist", data_dir)
    return data_dir
