"""The six points that must hold for a finished run, whatever was killed on the way.

They are checked on the files of the run with as little of the package as possible: the lines of the ledger
are counted again, and ASHA's verdicts recomputed.
"""

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune_mnist import results


def check(run_dir: Path, num_samples: int) -> dict[str, int]:
    """Check points 1 to 5 of a finished run; point 6 is for `fingerprint`.

    Returns:
        Counts of trials, epochs, sessions, restarts from a checkpoint, lost attempts, and premature ends of
        Ray's loop.

    Raises:
        AssertionError: naming the point.
    """
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    settings = json.loads((run_dir / "settings.json").read_text())
    objective = next(line for line in lines if line["event"] == "session")["task"]["objective"]
    metric, sign = objective["metric"], 1 if objective["mode"] == "max" else -1
    ids = one_to_one(run_dir, num_samples)
    restarts = nothing_runs_again(lines)
    study_agrees(run_dir, ids, metric)
    asha_saw_the_whole_run(lines, settings, metric, sign)
    draws_go_on(lines)
    epochs = sum(line["event"] == "epoch" for line in lines)
    sessions = sum(line["event"] == "session" for line in lines)
    seen = {"trials": len(ids), "epochs": epochs, "sessions": sessions, "restarts": restarts}
    return seen | {kind: sum(line["event"] == kind for line in lines) for kind in ("lost", "broke")}


def study_of(run_dir: Path) -> list[optuna.trial.FrozenTrial]:
    """The run's own trials in its study, which follow the inherited ones."""
    storage = JournalStorage(JournalFileBackend(str(run_dir / "study.journal")))
    trials = optuna.load_study(study_name=run_dir.name, storage=storage).trials
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    inherited = [line for line in lines if line["event"] == "inherited"]
    for trial, line in zip(trials, inherited, strict=False):
        assert trial.state.name == line["state"] in ("COMPLETE", "PRUNED"), "study: state of an inherited one"
        assert trial.params == line["params"], "study: parameters of an inherited trial"
        assert trial.intermediate_values == dict(line["epochs"]), "study: values of an inherited trial"
        assert trial.value == line["epochs"][-1][1], "study: the value of an inherited trial"
        origin = {"inherited_from": line["run"], "number_there": line["number"]}
        assert trial.user_attrs == origin, "study: the origin of an inherited trial"
    own = trials[len(inherited) :]
    if inherited:
        assert [trial.user_attrs["number_here"] for trial in own] == list(range(len(own))), "study: numbers"
    return own


def ended_states(run_dir: Path) -> dict[str, str]:
    """State by trial id, from the ledger lines that say how trials ended."""
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    return {line["trial_id"]: line["state"] for line in lines if line["event"] == "end"}


def one_to_one(run_dir: Path, num_samples: int) -> list[str]:
    """Point 1: N trials in the ledger, in the study, in the table on disk, matched by id, all ended once."""
    states, study = ended_states(run_dir), study_of(run_dir)
    table = pd.read_parquet(run_dir / "trials.parquet")
    ids = table["trial_id"].tolist()
    assert len(ids) == len(set(ids)) == num_samples, f"point 1: {len(ids)} trials for {num_samples}"
    assert set(states) == set(ids), f"point 1: others have ended: {set(states) ^ set(ids)}"
    assert [trial.user_attrs["ray_trial_id"] for trial in study] == ids, "point 1: the study has others"
    assert all(trial.state.is_finished() for trial in study), "point 1: the study has RUNNING trials"
    grid = results.load(run_dir)
    metrics = [grid[i].metrics or {} for i in range(len(grid))]
    assert [one["trial_id"] for one in metrics] == ids, "point 1: the ResultGrid has others"
    folders = {folder.name.split("_")[2] for folder in run_dir.glob("trial_*_*")}
    assert folders == set(ids), (
        f"point 1: the folders {folders ^ set(ids)} belong to no trial, or are missing"
    )
    return ids


