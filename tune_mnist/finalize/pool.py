"""Runs the trainings of a finalization side by side, as tasks of Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tune_mnist.cluster.resources import Resources
from tune_mnist.finalize.protocol import Job
from tune_mnist.mnist.retraining import Step, retrain
from tune_mnist.run.words import first_line

LOOK_SECONDS = 0.5
"""Longest time in which a signal goes unheard."""


class TrainingError(RuntimeError):
    """A training could not be done, for another reason than that it diverged; the text is one line."""


def run_jobs(
    jobs: Sequence[Job],
    train: Mapping[str, Any],
    scored: Mapping[str, Any],
    *,
    resources: Resources,
    cuda_graph: str,
    max_failures: int,
    keep_model: Job | None = None,
) -> Iterator[tuple[Job, Step]]:
    """Train each job; give every step of each as it comes.

    A task whose process or node is lost is started again by Ray, up to ``max_failures`` times, and what it
    had given is not given again.

    Args:
        jobs: what to train.
        train: arrays of the images to train on.
        scored: arrays of the images to score on.
        resources: a training's share, and how many run at a time.
        cuda_graph: on or off: whether a GPU replays the steps from CUDA graphs.
        max_failures: how often a lost one is tried again.
        keep_model: the one whose last step shall bring the weights.

    Raises:
        TrainingError: if one raised, or was lost too often.
    """
    images = ray.put(dict(train)), ray.put(dict(scored))
    remote: Any = ray.remote  # its types know no streams
    task = remote(retrain).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        num_returns="streaming",
        max_retries=max_failures,
    )
    waiting = list(reversed(jobs))
    running: dict[Any, Job] = {}
    while waiting or running:
        while waiting and len(running) < resources.slots:
            job = waiting.pop()
            stream = task.remote(
                job.hyperparameters,
                *images,
                seed=job.seed,
                device="cuda" if resources.gpus else "cpu",
                precision=job.precision,
                cuda_graph=cuda_graph,
                gpus=resources.gpus,
                keep_model=job == keep_model,
            )
            running[stream] = job
        ready: list[Any]
        ready, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
        for stream in ready:
            try:
                yield running[stream], ray.get(next(stream))
            except StopIteration:
                del running[stream]
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                raise TrainingError(f"a training could not be done: {first_line(cause)}") from error


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Keep what Ray logs of lost workers off the console, for a block: their tasks are started again."""
    logger = logging.getLogger("ray.tune")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
