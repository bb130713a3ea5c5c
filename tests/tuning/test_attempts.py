"""Attempts at trials, driven by hand as by Ray's loop: what is run again, what ends, what is kept."""

import errno
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from ray.exceptions import RayError, RayTaskError
from ray.tune.search import Searcher

from tests.tuning.test_search import read_study, searcher
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.run.checkpoints import take_in_checkpoints
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import ATTEMPT, OPTUNA_NUMBER
from tune_mnist.run.saved import CHECKPOINT, StorageError, TrialStorage
from tune_mnist.run.settings import Settings
from tune_mnist.tuning import trouble
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.attempts import Attempts
from tune_mnist.tuning.device import DeviceMemoryError
from tune_mnist.tuning.progress import Listener, Progress, ProgressKeeper
from tune_mnist.tuning.ray_parts import AttemptCallback, AttemptScheduler, AttemptSearcher, AttemptStopper
from tune_mnist.tuning.stop import StopRequest
from tune_mnist.tuning.trainable import FAILURE, SAVED, TRACEBACK
from tune_mnist.tuning.trouble import Watchdog


class Loop:
    """A small version of Ray's loop: its calls about attempts, in its order."""

    def __init__(self, run_dir: Path, **changes: Any) -> None:
        few = {"max_concurrent_trials": 2, "num_samples": 3, "reduction_factor": 2}
        settings = Settings(**{**few, **changes})
        self.run_dir, self.folder = run_dir, RunFolder(run_dir)
        study = searcher(run_dir, num_samples=settings.num_samples)
        self.ledger = study.ledger
        take_in_checkpoints(self.folder, self.ledger)
        asha, self.stop = ASHA(settings, self.ledger), StopRequest(settings)
        self.progress = Progress(num_samples=settings.num_samples, objective=OBJECTIVE)
        keeper = ProgressKeeper(self.progress, self.ledger, Listener(), lambda idle: "")
        self.attempts = Attempts(settings, self.folder, study, asha, keeper, self.stop, lambda: None)
        self.attempts.begin_round()
        self.searcher, self.scheduler = AttemptSearcher(self.attempts), AttemptScheduler(self.attempts)
        self.stopper, self.callback = AttemptStopper(self.attempts), AttemptCallback(self.attempts)
        self.trials: list[Any] = []

    def begin(self, name: str) -> Any:
        """Ask for an attempt and start it; if there is none, return the answer instead."""
        config = self.searcher.suggest(name)
        if not isinstance(config, dict):
            return config
        trial: Any = SimpleNamespace(trial_id=name, config=config, status="RUNNING")
        self.trials.append(trial)
        self.callback.on_trial_start(0, self.trials, trial)
        return trial

    def report(self, trial: Any, epoch: int, accuracy: float, *, saved: bool = False) -> bool:
        """Report an epoch; return whether the trial continues."""
        result: dict[str, Any] = {"epoch": epoch, "accuracy": accuracy, "timestamp": epoch}
        if saved:
            result[SAVED] = self.save(trial, epoch, accuracy)
        goes_on = self.hear(trial, result) and epoch < trial.config["epochs"]
        if not goes_on and trial.status == "RUNNING":  # its function returned
            trial.status = "TERMINATED"
            self.searcher.on_trial_complete(trial.trial_id, result)
        return goes_on

    def save(self, trial: Any, epochs: int, accuracy: float) -> str:
        """Write a checkpoint, with a report of each epoch so far; return its name."""
        path = f"{self.run_dir}/{trial.config[ATTEMPT]['directory']}"
        reports = [{"epoch": n, "accuracy": accuracy, "timestamp": n} for n in range(1, epochs + 1)]
        storage = TrialStorage(fs=LocalFileSystem(), path=path)
        return storage.write(epochs, lambda file: torch.save({}, file), reports)

    def hear(self, trial: Any, result: dict[str, Any]) -> bool:
        stops = self.stopper(trial.trial_id, result) or (
            self.scheduler.on_trial_result(None, trial, result) == "STOP"
        )
        self.callback.on_trial_result(0, self.trials, trial, {**result, "done": stops})
        if stops:
            trial.status = "TERMINATED"
            self.searcher.on_trial_complete(trial.trial_id, result)
        self.callback.on_step_end(0, self.trials)
        return not stops

    def lose(self, trial: Any, error: BaseException | None = None) -> None:
        """Lose the process of an attempt and report that, with the error as its cause if given."""
        trial.status = "ERROR"
        if error is not None:
            self.searcher.on_trial_complete(trial.trial_id, None, error=True)
            self.attempts.lost(trial.trial_id, error)
        self.callback.on_step_end(0, self.trials)

    def states(self) -> list[str | None]:
        return [trial.state for trial in self.ledger.trials.values()]

    def checkpoints(self) -> dict[int, list[int]]:
        """Epochs of the checkpoints on disk, by trial number."""
        found: dict[int, list[int]] = {}
        for path in sorted(self.run_dir.glob("trial_*/checkpoint_*")):
            found.setdefault(int(path.parent.name.split("_")[1]), []).append(int(path.name.split("_")[1]))
        return found


