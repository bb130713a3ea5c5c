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
"""Name of the file in the run folder, a line a training."""
MODELS = "finals"
"""Name of the folder next to it that keeps the checkpoint which may become the final model."""
LOOK_SECONDS = 0.5
"""Longest time in which a signal goes unheard."""


class TrainingError(RuntimeError):
    """A training could not be done, for another reason than that it diverged; the text is one line."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The result of a training."""

    value: float | None
    "The metric, on the validation part or the test set; None where it diverged."
    n: int | None
    "Examples that it was scored on, where the task counts them."
    seconds: float
    "Wall time of the training."
    error: str | None = None
    "Why it diverged."


def run_jobs(
    jobs: Sequence[Job], task: Task, data: Any, settings: Settings, resources: Resources, *, keep: bool
) -> Iterator[tuple[Job, Step]]:
    """Train each job; give every step of each as it comes.

    A training whose process or node is lost is started again by Ray, up to ``max_failures`` times, and what
    it had given is not given again.

    Args:
        jobs: what to train.
        task: how.
        data: what the task has loaded.
        settings: of the search.
        resources: a training's share, and how many run concurrently.
        keep: whether the last steps bring checkpoints.

    Raises:
        TrainingError: if one raised, or was lost too often.
    """
    send_by_value(task.train)
    shared = ray.put(task.train), ray.put(data)
    remote: Any = ray.remote  # its types know no streams
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
                raise TrainingError(f"a training could not be done: {first_line(cause)}") from error


class FinalsFile:
    """Ended trainings by what decided them, kept in the run folder.

    Attributes:
        results: of each training.
        lost_lines: lines that could not be read; their trainings are done again.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Read what is there.

        Raises:
            FolderError: if the storage can't be read.
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
        """Keep the result of a training, and before it its checkpoint, where there is one.

        Raises:
            FolderError: if the storage can't be written.
        """
        if checkpoint is not None:
            self.folder.put(_checkpoint_name(job), checkpoint)
        self.results[job] = result
        lines = (_line(one, self.results[one]) for one in self.results)
        # The whole file, as a bucket knows no appending; it has some dozens of lines.
        self.folder.put(FINALS, "".join(f"{line}\n" for line in lines).encode())

    def checkpoint(self, job: Job) -> bytes | None:
        """Read the kept checkpoint of a training; None where none was kept."""
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
