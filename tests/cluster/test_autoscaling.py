"""A cluster that starts without GPU nodes: what fits on it, and a search that starts and releases one."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.cloudpickle import dumps

from tests.lab import fake_autoscaler, isolated
from tests.lab.fake_autoscaler import node_type
from tune_mnist.cluster import autoscaler, shared
from tune_mnist.cluster.address import ClusterError
from tune_mnist.cluster.autoscaler import Autoscaler, NodeType, pending_nodes
from tune_mnist.cluster.connection import connected
from tune_mnist.cluster.resources import Resources, fit_resources

NODE_TYPES = {"cpu": node_type(1, CPU=2), "gpu": node_type(2, CPU=2, GPU=1)}
GPU = NodeType(name="gpu", cpus=8, gpus=1, max_workers=3)
HEAD = {"Alive": True, "Resources": {"CPU": 1.0, "node:__internal_head__": 1.0}}
WORKER = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def is_refused(cpus: float, gpus: float, cure: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match="and none that the autoscaler may start, has more than") as error:
        fit_resources(cpus, gpus, None)
    assert str(error.value).endswith(f": use {cure}")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("nodes", "scaler", "asked", "fitted"),
    [
        ([HEAD], Autoscaler(node_types=(GPU,), max_workers=3), (1, None, None), (0.5, 6)),
        ([HEAD], Autoscaler(node_types=(GPU,), max_workers=3), (1, 0, None), (0, 25)),
        ([HEAD], Autoscaler(node_types=(GPU,), max_workers=2), (1, 0.5, None), (0.5, 4)),
        ([HEAD], Autoscaler(node_types=(GPU,), max_workers=3), (1, 0.5, 5), (0.5, 5)),
        # A running worker counts towards the maximum.
        ([HEAD, WORKER, WORKER], Autoscaler(node_types=(GPU,), max_workers=3), (1, 0.5, None), (0.5, 6)),
        ([HEAD, WORKER], Autoscaler(uncounted=True), (1, 0.5, None), (0.5, 8)),
        ([HEAD, WORKER], Autoscaler(uncounted=True), (1, 0.5, 20), (0.5, 20)),
        ([HEAD], Autoscaler(uncounted=True), (1, None, 3), (0, 3)),
    ],
)
def test_nodes_to_come_are_counted(
    nodes: list[dict[str, Any]],
    scaler: Autoscaler,
    asked: tuple[float, float | None, int | None],
    fitted: tuple[float, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr(autoscaler, "find", lambda: scaler)
    assert fit_resources(*asked) == Resources(cpus=asked[0], gpus=fitted[0], slots=fitted[1])


def test_node_types_that_declare_nothing_may_come_until_all_have_joined() -> None:
    local = {"available_node_types": {"any": {"resources": {}}}, "head_node_type": "any", "max_workers": 2}
    assert autoscaler._from_config(local, workers=1) == Autoscaler(max_workers=2, uncounted=True)
    assert autoscaler._from_config(local, workers=2) == Autoscaler(max_workers=2)
    own_machines = autoscaler._from_config({**local, "provider": {"type": "local"}}, workers=1)
    assert own_machines == Autoscaler(max_workers=2, uncounted=True, probe_seconds=60)


def sleeping_trial(config: dict[str, Any], images: Any = None) -> None:
    started = time.time()
    time.sleep(2)
    tune.report(
        {
            "node": ray.get_runtime_context().get_node_id(),
            "started": started,
            "ended": time.time(),
            "copied": images.flags.writeable,
            "gpus": ray.get_gpu_ids(),
        }
    )


class WatchPending(tune.Callback):
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        self.seen |= pending_nodes()


@isolated
def test_two_trials_share_a_gpu_that_starts_for_them_and_ends_when_idle() -> None:
    fake_autoscaler.start(1, NODE_TYPES, v2=True)
    with connected(None) as connection:
        assert not connection.embedded
        assert pending_nodes() == {}
        assert fit_resources(1, None, None) == Resources(cpus=1, gpus=0.5, slots=4)
        assert fit_resources(1, 0, None).slots == 7
        is_refused(1, 4, "--gpus-per-trial 1")
        is_refused(64, 0, "--cpus-per-trial 2")
        with pytest.raises(ClusterError, match="the nodes that the autoscaler starts must see it too"):
            shared.check_shared(Path("/tmp/ray"))
        assert len(alive()) == 1

        images = np.zeros(10_000_000, np.uint8)
        trainable = tune.with_parameters(sleeping_trial, images=images)
        pickled = dumps(trainable)  # type: ignore[no-untyped-call]
        assert len(pickled) < 100_000, "the images go by the object store"
        watch = WatchPending()
        grid = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": 0.5}),
            tune_config=tune.TuneConfig(num_samples=2, max_concurrent_trials=4),
            run_config=tune.RunConfig(storage_path=str(Path.home() / "runs"), verbose=0, callbacks=[watch]),
        ).fit()
        assert not grid.errors
        assert watch.seen == {"gpu": 1}
        first, second = (grid[number].metrics or {} for number in range(2))
        assert first["node"] == second["node"] != ray.get_runtime_context().get_node_id()
        assert first["started"] < second["ended"] and second["started"] < first["ended"]
        assert not first["copied"] and not second["copied"]
        assert first["gpus"] == second["gpus"] == [0]
        shared.check_shared(Path("/tmp/ray"))  # now there is a node that can check

        deadline = time.monotonic() + 40
        while len(alive()) > 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(alive()) == 1

        # If no process on the head knows the node types, as on Kubernetes, the autoscaler is asked.
        pytest.MonkeyPatch().setattr(autoscaler, "_read_monitor", lambda address: None)
        assert autoscaler.find() == Autoscaler(uncounted=True)
        is_refused(1, 4, "--gpus-per-trial 0")
        is_refused(64, 0, "--cpus-per-trial 1")
        assert fit_resources(1, 0.5, None).slots == 8


@isolated
def test_the_old_autoscaler_is_understood_too() -> None:
    fake_autoscaler.start(1, NODE_TYPES, v2=False)
    with connected(None):
        assert fit_resources(1, None, None) == Resources(cpus=1, gpus=0.5, slots=4)
        is_refused(1, 4, "--gpus-per-trial 1")
        pytest.MonkeyPatch().setattr(autoscaler, "_read_monitor", lambda address: None)
        assert autoscaler.find() == Autoscaler(uncounted=True)
        assert not autoscaler.can_start(1, 4, seconds=3)
        assert autoscaler.can_start(1, 0.5, seconds=30)
        group = ray.util.placement_group([{"CPU": 1, "GPU": 1}] * 2)
        seen: dict[str, int] = {}
        deadline = time.monotonic() + 30
        while not group.wait(0.1) and time.monotonic() < deadline:
            seen |= pending_nodes()
        assert seen == {"gpu": 1}
