"""Each trial as a run of MLflow: a search is an experiment, in the team's store or one next to the runs."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import EPOCH, RUNNING, TaskFacts, TrialRecord
from tune_mnist.run.words import short_path, without_password
from tune_mnist.tuning.dashboard import command
from tune_mnist.tuning.trackers.feed import Tracker
from tune_mnist.tuning.trial_files import numbers

STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
"""MLflow's names for the states of ended trials."""
STORE = "mlflow.db"
"""Name of the SQLite store, next to the folders of the runs."""


class MlflowRuns(Tracker):
    """Keeps one run per trial, identified by its tag ``trial_id``; an unfinished run stays RUNNING."""

    title = "MLflow"

    def __init__(self, search: str, task: TaskFacts, folder: RunFolder) -> None:
        """Settle the store and the experiment; nothing is read or written."""
        store = (Path.cwd() if folder.remote else folder.local.parent) / STORE
        self.search, self.metric = search, task.objective.metric
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}"
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or search
        self.where = f"MLflow: experiment {self.experiment}, {_way_to_watch(self.uri)}"
        self.run_ids: dict[str, str] = {}
        self.ended: set[str] = set()
        self.logged: dict[str, int] = {}
        "Last logged epoch of each trial that this session has handled."

    def open(self) -> None:
        """Find or create the experiment, and find the runs of this search in it."""
        # MLflow tries 7 times, for 4 minutes. The feed retries itself, and meanwhile shows what is wrong.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it logs the creation of its tables
        self.client = MlflowClient(self.uri)
        experiment = self.client.get_experiment_by_name(self.experiment)
        self.id = experiment.experiment_id if experiment else self.client.create_experiment(self.experiment)
        token = None
        while token != "":
            page = self.client.search_runs([self.id], f"tags.search = '{self.search}'", page_token=token)
            for run in page:
                trial_id = run.data.tags["trial_id"]
                self.run_ids[trial_id] = run.info.run_id
                if run.info.status in STATUS.values():
                    self.ended.add(trial_id)
            token = page.token or ""

    def update(self, trial: TrialRecord) -> None:
        """Bring the run of a trial up to its record."""
        if trial.trial_id in self.ended:
            return
        from mlflow.entities import Metric

        run_id = self._begun(trial)
        for epoch in trial.epochs:
            if epoch[EPOCH] > self.logged[trial.trial_id]:
                at = round(1000 * epoch.get("timestamp", trial.started))
                metrics = [Metric(name, value, at, epoch[EPOCH]) for name, value in numbers(epoch).items()]
                self.client.log_batch(run_id, metrics)
                self.logged[trial.trial_id] = epoch[EPOCH]
        if trial.state:
            self.client.set_tag(run_id, "state", trial.state)
            self.client.set_terminated(run_id, STATUS[trial.state], round(1000 * (trial.ended or 0)))
            self.ended.add(trial.trial_id)

    def _begun(self, trial: TrialRecord) -> str:
        """Return the id of a trial's run, after making sure that it exists and that ``logged`` is known."""
        if trial.trial_id in self.logged:
            return self.run_ids[trial.trial_id]
        from mlflow.entities import Param

        if trial.trial_id not in self.run_ids:
            tags: dict[str, Any] = {"search": self.search, "trial": str(trial.number), "state": RUNNING}
            tags["trial_id"] = trial.trial_id
            start, name = round(1000 * trial.started), f"{self.search}-{trial.number}"
            run = self.client.create_run(self.id, start, tags, run_name=name)
            self.run_ids[trial.trial_id] = run.info.run_id
        run_id = self.run_ids[trial.trial_id]
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in trial.config.items()])
        history = self.client.get_metric_history(run_id, self.metric)
        self.logged[trial.trial_id] = max((metric.step for metric in history), default=0)
        return run_id


def _way_to_watch(uri: str) -> str:
    """Return a server's address, or the command that shows another kind of store."""
    if uri.startswith("http"):
        return without_password(uri)
    if uri.startswith("sqlite:////"):
        uri = f"sqlite:///{short_path(Path(uri.removeprefix('sqlite:///')))}"
    installed = False
    with suppress(importlib.metadata.PackageNotFoundError):
        installed = bool(importlib.metadata.version("mlflow"))  # mlflow-skinny has no pages
    shown = command("mlflow", "ui", "--backend-store-uri", uri, install="pip install mlflow", known=installed)
    return shown.strip()
