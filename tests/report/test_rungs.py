"""Trials compared at equal epochs: levels, importance, survival, what was learned, why a trial stopped."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import spearmanr

from benchmarks.learned import judge, make
from tests.made_runs import make_run
from tests.report.conftest import Analyse, events, view_of
from tune_mnist.cli.notebook import load_run
from tune_mnist.cli.summary import next_command
from tune_mnist.mnist.facts import OBJECTIVE
from tune_mnist.report.importance import measure_importance
from tune_mnist.report.learned import dead_choices, leading, learned, more_trials, stuck_sentence
from tune_mnist.report.page import make_report
from tune_mnist.report.panels import parameter_places
from tune_mnist.report.rungs import Level, choose_level, find_levels, rank_correlations
from tune_mnist.report.scale import Scale
from tune_mnist.report.survival import groups, survival_frame, why_it_stopped
from tune_mnist.report.view import View
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.records import TaskFacts, TrialRecord
from tune_mnist.run.settings import Settings
from tune_mnist.task import Objective
from tune_mnist.tuning.asha import ASHA

DEAD = {"optimizer": "rmsprop"}


def test_a_level_has_each_trial_that_reported_its_epoch_with_that_value(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 64, space="wide", max_epochs=15)
    view = view_of(run)
    assert [level.name for level in view.levels] == ["epoch 1", "epoch 2", "epoch 4", "epoch 8", "final"]
    for level in view.levels[:-1]:
        reports = {e["trial_id"]: e["accuracy"] for e in events(run, "epoch") if e["epoch"] == level.epoch}
        assert {trial.trial_id: value for trial, value in level.pairs} == reports
    final = {t.number: t.last["accuracy"] for t in view.of_state("COMPLETE")}
    assert {trial.number: value for trial, value in view.levels[-1].pairs} == final


def test_final_values_of_different_epochs_are_called_so(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20, scheduler="none"))  # the space draws the epochs
    assert view.level.where == "at the end of 3 to 5 epochs"
    lasts = [trial.epochs[-1]["epoch"] for trial in view.trials]
    page = make_report(view)
    assert ">final (20 trials of 3 to 5 epochs)</option>" in page
    assert f"own last epoch: {lasts.count(5)} of 20 trained 5." in page
    assert "Only at final do values of different epochs share a plot." in page
    view = view_of(make_run(tmp_path / "wide", 20, scheduler="none", space="wide"))
    assert view.levels[-1].where == "at the end"
    assert "No values of different epochs share a plot." in make_report(view)


def test_a_rung_that_is_the_end_and_a_value_that_is_not_finite_are_left_out(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 12, space="wide", max_epochs=4, scheduler="none"))
    assert [level.name for level in view.levels] == ["epoch 1", "epoch 2", "final"]  # not epoch 4
    view.trials[3].epochs[0]["accuracy"] = math.nan
    assert len(find_levels(view.trials, view.settings, "accuracy")[0].trials) == 11


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({"num_samples": 2}, "epoch 1"),
        ({"num_samples": 20, "scheduler": "none"}, "final"),
        ({"num_samples": 20, "dead": DEAD}, "epoch 2"),  # equal values pass: 7 sgd, 9 rmsprop
        ({"num_samples": 64, "space": "wide", "max_epochs": 15}, "epoch 1"),
        ({"num_samples": 5, "every_trial_fails": True}, "final"),
        ({"num_samples": 12, "running": True}, "epoch 1"),
        ({"num_samples": 20, "minimised": True}, "epoch 1"),
    ],
)
def test_the_level_to_begin_with_and_all_that_is_said_at_it(
    options: dict[str, Any], level: str, tmp_path: Path
) -> None:
    view = view_of(make_run(tmp_path / "run", **options))
    assert view.level.name == level
    found = learned(view)
    assert 1 <= len(found.sentences) <= 6 and all(sentence.endswith(".") for sentence in found.sentences)
    assert (found.next == "wait") == ("running" in options)
    assert all(why_it_stopped(view, trial) for trial in view.trials)
    assert survival_frame(view).empty == (
        options.get("scheduler") == "none" or "every_trial_fails" in options
    )
    assert view.failures == [] and next_command(view)


def test_a_level_whose_trials_are_alike_is_not_the_first(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 40, scheduler="none"))
    whole = view.levels[-1]
    best = [trial for trial, _ in sorted(whole.pairs, key=lambda pair: pair[0].params["lr"])][6:34]
    alike = Level(name="alike", epoch=None, pairs=[(trial, 1.0) for trial in best])
    assert choose_level([whole, alike], view.space, ["lr"])[0] is whole
    assert choose_level([whole, alike], view.space, ["momentum"])[0] is alike


def test_rank_correlations_are_scipys(tmp_path: Path) -> None:
    view = make(tmp_path / "run", 64, 0)
    found = rank_correlations(view.levels)
    assert len(found) >= 2
    low, *others = ({t.number: v for t, v in level.pairs} for level in view.levels)
    for level, high in zip(view.levels[1:], others, strict=True):
        both = sorted(low.keys() & high.keys())
        if level.name in found:
            n, value = found[level.name]
            expected = spearmanr([low[number] for number in both], [high[number] for number in both])[0]
            assert n == len(both) and value == pytest.approx(expected)


def test_importance_comes_with_its_spread_and_never_for_a_single_value(tmp_path: Path) -> None:
    view = make(tmp_path / "run", 64, 1)
    importance = view.importance(view.level)
    assert sum(share.value for share in importance.shares) == pytest.approx(1)
    assert all(share.low <= share.value <= share.high for share in importance.shares)
    assert sum(share.first for share in importance.shares) == pytest.approx(1)
    again = measure_importance(view.level, view.variable, lambda: view.study(view.level))
    assert again == importance  # seeded
    final = view.levels[-1]
    kept = [(trial, value) for trial, value in final.pairs if trial.params["optimizer"] == "sgd"]
    of_sgd = dataclasses.replace(final, pairs=kept)
    few = measure_importance(of_sgd, view.variable, lambda: view.study(of_sgd))
    assert few.lone == {"optimizer": "sgd"} and "optimizer" not in {share.name for share in few.shares}
    assert few.lone_words == "No value other than optimizer sgd is left at the end."


def test_survival_counts_each_trial_once_a_parameter(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 64, space="wide", max_epochs=15)
    view = view_of(run)
    frame = survival_frame(view)
    reports: dict[str, int] = {}
    for epoch in events(run, "epoch"):
        reports[epoch["trial_id"]] = epoch["epoch"]
    for key, some in frame.groupby(["parameter", "rung"]):
        rung = int(some["rung"].iloc[0])
        assert key[1] == rung
        assert some["trials"].sum() == 64
        assert some["reached"].sum() == sum(epochs >= rung for epochs in reports.values())
        assert some["passed"].sum() == sum(epochs > rung for epochs in reports.values())
    quarters = [group for group in groups(view) if group.name == "momentum"]
    assert [len(group.trials) for group in quarters] == [16] * 4


def test_a_choice_that_does_not_train_is_said(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20, dead=DEAD))
    n = sum(trial.params["optimizer"] == "rmsprop" for trial in view.trials)
    sentence = learned(view).sentences[0]
    assert sentence.startswith(f"optimizer rmsprop: {n} trials, none past epoch ")
    assert sentence.endswith(", all at 11.62%: it did not train.")
    assert dead_choices(view_of(make_run(tmp_path / "other", 20))) == []


def test_a_choice_with_which_alone_trials_get_stuck_is_said(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20, dead=DEAD, deadly=0.7))
    n = sum(trial.params["optimizer"] == "rmsprop" for trial in view.trials)
    stuck = sum(view.objective.write(trial.last["accuracy"]) == "11.62%" for trial in view.trials)
    assert 3 <= stuck < n and dead_choices(view) == []
    said = f"optimizer rmsprop: {stuck} of {n} trials stayed at 11.62%, none of the other {20 - n} did"
    said += "; by chance"
    assert any(sentence.startswith(said) for sentence in learned(view).sentences)
    for seed in range(5):
        assert not stuck_sentence(view_of(make_run(tmp_path / f"other-{seed}", 20, seed=seed)))


def test_what_is_said_of_made_up_runs_is_true(tmp_path: Path) -> None:
    """The table in benchmarks/README.md has 20 seeds of this."""
    for seed in (0, 1):
        found = judge(make(tmp_path / f"run-{seed}", 64, seed))
        assert found["says that broken never survives"] == found["lr above what does nothing"] == 1
        assert not found["says so of a choice that trains"]
        nothing = make(tmp_path / f"nothing-{seed}", 64, seed, lr_matters=False, breaks=False)
        assert leading(nothing.importance(nothing.level)) is None and dead_choices(nothing) == []


def test_more_trials_pay_where_the_later_half_was_better(tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20, scheduler="none"))
    assert "unlikely" in more_trials(view)[1] and not more_trials(view)[0]
    view.trials[-1].epochs[-1]["accuracy"] = 0.9999
    again = View(view.outcome)
    assert more_trials(again)[0]
    assert learned(again).next == "more"
    assert next_command(again).endswith(f"--resume {again.outcome.folder.local} --num-samples 40")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_judgement_is_what_the_trial_met_with(mode: str) -> None:
    ledger = Ledger()
    ledger.facts = TaskFacts(name="t", objective=Objective(metric="m", mode=mode))
    asha, sign = ASHA(Settings(max_epochs=4, reduction_factor=2), ledger), 1 if mode == "max" else -1
    for name, value in (("a", 3), ("b", 2), ("c", 4), ("d", 1), ("e", math.nan)):
        asha.stops(name, 1, sign * float(value))
    found = {name: asha.judgements[name][0] for name in "abcde"}
    assert [one.cutoff for one in found.values()] == [None, sign * 3, sign * 2.5, sign * 3, sign * 2.5]
    assert [(one.rank, one.before) for one in found.values()] == [(1, 0), (2, 1), (1, 2), (4, 3), (5, 4)]
    assert [one.stopped for one in found.values()] == [False, True, False, True, False]


def test_why_a_trial_stopped_is_printed(analyse: Analyse, tmp_path: Path) -> None:
    view = view_of(make_run(tmp_path / "run", 20))
    pruned = next(trial for trial in view.of_state("PRUNED") if trial.epoch == 2)
    code, out, err = analyse("run", "--trial", str(pruned.number))
    assert (code, err) == (0, "") and not (tmp_path / "run" / "report.html").exists()
    (first, second) = view.asha.judgements[pruned.trial_id]
    assert f"  lr                {pruned.config['lr']:.3g}\n" in out
    for one in (first, second):
        rank = f"rank {one.rank} of the {one.before + 1} judged there so far"
        said = f"{rank}; it needed at least {one.cutoff:.2%}"
        assert f"  epoch {one.rung}           {one.value:.2%}  {said}\n" in out
    assert out.endswith(
        f"ASHA stopped it at epoch 2 with {second.value:.2%}: rank {second.rank} of the {second.before + 1} "
        f"judged there so far; it needed at least {second.cutoff:.2%}.\n"
    )
    code, _, err = analyse("run", "--trial", "20")
    assert code == 2 and "--trial is 20, but must be one of 0..19" in err


def test_python_compares_at_equal_epochs_too(tmp_path: Path) -> None:
    run = load_run(str(make_run(tmp_path / "run", 20)))
    assert run.levels["epoch 1"] == len(run.at("epoch 1")) == 20
    first = run.epochs[run.epochs["epoch"] == 1].set_index("number")["accuracy"]
    assert run.at("epoch 1").set_index("number")["value"].to_dict() == first.to_dict()
    assert list(run.importance("epoch 1").columns) == ["parameter", "importance", "low", "high"]
    assert len(run.importance("final")) == 0 and len(run.learned) >= 3 and len(run.survival) > 0
    assert "<li>" in run._repr_html_()


def test_marks_stand_apart_and_the_top_has_a_tick() -> None:
    scale = Scale(OBJECTIVE)
    _, texts = scale.ticks(*scale.room([0.1162, 0.9857]))
    assert texts[-1] == "98%" and texts[0] == "0%"
    choices = CategoricalDistribution(("a", "b"))
    for one, value, step in (
        (choices, "b", 1.0),
        (IntDistribution(32, 256, step=32), 64, 32.0),
        (FloatDistribution(0.0, 0.5, step=0.05), 0.1, 0.05),
    ):
        trials = [
            TrialRecord(trial_id=str(n), number=n, params={"p": value}, config={}, started=0.0)
            for n in range(6)
        ]
        at = parameter_places(trials, "p", one)
        middle = 1 if one is choices else value
        assert len(set(at)) == 6 and all(abs(place - middle) < step / 2 for place in at)
