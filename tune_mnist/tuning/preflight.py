"""What is settled and checked before the first trial of a search: name, storage, cluster, data."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from tune_mnist.cluster import connection as cluster
from tune_mnist.cluster import ray_private
from tune_mnist.cluster.resources import fit_resources
from tune_mnist.cluster.shared import check_shared
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.settings import Settings
from tune_mnist.task import Task
from tune_mnist.tuning.progress import Listener
from tune_mnist.tuning.stop import StopRequest

SETTINGS = "settings.json"
"""Name of the file in the run folder that has the settings."""

PRELOAD = "tune_mnist.tuning.preload"
"""Name of the module that a worker imports before its first trial, besides the task's own."""


def name_run(settings: Settings, prefix: str, stack: ExitStack) -> tuple[Settings, RunFolder]:
    """Settle a new run's name and folder, and keep others off it for ``stack``.

    Where no name was given it is the prefix and the time, and a number where several would be called alike.

    Raises:
        FolderError: if the storage can't be written, or another process begins a run of the name given.
        ValueError: if there is such a run.
    """
    storage_path = settings.storage_path.rstrip("/")
    if "://" not in storage_path:
        storage_path = str(Path(storage_path).expanduser().absolute())
    by_time = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    numbered = (f"{by_time}-{number}" for number in range(2, 1000))
    for name in [settings.name] if settings.name else [by_time, *numbered]:
        folder = RunFolder(f"{storage_path}/{name}")
        if not folder.exists():
            folder.check_writable()
            try:
                stack.enter_context(folder.locked())
            except FolderError:
                if settings.name:
                    raise
                continue
            if not folder.exists():
                return dataclasses.replace(settings, name=name, storage_path=storage_path), folder
        if settings.name:
            break
    raise ValueError(
        f"name is {folder.name}, but must be a new one: {folder.uri} exists "
        f"(--resume {folder.uri} continues it)"
    )


def read_settings(folder: RunFolder) -> Settings:
    """Read the settings of a run, which may have been moved or renamed since: it is where ``folder`` is.

    Raises:
        FolderError: if there are none, or they are spoilt.
    """
    text = folder.read(SETTINGS)
    if text is None:
        raise FolderError(f"{folder.uri} is not the folder of a run: it has no {SETTINGS}")
    try:
        return Settings.from_json(text.decode())
    except ValueError as error:
        raise FolderError(f"{folder.uri}/{SETTINGS} can't be read: {error}") from error


def check_readable(folder: RunFolder, ledger: Ledger) -> None:
    """See that no trial is missing from a ledger, as the numbers of the study would shift, nor its space.

    Raises:
        FolderError: if one is.
    """
    if not ledger.sessions:
        raise FolderError(f"{folder.uri} can't be resumed: {LEDGER} has no line that can be read")
    numbers = sorted(trial.number for trial in ledger.trials.values())
    lost = bool(ledger.lost_trials) or numbers != list(range(len(numbers)))
    if ledger.lost_lines:
        # One of them may be all that spoke of a trial. With no line lost, a folder without one is of a trial
        # that the bucket's ledger had not heard of when the driver's disk was lost: it is run again.
        lost |= bool(folder.trial_folders() - {trial.directory for trial in ledger.trials.values()})
    if not ledger.distributions or lost:
        raise FolderError(
            f"{folder.uri} can't be resumed: {LEDGER} has {ledger.lost_lines} lines that can't be read, "
            "and with them a trial or the search space is lost"
        )


def fit_to_cluster(
    settings: Settings,
    task: Task,
    folder: RunFolder,
    stop: StopRequest,
    stack: ExitStack,
    listener: Listener,
) -> tuple[Settings, int, cluster.Connection]:
    """Join or start the cluster for ``stack``; settle a trial's share and the number of concurrent trials.

    Raises:
        ClusterError: if there is none, it can't hold a trial, or its nodes don't share the folder.
    """
    # Where trials fill the machine, each has a worker; else most workers would load torch for nothing.
    # A task that has not loaded it here will not there.
    few = settings.max_concurrent_trials or settings.cpus_per_trial > 1 or "torch" not in sys.modules
    preload = "" if few else ",".join([PRELOAD, *task.preload])
    with stop.deferred():
        connection = stack.enter_context(
            cluster.connected(settings.address, dashboard=settings.dashboard, preload=preload)
        )
    for line in ray_private.skipped.values():
        listener.on_message(line)
    if connection.dashboard:
        listener.on_message(f"Ray's dashboard: {connection.dashboard}")
    resources = fit_resources(
        settings.cpus_per_trial, settings.gpus_per_trial, settings.max_concurrent_trials
    )
    if not connection.embedded and not folder.remote:
        check_shared(folder.local.parent)
    # The number is not kept with the settings: where it was not asked for, a resume takes what fits then.
    return dataclasses.replace(settings, gpus_per_trial=resources.gpus), resources.slots, connection
