"""Searcher and scheduler, driven by hand: what they decide, and what the study says about it."""

import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler

from tests.made_runs import space_of
from tune_mnist.mnist.facts import FACTS
from tune_mnist.mnist.task import TASK
from tune_mnist.run.folder import RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import OPTUNA_NUMBER, ray_config
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.asha import ASHA, rungs
from tune_mnist.tuning.study import HAND_SET, RAY_TRIAL_ID, STOPPED_BY, TrialStudy


def searcher(run_dir: Path, **changes: Any) -> TrialStudy:
    """A new session of the run in ``run_dir``, which begins with the ledger's contents."""
    settings = Settings(**{"space": "blog", "max_concurrent_trials": 100, **changes})
    ledger = Ledger.open(run_dir / LEDGER)
    ledger.begin({}, FACTS)
    space = space_of(settings.space, settings.max_epochs)
    return TrialStudy(settings, TASK, space, ledger, RunFolder(run_dir))


def suggest(search: TrialStudy, name: str) -> dict[str, Any]:
    return ray_config(search.draw(name))


def momentum_of(config: dict[str, Any]) -> float:
    return float(config["momentum"])


def complete(search: TrialStudy, name: str, last: dict[str, Any] | None = None) -> None:
    """End a trial as Ray ends one that is stopped, at a report or without one."""
    if last:
        search.report(name, last)
    search.end(name)


def draws(
    session: Callable[[], TrialStudy],
    trials: int,
    breaks: Collection[int] = (),
    value: Callable[[dict[str, Any]], float] = momentum_of,
) -> list[dict[str, Any]]:
    """Draw trials and complete each; a new session starts at each number in ``breaks``."""
    search, configs = session(), []
    for i in range(trials):
        if i in breaks:
            search = session()
        configs.append(suggest(search, str(i)))
        complete(search, str(i), result(configs[-1]["epochs"], value(configs[-1])))
    return configs


def read_study(run_dir: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(run_dir / JOURNAL)))
    return optuna.load_study(study_name=run_dir.name, storage=storage)


def result(epoch: int, accuracy: float) -> dict[str, Any]:
    # Ray counts its own iterations from 1 again after some restarts; only the epoch may be used.
    return {"epoch": epoch, "accuracy": accuracy, "training_iteration": 99}


# The reports in their order, and whether ASHA lets the trial continue. With reduction factor 2 a trial is
# pruned if it is below the median of those that were at its rung before it.
ASHA_TABLE = [
    # trial, epoch, accuracy, continues
    ("a", 1, 0.50, True),  # the first at rung 1
    ("b", 1, 0.40, False),  # below 0.50
    ("c", 1, 0.60, True),  # above the median of 0.50, 0.40
    ("a", 2, 0.70, True),  # the first at rung 2
    ("d", 1, 0.49, False),  # below the median of 0.50, 0.40, 0.60
    ("c", 2, 0.65, False),  # below 0.70
    ("a", 3, 0.10, True),  # 3 is not a rung
    ("e", 1, 0.55, True),
    ("e", 2, 0.70, True),  # equal to 0.70, above 0.65
    ("a", 4, 0.80, True),  # the first at rung 4
    ("a", 5, 0.90, False),  # max_epochs
    ("e", 3, 0.60, True),
    ("e", 4, 0.79, False),  # below 0.80
]


