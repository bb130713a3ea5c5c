"""Settles and checks what a search needs before its first trial: name, storage, cluster."""

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
"""Name of the file in the run folder with the settings."""

PRELOAD = "tune_mnist.tuning.preload"
"""Name of the module that a worker imports before its first trial, besides the task's own."""


def name_run(settings: Settings, prefix: str, stack: ExitStack) -> tuple[Settings, RunFolder]:
    """Settle a new run's name and folder, and lock it for the lifetime of ``stack``.

    The default name is the prefix and the time, with a number if that is taken.

    Raises:
        FolderError: if the storage cannot be written, or another process begins a run of the given name.
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
    """Read the settings of a run, which may have been moved or renamed: it is now at ``folder``.

    Raises:
        FolderError: if there are none, or they are corrupt.
    """
    text = folder.read(SETTINGS)
    if text is None:
        raise FolderError(f"{folder.uri} is not the folder of a run: it has no {SETTINGS}")
    try:
        return Settings.from_json(text.decode())
    except ValueError as error:
        raise FolderError(f"{folder.uri}/{SETTINGS} can't be read: {error}") from error


def check_readable(folder: RunFolder, ledger: Ledger) -> None:
    """Check that a ledger has its space and all trials, as the numbers in the study would shift otherwise.

    Raises:
        FolderError: if one of them is missing.
    """
    if not ledger.sessions:
        raise FolderError(f"{folder.uri} can't be resumed: {LEDGER} has no line that can be read")
    numbers = sorted(trial.number for trial in ledger.trials.values())
    lost = bool(ledger.lost_trials) or numbers != list(range(len(numbers)))
    if ledger.lost_lines:
        # A lost line may be the only one about a trial. If no line is lost, a folder without a trial is from
        # one that the bucket's ledger did not know yet when the driver's disk was lost: it is run again.
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
    """Join or start the cluster for the lifetime of ``stack``; settle a trial's GPUs and the number of slots.

    Raises:
        ClusterError: if there is none, it cannot hold a trial, or its nodes do not share the folder.
    """
    # Preload only if trials fill the machine; otherwise most workers would load torch for nothing. A task
    # that has not loaded torch here will not load it there.
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
    # The number of slots is not saved in the settings: unless requested, a resume takes what fits then.
    return dataclasses.replace(settings, gpus_per_trial=resources.gpus), resources.slots, connection
