"""Points to be tried first: what a file may hold, and that each gets its trial despite kills."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tests.tuning.test_search import draws, searcher
from tune_mnist.mnist.facts import FACTS
from tune_mnist.mnist.spaces import BLOG, WIDE, baseline
from tune_mnist.mnist.task import TASK
from tune_mnist.run.ledger import LEDGER, Ledger
from tune_mnist.run.records import OPTUNA_NUMBER, FirstPoint
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.points import first_points, read_points

BASELINE = baseline(BLOG, 5)


def written(folder: Path, points: Any) -> Path:
    path = folder / "points.json"
    path.write_text(points if isinstance(points, str) else json.dumps(points))
    return path


def test_points_are_read_in_the_types_of_the_space(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {**WIDE, "epochs": IntDistribution(1, 9)}
    points = [
        {"lr_scale": 1, "batch_size": 64, "dropout_conv": 0.15, "optimizer": "adam"},
        {"epochs": 9},
    ]
    read = read_points(written(tmp_path, points), space)
    assert read == points
    assert [type(value) for value in read[0].values()] == [float, int, float, str]
    assert read_points(written(tmp_path, points[1]), space) == points[1:]  # a single object is a list of one


@pytest.mark.parametrize(
    ("points", "complaint"),
    [
        (
            "[{",
            r'points.json, but must be a JSON list of objects such as \[{"lr": .*\(Expecting property name',
        ),
        ("", r"must be a JSON list of objects .*\(Expecting value"),
        ("7", r"must be a JSON list of objects .*: it has 7$"),
        ([], r"must have at least one point$"),
        ([{}], r"points.json, point 1: it is {}, but must be an object with a parameter$"),
        ([{"lr": 0.01}, 3], r"point 2: it is 3, but must be an object"),
        (
            [{"learning_rate": 0.01}],
            r"point 1: learning_rate is 0.01, but must be left out: the space has lr, momentum, optimizer, ",
        ),
        (
            [{"lr": 0.005}, {"lr": 0.05}],
            r"point 2: lr is 0.05, but must be a number from 0.001 to 0.01 \(log\)$",
        ),
        ([{"lr": "0.01"}], r'point 1: lr is "0.01", but must be a number from'),
        ([{"lr": None}], r"point 1: lr is null, but must be a number from"),
        ([{"lr": True}], r"point 1: lr is true, but must be a number from"),
        ("[{" + '"lr": NaN' + "}]", r"point 1: lr is NaN, but must be a number from"),
        ([{"epochs": 4.0}], r"point 1: epochs is 4.0, but must be a whole number from 3 to 5$"),
        ([{"epochs": 6}], r"point 1: epochs is 6, but must be a whole number from 3 to 5$"),
        ([{"optimizer": "adam"}], r'point 1: optimizer is "adam", but must be sgd or rmsprop$'),
        ([{"optimizer": ["sgd"]}], r'point 1: optimizer is \["sgd"\], but must be sgd or rmsprop$'),
        (
            [{"dropout_conv": 0.12}],
            r"dropout_conv is 0.12, but must be a number from 0.0 to 0.5 \(step 0.05\)$",
        ),
        ([{"batch_size": 48}], r"batch_size is 48, but must be a whole number from 32 to 256 \(step 32\)$"),
    ],
)
def test_a_point_that_cannot_be_is_named(points: Any, complaint: str, tmp_path: Path) -> None:
    space = {**BLOG, "dropout_conv": WIDE["dropout_conv"], "batch_size": WIDE["batch_size"]}
    space = dict(BLOG) if "learning_rate" in str(points) else space
    with pytest.raises(ValueError, match=complaint) as error:
        read_points(written(tmp_path, points), space)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"points is \S+none.json, but .* \(No such file or directory\)$"):
        read_points(tmp_path / "none.json", BLOG)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary.json", tmp_path):
        with pytest.raises(ValueError, match="but must be a JSON list of objects") as error:
            read_points(path, BLOG)
        assert "\n" not in str(error.value)


def test_the_baseline_goes_first_unless_it_is_given_or_known() -> None:
    other = {**BASELINE, "lr": 0.002}
    settings, blog = Settings(points=Path("p.json")), FirstPoint(params=BASELINE, hand_set=True)
    assert first_points(settings, TASK, BLOG) == [blog]
    assert first_points(settings, TASK, BLOG, [other]) == [blog, FirstPoint(params=other)]
    assert first_points(settings, TASK, BLOG, [other, BASELINE]) == [
        FirstPoint(params=one) for one in (other, BASELINE)
    ]
    assert first_points(settings, TASK, BLOG, [other], [other]) == [blog, FirstPoint(params=other)]
    assert first_points(settings, TASK, BLOG, [], [other, BASELINE]) == []
    partial = {name: BASELINE[name] for name in ("lr", "momentum")}
    assert first_points(settings, TASK, BLOG, [partial])[0] == blog


def test_more_points_than_trials_are_refused() -> None:
    settings = Settings(points=Path("p.json"), num_samples=3)
    points = [{"lr": 0.002}] * 3
    assert len(first_points(settings, TASK, BLOG, points, [BASELINE])) == 3
    with pytest.raises(
        ValueError,
        match=r"^points is p.json with 3 points, but must have at most 2: num_samples is 3, and the "
        r"baseline is tried first$",
    ):
        first_points(settings, TASK, BLOG, points)
    few = dataclasses.replace(settings, num_samples=2)
    with pytest.raises(ValueError, match=r"with 3 points, but must have at most 2: num_samples is 2$"):
        first_points(few, TASK, BLOG, points, [BASELINE])


POINTS: list[dict[str, Any]] = [
    {"lr": 0.002, "momentum": 0.7, "optimizer": "sgd", "epochs": 4},
    {"momentum": 0.81},
    {"lr": 0.003},
]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_each_point_gets_its_trial_in_whatever_session(sampler: str, tmp_path: Path) -> None:
    drawn = []
    for name, breaks in (("whole", ()), ("broken", (0, 2, 3, 4))):
        (tmp_path / name).mkdir()
        ledger = Ledger.open(tmp_path / name / LEDGER)
        ledger.begin({}, FACTS)
        ledger.plan(first_points(Settings(), TASK, BLOG, POINTS))
        drawn.append(draws(partial(searcher, tmp_path / name, sampler=sampler), 6, breaks))
    whole, broken = drawn
    assert whole == broken
    for config, point in zip(whole, [BASELINE, *POINTS], strict=False):
        assert point.items() <= config.items()
    assert [config[OPTUNA_NUMBER] for config in whole] == list(range(6))
    # What a point leaves out is drawn, differently each time.
    assert len({config["momentum"] for config in whole}) == 6
    hand_set = [trial.hand_set for trial in Ledger.open(tmp_path / "broken" / LEDGER).trials.values()]
    assert hand_set == [True] + [False] * 5


def test_a_step_is_met_within_rounding_and_a_choice_in_its_own_type(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {
        "dropout_conv": FloatDistribution(0.0, 0.5, step=0.1),
        "batch_size": CategoricalDistribution((32, 64)),
    }
    point = {"dropout_conv": 0.3, "batch_size": 64}
    assert read_points(written(tmp_path, [point]), space) == [point]
    with pytest.raises(ValueError, match=r"batch_size is 64.0, but must be 32 or 64$"):
        read_points(written(tmp_path, [{"batch_size": 64.0}]), space)