def test_the_journal_takes_lines_of_another_process_between_its_own(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    suggest(search, "a")
    read_study(tmp_path).set_user_attr("note", "written by optuna-dashboard")
    suggest(search, "b")
    study = read_study(tmp_path)
    assert study.user_attrs == {"note": "written by optuna-dashboard"}
    assert [trial.user_attrs[RAY_TRIAL_ID] for trial in study.trials] == ["a", "b"]


def test_the_verdicts_are_those_of_rays_asha() -> None:
    """Random values with ties and NaN, over grace periods and reduction factors."""
    verdicts = 0
    for seed in range(30):
        dice = np.random.default_rng(seed)
        settings = Settings(
            reduction_factor=(2, 3, 2.5, 4)[seed % 4],
            grace_period=1 + seed % 2,
            max_epochs=(5, 16, 27)[seed % 3],
        )
        ours = ASHA(settings, Ledger())
        rays = ASHAScheduler(
            time_attr="epoch",
            metric="accuracy",
            mode="max",
            max_t=settings.max_epochs,
            grace_period=settings.grace_period,
            reduction_factor=settings.reduction_factor,
        )
        nobody: Any = None
        for name in map(str, range(40)):
            trial: Any = SimpleNamespace(trial_id=name)
            rays.on_trial_add(nobody, trial)
            for epoch in range(1, settings.max_epochs + 1):
                value = float("nan") if dice.random() < 0.03 else round(dice.normal(), seed % 5)
                verdict = rays.on_trial_result(nobody, trial, result(epoch, value))
                assert ours.stops(name, epoch, value) == (verdict == "STOP")
                verdicts += 1
                if verdict == "STOP":
                    break
    assert verdicts > 2000


@pytest.mark.parametrize(
    ("max_epochs", "grace_period", "reduction_factor", "expected"),
    [
        (5, 1, 2, (1, 2, 4)),
        (5, 1, 3, (1, 3)),
        (5, 1, 4, (1, 4)),
        (1, 1, 2, (1,)),
        (5, 5, 2, (5,)),
        (27, 1, 3, (1, 3, 9, 27)),
        (20, 2, 2.5, (2, 5, 13)),
        (64, 3, 2, (3, 6, 12, 24, 48)),
    ],
)
def test_the_rungs_of_a_search(
    max_epochs: int, grace_period: int, reduction_factor: float, expected: tuple[int, ...]
) -> None:
    settings = Settings(max_epochs=max_epochs, grace_period=grace_period, reduction_factor=reduction_factor)
    assert rungs(settings) == expected


def test_the_study_says_the_truth(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    configs = {
        name: suggest(search, name) for name in ("whole", "pruned", "failed", "unborn", "late", "lost")
    }
    epochs = configs["whole"]["epochs"]
    for epoch in range(1, epochs):
        search.report("whole", result(epoch, epoch / 10))
    complete(search, "whole", result(epochs, 0.9))
    search.report("pruned", result(1, 0.3))
    complete(search, "pruned", result(2, 0.2))
    search.report("failed", result(1, 0.4))
    search.end("failed", failed=True)
    complete(search, "unborn", None)
    complete(search, "late", result(1, 0.1))
    search.report("lost", result(configs["lost"]["epochs"], 0.5))
    search.end("lost", failed=True)

    whole, pruned, failed, unborn, late, lost = read_study(tmp_path).trials
    assert (whole.state, whole.value) == (TrialState.COMPLETE, 0.9)
    assert whole.intermediate_values == {**{e: e / 10 for e in range(1, epochs)}, epochs: 0.9}
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {1: 0.3, 2: 0.2})
    assert (failed.state, failed.value, failed.intermediate_values) == (TrialState.FAIL, None, {1: 0.4})
    assert (unborn.state, unborn.intermediate_values) == (TrialState.FAIL, {})
    assert (late.state, late.intermediate_values) == (TrialState.PRUNED, {1: 0.1})
    assert lost.state == TrialState.FAIL


def test_the_study_hears_of_epochs_that_a_checkpoint_brought(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    suggest(search, "a")
    search.ledger.reported("a", result(1, 0.1))
    complete(search, "a", result(2, 0.2))
    assert read_study(tmp_path).trials[0].intermediate_values == {1: 0.1, 2: 0.2}


def test_a_call_about_a_finished_trial_changes_nothing(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    suggest(search, "a")
    complete(search, "a", result(2, 0.5))
    before = (tmp_path / JOURNAL).read_bytes()
    search.report("a", result(3, 0.9))
    complete(search, "a", result(3, 0.9))
    search.end("a", failed=True)
    search.close("SIGINT")
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_what_the_end_of_the_search_cuts_is_not_left_running(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    suggest(search, "with a value")
    suggest(search, "without one")
    search.report("with a value", result(1, 0.5))
    search.report("with a value", result(2, 0.6))
    search.close("time budget")
    first, second = read_study(tmp_path).trials
    assert (first.state, first.value) == (TrialState.PRUNED, 0.6)
    assert second.state == TrialState.FAIL
    assert first.user_attrs[STOPPED_BY] == second.user_attrs[STOPPED_BY] == "time budget"


def test_the_baseline_goes_first_and_the_direction_is_the_studys(tmp_path: Path) -> None:
    first = suggest(searcher(tmp_path), "a")
    study = read_study(tmp_path)
    assert first == {"lr": 0.001, "momentum": 0.5, "optimizer": "sgd", "epochs": 5, OPTUNA_NUMBER: 0}
    assert study.trials[0].user_attrs[HAND_SET] is True
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_the_seed_decides_what_is_drawn(sampler: str, tmp_path: Path) -> None:
    def draw(name: str, seed: int) -> list[dict[str, Any]]:
        (tmp_path / name).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # past TPE's ten start-up trials
            return draws(partial(searcher, tmp_path / name, sampler=sampler, seed=seed), 14)

    assert draw("one", 0) == draw("same", 0)
    assert draw("other", 1)[1:] != draw("again", 0)[1:]


def test_the_best_values_draw_tpe_to_them(tmp_path: Path) -> None:
    configs = draws(partial(searcher, tmp_path), 60, value=lambda config: 1 - abs(config["momentum"] - 0.8))
    assert (
        sum(abs(config["momentum"] - 0.8) for config in configs[40:]) / 20 < 0.08
    )  # 0.17 if they are drawn at random


def test_pruned_trials_count_as_the_worse_ones_for_tpe(tmp_path: Path) -> None:
    """Momentum below 0.7 is always pruned after one epoch, at a value that is high for one epoch."""
    search = searcher(tmp_path)
    momenta = []
    for i in range(60):
        config = suggest(search, str(i))
        momenta.append(config["momentum"])
        if config["momentum"] < 0.7:
            complete(search, str(i), result(1, 0.6))
        else:
            complete(search, str(i), result(config["epochs"], 0.95))
    assert sum(m >= 0.7 for m in momenta[30:]) >= 25


# What happens to a search before its driver dies, and what the next session sees.
STORY = [("complete", 5), ("pruned", 2), ("running", 3), ("waiting", 0)]


def interrupted(run_dir: Path, **settings: Any) -> TrialStudy:
    search = searcher(run_dir, **settings)
    for name, epochs in STORY:
        suggest(search, name)
        for epoch in range(1, epochs + 1):
            search.report(name, result(epoch, epoch / 10 + len(name) / 1000))
        if name in ("complete", "pruned"):
            complete(search, name, result(epochs, epochs / 10 + len(name) / 1000))
    return search


def test_a_new_session_knows_what_has_ended_and_what_has_not(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = read_study(tmp_path).trials
    search = searcher(tmp_path)
    after = read_study(tmp_path).trials
    assert [trial.state.name for trial in after] == ["COMPLETE", "PRUNED", "RUNNING", "RUNNING"]
    for old, new in zip(before, after, strict=True):
        for name in (
            "number",
            "state",
            "value",
            "params",
            "intermediate_values",
            "user_attrs",
            "distributions",
        ):
            assert getattr(old, name) == getattr(new, name)
    search.report("running", result(3, 0.9))  # already reported: the first value stays
    complete(search, "running", result(4, 0.4))
    search.end("complete", failed=True)  # has ended: nothing changes
    last = read_study(tmp_path).trials
    assert [trial.state.name for trial in last] == ["COMPLETE", "PRUNED", "PRUNED", "RUNNING"]
    assert last[2].intermediate_values == pytest.approx({1: 0.107, 2: 0.207, 3: 0.307, 4: 0.4})


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_resumed_search_draws_what_it_would_have_drawn(sampler: str, tmp_path: Path) -> None:
    drawn = []
    for name, breaks in (("whole", ()), ("broken", (3, 12, 13))):
        (tmp_path / name).mkdir()
        drawn.append(draws(partial(searcher, tmp_path / name, sampler=sampler), 16, breaks))
    assert drawn[0] == drawn[1]
    assert len({config["momentum"] for config in drawn[0]}) == 16


def test_what_a_closed_session_had_cut_is_unfinished_in_the_next(tmp_path: Path) -> None:
    interrupted(tmp_path).close("SIGINT")
    cut = read_study(tmp_path).trials
    assert [trial.state.name for trial in cut] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    searcher(tmp_path)
    trials = read_study(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "RUNNING", "RUNNING"]
    assert not any(STOPPED_BY in trial.user_attrs for trial in trials)


def test_a_truncated_journal_and_its_stale_lock_do_not_stop_a_resume(tmp_path: Path) -> None:
    interrupted(tmp_path)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    (tmp_path / f"{JOURNAL}.lock").symlink_to(journal)
    suggest(searcher(tmp_path), "next")
    assert len(read_study(tmp_path).trials) == 5


def test_asha_decides_as_in_the_paper_and_continues_with_the_rungs_of_the_whole_run() -> None:
    """Driven through the table, even if interrupted after any line, it decides the same."""
    for broken_after in range(len(ASHA_TABLE)):
        ledger = Ledger()
        ledger.begin({}, FACTS)
        for number, name in enumerate("abcde"):
            ledger.suggested(name, number, {}, {"epochs": 5}, hand_set=False)
        for name, epoch, accuracy, _ in ASHA_TABLE[:broken_after]:
            ledger.reported(name, result(epoch, accuracy))
        asha = ASHA(Settings(reduction_factor=2), ledger)
        for name, epoch, accuracy, goes_on in ASHA_TABLE[broken_after:]:
            assert asha.stops(name, epoch, accuracy) != goes_on, (broken_after, name, epoch)


def test_a_verdict_stands_when_a_lost_trial_is_run_again() -> None:
    asha = ASHA(Settings(reduction_factor=2), Ledger())
    assert not asha.stops("a", 1, 0.5)
    assert asha.stops("b", 1, 0.4)
    assert asha.stops("b", 1, 0.4)  # Ray's own says CONTINUE here
    assert asha.stops("b", 2, 0.9)
    assert not asha.stops("a", 1, 0.1)  # a judged report is not judged again
