"""The steps of an epoch: replays against eager steps, and the error when no graph can be captured.

Here a replay runs the captured function again, as a CUDA graph runs its kernels; real graphs are in
`tests/mnist/test_cuda.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from tests.mnist.test_training import TRAIN, VALIDATION, assert_same_weights, train, without_times
from tune_mnist.mnist import steps, training
from tune_mnist.mnist.hyperparameters import OPTIMIZERS, Hyperparameters
from tune_mnist.mnist.model import Network, normalise
from tune_mnist.mnist.steps import GraphCaptureError, Steps, capture_graph
from tune_mnist.mnist.training import Training
from tune_mnist.task import DivergedError


@pytest.mark.parametrize(("lr_end_factor", "steps_per_graph"), [(1.0, 1), (0.1, 2)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replayed_steps_train_as_eager_ones_bit_for_bit(
    optimizer: str, lr_end_factor: float, steps_per_graph: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyperparameters = Hyperparameters(
        **{"lr": 0.002, "momentum": 0.8, "epochs": 2, "batch_size": 96, "shift": 2},  # type: ignore[arg-type]
        optimizer=optimizer,
        lr_end_factor=lr_end_factor,
    )
    eager, expected = train(hyperparameters)
    monkeypatch.setattr(
        training, "Steps", lambda one, split, capture: Steps(one, split, capture=lambda steps: steps)
    )
    monkeypatch.setattr(steps, "STEPS_PER_GRAPH", steps_per_graph)
    replayed, results = train(hyperparameters)
    assert [one.cuda_graph for one in expected] == [False, False]
    assert [one.cuda_graph for one in results] == [True, True]
    assert without_times(results) == without_times(expected)
    assert_same_weights(replayed.model, eager.model)


@pytest.mark.parametrize("steps_per_graph", [1, 2, 4])
def test_every_full_batch_after_the_warm_up_is_replayed(
    steps_per_graph: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEPS_PER_GRAPH", steps_per_graph)
    hyperparameters = Hyperparameters(epochs=2, batch_size=96)  # six full batches and a partial one
    one = Training(hyperparameters, seed=0, precision="fp32")
    capture = mock.Mock(side_effect=lambda steps: steps)
    ours = Steps(one, TRAIN, capture=capture)
    order, moves = torch.arange(640), torch.zeros(2, 640, dtype=torch.int64)
    ours.run(order, moves, 1)
    assert (ours.replayed, capture.call_count) == (6 - Steps.WARM_UP, len({1, steps_per_graph}))
    ours.run(order, moves, 2)
    assert (ours.replayed, capture.call_count) == (6, len({1, steps_per_graph}))


@pytest.mark.parametrize("diverged", [1, 4, 7])
def test_the_step_that_diverged_is_named_in_an_epoch_that_ends_eagerly(
    diverged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def nll_loss(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal taken
        taken += 1
        loss = F.nll_loss(*arguments, **options)
        return loss * float("nan") if taken == 7 + diverged else loss  # seven steps per epoch

    hyperparameters = Hyperparameters(epochs=2, batch_size=96)
    one = Training(hyperparameters, seed=0, precision="fp32")
    ours = Steps(one, TRAIN, capture=None)
    order, moves = torch.arange(640), torch.zeros(2, 640, dtype=torch.int64)
    ours.run(order, moves, 1)
    fake = type("Functional", (), {"nll_loss": staticmethod(nll_loss)})
    taken = 7
    monkeypatch.setattr(steps, "F", fake)
    with pytest.raises(DivergedError, match=f"the loss is not finite at step {diverged} of epoch 2"):
        ours.run(order, moves, 2)
    assert taken == 7 + diverged  # on a CPU no further step follows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_normalised_once_give_the_same_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Network(Hyperparameters()).eval()
    images = VALIDATION.images[:64]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(network(images), network(normalise(images).to(dtype)))


@contextmanager
def broken_capture() -> Iterator[None]:
    """Fail as torch does on an error during capture: ending the capture raises another one."""
    try:
        yield
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (
            RuntimeError("operation not permitted when stream is capturing"),
            GraphCaptureError,
            r"^this GPU cannot record a step as a CUDA graph \(.*during capture\): use --cuda-graph off$",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError, "during capture"),
    ],
)
def test_a_failed_capture_ends_the_training_with_its_cure_unless_memory_is_short(
    error: RuntimeError, raised: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: broken_capture())
    monkeypatch.setattr(steps, "side_stream", lambda: None)

    def step() -> None:
        raise error

    with pytest.raises(raised, match=text) as said:
        capture_graph(step)
    assert type(said.value) is raised
