"""The final model: its protocol, the real finalize.py on a finished run, what that writes."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.fs
import pytest
import torch
from rich.console import Console

from tests.conftest import ROOT, SCRIPTS, Runner, WarmRunner
from tests.mnist.test_data import pairs
from tests.toy import FINAL
from tune_mnist import search
from tune_mnist.cli import finals_console
from tune_mnist.finalize import finalizer, protocol
from tune_mnist.finalize.card import write_card
from tune_mnist.finalize.protocol import FinalsSettings, Job, Scores, Verdict, canonical
from tune_mnist.finalize.trainings import FINALS, FinalsFile, JobResult
from tune_mnist.mnist.data import Split, load_train_val
from tune_mnist.mnist.facts import FACTS, OBJECTIVE
from tune_mnist.mnist.task import TASK, load_all
from tune_mnist.results.grid import load_grid
from tune_mnist.results.winner import Winner, read_winner, score_winner
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.records import TrialRecord
from tune_mnist.task import Trial
from tune_mnist.tuning.retrain import Step, retrain
from tune_mnist.tuning.tasks import make_options
from tune_mnist.tuning.tuner import InputError

FLAGS = ["--top-k", "2", "--seeds", "3"]
TOY_DEFAULTS = dict(FINAL.defaults)


@dataclass
class Finalized:
    """A run finalized in two sessions, the first ended by Ctrl-C, the second with a worker killed."""

    run_dir: Path
    first: tuple[int, str, str]
    second: tuple[int, str, str]
    kept: list[str]
    searched: Winner | None
    "The search's winner, before."


@pytest.fixture(scope="module")
def finalized(joining: Runner) -> Finalized:
    run_dir = joining.folder / "runs" / "final"
    task = f"{ROOT / 'tests' / 'toy.py'}:FINAL"
    sizes = {"num_samples": 3, "max_epochs": 3, "grace_period": 3, "epoch_seconds": 0.3}
    with joining.joined():
        search(task, name="final", storage_path=str(run_dir.parent), **sizes)
    searched = read_winner(RunFolder(run_dir), RunFolder(run_dir).ledger().task)
    process = joining.start("runs/final", *FLAGS, script="finalize.py")
    assert process.stdout is not None
    line = process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    first = process.returncode, line + out, err
    kept = (run_dir / FINALS).read_text().splitlines()
    with (run_dir / FINALS).open("a") as file:
        file.write('{"job": {"hyperpar')  # truncated, as a power cut may leave it on some file systems
    process = joining.start("runs/final", *FLAGS, script="finalize.py")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]  # two notes and the first training
    kill_a_worker(joining)
    out, err = process.communicate(timeout=200)
    return Finalized(run_dir, first, (process.returncode, "".join(lines) + out, err), kept, searched)


def kill_a_worker(runner: Runner) -> None:
    """Kill a process that trains, once there is one: between trainings a worker has a different name."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for pid in runner.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(pid).children():
                    if child.name().startswith("ray::retrain"):
                        child.kill()
                        return
        time.sleep(0.01)
    raise TimeoutError


def finals_of(run_dir: Path) -> dict[Job, JobResult]:
    return FinalsFile(RunFolder(run_dir)).results


def test_ctrl_c_ends_it_with_one_line_and_keeps_what_has_ended(finalized: Finalized) -> None:
    code, out, err = finalized.first
    assert code == 130
    assert err.count("\n") == 1
    script = shlex.join([sys.executable, str(SCRIPTS / "finalize.py"), "runs/final", *FLAGS])
    assert err.endswith(f"and the same command resumes: {script}\n")
    assert out.count("\n") == len(finalized.kept) >= 1


def test_a_rerun_trains_only_what_is_missing_and_says_what_was_lost(finalized: Finalized) -> None:
    code, out, err = finalized.second
    assert (code, err) == (0, ""), out
    assert f"{FINALS} has 1 lines that can't be read" in out
    assert f"choosing: {len(finalized.kept)} of 6 trainings were done already" in out
    assert len(re.findall(r"^ +\d/6 ", out, re.MULTILINE)) == 12 - len(finalized.kept)
    lines = (finalized.run_dir / FINALS).read_text().splitlines()
    assert lines[: len(finalized.kept)] == finalized.kept and len(lines) == 12


