"""What fits on a cluster, and addresses where there is none."""

import socket
import threading
import time

import pytest

from tune_mnist import cluster
from tune_mnist.cluster import ClusterError, connected, count_slots, fit_resources


@pytest.mark.parametrize(
    ("node", "share", "slots"),
    [
        ((2, 0), (1, 0), 2),
        ((2, 0), (0.5, 0), 4),
        ((2, 0), (0.1, 0), 20),
        ((2, 0), (3, 0), 0),
        ((2, 0), (1, 0.5), 0),
        ((8, 1), (1, 0.5), 2),
        ((8, 1), (1, 0.3), 3),
        ((8, 2), (1, 0.6), 2),  # 0.6 never spans two GPUs
        ((8, 4), (1, 2), 2),
        ((8, 1), (1, 2), 0),
        ((3, 4), (1, 0.5), 3),
    ],
)
def test_slots_of_a_node(node: tuple[float, float], share: tuple[float, float], slots: int) -> None:
    assert count_slots(*node, *share) == slots


NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


def test_a_share_is_fitted_to_the_nodes_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: NODES)
    assert fit_resources(1, None, None) == cluster.Resources(cpus=1, gpus=0.5, slots=2)
    assert fit_resources(1, 0, None).slots == 12
    assert fit_resources(1, 0, 5).slots == 5
    assert fit_resources(8, 0, None).slots == 1
    monkeypatch.setattr("ray.nodes", lambda: NODES[:1])
    assert fit_resources(1, None, None).gpus == 0


@pytest.mark.parametrize(
    ("cpus", "gpus", "complaint"),
    [
        (
            1,
            0.5,
            "1 CPU and 0.5 GPU, but no node has more than 4 CPU and 0 GPU: use --gpus-per-trial 0",
        ),
        (
            16,
            0,
            "16 CPU and 0 GPU, but no node has more than 4 CPU and 0 GPU: use --cpus-per-trial 4",
        ),
    ],
)
def test_what_no_node_can_give_is_refused(
    cpus: float, gpus: float, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: NODES[:1])
    with pytest.raises(ClusterError) as error:
        fit_resources(cpus, gpus, None)
    assert str(error.value) == f"a trial asks for {complaint}"


def test_the_cpus_named_are_those_beside_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0}}, NODES[1], NODES[2]]
    )
    with pytest.raises(ClusterError, match="more than 8 CPU and 1 GPU: use --cpus-per-trial 8"):
        fit_resources(16, 0.5, None)


def connect(address: str) -> str:
    started = time.monotonic()
    with pytest.raises(ClusterError) as error, connected(address):
        pass
    assert time.monotonic() - started < 15
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_address_that_nobody_listens_at() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert f"no Ray cluster answers at {address}: " in connect(address)


def test_auto_is_checked_as_any_address_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster answers at " in connect("auto")


def test_an_address_where_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].recv(1), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert connect(address).startswith(f"what answers at {address} is no Ray cluster of version")


@pytest.mark.parametrize(
    "address", ["nonsense", "host:", "host:port", ":6379", "ray://127.0.0.1:10001", "127.0.0.1:99999"]
)
def test_an_address_that_is_none(address: str) -> None:
    assert address in connect(address)