def test_a_lost_attempt_is_followed_by_one_from_the_newest_checkpoint(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    first = loop.begin("first")
    for epoch in (1, 2, 3):
        assert loop.report(first, epoch, epoch / 10, saved=epoch < 3)
    loop.lose(first, RuntimeError("the actor died\nunexpectedly"))
    second = loop.begin("second")
    assert second.config[ATTEMPT] == {
        "number": 2,
        "directory": "trial_00000_first",
        "resume_from": "checkpoint_000002",
    }
    same = [{k: v for k, v in one.config.items() if k != ATTEMPT} for one in (first, second)]
    assert same[0] == same[1] and loop.progress.retries == 1
    assert loop.report(second, 3, 0.9) and loop.report(second, 4, 0.4)  # of epoch 3 the first report counts
    assert not loop.report(second, 5, 0.5, saved=True)
    (trial,) = loop.ledger.trials.values()
    assert (trial.state, trial.attempts, trial.lost) == ("COMPLETE", 2, 1)
    lines = (tmp_path / trial.directory / "result.json").read_text().splitlines()
    assert [(json.loads(line)["epoch"], json.loads(line)["accuracy"]) for line in lines] == [
        *((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5))
    ]
    assert "the actor died" in (tmp_path / trial.directory / "error.txt").read_text()
    (frozen,) = read_study(tmp_path).trials
    assert frozen.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}