def test_each_training_equals_the_plain_loop_although_a_worker_was_killed(
    finalized: Finalized,
) -> None:
    for job, result in finals_of(finalized.run_dir).items():
        trial = Trial(seed=job.seed, max_epochs=3)
        *_, (last, _) = FINAL.train(json.loads(job.config), 0.0, trial)
        scale = 1.1 if job.part == protocol.UNION else 1.0
        assert result.value == scale * last["loss"]


def test_the_protocol_is_kept(finalized: Finalized) -> None:
    results = finals_of(finalized.run_dir)
    choosing = [job for job in results if job.part == protocol.TRAINING]
    testing = [job for job in results if job.part == protocol.UNION]
    grid = load_grid(finalized.run_dir)
    searched = {(grid[place].config or {})["optuna_trial_number"] for place in range(len(grid))}
    seeds = [{job.seed for job in jobs} for jobs in (choosing, testing)]
    assert [len(one) for one in seeds] == [3, 3] and not seeds[0] & seeds[1] and not (searched & seeds[0])
    assert {results[job].n for job in choosing} == {50}
    assert {results[job].n for job in testing} == {70}
    means = {
        one: np.mean([results[job].value for job in choosing if job.config == one])
        for one in {job.config for job in choosing}
    }
    assert len(means) == 2
    tested, baseline = {job.config for job in testing}, canonical({"rate": 0.1})
    assert baseline in tested
    winner = min(means, key=lambda config: means[config])
    assert tested == {winner, baseline}
    written = json.loads((finalized.run_dir / "best" / "hyperparameters.json").read_text())
    assert written == TOY_DEFAULTS | json.loads(winner)


def test_the_tables_say_what_the_file_says(finalized: Finalized) -> None:
    results, out = finals_of(finalized.run_dir), finalized.second[1]
    card = (finalized.run_dir / "best" / "card.md").read_text()
    config = json.loads((finalized.run_dir / "best" / "hyperparameters.json").read_text())
    values = [
        result.value or 0.0
        for job, result in results.items()
        if job.part == protocol.UNION and TOY_DEFAULTS | json.loads(job.config) == config
    ]
    mean, sd = np.mean(values), np.std(values, ddof=1)
    half = 4.30265 * sd / math.sqrt(3)  # Student's t for n = 3, from a table
    assert re.search(rf"trial \d +{mean:.4g} ± {sd:.4g} +3 +{mean - half:.4g} to {mean + half:.4g}", out)
    assert re.search(rf"\| trial \d \| {mean:.4g} \| {sd:.4g} \| 3 \| 0 \| {mean - half:.4g} to", card)
    assert f"`tune-mnist finalize {finalized.run_dir} --top-k 2 --seeds 3`" in card
    assert f"- torch {torch.__version__.partition('+')[0]}" in card and "n = 70" in card


def test_the_model_is_that_of_the_first_final_seed_and_scores_what_the_card_says(
    finalized: Finalized,
) -> None:
    best, (_, final_seeds) = finalized.run_dir / "best", protocol.fresh_seeds(0, 3)
    written = json.loads((best / "hyperparameters.json").read_text())
    (value,) = [
        result.value
        for job, result in finals_of(finalized.run_dir).items()
        if TOY_DEFAULTS | json.loads(job.config) == written and job.seed == final_seeds[0]
    ]
    assert value == 1.1 * abs(json.loads((best / "model.json").read_text()))
    assert f"test {value:.4g}" in finalized.second[1]
    card = (best / "card.md").read_text()
    assert f"Test loss {value:.4g} (n = 70)" in card and "`model.json` is x." in card


