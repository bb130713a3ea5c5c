"""What only a GPU can show: graphs against eager steps, resumes across devices, limits. Skipped without one.

python -m pytest tests/mnist/test_cuda.py    # what the step `tests` of `make gpu` runs
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.mnist.test_training import TRAIN, VALIDATION
from tune_mnist.mnist import steps
from tune_mnist.mnist.hyperparameters import OPTIMIZERS, Hyperparameters
from tune_mnist.mnist.model import normalise
from tune_mnist.mnist.precision import side_stream
from tune_mnist.mnist.steps import capture_graph
from tune_mnist.mnist.training import EpochResult, Training, fit
from tune_mnist.tuning.device import release_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TOLERANCE = {"fp32": 2e-3, "bf16": 2e-2}
"""Relative difference of the mean losses of an epoch: TF32, bf16 and atomic sums round differently."""


def trained(
    hyperparameters: Hyperparameters,
    *,
    cuda_graph: bool,
    precision: str = "fp32",
    restore: Path | None = None,
) -> tuple[Training, list[EpochResult]]:
    training = Training(hyperparameters, seed=0, device="cuda", precision=precision)
    if restore:
        training.restore(restore)
    return training, list(fit(training, TRAIN, VALIDATION, cuda_graph=cuda_graph))


def losses(results: list[EpochResult]) -> list[float]:
    return [one.train_loss for one in results]


@pytest.mark.parametrize("steps_per_graph", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("dropout", "shift", "lr_end_factor"), [(0.0, 0, 1.0), (0.5, 0, 1.0), (0.0, 2, 1.0), (0.5, 2, 0.1)]
)
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_a_cuda_graph_trains_as_the_steps_one_by_one(
    optimizer: str,
    dropout: float,
    shift: int,
    lr_end_factor: float,
    precision: str,
    steps_per_graph: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not multiply bf16")
    monkeypatch.setattr(steps, "STEPS_PER_GRAPH", steps_per_graph)
    drawn: dict[str, Any] = {"optimizer": optimizer, "shift": shift, "lr_end_factor": lr_end_factor}
    hyperparameters = Hyperparameters(
        lr=0.001, epochs=2, batch_size=48, dropout_conv=dropout, dropout_dense=dropout, **drawn
    )
    _, replayed = trained(hyperparameters, cuda_graph=True, precision=precision)
    _, eager = trained(hyperparameters, cuda_graph=False, precision=precision)
    assert [one.cuda_graph for one in replayed] == [True, True]
    assert [one.cuda_graph for one in eager] == [False, False]
    assert losses(replayed) == pytest.approx(losses(eager), rel=TOLERANCE[precision])


def test_the_dropout_of_a_graph_differs_from_replay_to_replay() -> None:
    ones, mask = torch.ones(4096, device="cuda"), torch.zeros(4096, device="cuda")
    with torch.cuda.stream(side_stream()):
        torch.dropout(ones, 0.5, True)
    torch.cuda.synchronize()

    def draw() -> None:
        mask.copy_(torch.dropout(ones, 0.5, True))

    replay, seen = capture_graph(draw), set()
    for _ in range(5):
        replay()
        seen.add(tuple(mask.tolist()))
    assert len(seen) == 5


@pytest.mark.parametrize("saved_on", ["cpu", "cuda"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_resumed_with_a_cuda_graph_keeps_its_falling_rate(
    optimizer: str, saved_on: str, tmp_path: Path
) -> None:
    hyperparameters = Hyperparameters(
        lr=0.001, optimizer=optimizer, epochs=3, lr_end_factor=0.1, dropout_conv=0.0, dropout_dense=0.0
    )
    first = Training(hyperparameters, seed=0, device=saved_on, precision="fp32")
    next(fit(first, TRAIN, VALIDATION))
    path = tmp_path / "training.pt"
    first.save(path)
    replayed, results = trained(hyperparameters, cuda_graph=True, restore=path)
    _, eager = trained(hyperparameters, cuda_graph=False, restore=path)
    (lr,) = {float(group["lr"]) for group in replayed.optimizer.param_groups}
    assert lr == pytest.approx(0.001 * (1 - 0.9 * 29 / 30))
    assert losses(results) == pytest.approx(losses(eager), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_normalised_once_give_the_same_bits(dtype: torch.dtype) -> None:
    images = VALIDATION.images.cuda()
    index = torch.randperm(len(images), device="cuda")[:64]
    assert torch.equal(normalise(images).to(dtype)[index], normalise(images[index]).to(dtype))


def test_trainings_in_one_process_leave_no_memory_behind() -> None:
    left = []
    for _ in range(6):
        training, _ = trained(Hyperparameters(epochs=1), cuda_graph=True)
        del training
        release_memory()
        left.append(torch.cuda.memory_reserved())
    assert left[-1] <= left[1]  # the first brings cuBLAS's workspace


def complaint(code: str) -> str:
    """Return the last line of a separate process, which keeps its fraction and random generator's state."""
    code = f"import torch\nfrom tune_mnist.mnist import steps\nfrom tune_mnist.tuning import device\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    (line,) = re.findall(r"^tune_mnist\.\S+Error: .*$", done.stderr, re.MULTILINE)
    return str(line)


def test_a_fraction_is_a_limit() -> None:
    assert complaint(
        "device.prepare_gpu(0.01)\n"
        "with device.device_memory_errors(0.01):\n"
        "    size = torch.cuda.get_device_properties(0).total_memory // 50\n"
        "    torch.empty(size, dtype=torch.uint8, device='cuda')"
    ) == (
        "tune_mnist.tuning.device.DeviceMemoryError: the GPU has no memory left for this trial, which has a "
        "fraction of 0.01: ask for --gpus-per-trial 0.02"
    )


def test_a_capture_without_memory_is_reported() -> None:
    assert "DeviceMemoryError: the GPU has no memory left for this trial" in complaint(
        "size = torch.cuda.get_device_properties(0).total_memory // 20\n"
        "torch.cuda.set_per_process_memory_fraction(0.02)\n"
        "with device.device_memory_errors(0.5):\n"
        "    steps.capture_graph(lambda: torch.empty(size, dtype=torch.uint8, device='cuda') and None)"
    )


def test_a_step_that_cannot_be_captured_is_reported() -> None:
    line = complaint("one = torch.ones(1, device='cuda'); steps.capture_graph(lambda: print(one.item()))")
    error = "tune_mnist.mnist.steps.GraphCaptureError: this GPU cannot record a step as a CUDA graph ("
    assert line.startswith(error) and line.endswith("): use --cuda-graph off")
