"""MLflow and W&B: a trial is one run in all sessions of a search; a tracker that fails harms nothing."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from mlflow import MlflowClient
from mlflow.entities import Run
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
from wandb.sdk.internal.datastore import DataStore

from tests.toy import TASK
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import TaskFacts, TrialRecord
from tune_mnist.run.resuming import ResumeRequest
from tune_mnist.run.settings import Settings
from tune_mnist.tuning import tuner
from tune_mnist.tuning.progress import Listener, Progress
from tune_mnist.tuning.trackers import feed
from tune_mnist.tuning.trackers.feed import Feed
from tune_mnist.tuning.trackers.mlflow_runs import MlflowRuns
from tune_mnist.tuning.trackers.wandb_runs import WandbRuns

FACTS = TaskFacts(name="toy", objective=TASK.objective)


@pytest.fixture(scope="module", autouse=True)
def folder(joined: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all runs here, as MLflow takes 2 s to create its store's tables."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(folder))
        wandb.setup(settings=wandb.Settings(silent=True))
        yield folder


def record(number: int, losses: list[float], state: str | None = None) -> TrialRecord:
    epochs = [{"epoch": n, "loss": loss, "timestamp": 1000 + n} for n, loss in enumerate(losses, 1)]
    return TrialRecord(
        trial_id=f"id{number}",
        number=number,
        params={},
        config={"rate": 0.5, "kind": "a"},
        started=1000,
        planned=4,
        epochs=epochs,
        state=state,
        ended=2000 if state else None,
    )


def mlflow_runs(folder: Path, name: str) -> dict[str, Run]:
    """The runs of an experiment by trial; one for each."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_trial = {run.data.tags["trial_id"]: run for run in runs}
    assert len(by_trial) == len(runs)
    return by_trial


def mlflow_curve(folder: Path, run: Run) -> list[tuple[int, float]]:
    history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run.info.run_id, "loss")
    return [(point.step, point.value) for point in history]


def wandb_run(folder: Path, run_id: str) -> dict[str, Any]:
    """Contents of the newest folder of an offline run, whose end W&B writes some milliseconds late."""
    said: dict[str, Any] = {}
    wait_until(lambda: said.update(read_offline(folder, run_id)) or "exit" in said)
    return said


def read_offline(folder: Path, run_id: str) -> dict[str, Any]:
    (*_, newest) = sorted(folder.glob(f"wandb/offline-run-*-{run_id}"))
    store: Any = DataStore()
    said: dict[str, Any] = {"curve": [], "config": {}}
    store.open_for_scan(str(newest / f"run-{run_id}.wandb"))
    while data := store.scan_data():
        line = Record.FromString(data)
        if line.HasField("run"):
            said |= {"group": line.run.run_group, "project": line.run.project}
            said["config"] |= {item.key: json.loads(item.value_json) for item in line.run.config.update}
        elif line.HasField("history"):
            values = {"".join(i.nested_key) or i.key: i.value_json for i in line.history.item}
            said["curve"].append((int(values["_step"]), float(values["loss"])))
        elif line.HasField("summary"):
            said |= {item.key: json.loads(item.value_json) for item in line.summary.update}
        elif line.HasField("exit"):
            said["exit"] = line.exit.exit_code
    return said