def test_the_searchs_winner_stays_known_and_a_new_one_drops_the_card(
    finalized: Finalized, tmp_path: Path
) -> None:
    run_dir = tmp_path / "more"
    shutil.copytree(finalized.run_dir, run_dir)
    folder, best = RunFolder(run_dir), run_dir / "best"
    winner = read_winner(folder, folder.ledger().task)
    assert winner == finalized.searched
    grid = load_grid(folder)
    assert score_winner(FINAL, None, grid, folder) == winner
    assert (best / "card.md").exists() and (best / "model.json").exists()
    metrics = json.loads((best / "metrics.json").read_text())
    (best / "metrics.json").write_text(json.dumps({**metrics, "trial_id": "another"}))
    assert score_winner(FINAL, None, grid, folder) == winner
    assert not (best / "card.md").exists() and not (best / "model.json").exists()
    drawn = json.loads((best / "hyperparameters.json").read_text())
    assert winner and drawn == winner.config


def scores_of(*values: float | None) -> Scores:
    return Scores(by_seed=dict(enumerate(values, 21)))


@pytest.mark.parametrize(
    ("values", "mean", "sd", "low", "high"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5), 0.3, 0.158114, 0.103676, 0.496324),  # t = 2.776445, from a table
        ((0.5, None, 0.7), 0.6, 0.141421, math.nan, math.nan),
        ((0.25,), 0.25, math.nan, math.nan, math.nan),
        ((None,), math.nan, math.nan, math.nan, math.nan),
    ],
)
def test_scores(values: tuple[float | None, ...], mean: float, sd: float, low: float, high: float) -> None:
    scores = scores_of(*values)
    assert (scores.n, scores.failed) == (len(values) - values.count(None), values.count(None))
    given = scores.mean, scores.sd, *scores.interval
    assert given == pytest.approx((mean, sd, low, high), abs=1e-5, nan_ok=True)


def test_differences_are_taken_by_seed_where_both_ended() -> None:
    one, other = Scores(by_seed={1: 0.9, 2: None, 3: 0.8}), Scores(by_seed={3: 0.5, 2: 0.1, 1: 0.8})
    assert one.less(other).by_seed == pytest.approx({1: 0.1, 3: 0.3})


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, *range(1000, 1020)])
def test_fresh_seeds_are_nobody_elses(seed: int) -> None:
    choosing, final = protocol.fresh_seeds(seed, 100)
    assert len({*choosing, *final}) == 200
    assert all(0 <= one < 2**31 and not seed <= one < seed + 1_000_000 for one in choosing + final)
    assert protocol.fresh_seeds(seed, 7) == (choosing[:7], final[:7])


def record(
    number: int, accuracy: float, *, lr: float, epochs: int = 1, state: str = "COMPLETE"
) -> TrialRecord:
    config = {"lr": lr, "epochs": 2}
    trial = TrialRecord(trial_id=str(number), number=number, params={}, config=config, started=0.0)
    trial.epochs, trial.state = [{"epoch": epochs, "accuracy": accuracy}], state
    return trial


def test_candidates_are_the_best_complete_trials_each_configuration_once() -> None:
    trials = [
        record(0, 0.80, lr=0.1),
        record(1, 0.99, lr=0.2, state="PRUNED"),
        record(2, 0.90, lr=0.3),
        record(3, 0.95, lr=0.3),
        record(4, 0.80, lr=0.4),
        record(5, 0.70, lr=0.5),
        record(6, 0.97, lr=0.6, state="FAIL"),
    ]
    assert [one.number for one in protocol.candidates(trials, 3, OBJECTIVE)] == [3, 0, 4]
    assert protocol.candidates(trials, 2, OBJECTIVE) == protocol.candidates(trials, 9, OBJECTIVE)[:2]
    assert protocol.candidates(trials[1:2], 3, OBJECTIVE) == []
    smallest = dataclasses.replace(OBJECTIVE, mode="min")
    assert [one.number for one in protocol.candidates(trials, 2, smallest)] == [5, 0]


def test_a_configuration_that_diverged_with_a_seed_is_chosen_last() -> None:
    one, two, three = (record(number, 0.9, lr=0.1) for number in range(3))
    found = [(one, scores_of(0.99, None)), (two, scores_of(0.8, 0.9))]
    assert protocol.choose(found, OBJECTIVE) == two
    assert protocol.choose([*found, (three, scores_of(0.9, 0.9))], OBJECTIVE) == three
    assert protocol.choose([found[0], (two, scores_of(None, None))], OBJECTIVE) == one
    assert protocol.choose([(one, scores_of(None, None))], OBJECTIVE) is None
    smallest = dataclasses.replace(OBJECTIVE, mode="min")
    assert protocol.choose([(two, scores_of(0.8)), (three, scores_of(0.9))], smallest) == two


