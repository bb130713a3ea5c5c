"""The trainings of a finalization: run in parallel by Ray, each kept in a file as soon as it ends."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tune_mnist.cluster.resources import Resources
from tune_mnist.finalize.protocol import Job, canonical
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.settings import Settings
from tune_mnist.run.words import first_line
from tune_mnist.task import Task, Trial
from tune_mnist.tuning.retrain import Step, retrain
from tune_mnist.tuning.tasks import send_by_value

FINALS = "finals.jsonl"
"""Name of the file in the run folder, one line per training."""
MODELS = "finals"
"""Name of the folder next to it, for the checkpoint that may become the final model."""
LOOK_SECONDS = 0.5
"""Longest time until a signal is noticed."""


class TrainingError(RuntimeError):
    """A training failed for another reason than divergence; the text is one line."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The result of a training."""

    value: float | None
    "The metric, on the validation part or the test set; None if it diverged."
    n: int | None
    "Examples that it was scored on, if the task counts them."
    seconds: float
    "Wall time of the training."
    error: str | None = None
    "Why it diverged."


def run_jobs(
    jobs: Sequence[Job], task: Task, data: Any, settings: Settings, resources: Resources, *, keep: bool
) -> Iterator[tuple[Job, Step]]:
    """Train each job; yield every step of each as it arrives.

    Ray restarts a training whose process or node is lost, up to ``max_failures`` times; steps that it had
    already yielded are not repeated.

    Args:
        jobs: what to train.
        task: how to train it.
        data: what the task has loaded.
        settings: of the search.
        resources: what a training gets, and how many run concurrently.
        keep: whether the last steps carry checkpoints.

    Raises:
        TrainingError: if one raised, or was lost too often.
    """
    send_by_value(task.train)
    shared = ray.put(task.train), ray.put(data)
    remote: Any = ray.remote  # its types do not cover streaming
    training = remote(retrain).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        num_returns="streaming",
        max_retries=settings.max_failures,
    )
    waiting = list(jobs)
    running: dict[Any, Job] = {}
    while waiting or running:
        while waiting and len(running) < resources.slots:
            job = waiting.pop(0)
            trial = Trial(
                seed=job.seed,
                max_epochs=settings.max_epochs,
                device="cuda" if resources.gpus else "cpu",
                cpus=resources.cpus,
                gpus=resources.gpus,
            )
            given = *shared, json.loads(job.config), trial
            stream = training.remote(*given, objective=task.objective, epochs=job.epochs, keep=keep)
            running[stream] = job
        ready: list[Any] = ray.wait(list(running), timeout=LOOK_SECONDS)[0]
        for stream in ready:
            try:
                yield running[stream], ray.get(next(stream))
            except StopIteration:
                del running[stream]
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                raise TrainingError(f"a training failed: {first_line(cause)}") from error


class FinalsFile:
    """The results of ended trainings, kept in the run folder.

    Attributes:
        results: by training.
        lost_lines: lines that could not be read; their trainings are repeated.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Read the results so far.

        Raises:
            FolderError: if the storage cannot be read.
        """
        self.folder = folder
        self.results: dict[Job, JobResult] = {}
        self.lost_lines = 0
        for line in (folder.read(FINALS) or b"").splitlines():
            try:
                job, result = _parse(line)
            except (ValueError, TypeError, LookupError, AttributeError):
                self.lost_lines += 1
            else:
                self.results[job] = result

    def add(self, job: Job, result: JobResult, checkpoint: bytes | None = None) -> None:
        """Store the result of a training, after its checkpoint, if there is one.

        Raises:
            FolderError: if the storage cannot be written.
        """
        if checkpoint is not None:
            self.folder.put(_checkpoint_name(job), checkpoint)
        self.results[job] = result
        lines = (_line(*item) for item in self.results.items())
        # The whole file, as a bucket cannot append; it has a few dozen lines.
        self.folder.put(FINALS, "".join(f"{line}\n" for line in lines).encode())

    def checkpoint(self, job: Job) -> bytes | None:
        """Read the kept checkpoint of a training; None if none was kept."""
        return self.folder.read(_checkpoint_name(job))


def _line(job: Job, result: JobResult) -> str:
    values = {**asdict(job), "config": json.loads(job.config), "data": json.loads(job.data)}
    return json.dumps({"job": values, "result": asdict(result)})


def _parse(line: bytes) -> tuple[Job, JobResult]:
    entry = json.loads(line)
    values: Mapping[str, Any] = entry["job"]
    texts = {name: canonical(values[name]) for name in ("config", "data")}
    job, result = Job(**{**values, **texts}), JobResult(**entry["result"])
    right = isinstance(result.value, float) and math.isfinite(result.value)
    if not right and not (result.value is None and isinstance(result.error, str)):
        raise ValueError(f"value is {result.value}, but must be a number, or None with an error")
    hash(job)  # TypeError for a list where a value belongs
    return job, result


def _checkpoint_name(job: Job) -> str:
    digest = hashlib.sha256(json.dumps(asdict(job), sort_keys=True).encode()).hexdigest()[:16]
    return f"{MODELS}/{digest}"
