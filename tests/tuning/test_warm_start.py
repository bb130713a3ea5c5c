"""Searches that begin with the results of earlier runs: what is taken, refused and drawn."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.distributions import distribution_to_json as to_json

from tests import toy
from tests.conftest import TOY, Runner, WarmRunner
from tests.invariants import check, study_of
from tests.made_runs import space_of
from tests.searches import TOY_SAVE_ALL, kill, resume, wait_for_epochs
from tests.tuning.test_dashboard import fetch
from tests.tuning.test_search import complete, draws, read_study, result, suggest
from tune_mnist import results
from tune_mnist.mnist.facts import FACTS
from tune_mnist.mnist.spaces import BLOG, WIDE, baseline, to_config
from tune_mnist.mnist.task import TASK
from tune_mnist.run.folder import FolderError, RunFolder
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import OPTUNA_NUMBER
from tune_mnist.run.settings import Settings
from tune_mnist.run.space import baseline_point, is_within
from tune_mnist.task import Space
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.points import first_points
from tune_mnist.tuning.samplers import make_sampler
from tune_mnist.tuning.study import HAND_SET, TrialStudy
from tune_mnist.tuning.tuner import describe_task
from tune_mnist.tuning.warm_start import Inheritance, known_again, read_earlier_runs

BASELINE = baseline(BLOG, 5)


def accuracy(params: dict[str, Any], epoch: int = 5) -> float:
    """Best at a momentum of 0.8, and better with each epoch."""
    return float(0.9 - abs(params["momentum"] - 0.8) + epoch / 100)


def earlier_run(run_dir: Path, trials: int = 12, space: Space = BLOG, **settings: Any) -> Ledger:
    """Make trials with random parameters: the first is the baseline, every third is PRUNED after 2 epochs."""
    run_dir.mkdir(parents=True)
    given = Settings(name=run_dir.name, **settings)
    (run_dir / "settings.json").write_text(given.to_json())
    ledger = Ledger.open(run_dir / LEDGER)
    ledger.begin({name: to_json(one) for name, one in space.items()}, FACTS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    if point := baseline_point(TASK, space, given.max_epochs):
        study.enqueue_trial(point)
    for number in range(trials):
        params = study.ask(dict(space)).params
        config = to_config(params, given.max_epochs)
        ledger.suggested(f"t{number}", number, params, config, hand_set=number == 0)
        for epoch in range(1, (config["epochs"] if number % 3 else 2) + 1):
            ledger.reported(f"t{number}", {"epoch": epoch, "accuracy": accuracy(config, epoch)})
        ledger.ended(f"t{number}", failed=False)
    return ledger


def inherit(*runs: Path, space: Space = BLOG, **changes: Any) -> Inheritance:
    settings = Settings(**{"max_epochs": 5, "warm_start": tuple(map(str, runs)), **changes})
    return read_earlier_runs(settings, FACTS, space)


def searcher(run_dir: Path, inheritance: Inheritance | None = None, **changes: Any) -> TrialStudy:
    """A first session that inherits, or a later one, which reads everything from the ledger."""
    settings = Settings(**{"max_concurrent_trials": 100, **changes})
    run_dir.mkdir(exist_ok=True)
    ledger = Ledger.open(run_dir / LEDGER)
    ledger.begin({}, FACTS)
    if inheritance:
        ledger.inherit(inheritance.trials)
        ledger.plan(first_points(settings, TASK, BLOG, (), [one.params for one in inheritance.trials]))
    return TrialStudy(settings, TASK, BLOG, ledger, RunFolder(run_dir))


def test_finished_and_pruned_trials_are_taken_as_they_are(tmp_path: Path) -> None:
    ledger = earlier_run(tmp_path / "first")
    ledger.suggested("failed", 12, BASELINE, {**BASELINE, "epochs": 5}, hand_set=False)
    ledger.reported("failed", {"epoch": 1, "accuracy": 0.5})
    ledger.ended("failed", failed=True)
    ledger.suggested("unfinished", 13, BASELINE, {**BASELINE, "epochs": 5}, hand_set=False)
    ledger.reported("unfinished", {"epoch": 1, "accuracy": 0.5})
    ledger.close("time budget")
    taken = inherit(tmp_path / "first")
    assert [trial.number for trial in taken.trials] == list(range(12))
    assert [trial.state for trial in taken.trials] == ["PRUNED", "COMPLETE", "COMPLETE"] * 4
    for trial, record in zip(taken.trials, ledger.trials.values(), strict=False):
        assert (trial.run, trial.params) == ("first", record.params)
        assert trial.epochs == [(one["epoch"], one["accuracy"]) for one in record.epochs]
        assert (trial.started, trial.ended) == (record.started, record.ended)
    best = max(trial.value for trial in taken.trials)
    run = tmp_path / "first"
    assert taken.remarks == [f"12 trials of {run} are known (8 COMPLETE, 4 PRUNED; best {best:.2%})"]


def test_they_are_in_ledger_and_study_and_everything_else_counts_from_0(tmp_path: Path) -> None:
    taken = inherit(earlier_run(tmp_path / "first").path.parent)  # type: ignore[union-attr]
    search = searcher(tmp_path / "second", taken)
    shutil.rmtree(tmp_path / "first")
    for number, name in enumerate(("complete", "pruned", "running")):
        config = suggest(search, name)
        assert config[OPTUNA_NUMBER] == number
        for epoch in range(1, 3):
            search.report(name, result(epoch, epoch / 10))
    complete(search, "complete", result(config["epochs"], 0.4))
    complete(search, "pruned", result(2, 0.2))
    for _ in range(2):  # as the first session leaves the study, and as a resume rebuilds it
        study = read_study(tmp_path / "second")
        assert [trial.number for trial in study.trials] == list(range(15))
        for trial, known in zip(study.trials, taken.trials, strict=False):
            assert (trial.state.name, trial.value, trial.params) == (known.state, known.value, known.params)
            assert trial.intermediate_values == dict(known.epochs) and trial.distributions == BLOG
            assert trial.user_attrs == {"inherited_from": "first", "number_there": known.number}
        own = study_of(tmp_path / "second")  # which also checks the inherited ones
        assert [trial.user_attrs["ray_trial_id"] for trial in own] == ["complete", "pruned", "running"]
        assert [trial.state.name for trial in own][1:] == ["PRUNED", "RUNNING"]
        assert own[2].intermediate_values == {1: 0.1, 2: 0.2}
        ledger = Ledger.open(tmp_path / "second" / LEDGER)
        assert ledger.inherited == taken.trials
        assert [trial.number for trial in ledger.trials.values()] == [0, 1, 2]
        assert [trial.directory for trial in ledger.trials.values()][1] == "trial_00001_pruned"
        assert len(ledger.order) == sum(len(trial.epochs) for trial in ledger.trials.values())
        search = searcher(tmp_path / "second")
    assert suggest(search, "next")[OPTUNA_NUMBER] == 3
    search.report("running", result(3, 0.3))
    assert study_of(tmp_path / "second")[2].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
    best = max(trial.value for trial in taken.trials)
    assert known_again(ledger) == [f"12 trials of first are known (8 COMPLETE, 4 PRUNED; best {best:.2%})"]


def test_the_first_draws_are_what_a_search_draws_that_knows_20_trials(tmp_path: Path) -> None:
    """The first twenty were drawn at random, as the first ten of a search without a warm start would be."""
    earlier_run(tmp_path / "first", trials=20)
    search = searcher(tmp_path / "second", inherit(tmp_path / "first"))
    fresh = searcher(tmp_path / "fresh")
    suggest(fresh, "the baseline")
    momenta = []
    for i in range(8):
        config = suggest(search, str(i))
        momenta.append(config["momentum"])
        random_draw = optuna.create_study(sampler=make_sampler("random", 0, i, BLOG)).ask(dict(BLOG)).params
        assert config["lr"] != random_draw["lr"]
        if i:
            assert suggest(fresh, str(i))["lr"] == random_draw["lr"]  # TPE begins as the random sampler does
        complete(search, str(i), result(config["epochs"], accuracy(config)))
    assert sum(abs(momentum - 0.8) for momentum in momenta) / 8 < 0.09  # at random it is 0.17


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_resumed_warm_started_search_draws_what_it_would_have_drawn(sampler: str, tmp_path: Path) -> None:
    earlier_run(tmp_path / "first")
    taken = inherit(tmp_path / "first")
    drawn = []
    for name, breaks in (("whole", ()), ("broken", (1, 4, 5))):
        given = iter([taken])  # to the first session; the later ones read it from the ledger

        def session(name: str = name, given: Iterator[Inheritance] = given) -> TrialStudy:
            return searcher(tmp_path / name, next(given, None), sampler=sampler)

        drawn.append(draws(session, 7, breaks, accuracy))
    assert drawn[0] == drawn[1]
    if sampler != "tpe":  # only TPE uses the known trials
        search = searcher(tmp_path / "fresh", Inheritance(), sampler=sampler)
        suggest(search, "the baseline")
        fresh = [suggest(search, str(i)) for i in range(1, 7)]
        assert fresh == drawn[0][1:]


def test_the_baseline_is_tried_again_only_where_it_is_not_known(tmp_path: Path) -> None:
    earlier_run(tmp_path / "first")
    taken = inherit(tmp_path / "first")
    without = Inheritance(trials=taken.trials[1:])
    for name, inheritance, tried in (("a", taken, False), ("b", without, True)):
        config = suggest(searcher(tmp_path / name, inheritance), "x")
        assert (config["lr"] == BASELINE["lr"]) == tried
        assert (HAND_SET in study_of(tmp_path / name)[0].user_attrs) == tried


def test_ashas_rungs_are_of_the_own_trials(tmp_path: Path) -> None:
    earlier_run(tmp_path / "first")  # whose accuracies are far above those here
    search = searcher(tmp_path / "second", inherit(tmp_path / "first"))
    suggest(search, "a")
    asha = ASHA(Settings(), search.ledger)
    assert not asha.stops("a", 1, 0.1)


def test_several_runs_are_taken_in_their_order_but_not_what_they_had_inherited(tmp_path: Path) -> None:
    earlier_run(tmp_path / "first", trials=3)
    second = earlier_run(tmp_path / "second", trials=2, seed=1, options={"train_size": 4096})
    second.inherit(inherit(tmp_path / "first").trials)
    taken = inherit(tmp_path / "second", tmp_path / "first")
    assert [(trial.run, trial.number) for trial in taken.trials] == [
        *(("second", 0), ("second", 1), ("first", 0), ("first", 1), ("first", 2))
    ]
    there = tmp_path / "second"
    assert taken.remarks[1:3] == [
        f"{there}: 3 trials that it had inherited are not used; name their runs too",
        f"{there}: its values are from other data: train_size 4096 there, unset here; seed 1 there, 0 here",
    ]
    assert len(taken.remarks) == 4 and taken.remarks[3].startswith(f"3 trials of {tmp_path / 'first'} are")
    with pytest.raises(ValueError, match=r"^warm_start has \S+/first/ twice, but must have each run once$"):
        read_earlier_runs(Settings(warm_start=(f"{tmp_path}/first", f"{tmp_path}/first/")), FACTS, BLOG)


def test_lost_lines_are_reported_and_cost_only_their_trials(tmp_path: Path) -> None:
    earlier_run(tmp_path / "first")
    path = tmp_path / "first" / LEDGER
    lines = path.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if '"epoch"' in line and '"t4"' in line)
    begun = next(i for i, line in enumerate(lines) if '"event": "trial"' in line and '"t7"' in line)
    lost = {last, begun, *(i for i, line in enumerate(lines) if '"t7"' in line)}
    path.write_text("\n".join("#" if i in lost else line for i, line in enumerate(lines)) + '\n{"event')
    taken = inherit(tmp_path / "first")
    assert sorted(set(range(12)) - {trial.number for trial in taken.trials}) == [4, 7]
    assert taken.remarks[1:] == [
        f"{tmp_path / 'first'}: {LEDGER} has {len(lost)} lines that can't be read; the rest is used"
    ]


NARROW: Space = {**BLOG, "lr": FloatDistribution(2e-3, 5e-3, log=True), "epochs": IntDistribution(4, 5)}
MORE: Space = {**BLOG, "optimizer": CategoricalDistribution(("adam", "rmsprop", "sgd"))}
NO_MOMENTUM: Space = {name: one for name, one in BLOG.items() if name != "momentum"}
LINEAR: Space = {**BLOG, "lr": FloatDistribution(1e-3, 1e-2)}
STEPS: Space = {**BLOG, "lr": FloatDistribution(1e-3, 1e-2, step=1e-3)}


@pytest.mark.parametrize(
    ("theirs", "ours", "complaint"),
    [
        (NARROW, BLOG, ""),
        (BLOG, MORE, ""),
        (BLOG, NARROW, "lr is 0.001 to 0.01 (log) there, and 0.002 to 0.005 (log) here"),
        (MORE, BLOG, "optimizer is adam or rmsprop or sgd there, and sgd or rmsprop here"),
        (BLOG, NO_MOMENTUM, "momentum is 0.4 to 0.99 there, and not drawn here"),
        (NO_MOMENTUM, BLOG, "momentum is not drawn there, and 0.4 to 0.99 here"),
        (BLOG, LINEAR, "lr is 0.001 to 0.01 (log) there, and 0.001 to 0.01 here"),
        (LINEAR, STEPS, "lr is 0.001 to 0.01 there, and 0.001 to 0.01 (step 0.001) here"),
        (BLOG, {**BLOG, "epochs": IntDistribution(3, 4)}, "epochs is 3 to 5 there, and 3 to 4 here"),
        (BLOG, WIDE, "lr is 0.001 to 0.01 (log) there, and not drawn here"),
    ],
)
def test_another_space_is_refused_by_the_name_of_the_parameter(
    theirs: Space, ours: Space, complaint: str, tmp_path: Path
) -> None:
    run = tmp_path / "first"
    earlier_run(run, trials=3 if "momentum" in theirs else 0, space=theirs)
    if not complaint:
        assert len(inherit(run, space=ours).trials) == 3
        return
    with pytest.raises(ValueError, match=f"^warm_start is {run}, but must have a space that this") as error:
        inherit(run, space=ours)
    assert str(error.value).endswith(f"this one includes: {complaint}")


@pytest.mark.parametrize(
    ("narrow", "wide", "holds"),
    [
        (FloatDistribution(0.1, 0.4, step=0.1), FloatDistribution(0.0, 0.5, step=0.1), True),
        (FloatDistribution(0.05, 0.35, step=0.1), FloatDistribution(0.0, 0.5, step=0.1), False),
        (FloatDistribution(0.0, 0.4, step=0.2), FloatDistribution(0.0, 0.5, step=0.1), False),
        (IntDistribution(32, 64, step=32), IntDistribution(32, 256, step=32), True),
        (IntDistribution(3, 5), FloatDistribution(3, 5), False),
        (IntDistribution(2, 2), IntDistribution(3, 5), False),
        (CategoricalDistribution((1, 2)), IntDistribution(1, 2), False),
    ],
)
def test_one_range_within_another(narrow: BaseDistribution, wide: BaseDistribution, holds: bool) -> None:
    assert is_within(narrow, wide) == holds


def test_what_cannot_be_inherited_is_refused_in_one_line(tmp_path: Path) -> None:
    earlier_run(tmp_path / "first", trials=0)
    run = tmp_path / "first"
    with pytest.raises(ValueError, match=f"^warm_start is {run}, but must have a trial that is COMPLETE or"):
        inherit(run)
    with pytest.raises(FolderError, match=r"^\S+ is not the folder of a run: it has no ledger.jsonl$"):
        inherit(tmp_path)
    earlier_run(tmp_path / "other", options={"dataset": "kmnist"})
    with pytest.raises(ValueError, match=r"other, but must be of the data set mnist: it is of kmnist$"):
        inherit(tmp_path / "other")
    (tmp_path / "other" / "settings.json").write_text("{}")
    with pytest.raises(FolderError, match=r"other/settings.json can't be read"):
        inherit(tmp_path / "other")
    lost = (run / LEDGER).read_text().replace("distributions", "distribution")
    (run / LEDGER).write_text(lost)
    with pytest.raises(ValueError, match=r"must have a search space: its lines in ledger.jsonl are lost"):
        inherit(run)


def test_trials_longer_than_any_here_are_refused_shorter_ones_are_mentioned(tmp_path: Path) -> None:
    space: Space = {"momentum": FloatDistribution(0.4, 0.9)}
    run = tmp_path / "first"
    earlier_run(run, space=space, max_epochs=5)
    complaint = f"^max_epochs is 4, but must be at least 5, the epochs planned for trials of {run}$"
    with pytest.raises(ValueError, match=complaint):
        inherit(run, space=space, max_epochs=4)
    taken = inherit(run, space=space, max_epochs=9)
    assert taken.remarks[1:] == [f"{run}: its trials trained at most 5 epochs, here it is 9"]


def test_a_real_run_is_taken(finished: tuple[Path, str, str]) -> None:
    taken = inherit(finished[0], space=space_of("blog", 3), max_epochs=3)
    assert len(taken.trials) == 8 and "8 trials of" in taken.remarks[0]


def earlier_toys(run_dir: Path) -> None:
    """Twelve trials of the toy: the first is the baseline, every third one PRUNED after 2 epochs."""
    run_dir.mkdir(parents=True)
    settings, space = Settings(task=TOY[1], name=run_dir.name, max_epochs=4), toy.FINAL.spaces["default"]
    (run_dir / "settings.json").write_text(settings.to_json())
    ledger = Ledger.open(run_dir / LEDGER)
    distributions = {name: to_json(one) for name, one in space.items()}
    ledger.begin(distributions, describe_task(toy.FINAL, toy.Options(), dict(space), 4))
    for number in range(12):
        params = {"rate": 0.1 + 0.05 * number}
        ledger.suggested(f"t{number}", number, params, params, planned=4, hand_set=number == 0)
        for epoch in range(1, (4 if number % 3 else 2) + 1):
            ledger.reported(f"t{number}", {"epoch": epoch, "loss": (1 - params["rate"]) ** epoch})
        ledger.ended(f"t{number}", failed=False)


def test_a_warm_started_search_resumes_without_the_runs_that_it_knows(
    joining: Runner, warm_joining: WarmRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, points, visited = joining.folder / "runs", joining.folder / "points.json", tmp_path / "visited"
    earlier_toys(runs / "known")
    earlier_toys(runs / "other")
    points.write_text('{"rate": 0.77}')
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {visited}\n')
    (tmp_path / "browser").chmod(0o755)
    monkeypatch.setitem(joining.environment, "BROWSER", f"{tmp_path / 'browser'} %s")

    process = joining.start(
        *("--num-samples", "5", "--name", "warm", "--warm-start", "runs/known", "runs/other"),
        *("--points", "points.json", "--open-dashboard", *TOY_SAVE_ALL),
        *("--task", TOY[1].replace(":TASK", ":FINAL")),
    )
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(6)]
    assert told[0].startswith("12 trials of runs/known are known (8 COMPLETE, 4 PRUNED; best "), told
    assert told[1].startswith("12 trials of runs/other are known (8 COMPLETE, 4 PRUNED; best ")
    assert told[2] == "Run folder: runs/warm\n"
    url = told[5].removeprefix("optuna-dashboard: ").strip()
    wait_for_epochs(2, runs / "warm" / "ledger.jsonl", process)
    assert [study["study_name"] for study in json.loads(fetch(f"{url}/api/studies"))["study_summaries"]] == [
        "warm"
    ]
    assert visited.read_text().strip() == url
    kill(process)
    shutil.rmtree(runs / "known")
    shutil.rmtree(runs / "other")
    points.unlink()

    out = resume(warm_joining, "runs/warm")
    assert "12 trials of known are known" in out and "12 trials of other are known" in out
    assert "5 of 5 trials" in out and "Known before: 24 trials of known, other (" in out
    with pytest.raises(OSError):  # it was lost with the killed driver
        fetch(url)
    assert check(runs / "warm", 5)["sessions"] == 2
    assert len(read_study(runs / "warm").trials) == 29
    trials = results.trials_frame(results.load(runs / "warm"))
    assert trials["number"].tolist() == list(range(5))
    assert trials["rate"][0] == 0.77  # and the known baseline was not tried
    space = dict(toy.FINAL.spaces["default"])
    for number in (1, 2, 3, 4):
        study = optuna.create_study(sampler=make_sampler("random", 0, number, space))
        assert trials["rate"][number] != study.ask(space).params["rate"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--warm-start", "runs/finished", "--max-epochs", "2"],
            r"must have a space that this one includes: epochs is 3 to 3 there, and 2 to 2 here",
        ),
        (["--points", "none.json"], r"points is none.json, but must be a JSON list of objects such as "),
    ],
)
def test_what_it_cannot_begin_with_is_refused_before_anything_starts(
    flags: list[str], complaint: str, warm_runner: WarmRunner, finished: tuple[Path, str, str]
) -> None:
    runs = finished[0].parent
    before = sorted(runs.rglob("*"))
    code, out, err = warm_runner.run("--name", "refused", *flags)
    assert (code, out) == (2, "")
    assert re.search(complaint, err) and err.count("\n") == 1 and err.startswith("tune.py: error: ")
    assert sorted(runs.rglob("*")) == before