def nothing_runs_again(lines: list[dict[str, Any]]) -> int:
    """Point 2: an ended trial reports nothing more; a restarted one continues from its newest checkpoint."""
    ended: set[str] = set()
    epochs: dict[str, list[int]] = defaultdict(list)
    saved: dict[str, list[int]] = defaultdict(list)
    restarts = 0
    for line in lines:
        trial = line.get("trial_id", "")
        if line["event"] == "end":
            assert trial not in ended, f"point 2: {trial} ended twice"
            ended.add(trial)
        if line["event"] == "attempt":
            assert trial not in ended, f"point 2: {trial} has ended, and is run again"
        if line["event"] not in ("epoch", "saved"):
            continue
        assert trial not in ended, f"point 2: {trial} has ended, and reports epoch {line['epoch']}"
        if line["event"] == "epoch" and "iterations_since_restore" in line:
            origin = line["epoch"] - line["iterations_since_restore"]
            newest = max((epoch for epoch in saved[trial] if epoch < line["epoch"]), default=0)
            fresh = line["iterations_since_restore"] == 1 or origin not in (0, *saved[trial])
            if origin != 0:
                restarts += line["iterations_since_restore"] == 1
                assert origin in saved[trial], f"point 2: {trial} went on from epoch {origin}, not saved"
            if fresh and epochs[trial]:
                assert origin == newest, f"point 2: {trial} went on from epoch {origin}, not {newest}"
        if line["event"] == "epoch":
            epochs[trial].append(line["epoch"])
        if line.get("checkpoint_dir_name"):
            saved[trial].append(line["epoch"])
    for trial, seen in epochs.items():
        assert sorted(seen) == list(range(1, len(seen) + 1)), f"point 2: {trial} has the epochs {seen}"
    return restarts


def study_agrees(run_dir: Path, ids: list[str], metric: str) -> None:
    """Point 3: states and values agree with the ledger's, and no epoch is counted twice."""
    states, study = ended_states(run_dir), study_of(run_dir)
    table = pd.read_parquet(run_dir / "trials.parquet").set_index("trial_id")
    epochs = pd.read_parquet(run_dir / "epochs.parquet")
    assert not epochs.duplicated(["trial_id", "epoch"]).any(), "point 3: an epoch is counted twice"
    by_trial: dict[Any, dict[Any, float]] = {
        key: part.set_index("epoch")[metric].to_dict() for key, part in epochs.groupby("trial_id")
    }
    for trial, trial_id in zip(study, ids, strict=True):
        values: dict[int, float] = by_trial.get(trial_id, {})
        assert trial.intermediate_values == values, f"point 3: values of {trial_id}"
        assert trial.state.name == table["state"][trial_id] == states[trial_id], f"point 3: {trial_id}"
        if trial.state.name != "FAIL":
            assert trial.value == values[max(values)] == table[metric][trial_id], f"point 3: {trial_id}"
            complete = max(values) == table["epochs_planned"][trial_id]
            assert (trial.state.name == "COMPLETE") == complete, f"point 3: {trial_id} is {trial.state.name}"


def asha_saw_the_whole_run(
    lines: list[dict[str, Any]], settings: dict[str, Any], metric: str, sign: int
) -> None:
    """Point 4: each verdict follows from the rungs as the whole run has filled them."""
    factor, top = settings["reduction_factor"], settings["max_epochs"]
    rungs: dict[int, dict[str, float]] = {}
    rung = float(settings["grace_period"])
    while rung <= top:
        rungs[math.ceil(rung)] = {}
        rung *= factor
    for line in lines:
        if line["event"] != "epoch":
            continue
        stop = line["epoch"] >= top
        recorded = rungs.get(line["epoch"])
        if recorded is not None:
            value = sign * line[metric]
            if recorded and value < np.percentile(list(recorded.values()), (1 - 1 / factor) * 100):
                stop = True
            recorded[line["trial_id"]] = value
        if "done" in line:
            assert line["done"] == stop, f"point 4: ASHA's verdict on {line['trial_id']}: {line}"


def draws_go_on(lines: list[dict[str, Any]]) -> None:
    """Point 5: numbers without gaps, and no point drawn twice."""
    drawn = [line for line in lines if line["event"] == "trial"]
    assert [line["number"] for line in drawn] == list(range(len(drawn))), "point 5: numbers"
    points = [json.dumps(line["params"], sort_keys=True) for line in drawn]
    assert len(set(points)) == len(points), "point 5: a point was drawn twice"


def fingerprint(run_dir: Path) -> dict[str, tuple[int, str]]:
    """Modification time and content of every file, for point 6."""
    files = sorted(path for path in run_dir.rglob("*") if path.is_file())
    return {
        str(path.relative_to(run_dir)): (
            path.stat().st_mtime_ns,
            hashlib.md5(path.read_bytes()).hexdigest(),
        )
        for path in files
    }