class Interrupter(Listener):
    """Stops a search after three epochs, as Ctrl-C does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = False

    def on_message(self, text: str) -> None:
        self.lines.append(text)

    def on_progress(self, progress: Progress) -> None:
        if progress.epochs >= 3 and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.SIGINT)


def test_a_search_that_is_stopped_and_resumed_has_one_run_for_each_trial(folder: Path) -> None:
    listener = Interrupter()
    settings = Settings(
        name="both",
        storage_path=str(folder),
        num_samples=3,
        max_epochs=6,
        scheduler="none",
        log=("mlflow", "wandb"),
        options={"epoch_seconds": 0.1},
    )
    assert tuner.run(settings, listener, task=TASK).stop_reason == "SIGINT"
    assert {run.info.status for run in mlflow_runs(folder, "both").values()} == {"RUNNING"}
    places = [line.partition(",")[0] for line in listener.lines if line.startswith(("MLflow", "W&B"))]
    assert places[0] == "MLflow: experiment both" and places[1].startswith("W&B: group both of project toy")
    assert tuner.resume(ResumeRequest(run=str(folder / "both"), changes={}), task=TASK)
    ledger = Ledger.parse((folder / "both" / LEDGER).read_bytes())
    assert len(ledger.sessions) == 2 and len(ledger.trials) == 3
    runs = mlflow_runs(folder, "both")
    assert runs.keys() == ledger.trials.keys()
    for trial_id, trial in ledger.trials.items():
        curve = [(epoch["epoch"], epoch["loss"]) for epoch in trial.epochs]
        assert [epoch for epoch, _ in curve] == [1, 2, 3, 4, 5, 6] and trial.state == "COMPLETE"
        assert mlflow_curve(folder, runs[trial_id]) == curve
        assert runs[trial_id].info.status == "FINISHED"
        assert runs[trial_id].data.params == {name: str(value) for name, value in trial.config.items()}
        said = wandb_run(folder, f"both-{trial.number}-{trial_id}")
        assert said["curve"] == curve and said["config"].items() >= trial.config.items()
        assert (said["group"], said["project"], said["state"], said["exit"]) == ("both", "toy", "COMPLETE", 0)


def test_the_next_session_logs_what_mlflow_is_missing_and_nothing_twice(folder: Path) -> None:
    before = MlflowRuns("broken", FACTS, RunFolder(folder / "broken"))
    before.open()
    before.update(record(0, [4.0]))
    before.update(record(1, [4.0, 3.0]))
    assert {run.info.status for run in mlflow_runs(folder, "broken").values()} == {"RUNNING"}
    after = MlflowRuns("broken", FACTS, RunFolder(folder / "broken"))
    after.open()
    for _ in range(2):
        after.update(record(0, [4.0, math.inf, 2.0, 1.0], "COMPLETE"))
        after.update(record(1, [4.0, 3.0], "PRUNED"))
        after.update(record(2, [], "FAIL"))
        after.update(record(3, [5.0]))
    runs = mlflow_runs(folder, "broken")
    ends = {key: (run.info.status, run.data.tags["state"], run.info.end_time) for key, run in runs.items()}
    assert ends == {
        "id0": ("FINISHED", "COMPLETE", 2_000_000),
        "id1": ("KILLED", "PRUNED", 2_000_000),
        "id2": ("FAILED", "FAIL", 2_000_000),
        "id3": ("RUNNING", "RUNNING", None),
    }
    assert [len(mlflow_curve(folder, runs[f"id{number}"])) for number in range(4)] == [4, 2, 0, 1]
    assert runs["id0"].data.tags["search"] == "broken" and runs["id0"].info.start_time == 1_000_000


def test_mlflows_own_variables_name_the_store_and_the_experiment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    for name in ("first", "second"):
        runs = MlflowRuns(name, FACTS, RunFolder(f"/elsewhere/{name}"))
        runs.open()
        assert not runs.run_ids  # another search's runs are not taken for its own
        runs.update(record(len(name), [1.0], "PRUNED"))
    assert {run.data.tags["search"] for run in mlflow_runs(folder, "ours").values()} == {"first", "second"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/mlflow")
    assert MlflowRuns("x", FACTS, RunFolder("/r/x")).where == "MLflow: experiment ours, https://host/mlflow"
    monkeypatch.undo()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    where = MlflowRuns("x", FACTS, RunFolder(folder / "x")).where
    assert where.startswith("MLflow: experiment x, ")
    assert f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db" in where


def test_the_next_session_writes_unfinished_offline_runs_again_and_leaves_whole_ones(folder: Path) -> None:
    (folder / "offline").mkdir()
    before = WandbRuns("offline", FACTS, RunFolder(folder / "offline"))
    before.update(record(0, [4.0, 3.0], "PRUNED"))
    before.update(record(1, [4.0]))
    before.close()
    assert wandb_run(folder, "offline-1-id1")["state"] == "RUNNING"
    assert wandb_run(folder, "offline-1-id1")["exit"] == 1
    time.sleep(1.1)  # W&B's folder names have a resolution of a second
    after = WandbRuns("offline", FACTS, RunFolder(folder / "offline"))
    for _ in range(2):
        after.update(record(0, [4.0, 3.0], "PRUNED"))
        after.update(record(1, [4.0, 3.0], "FAIL"))
    assert f"wandb sync {folder}/wandb/offline-run-*-offline-*" in after.where
    assert len(list(folder.glob("wandb/offline-run-*-offline-0-id0"))) == 1
    assert wandb_run(folder, "offline-0-id0")["state"] == "PRUNED"
    said = wandb_run(folder, "offline-1-id1")
    assert (said["curve"], said["state"], said["exit"]) == ([(1, 4.0), (2, 3.0)], "FAIL", 1)


class FakeRun:
    """A run of which the server has two epochs."""

    step = 3

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.summary: dict[str, str] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)

    def finish(self, exit_code: int) -> None: ...


def test_an_online_run_is_continued_where_the_server_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, asked = FakeRun(), {}

    def init(**given: Any) -> FakeRun:
        asked.update(given)
        return fake

    monkeypatch.setattr(wandb, "init", init)
    runs = WandbRuns("run", FACTS, RunFolder(tmp_path))
    runs.is_online = True
    runs.update(record(7, [4.0, 3.0, 2.0, 1.0], "COMPLETE"))
    assert fake.steps == [3, 4] and fake.summary == {"state": "COMPLETE"}
    assert (asked["id"], asked["group"], asked["resume"]) == ("run-7-id7", "run", "allow")


class Flaky(feed.Tracker):
    """A tracker that raises or waits on request."""

    title, where = "Flaky", ""

    def __init__(self, open: Callable[[], None] = lambda: None, bad: int | None = None) -> None:
        self.bad, self.opening = bad, open
        self.taken: list[tuple[int, int]] = []

    def open(self) -> None:
        self.opening()

    def update(self, trial: TrialRecord) -> None:
        if trial.number == self.bad:
            raise ValueError("this one is refused\nand that is why")
        self.taken.append((trial.number, trial.epoch))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_tracker_that_is_down_is_named_once_and_tried_again_at_the_end() -> None:
    opened: list[bool] = []

    def open() -> None:
        opened.append(True)
        if len(opened) == 1:
            raise ConnectionError("nobody is there")

    messages: list[str] = []
    tracker = Flaky(open)
    feed = Feed(tracker, messages.append)
    feed.update(record(0, [1.0]))
    wait_until(lambda: opened)
    while not messages:  # the thread has yet to notice it
        feed.update(record(0, [1.0, 2.0]))
        time.sleep(0.01)
    feed.update(record(1, [1.0]))
    assert not tracker.taken
    feed.close()
    assert messages == ["Flaky: nobody is there (the search continues and will retry)"]
    assert sorted(tracker.taken) == [(0, 2), (1, 1)] and len(opened) == 2


def test_a_trial_that_is_refused_holds_up_no_other() -> None:
    messages: list[str] = []
    tracker = Flaky(bad=0)
    feed = Feed(tracker, messages.append)
    for number in range(3):
        feed.update(record(number, [1.0]))
    feed.close()
    assert sorted(tracker.taken) == [(1, 1), (2, 1)]
    assert messages[-1].startswith("Flaky is missing 1 trial")
    assert sum("this one is refused" in line for line in messages) == 1


def test_the_end_of_a_search_waits_for_a_tracker_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "CLOSE_SECONDS", 0.1)
    messages: list[str] = []
    release = threading.Event()
    hanging = Feed(Flaky(lambda: assert_set(release)), messages.append)
    hanging.update(record(0, []))
    began = time.monotonic()
    hanging.close()
    release.set()
    assert time.monotonic() - began < 5 and messages == ["Flaky is missing 1 trial: no answer in 0.1 s"]


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


def test_an_mlflow_server_that_is_down_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    messages: list[str] = []
    down = Feed(MlflowRuns("down", FACTS, RunFolder(tmp_path)), messages.append)
    down.update(record(0, [1.0]))
    down.close()
    (line,) = messages
    assert line.startswith("MLflow is missing 1 trial: API request to http://127.0.0.1:9/")
    assert len(line) < 250 and "secret" not in line


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_happens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(tuner.InputError, match=rf"log is {name}, but must .*'tune-mnist\[{name}\]'\)$"):
        tuner.run(Settings(log=(name,), storage_path=str(tmp_path / "runs")), task=TASK)
    assert not (tmp_path / "runs").exists()


def test_wandb_without_an_account_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def login(**_: Any) -> None:
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(tuner.InputError, match="log is wandb, but must be left out without an account"):
        tuner.run(Settings(log=("wandb",), storage_path=str(tmp_path / "runs")), task=TASK)
