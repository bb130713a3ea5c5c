"""The network and its loop, against plain PyTorch, against an interrupted training, and in bad cases."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import ROOT
from tune_mnist.mnist.data import Split
from tune_mnist.mnist.hyperparameters import ACTIVATIONS, OPTIMIZERS, Hyperparameters
from tune_mnist.mnist.model import Dropout, Network
from tune_mnist.mnist.training import DivergedError, EpochResult, Training, evaluate, fit, load_network


def learnable(n: int, seed: int = 0) -> Split:
    """Images that reveal their label: a bright block in one of ten places, and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (n, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % 10
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 5)
        image[row * 14 : row * 14 + 10, column * 5 : column * 5 + 5] += 150
    return Split(images=images, labels=labels)


TRAIN, VALIDATION = learnable(640), learnable(200, seed=1)
FEW = learnable(200)


def train(
    hyperparameters: Hyperparameters, seed: int = 0, images: Split = TRAIN
) -> tuple[Training, list[EpochResult]]:
    training = Training(hyperparameters, seed=seed, precision="fp32")
    return training, list(fit(training, images, VALIDATION))


def without_times(results: list[EpochResult]) -> list[tuple[float, ...]]:
    return [(r.epoch, r.accuracy, r.val_loss, r.train_loss) for r in results]


def assert_same_weights(network: Network, other: Network) -> None:
    for name, weights in network.state_dict().items():
        assert torch.equal(weights, other.state_dict()[name]), name


def reference(network: Network, images: Tensor) -> Tensor:
    """The baseline's network in its original order (activation, pool, channels first), same weights."""
    x = (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081
    x = F.relu(F.conv2d(x, network.conv1.weight, network.conv1.bias))
    x = F.relu(F.conv2d(x, network.conv2.weight, network.conv2.bias))
    x = F.max_pool2d(x, 2).flatten(1)
    # Our dense layer reads [12, 12, 64]; the baseline's reads [64, 12, 12].
    weight = network.dense1.weight.view(128, 12, 12, 64).permute(0, 3, 1, 2).flatten(1)
    x = F.relu(F.linear(x, weight, network.dense1.bias))
    return F.log_softmax(F.linear(x, network.dense2.weight, network.dense2.bias), dim=1)


def test_the_network_computes_what_the_blogs_does() -> None:
    torch.manual_seed(0)
    network = Network(Hyperparameters()).eval()
    assert sum(p.numel() for p in network.parameters()) == 320 + 18_496 + 9216 * 128 + 128 + 1290
    images = VALIDATION.images[:16]
    torch.testing.assert_close(network(images), reference(network, images), rtol=1e-4, atol=1e-5)


def test_a_step_of_sgd_with_momentum_is_the_textbooks() -> None:
    hyperparameters = Hyperparameters(
        lr=0.05, momentum=0.9, epochs=1, batch_size=320, dropout_conv=0, dropout_dense=0
    )
    training = Training(hyperparameters, seed=3, precision="fp32")
    network = Network(hyperparameters)
    network.load_state_dict(training.model.state_dict())
    order = torch.randperm(640, generator=torch.Generator().manual_seed(3 * 1_000_003 + 1))
    parameters = dict(network.named_parameters())
    velocities = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for index in torch.split(order, 320):
        loss = F.nll_loss(reference(network, TRAIN.images[index]), TRAIN.labels[index])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                velocities[name] = 0.9 * velocities[name] + gradient
                parameter.sub_(velocities[name], alpha=0.05)
    list(fit(training, TRAIN, VALIDATION))
    for name, parameter in training.model.named_parameters():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-3, atol=1e-5)


def test_training_learns_and_counts_epochs_from_one() -> None:
    _, results = train(Hyperparameters(lr=0.02, momentum=0.9, epochs=3))
    assert [r.epoch for r in results] == [1, 2, 3]
    assert results[-1].accuracy > 0.95 and results[-1].train_loss < results[0].train_loss