def test_training_and_validation_together_are_the_training_set(mnist_dir: Path) -> None:
    union = Split.from_arrays(**load_all(make_options(TASK, {"data_dir": mnist_dir}), 0)["train"])
    assert pairs(union) == pairs(*load_train_val("mnist", mnist_dir))


def retrained(config: dict[str, Any], mnist_dir: Path) -> list[Step]:
    given = {"data_dir": mnist_dir, "train_size": 512, "val_size": 200, "precision": "fp32"}
    data = load_all(make_options(TASK, given), 0)
    trial = Trial(seed=7, max_epochs=2)
    return list(retrain(TASK.train, data, config, trial, objective=OBJECTIVE, epochs=2, keep=True))


def test_a_training_brings_its_model_and_a_diverged_one_says_where(mnist_dir: Path) -> None:
    config = {"lr": 0.02, "momentum": 0.9, "epochs": 2, "activation": "gelu"}
    first, second, last = retrained(config, mnist_dir)
    assert (first.epoch, second.epoch, second.value) == (1, 2, last.value) and last.ended and last.checkpoint
    (diverged,) = retrained({**config, "lr": 1e30}, mnist_dir)
    assert diverged.ended and diverged.value is None
    assert diverged.error == "the loss is not finite at step 2 of epoch 1"


