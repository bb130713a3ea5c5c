"""Which cluster is used, what fits on it, what its nodes see, and addresses without a cluster."""

import contextlib
import importlib.util
import ipaddress
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.execution import class_cache

from tests.conftest import SCRIPTS, TOY
from tests.invariants import check
from tests.lab import isolated
from tests.lab.fake_autoscaler import add_node, start_head
from tune_mnist.cluster import autoscaler, machine, shared
from tune_mnist.cluster import connection as cluster
from tune_mnist.cluster.address import ClusterError, check_answers
from tune_mnist.cluster.autoscaler import pending_nodes
from tune_mnist.cluster.connection import TRIAL_ENVIRONMENT, connected
from tune_mnist.cluster.resources import Resources, count_slots, fit_resources


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


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that does not autoscale."""
    monkeypatch.setattr(autoscaler, "find", lambda: None)


@pytest.mark.usefixtures("fixed")
def test_a_share_is_fitted_to_the_nodes_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: NODES)
    assert fit_resources(1, None, None) == Resources(cpus=1, gpus=0.5, slots=2)
    assert fit_resources(1, 0, None).slots == 12
    assert fit_resources(1, 0, 5).slots == 5
    assert fit_resources(8, 0, None).slots == 1
    monkeypatch.setattr("ray.nodes", lambda: NODES[:1])
    assert fit_resources(1, None, None).gpus == 0


@pytest.mark.usefixtures("fixed")
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


@pytest.mark.usefixtures("fixed")
def test_the_cpus_named_are_those_next_to_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0}}, NODES[1], NODES[2]]
    )
    with pytest.raises(ClusterError, match="more than 8 CPU and 1 GPU: use --cpus-per-trial 8"):
        fit_resources(16, 0.5, None)


def connect(address: str | None) -> str:
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
        assert connect(address).startswith(f"what answers at {address} is not a Ray cluster of version")


@pytest.mark.parametrize(
    ("client", "healthy"), [("while time.process_time() < 1.5: pass", True), ("time.sleep(9)", False)]
)
def test_a_client_that_works_gets_more_time_than_one_that_waits(
    client: str, healthy: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "python").write_text(f"#!{sys.executable}\nimport time\n{client}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("tune_mnist.cluster.address.ADDRESS_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr("tune_mnist.cluster.address.TICK_SECONDS", 0.25)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        assert check_answers(place) == "disabled" if healthy else "or takes longer than 0 s" in connect(place)


@pytest.mark.parametrize(
    "address", ["nonsense", "host:", "host:port", ":6379", "ray://127.0.0.1:10001", "127.0.0.1:99999"]
)
def test_an_address_that_is_none(address: str) -> None:
    assert address in connect(address)


def test_a_dashboard_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "DASHBOARD_PACKAGES", ("ray", "no_such_package"))
    message = r"^the dashboard is not installed: pip install 'ray\[default\]'$"
    with pytest.raises(ClusterError, match=message), connected("local", dashboard=True):
        pass


def test_the_file_system_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (
        "/dev/vda / ext4 rw 0 0\nfs-1:/ /mnt/my\\040efs nfs4 rw 0 0\nnone /mnt/my\\040efs/tmp tmpfs rw 0 0\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda path: mounts)
    folders = {"/home/me": "ext4", "/mnt/my efs/runs": "nfs4", "/mnt/my efs/tmp": "tmpfs", "/mnt": "ext4"}
    assert {folder: shared._file_system(Path(folder)) for folder in folders} == folders


ANOTHER_SEARCH = """
import ray
from tune_mnist.cluster.connection import connected
with connected({address!r}) as connection:
    print(ray.get_runtime_context().runtime_env, connection)
    print("EMBEDDED" if connection.embedded else "JOINED", connection.address)
"""


def another_search(address: str | None = None, **environment: str) -> str:
    """Connect in a separate process; return how, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_SEARCH.format(address=address)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert not any(
        secret in done.stdout + done.stderr for name, secret in environment.items() if "TOKEN" in name
    )
    return (done.stdout or done.stderr).splitlines()[-1]