def test_a_checkpoint_whose_report_was_lost_counts(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    trial = loop.begin("a")
    loop.report(trial, 1, 0.1)
    loop.save(trial, 2, 0.2)
    half = tmp_path / trial.config[ATTEMPT]["directory"] / ".checkpoint_000003-xyz"
    half.mkdir()
    loop.lose(trial, RuntimeError("killed"))
    assert loop.begin("b").config[ATTEMPT]["resume_from"] == "checkpoint_000002"
    assert loop.ledger.trials["a"].epoch == 2 and not half.exists()


def test_asha_judges_what_only_a_checkpoint_tells(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    good, bad = loop.begin("good"), loop.begin("bad")
    loop.report(good, 1, 0.5)
    loop.save(bad, 1, 0.1)
    loop.lose(bad)
    assert loop.begin("next").config[OPTUNA_NUMBER] == 2
    assert loop.states() == [None, "PRUNED", None]


def test_an_attempt_that_ends_without_a_word_is_found(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    trial = loop.begin("a")
    loop.lose(trial)
    assert loop.attempts.live == {} and loop.ledger.trials["a"].lost == 1
    assert loop.begin("b").config[OPTUNA_NUMBER] == 0


def test_a_trial_is_lost_at_most_max_failures_times(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_failures=1)
    for name in ("a", "b"):
        loop.lose(loop.begin(name), OSError(28, "no space left"))
    assert loop.states() == ["FAIL"] and loop.ledger.trials["a"].error == "[Errno 28] no space left"
    assert loop.begin("c").config[OPTUNA_NUMBER] == 1


@pytest.mark.parametrize(
    ("cause", "state"), [(DeviceMemoryError("ask for more"), "FAIL"), (OSError("storage is away"), None)]
)
def test_what_training_raises_out_of_its_process_is_not_tried_again(
    cause: Exception, state: str | None, tmp_path: Path
) -> None:
    loop = Loop(tmp_path)
    error: Any = RayTaskError
    loop.lose(loop.begin("a"), error("train", "Traceback", cause))
    assert loop.states() == [state] and loop.ledger.trials["a"].error == str(cause)


def test_a_failure_that_is_reported_ends_the_trial_and_nothing_is_tried_again(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    trial = loop.begin("a")
    loop.report(trial, 1, 0.5, saved=True)
    text, nan = "the loss is not finite", {OBJECTIVE.metric: math.nan}
    failure = {FAILURE: text, TRACEBACK: "Traceback ...", **nan, "epoch": 2}
    assert not loop.hear(trial, failure)
    (record,) = loop.ledger.trials.values()
    assert (record.state, record.error, record.epoch) == ("FAIL", text, 1)
    assert (tmp_path / record.directory / "error.txt").read_text() == "Traceback ...\n"
    assert loop.checkpoints() == {} and loop.begin("b").config[OPTUNA_NUMBER] == 1


def test_a_trial_that_was_lost_after_its_verdict_ends_at_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    good, bad = loop.begin("good"), loop.begin("bad")
    loop.report(good, 1, 0.5)
    result = {"epoch": 1, "accuracy": 0.1, "timestamp": 1}
    assert loop.scheduler.on_trial_result(None, bad, result) == "STOP"
    loop.callback.on_trial_result(0, loop.trials, bad, result)
    loop.lose(bad)  # before its end was reported
    assert loop.states() == [None, "PRUNED"] and loop.progress.retries == 0


def test_no_more_attempts_are_made_than_may_run_and_none_is_for_while_one_runs_only(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_concurrent_trials=2, num_samples=3)
    one, _ = loop.begin("a"), loop.begin("b")
    assert loop.begin("c") is None
    while loop.report(one, loop.ledger.trials["a"].epoch + 1, 0.5):
        pass
    assert loop.begin("c").config[OPTUNA_NUMBER] == 2
    assert loop.begin("d") is None
    for trial in loop.trials[1:]:
        loop.attempts.completed(trial.trial_id, {})
    assert loop.begin("d") == Searcher.FINISHED and not loop.attempts.unfinished


NOT_IMPORTED = """The actor died unexpectedly before finishing this task.
Worker exit detail: Worker exits with an exit code None. Traceback (most recent call last):
  File "python/ray/_raylet.pyx", line 2198, in ray._raylet.execute_task
RuntimeError: The actor with name ImplicitFunc failed to import on the worker. This may be because ...:

Traceback (most recent call last):
  File "function_manager.py", line 696, in _load_actor_class_from_gcs
    actor_class = pickle.loads(pickled_class)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^
ModuleNotFoundError: No module named 'torch'


During handling of the above exception, another exception occurred:
"""


def test_attempts_that_no_process_can_import_end_the_search_and_fail_no_trial(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_failures=0)
    assert isinstance(loop.searcher.suggest("a"), dict) and isinstance(loop.searcher.suggest("b"), dict)
    loop.attempts.lost("a", RayError(NOT_IMPORTED))
    assert loop.searcher.suggest("c") is None  # perhaps "b" is on a better node
    loop.attempts.lost("b", RayError(NOT_IMPORTED))
    assert not loop.stopper.stop_all() and isinstance(loop.searcher.suggest("c"), dict)
    loop.attempts.lost("c", RayError(NOT_IMPORTED))
    assert loop.stopper.stop_all() and loop.searcher.suggest("d") == Searcher.FINISHED
    assert loop.states() == [None, None] and loop.progress.retries == 0
    for trial in loop.ledger.trials.values():
        assert trial.lost == 0 and str(trial.error).endswith(": ModuleNotFoundError: No module named 'torch'")
        assert "No module named 'torch'" in (tmp_path / trial.directory / "error.txt").read_text()


def test_an_attempt_that_one_node_cannot_import_waits_for_another_node(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_failures=0)
    good = loop.begin("good")
    assert isinstance(loop.searcher.suggest("bad"), dict)
    loop.attempts.lost("bad", RayError(NOT_IMPORTED))
    assert loop.searcher.suggest("again") is None
    while loop.report(good, loop.ledger.trials["good"].epoch + 1, 0.5):
        pass
    assert loop.begin("again").config[OPTUNA_NUMBER] == 1
    assert isinstance(loop.searcher.suggest("next"), dict) and not loop.stopper.stop_all()


def test_a_full_storage_ends_the_search_and_costs_no_trial_anything(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_failures=0)
    full = StorageError(errno.ENOSPC, "runs/x can't be written or read: No space left on device")
    for name in ("a", "b", "c"):
        assert not loop.stopper.stop_all() and isinstance(loop.searcher.suggest(name), dict)
        loop.attempts.lost(name, full)
    assert loop.stopper.stop_all() and loop.attempts.hopeless == full.strerror
    assert loop.states() == [None] and loop.ledger.trials["a"].lost == 0


def test_a_storage_that_does_not_answer_is_waited_for_longer_each_time_and_given_up_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, waits = SimpleNamespace(now=1000.0), list[float]()

    def sleep(seconds: float) -> None:
        clock.now += seconds
        waits[-1] += seconds

    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", sleep)
    loop = Loop(tmp_path, max_failures=0)
    while not loop.stopper.stop_all():
        waits.append(0.0)
        assert isinstance(loop.searcher.suggest(f"a{len(waits)}"), dict)
        loop.attempts.lost(f"a{len(waits)}", StorageError(errno.ETIMEDOUT, "s3://bucket can't be reached"))
    assert waits[:7] == pytest.approx([0, 2, 4, 8, 16, 32, 60]) and 600 <= sum(waits) <= 720
    assert loop.states() == [None] and loop.attempts.hopeless == "s3://bucket can't be reached"


def test_a_trial_that_ran_out_of_memory_waits_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: 1000.0 + sum(slept))
    monkeypatch.setattr("time.sleep", slept.append)
    loop = Loop(tmp_path, max_failures=1)
    error = RayError("1 worker(s) were killed due to the node running low on memory.")
    for name in ("a", "b"):
        loop.lose(loop.begin(name), error)
    assert loop.states() == ["FAIL"] and sum(slept) == pytest.approx(10)


def test_ray_that_starts_no_worker_or_has_lost_its_folder_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, session = SimpleNamespace(now=1000.0), tmp_path / "session"
    (session / "logs").mkdir(parents=True)
    (session / "sockets").mkdir()
    (session / "sockets" / "raylet").touch()
    (session / "logs" / "raylet.err").write_text("Traceback:\nModuleNotFoundError: No module named 'ray'\n\n")
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr(trouble, "has_place", lambda: True)
    watchdog = Watchdog(Settings(stall_seconds=30), lambda: session, 0.0)
    assert not watchdog.is_silent(training=False)
    clock.now += 31
    assert watchdog.is_silent(training=False)
    assert watchdog.reason == "Ray has started no worker in 30 s: ModuleNotFoundError: No module named 'ray'"
    watchdog = Watchdog(Settings(stall_seconds=30), lambda: session, 0.0)
    watchdog.heard(started=True)  # so Ray can: the worker to be reused hangs, and all room is taken
    clock.now += 31
    assert watchdog.is_silent(training=False) and not watchdog.reason
    watchdog = Watchdog(Settings(), lambda: session, 0.0)
    shutil.rmtree(session / "sockets")
    assert watchdog.is_silent(training=True)
    assert watchdog.reason == f"Ray's folder {session} was deleted while it ran"


def test_a_round_that_was_ended_gives_its_attempts_back_and_counts_no_loss(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.report(loop.begin("a"), 1, 0.1, saved=True)
    loop.begin("b")
    loop.attempts.begin_round()
    again = [loop.begin(name).config for name in ("c", "d")]
    assert [config[OPTUNA_NUMBER] for config in again] == [0, 1]
    assert [config[ATTEMPT]["resume_from"] for config in again] == ["checkpoint_000001", None]
    assert [trial.lost for trial in loop.ledger.trials.values()] == [0, 0]


def test_a_reason_to_stop_ends_the_round(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    trial = loop.begin("a")
    assert not loop.stopper.stop_all()
    loop.stop.reason = "SIGINT"
    assert loop.stopper.stop_all() and loop.begin("b") == Searcher.FINISHED
    loop.lose(trial)
    assert loop.states() == [None] and loop.ledger.trials["a"].lost == 0


def test_silence_ends_a_round_unless_there_is_a_reason_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, free = SimpleNamespace(now=1000.0), {"CPU": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("ray.available_resources", lambda: free)
    monkeypatch.setattr(trouble, "has_place", lambda: False)
    loop = Loop(tmp_path, stall_seconds=30)
    trial = loop.begin("a")
    loop.attempts.training.clear()  # it waits for a process
    clock.now += 31
    assert not loop.stopper.stop_all()  # no node has room
    free["CPU"] = 1.0
    clock.now += 31
    assert loop.stopper.stop_all() and loop.stopper.stop_all()
    loop.lose(trial)  # as Ray then ends it
    assert loop.attempts.unfinished and loop.ledger.trials["a"].lost == 0

    loop.attempts.begin_round()
    trial = loop.begin("b")
    clock.now += 599
    assert not loop.stopper.stop_all()  # twice as long as at first, and 10 times before an epoch is known
    loop.hear(trial, {"epoch": 1, "accuracy": 0.1, "epoch_seconds": 20.0, "timestamp": 1})
    clock.now += 399
    assert not loop.stopper.stop_all()  # twice 10 times the slowest epoch
    clock.now += 2
    assert loop.stopper.stop_all()


def test_of_an_unfinished_trial_the_newest_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    trial = loop.begin("a")
    kept = []
    for epoch, accuracy in enumerate((0.1, 0.5, 0.3, 0.4), start=1):
        loop.report(trial, epoch, accuracy, saved=True)
        kept.append(loop.checkpoints()[0])
    assert kept == [[1], [2], [2, 3], [2, 4]]


def test_of_the_ended_trials_the_best_keep_their_best_checkpoint(tmp_path: Path) -> None:
    loop = Loop(tmp_path, num_samples=6, keep_checkpoints=2, grace_period=5)
    kept = []
    for number, best in enumerate((0.3, 0.5, 0.2, 0.5, 0.6)):
        trial = loop.begin(str(number))
        for epoch in range(1, trial.config["epochs"] + 1):
            loop.report(trial, epoch, best if epoch == 2 else best - 0.1, saved=True)
        kept.append(loop.checkpoints())
    assert loop.states() == ["COMPLETE"] * 5
    assert kept == [{0: [2]}, {0: [2], 1: [2]}, {0: [2], 1: [2]}, {1: [2], 3: [2]}, {1: [2], 4: [2]}]


def test_what_an_earlier_session_has_left_too_much_is_deleted(tmp_path: Path) -> None:
    loop = Loop(tmp_path, num_samples=3, keep_checkpoints=3, grace_period=5)
    for number in range(2):
        trial = loop.begin(str(number))
        for epoch in range(1, trial.config["epochs"] + 1):
            loop.report(trial, epoch, 0.5 + number / 10, saved=True)
    loop.report(loop.begin("unfinished"), 1, 0.1, saved=True)
    assert set(loop.checkpoints()) == {0, 1, 2}
    again = Loop(tmp_path, num_samples=3, keep_checkpoints=1, grace_period=5)
    assert set(again.checkpoints()) == {1, 2}
    assert again.begin("x").config[ATTEMPT]["resume_from"] == "checkpoint_000001"


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    storage = TrialStorage(fs=LocalFileSystem(), path=str(tmp_path / "trial"))

    def broken(file: Path) -> None:
        file.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        storage.write(1, broken, [])
    assert list((tmp_path / "trial").iterdir()) == []
    name = storage.write(1, lambda file: torch.save({"a": 1}, file), [{"epoch": 1}])
    storage.write(1, lambda file: torch.save({"a": 2}, file), [{"epoch": 1}])  # by a process believed dead
    with storage.read(name) as (file, reports):
        assert torch.load(file) == {"a": 1} and reports == [{"epoch": 1}]
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["checkpoint_000001"]
    assert file == tmp_path / "trial" / name / CHECKPOINT
