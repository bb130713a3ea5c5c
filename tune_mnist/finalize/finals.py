"""The file of a finalization's trainings: one line each, so that a rerun goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from tune_mnist.finalize.protocol import Job
from tune_mnist.mnist.hyperparameters import Hyperparameters
from tune_mnist.run.folder import RunFolder

FINALS = "finals.jsonl"
"""Name of the file in the run folder."""
MODELS = "finals"
"""Name of the folder beside it that keeps the weights which may become the final model."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a training came to."""

    accuracy: float | None
    "Share of the scored images classified rightly, 0..1; None where it diverged."
    images: int
    "How many were scored."
    seconds: float
    "Wall time of the training with its scoring."
    error: str | None = None
    "Why it diverged."


class FinalsFile:
    """Ended trainings by what decided them, kept in the run folder.

    Attributes:
        results: what each training came to.
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

    def add(self, job: Job, result: JobResult, model: bytes | None = None) -> None:
        """Keep the outcome of a training, and its weights before it, where there are any.

        Raises:
            FolderError: if the storage can't be written.
        """
        if model is not None:
            self.folder.put(_model_name(job), model)
        self.results[job] = result
        lines = (
            json.dumps({"job": asdict(one), "result": asdict(self.results[one])}) for one in self.results
        )
        # The whole file, as a bucket knows no appending; it has some dozens of lines.
        self.folder.put(FINALS, "".join(f"{line}\n" for line in lines).encode())

    def model(self, job: Job) -> bytes | None:
        """Read the kept weights of a training; None where none were kept."""
        return self.folder.read(_model_name(job))


def _parse(line: bytes) -> tuple[Job, JobResult]:
    entry = json.loads(line)
    hyperparameters = Hyperparameters(**entry["job"].pop("hyperparameters"))
    job, result = Job(hyperparameters=hyperparameters, **entry["job"]), JobResult(**entry["result"])
    right = isinstance(result.accuracy, float) and 0 <= result.accuracy <= 1
    if not right and not (result.accuracy is None and isinstance(result.error, str)):
        raise ValueError(f"accuracy is {result.accuracy}, but must be 0 to 1, or None with an error")
    hash(job)  # TypeError for a list where a value belongs
    return job, result


def _model_name(job: Job) -> str:
    digest = hashlib.sha256(json.dumps(asdict(job), sort_keys=True).encode()).hexdigest()[:16]
    return f"{MODELS}/{digest}.pt"