@pytest.mark.parametrize(("lr_end_factor", "on_gpu"), [(0.2, False), (0.2, True), (1.0, True)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit_also_what_a_gpu_has_saved(
    optimizer: str, lr_end_factor: float, on_gpu: bool, tmp_path: Path
) -> None:
    hyperparameters = Hyperparameters(
        **{"lr": 0.001, "momentum": 0.8, "epochs": 3, "weight_decay": 1e-4, "shift": 2},  # type: ignore[arg-type]
        optimizer=optimizer,
        lr_end_factor=lr_end_factor,
    )
    whole, expected = train(hyperparameters, images=FEW)
    first = Training(hyperparameters, seed=0, precision="fp32")
    next(fit(first, FEW, VALIDATION))
    for group in first.optimizer.param_groups if on_gpu else ():  # as they are on a GPU
        if lr_end_factor != 1:
            group["lr"] = torch.tensor(group["lr"])
        if "capturable" in group:
            group["capturable"] = True
    first.save(tmp_path / "training.pt")
    second = Training(hyperparameters, seed=0, precision="fp32")
    torch.rand(17)  # whatever happens in between
    second.restore(tmp_path / "training.pt")
    assert without_times(list(fit(second, FEW, VALIDATION))) == without_times(expected)[1:]
    assert_same_weights(second.model, whole.model)
    assert all(type(group["lr"]) is float for group in second.optimizer.param_groups)


def test_a_checkpoint_is_scored_without_what_only_training_needs(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(lr=0.02, momentum=0.9, epochs=2)
    training, _ = train(hyperparameters)
    training.save(tmp_path / "training.pt")
    assert_same_weights(load_network(tmp_path / "training.pt", hyperparameters), training.model)
    code = (
        "import pathlib, sys; from tests.mnist.test_training import VALIDATION, Hyperparameters\n"
        "from tune_mnist.mnist.training import evaluate, load_network\n"
        "hyperparameters = Hyperparameters(lr=0.02, momentum=0.9, epochs=2)\n"
        "network = load_network(pathlib.Path(sys.argv[1]), hyperparameters)\n"
        "print(evaluate(network, VALIDATION)); print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "training.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    score, imported = done.stdout.splitlines()
    assert ast.literal_eval(score) == pytest.approx(evaluate(training.model, VALIDATION))
    assert imported == "False"  # it takes a second, and torch imports it for optimizers


def test_the_seed_decides_everything() -> None:
    hyperparameters = Hyperparameters(epochs=1)
    same, other = train(hyperparameters), train(hyperparameters, seed=1)
    torch.rand(5)
    assert without_times(train(hyperparameters)[1]) == without_times(same[1]) != without_times(other[1])


@pytest.mark.parametrize(
    ("option", "values"),
    [("activation", ACTIVATIONS), ("dropout_conv", (0.1, 0.6)), ("dropout_dense", (0.1, 0.6))],
)
def test_each_hyperparameter_reaches_the_training(option: str, values: Sequence[Any]) -> None:
    outcomes = {
        train(Hyperparameters(epochs=1, batch_size=160, **{option: value}))[1][0].train_loss
        for value in values
    }
    assert len(outcomes) == len(values)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_steps_by_its_own_formula(name: str, momentum: float, weight_decay: float) -> None:
    """Two steps of the real optimizer against the textbook formula, on one weight of the network."""
    hyperparameters = Hyperparameters(
        optimizer=name, lr=0.01, momentum=momentum, weight_decay=weight_decay, batch_size=64
    )
    training = Training(hyperparameters, seed=0)
    weight = training.model.conv1.bias
    assert weight is not None
    value, velocity, mean, square = 0.5, 0.0, 0.0, 0.0
    weight.data.fill_(value)
    for step, slope in enumerate((0.3, -0.1), start=1):
        for parameter in training.model.parameters():
            parameter.grad = torch.full_like(parameter, slope)
        training.optimizer.step()
        gradient = slope if name == "adamw" else slope + weight_decay * value
        if name == "sgd":
            velocity = gradient if step == 1 else momentum * velocity + gradient
            value -= 0.01 * velocity
        elif name == "rmsprop":
            square = 0.99 * square + 0.01 * gradient**2
            velocity = momentum * velocity + gradient / (square**0.5 + 1e-8)
            value -= 0.01 * velocity
        else:
            if name == "adamw":
                value *= 1 - 0.01 * weight_decay
            mean = momentum * mean + (1 - momentum) * gradient
            square = 0.999 * square + 0.001 * gradient**2
            corrected = (square / (1 - 0.999**step)) ** 0.5
            value -= 0.01 * mean / (1 - momentum**step) / (corrected + 1e-8)
        assert weight.tolist() == pytest.approx([value] * len(weight), rel=1e-5)


def test_images_are_moved_by_whole_pixels_and_lose_nothing() -> None:
    images = torch.zeros(64, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 4:24] = torch.randint(1, 255, (64, 20, 20), dtype=torch.uint8)
    split = Split(images=images, labels=torch.arange(64) % 10)
    seen: list[Tensor] = []

    class Spy(Network):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                seen.append(images)
            return super().forward(images)

    training = Training(Hyperparameters(shift=3, epochs=2, batch_size=64), seed=0, precision="fp32")
    training.model.__class__ = Spy
    list(fit(training, split, split))
    orders = [torch.randperm(64, generator=torch.Generator().manual_seed(epoch)) for epoch in (1, 2)]
    moves = set()
    for moved, order in zip(seen, orders, strict=True):
        for image, source in zip(moved, images[order], strict=True):
            (move,) = (
                (down, right)
                for down in range(-3, 4)
                for right in range(-3, 4)
                if torch.equal(image, torch.roll(source, (down, right), (0, 1)))
            )
            moves.add(move)
    assert {down for down, _ in moves} == {right for _, right in moves} == set(range(-3, 4))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_learning_rate_falls_as_torchs_linear_schedule(optimizer: str) -> None:
    hyperparameters = Hyperparameters(lr_end_factor=0.1, optimizer=optimizer, epochs=3, batch_size=100)
    training = Training(hyperparameters, seed=0, precision="fp32")
    rates: list[float] = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    list(fit(training, TRAIN, VALIDATION))
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=hyperparameters.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(theirs, 1.0, 0.1, total_iters=3 * 7)
    expected = []
    for _ in range(3 * 7):
        expected += schedule.get_last_lr()
        theirs.step()
        schedule.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("images", "epochs", "place"), [(64, 1, "after epoch 1"), (640, 5, "at step [23] of epoch 1")]
)
def test_weights_that_blow_up_are_no_result(images: int, epochs: int, place: str) -> None:
    training = Training(Hyperparameters(lr=1e30, epochs=epochs), seed=0, precision="fp32")
    with pytest.raises(DivergedError, match=f"the loss is not finite {place}"):
        next(fit(training, learnable(images), VALIDATION))


def test_evaluation_is_the_mean_over_all_images_also_of_a_ragged_last_batch() -> None:
    torch.manual_seed(0)
    network, split = Network(Hyperparameters()), learnable(613)
    accuracy, loss = evaluate(network, split)
    expected = reference(network, split.images)
    assert accuracy == pytest.approx((expected.argmax(1) == split.labels).float().mean().item())
    assert loss == pytest.approx(F.nll_loss(expected, split.labels).item(), rel=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.3, 0.5, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    dropout, ones = Dropout(p), torch.ones(1_000_003, requires_grad=True)
    out = dropout(ones)
    share = (out == 0).float().mean().item()
    assert share == pytest.approx(p, abs=0.005)
    assert out.mean().item() == pytest.approx(1, abs=0.1 if p > 0.9 else 0.005)
    (gradient,) = torch.autograd.grad(out.sum(), ones)
    assert torch.equal(gradient, out.detach())  # the gradient passes where the feature passed
    assert torch.equal(dropout.eval()(ones), ones)


def test_dropout_drops_features_one_by_one() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(512, 4096)) > 0).float()
    for axis in (0, 1):
        assert kept.mean(axis).std().item() == pytest.approx((0.25 / kept.shape[axis]) ** 0.5, rel=0.1)
    neighbours = torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 0.005


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="sees no CUDA device"):
        Training(Hyperparameters(), seed=0, device="cuda")