def job_of(seed: int, **changes: Any) -> Job:
    fields = {"part": protocol.TRAINING, "epochs": 5, "config": canonical({"lr": 0.1}), "data": canonical({})}
    return Job(**{"seed": seed, **fields, **changes})


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder whose files are in tmp_path / "run", on a disk or as objects in a bucket."""
    if request.param == "disk":
        return RunFolder(tmp_path / "run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = RunFolder("mock://bucket/run")
    folder.fs, folder.path = pyarrow.fs.LocalFileSystem(), str(tmp_path / "run")
    return folder


def test_what_is_kept_is_of_the_very_same_training_and_corrupt_lines_are_counted(
    folder: RunFolder, tmp_path: Path
) -> None:
    file = FinalsFile(folder)
    done, failed = JobResult(value=0.5, n=200, seconds=1.0), "the loss is not finite"
    file.add(job_of(1), done, b"weights")
    file.add(job_of(2), JobResult(value=None, n=200, seconds=1.0, error=failed))
    path = tmp_path / "run" / FINALS
    whole = path.read_bytes()
    nonsense = [b"[]", b"null", b"\xff\x00", whole.splitlines()[0].replace(b"0.5, ", b"NaN, "), whole[:99]]
    path.write_bytes(b"\n".join([*nonsense[:4], whole]) + nonsense[4])
    again = FinalsFile(folder)
    assert again.lost_lines == 5
    assert again.results == file.results and again.checkpoint(job_of(1)) == b"weights"
    for other in (
        job_of(3),
        job_of(1, part=protocol.UNION),
        job_of(1, config=canonical({"lr": 0.2})),
        job_of(1, epochs=6),
        job_of(1, data=canonical({"train_size": 513})),
    ):
        assert other not in again.results and again.checkpoint(other) is None
    again.add(job_of(4), done)
    assert path.read_bytes().splitlines()[:2] == whole.splitlines() and FinalsFile(folder).lost_lines == 0


@pytest.mark.parametrize("changes", [{"seeds": 0}, {"top_k": 0}, {"top_k": 1001}])
def test_a_number_out_of_range_is_refused(changes: dict[str, int]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name} is {value}, but must be 1 to 1000$"):
        FinalsSettings(**changes)


def refusal(run: Path | str, **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        finalizer.finalize(str(run), FinalsSettings(), changes, finals_console.FinalsConsole(), command="")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_finalized_is_refused_in_one_line(finalized: Finalized, tmp_path: Path) -> None:
    assert "is not the folder of a run: it has no ledger.jsonl" in refusal(tmp_path)
    run_dir = tmp_path / "run"
    shutil.copytree(finalized.run_dir, run_dir)
    before = (run_dir / FINALS).read_bytes()
    with RunFolder(run_dir).locked():
        assert "is being run by another process: end it first" in refusal(run_dir)
    assert "no Ray cluster answers at 127.0.0.1:1" in refusal(run_dir, address="127.0.0.1:1")
    lines = (run_dir / "ledger.jsonl").read_text().replace('"COMPLETE"', '"PRUNED"')
    (run_dir / "ledger.jsonl").write_text(lines)
    assert "has no COMPLETE trial, but must have one" in refusal(run_dir)
    assert (run_dir / FINALS).read_bytes() == before
    settings = json.loads((run_dir / "settings.json").read_text())
    toy = {**settings, "task": settings["task"].replace(":FINAL", ":TASK")}
    (run_dir / "settings.json").write_text(json.dumps(toy))
    assert refusal(run_dir) == "task is toy, but must have load_all and test to be finalized"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["s4://bucket/run"], "s4://bucket/run can't be used as storage"),
        (["runs/final", "--cpus-per-trial", "1.5"], r"cpus_per_trial is 1.5, but must be above 0"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_line(
    flags: list[str], complaint: str, warm_runner: WarmRunner, finalized: Finalized
) -> None:
    code, out, err = warm_runner.run(*flags, script="finalize.py")
    assert (code, out) == (2, "")
    assert re.match(rf"finalize.py: error: {complaint}", err) and err.count("\n") == 1


@pytest.fixture
def verdict(tmp_path: Path) -> Verdict:
    one, two = record(12, 0.9, lr=0.013), record(3, 0.9, lr=0.004)
    return Verdict(
        facts=FACTS,
        usage="",
        seed=0,
        protocol=FinalsSettings(top_k=2, seeds=3),
        validation=[(one, scores_of(0.98, 0.99, None)), (two, scores_of(0.981, 0.982, 0.98))],
        winner=two,
        winner_test=scores_of(None, 0.99, 0.991, 0.992),
        baseline={},
        baseline_test=scores_of(0.9, 0.97, 0.97, 0.97),
        test_n=10_000,
        files={"model.pt": b"", "model.pt2": b""},
    )


def test_the_tables_fit_into_60_columns_and_tell_what_diverged(verdict: Verdict, tmp_path: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, width=60, highlight=False)
    finals_console.print_verdict(console, verdict, RunFolder(tmp_path), 61.0)
    text = file.getvalue()
    assert "…" not in text
    assert re.search(r"^  trial 12 +90.00% +98.50% +0.71 +2 of 3 *$", text, re.MULTILINE)
    assert re.search(r"^→ trial 3 +90.00% +98.10% +0.10 +3 *$", text, re.MULTILINE)
    assert re.search(r"trial 3 +99.10% ± 0.10 +3 of 4 +98.85% to 99.35%", text)
    assert re.search(r"difference +\+2.10 ± 0.10 +3 +\+1.85 to \+2.35", text)
    assert "2 trainings diverged" in text
    card = write_card(verdict, name="run", command="tune-mnist finalize run")
    assert "seed 22, the first one that did not diverge" in card.replace("\n  ", " ")
    assert "| trial 12 | 90.00% | 98.50% | 0.71 | 2 | 1 |" in card
    same = dataclasses.replace(verdict, baseline_test=None)
    assert "| baseline |" not in write_card(same, name="run", command="").split("## Hyper")[0]


def test_a_terminal_shows_a_bar_with_the_time_left() -> None:
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=60, highlight=False)
    jobs = {job_of(seed): "trial 3" for seed in range(3)}
    with finals_console.FinalsConsole(terminal) as console:
        console.on_phase("choosing", jobs, list(jobs)[1:])
        console.on_step(job_of(1), Step(epoch=1), "")
        console.on_step(job_of(1), Step(epoch=5, ended=True, value=0.9), "validation 90.00%")
        assert console.bar.tasks[0].total == 10 and console.bar.tasks[0].completed == 1
        console.bar.refresh()
    assert "choosing: 1 of 3 trainings were done already" in file.getvalue()
    assert "2/3 trainings" in file.getvalue() and "left" in file.getvalue()
