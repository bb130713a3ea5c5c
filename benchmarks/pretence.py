"""Trials that train nothing: in Ray's processes they sleep, without any they answer at once.

Ray's processes import this file to run them: no torch here, which would cost each 2.3 s and 300 MB.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.air.execution._internal.tracked_actor import TrackedActor

from tune_mnist.run.records import OPTUNA_NUMBER


def made_up(number: int, epoch: int) -> dict[str, float]:
    """Return the fields of an `EpochResult`: each trial approaches its own ceiling."""
    accuracy = (0.9 + 0.09 * random.Random(number).random()) * (1 - 0.5 ** (2 * epoch))
    losses = {"val_loss": 1 - accuracy, "train_loss": 1 - accuracy}
    return {"epoch": epoch, "accuracy": accuracy, **losses, "epoch_seconds": 10.0, "images_per_second": 5e3}


def sleeper(seconds: float) -> Callable[..., None]:
    """Make a trainable that sleeps before each report."""

    def sleep_trial(config: dict[str, Any], **_: Any) -> None:
        for epoch in range(1, config["epochs"] + 1):
            time.sleep(seconds)
            tune.report(made_up(config[OPTUNA_NUMBER], epoch))

    return sleep_trial


HANDLE = SimpleNamespace(get_auto_filled_metrics=SimpleNamespace(remote=lambda **_: {}))
"""All that Ray calls on an actor directly, not through the manager."""


class PretendedActors:
    """The part of Ray's `RayActorManager` that `TuneController` uses, without processes, resources or waits.

    A task is answered once all events before it have been handled, so that actors take turns.
    """

    def __init__(self, resource_manager: Any) -> None:
        """Start without actors; Ray's bookkeeping of resources is not used."""
        self._events: deque[tuple[TrackedActor, Callable[[], None]]] = deque()
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[Any, Any]] = {}
        self._state: dict[TrackedActor, tuple[dict[str, Any], int]] = {}
        "Config and reported epochs of each actor's trial."

    num_pending_actors = 0

    @property
    def num_live_actors(self) -> int:
        """Count the actors."""
        return len(self._live_actors_to_ray_actors_resources)

    num_total_actors = num_live_actors

    @property
    def num_actor_tasks(self) -> int:
        """Count the unanswered tasks."""
        return len(self._events)

    def get_live_actors_resources(self) -> dict[str, float]:
        """Return the resources that all actors take."""
        return {"CPU": float(self.num_live_actors)}

    def next(self, timeout: float | None = None) -> bool:
        """Handle one event; return False if there is none."""
        if not self._events:
            return False
        self._events.popleft()[1]()
        return True

    def add_actor(
        self, cls: Any, kwargs: dict[str, Any], resource_request: Any, *, on_start: Any, **callbacks: Any
    ) -> TrackedActor:
        """Add an actor, which has started at the next event."""
        actor = TrackedActor(uuid.uuid4().int, on_start=on_start, **callbacks)
        self._live_actors_to_ray_actors_resources[actor] = (HANDLE, None)
        self._state[actor] = (kwargs["config"], 0)
        self._events.append((actor, lambda: on_start(actor)))
        return actor

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        """Remove an actor, which has stopped at the next event."""
        del self._live_actors_to_ray_actors_resources[tracked_actor], self._state[tracked_actor]
        stopped = tracked_actor._on_stop
        self._events.append((tracked_actor, lambda: stopped and stopped(tracked_actor)))
        return True

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Return whether this actor exists."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """Return False: none fails."""
        return False

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: Any = None,
        kwargs: Any = None,
        on_result: Any = None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> Any:
        """Queue a task, which is answered in its turn."""
        if on_result is not None:
            event = lambda: on_result(tracked_actor, self._answer(tracked_actor, method_name, args))  # noqa: E731
            self._events.append((tracked_actor, event))
        return object() if _return_future else None

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Drop an actor's pending tasks."""
        self._events = deque(event for event in self._events if event[0] is not tracked_actor)

    def cleanup(self) -> None:
        """Do nothing: there is nothing to clean up."""

    def _answer(self, actor: TrackedActor, method_name: str, args: Any) -> Any:
        if method_name == "reset":
            self._state[actor] = (args[0], 0)
            return True
        config, epoch = self._state[actor]
        self._state[actor] = (config, epoch + 1)
        report = made_up(config[OPTUNA_NUMBER], epoch + 1)
        # What Ray's function trainable adds to a report.
        return {**report, "done": False, "training_iteration": epoch + 1, "timestamp": 0, "pid": 0}