def crash(name: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text().strip() == name:
                os.kill(int(process.name), signal.SIGKILL)


DASHBOARD = pytest.param(
    True,
    marks=pytest.mark.skipif(
        importlib.util.find_spec("aiohttp_cors") is None, reason="needs ray[default], for the dashboard"
    ),
)


@pytest.mark.parametrize("dashboard", [False, DASHBOARD])
@isolated
def test_a_ray_of_our_own_listens_on_loopback_and_is_joined_by_nobody(dashboard: bool) -> None:
    # A second route, or Ray would use 127.0.0.1 for lack of another address.
    for command in (
        "link add out type veth peer name far",
        "address add 10.77.9.1/24 dev out",
        "link set out up",
        "link set far up",
        "route add default dev out",
    ):
        subprocess.run(["ip", *command.split()], check=True)

    class Trial:
        def look(self) -> tuple[bool, dict[str, str | None]]:
            return "wave" in sys.modules, {name: os.environ.get(name) for name in TRIAL_ENVIRONMENT}

    with connected(None, dashboard=dashboard, preload="wave") as connection:
        assert connection.embedded and connection.address.startswith("127.0.0.1:")
        assert bool(connection.dashboard) is dashboard
        assert autoscaler.find() is None and pending_nodes() == {}
        shared.check_shared(Path.home())
        # Trials run in workers that have been waiting, with their imports loaded.
        cache: Any = class_cache._ActorClassCache()  # type: ignore[no-untyped-call]
        trial = cache.get(Trial).options(num_cpus=1).remote()
        assert ray.get(trial.look.remote()) == (True, TRIAL_ENVIRONMENT)
        listening = subprocess.run(["ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
        hosts = {line.split()[3].rpartition(":")[0].strip("[]") for line in listening.splitlines()}
        assert hosts and all(is_loopback(host) for host in hosts), listening
        if not dashboard:
            how, address = another_search().split()
            assert how == "EMBEDDED" and address != connection.address
    assert not TRIAL_ENVIRONMENT.items() & os.environ.items()


@pytest.mark.parametrize(
    ("cores", "gpus", "preloaded"), [(16, 1, True), (16, 0, True), (192, 0, True), (192, 8, False)]
)
def test_workers_of_a_gpu_machine_load_torch_too_unless_there_are_far_more_of_them_than_trials(
    cores: int, gpus: int, preloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(cluster, "_has_gpus", lambda: gpus > 0)
    monkeypatch.setattr(machine, "usable_cpus", lambda: cores)
    name = "RAY_preload_python_modules"
    monkeypatch.setattr(ray, "init", lambda **_: found.append(os.environ[name]))
    cluster._start(dashboard=False, preload="wave")
    assert found == ["wave" if preloaded else ""]


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.removeprefix("::ffff:"))
    return address.is_loopback


@isolated
def test_the_cluster_that_this_machine_belongs_to_is_used_while_it_lives() -> None:
    start_head(1)
    # What `ray job submit` passes to its driver, with one of our own variables set differently.
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = (
        '{"runtime_env": {"env_vars": {"MINE": "1", "MALLOC_TRIM_THRESHOLD_": "7"}}, "metadata": {}}'
    )
    folder = Path.home() / "runs"
    folder.mkdir()
    with connected(None) as connection:
        assert not connection.embedded and connection.address == "127.0.0.1:6379"
        variables = ray.get_runtime_context().runtime_env["env_vars"]
        assert variables == TRIAL_ENVIRONMENT | {"MINE": "1", "MALLOC_TRIM_THRESHOLD_": "7"}
        assert autoscaler.find() is None and pending_nodes() == {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autoscaler, "_read_monitor", lambda address: None)
            assert autoscaler.find() is None
        shared.check_shared(folder)
        add_node()
        shared.check_shared(folder)
        search = ("--address", "127.0.0.1:6379", *TOY, "--num-samples", "3", "--name", "joined")
        command = [sys.executable, str(SCRIPTS / "tune.py"), *search]
        done = subprocess.run(command, cwd=Path.home(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        check(folder / "joined", 3)
        add_node(f"mount -t tmpfs tmpfs {folder}")
        with pytest.raises(ClusterError) as error:
            shared.check_shared(folder)
        assert re.fullmatch(
            rf"storage_path is {folder}, which node \S+ \(127.0.0.1\) does not see: use a folder on NFS, "
            "or s3://BUCKET/PATH, as --storage-path",
            str(error.value),
        )
        assert [path.name for path in folder.iterdir()] == ["joined"]
    crash("gcs_server")
    crash("raylet")
    assert Path("/tmp/ray/ray_current_cluster").exists()
    assert another_search().startswith("EMBEDDED 127.0.0.1:")


@isolated
def test_a_cluster_with_a_token() -> None:
    token = "0123456789abcdef0123456789abcdef"
    start_head(1, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})
    for address in ("127.0.0.1:6379", None):
        assert another_search(address).endswith(
            "the Ray cluster at 127.0.0.1:6379 wants a token: set RAY_AUTH_MODE=token, and its RAY_AUTH_TOKEN"
        )
    # As in Ray, a token in the home is used for this machine's cluster without being asked for.
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(token)
    assert another_search() == "JOINED 127.0.0.1:6379"
    joined = another_search("127.0.0.1:6379", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert joined == "JOINED 127.0.0.1:6379"


class Actor:
    def pid(self) -> int:
        return os.getpid()


@isolated
def test_a_cluster_without_a_token_is_used_after_one_with_it_but_none_of_another_version() -> None:
    start_head(1, environment={"RAY_AUTH_MODE": "disabled"})
    head, python = "127.0.0.1:6379", platform.python_version()
    for address in ("local", None, head):  # the first puts a token in the home
        with connected(address) as connection:
            assert connection.embedded is (address == "local")
            actor: Any = ray.remote(Actor).remote()
            assert ray.get(actor.pid.remote()) != os.getpid()
    assert (Path.home() / ".ray" / "auth_token").exists() and "RAY_AUTH_MODE" not in os.environ
    raylet: Any = ray._raylet
    client = raylet.GcsClient(address=head)
    for there, here, addresses in (
        (("2.50.1", python), ray.__version__, (None, "auto", head)),
        ((ray.__version__, "3.9.1"), f"{ray.__version__} on Python {python}", (None,)),
    ):
        # What a cluster records of itself, for Ray to compare; there is no second Ray here to start one with.
        noted = json.dumps(dict(zip(("ray_version", "python_version"), there, strict=True)))
        client.internal_kv_put(b"CLUSTER_METADATA", noted.encode(), True, b"cluster")
        other = " on Python ".join(there) if "Python" in here else there[0]
        message = f"the Ray cluster at {head} has Ray {other}, but here it is {here}: they must be the same"
        for address in addresses:
            assert connect(address) == message
    os.environ["RAY_ADDRESS"] = head
    assert connect(None) == message
