"""The simulated searches: on handmade curves, whose best is known."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from rich.console import Console
from scipy.stats import spearmanr

from benchmarks import simulate as simulation
from benchmarks import surrogate
from benchmarks.quality import OURS, RANDOM, RANDOM_ASHA, TPE_RAY, beside_ours, show
from benchmarks.record import EPOCHS, VAL_SIZE
from benchmarks.simulate import Step, Variant
from benchmarks.surrogate import Surrogate
from tune_mnist.mnist.spaces import WIDE, baseline
from tune_mnist.run.ledger import Ledger
from tune_mnist.run.settings import Settings
from tune_mnist.tuning.asha import ASHA
from tune_mnist.tuning.samplers import stream

Array = npt.NDArray[np.float64]


class HandMade:
    """Curves that rise to a height set by momentum and dropout."""

    def __init__(self) -> None:
        self.trained: list[Mapping[str, Any]] = []

    def train(self, params: Mapping[str, Any], seed: Sequence[int] = ()) -> tuple[Array, float]:
        self.trained.append(params)
        height: float = 0.9 - abs(params["momentum"] - 0.7) - params["dropout_conv"] / 5
        rising = np.array([height * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)])
        return rising, float(rising[-1])


def simulate(variant: Variant, workers: int, budget: int, seed: int = 0) -> list[Step]:
    return list(
        simulation.simulate(variant, HandMade(), workers=workers, seed=seed, budget=budget, max_epochs=EPOCHS)
    )


def records(params: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in params.to_dict("records")]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("variant", [OURS, TPE_RAY], ids=lambda variant: variant.name)
def test_every_worker_has_one_trial_at_any_time(variant: Variant, workers: int) -> None:
    curves = HandMade()
    ended = 0
    for step in simulation.simulate(variant, curves, workers=workers, seed=0, budget=120, max_epochs=EPOCHS):
        ended += step.stopped
        assert len(curves.trained) - ended == workers
    assert ended > 20


def test_each_epoch_is_counted_once_and_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "PACE_SPREAD", 0.0)
    steps = simulate(RANDOM, workers=4, budget=4 * EPOCHS * 3)
    assert [step.epochs for step in steps] == list(range(1, len(steps) + 1))
    assert [step.time for step in steps] == [math.ceil(epochs / 4) for epochs in range(1, len(steps) + 1)]
    trained = pd.Series([step.trial for step in steps]).value_counts()
    assert dict(trained) == dict.fromkeys(range(12), EPOCHS)


def test_random_search_without_stopping_is_a_plain_loop() -> None:
    curves, seed, trials = HandMade(), 3, 15
    best, expected = -math.inf, []
    for number in range(trials):
        study = optuna.create_study(sampler=RandomSampler(seed=stream(seed, number)))
        params = baseline(WIDE, EPOCHS) if number == 0 else study.ask(dict(WIDE)).params
        best = max(best, curves.train(params)[1])
        expected.append(best)
    steps = simulate(RANDOM, workers=1, budget=trials * EPOCHS, seed=seed)
    assert [step.truth for step in steps[EPOCHS - 1 :: EPOCHS]] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reduction_factor", [2, 4])
@pytest.mark.parametrize("workers", [1, 8])
def test_trials_are_stopped_by_the_projects_asha(workers: int, reduction_factor: int) -> None:
    changes: dict[str, Any] = {"sampler": "random", "reduction_factor": reduction_factor}
    settings = Settings(max_epochs=EPOCHS, reduction_factor=reduction_factor)
    asha = ASHA(settings, Ledger())
    rungs: dict[int, list[float]] = {int(reduction_factor**k): [] for k in range(4)}
    epochs: dict[int, int] = {}
    stops = 0
    for step in simulate(Variant(name="", settings=changes), workers, budget=150):
        epoch = epochs[step.trial] = epochs.get(step.trial, 0) + 1
        assert step.stopped == asha.stops(str(step.trial), epoch, step.accuracy)
        # And as in the paper: below the best 1 / reduction_factor of those before it.
        before = rungs.get(epoch, [])
        cut = bool(before) and step.accuracy < float(np.quantile(before, 1 - 1 / reduction_factor))
        before.append(step.accuracy)
        assert step.stopped == (cut or epoch == EPOCHS)
        stops += cut
    assert stops > 20


def test_the_seed_decides_the_search() -> None:
    steps = simulate(OURS, workers=8, budget=150)
    assert steps == simulate(OURS, workers=8, budget=150)
    assert steps != simulate(OURS, workers=8, budget=150, seed=1)


def test_the_choice_goes_by_what_was_observed() -> None:
    class Flattered(HandMade):
        def train(self, params: Mapping[str, Any], seed: Sequence[int] = ()) -> tuple[Array, float]:
            accuracies, mean = super().train(params, seed)
            return (accuracies if seed[-1] != 4 else np.full(EPOCHS, 0.95)), mean

    search = simulation.simulate(RANDOM, Flattered(), workers=1, seed=0, budget=90, max_epochs=EPOCHS)
    last = list(search)[-1]
    assert last.chosen == 4
    assert last.truth < 0.9


@pytest.mark.parametrize(("variant", "pruned"), [(RANDOM_ASHA, True), (TPE_RAY, False)])
def test_what_the_sampler_hears_of_a_stopped_trial(variant: Variant, pruned: bool) -> None:
    heard: set[str] = set()

    class Listening(RandomSampler):
        def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            heard.update(one.state.name for one in study.get_trials(deepcopy=False))

    def listening(name: str, seed: int, number: int, space: Mapping[str, BaseDistribution]) -> BaseSampler:
        return Listening(seed=number)

    listener = Variant(name="", settings=variant.settings, make_sampler=listening, plain=variant.plain)
    assert any(step.stopped for step in simulate(listener, workers=2, budget=60)[:8])
    assert heard == {"RUNNING", "COMPLETE"} | ({"PRUNED"} if pruned else set())


@pytest.fixture(scope="module")
def recorded() -> pd.DataFrame:
    """120 handmade curves."""
    params = surrogate.random_params(120, np.random.default_rng(0))
    rows = [
        {"configuration": number, **one, "epoch": epoch, "accuracy": accuracy}
        for number, one in enumerate(records(params))
        for epoch, accuracy in enumerate(HandMade().train(one)[0], start=1)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def fitted(recorded: pd.DataFrame) -> Surrogate:
    repeats = [
        {"configuration": number, "seed": seed, "epoch": epoch, "accuracy": 0.8 + chance}
        for number in range(5)
        for seed, chance in enumerate((-0.01, 0.0, 0.01))
        for epoch in range(1, EPOCHS + 1)
    ]
    return surrogate.fit("gp", recorded, pd.DataFrame(repeats))


def test_the_surrogate_knows_configurations_that_were_not_recorded(fitted: Surrogate) -> None:
    params = surrogate.random_params(300, np.random.default_rng(1))
    known = [HandMade().train(one)[0] for one in records(params)]
    predicted = fitted.truth(params)
    assert predicted.shape == (300, EPOCHS)
    assert spearmanr(predicted[:, -1], np.array(known)[:, -1])[0] > 0.98
    best, accuracy = surrogate.optimum(fitted.model, draws=2000, steps=6)
    assert accuracy == pytest.approx(0.9 * (1 - 0.5**EPOCHS), abs=0.01)
    assert (best["momentum"], best["dropout_conv"]) == (pytest.approx(0.7, abs=0.05), 0.0)


def test_chance_is_that_of_the_repeats(fitted: Surrogate) -> None:
    (params,) = records(surrogate.random_params(1, np.random.default_rng(3)))
    mean = fitted.truth(params)[0]
    drawn = np.array([fitted.train(params, (0, number))[0] for number in range(400)])
    assert np.array_equal(drawn[7], fitted.train(params, (0, 7))[0])
    assert np.allclose(drawn * VAL_SIZE, np.round(drawn * VAL_SIZE))
    shift = surrogate.nines(drawn) - surrogate.nines(mean)
    assert abs(shift.mean()) < 0.005
    # Three trainings at 0.79, 0.80, 0.81: their standard deviation, in nines.
    assert shift.std() == pytest.approx(np.std(surrogate.nines([0.79, 0.8, 0.81]), ddof=1), rel=0.1)


def test_the_unit_cube_holds_the_space() -> None:
    params = surrogate.random_params(200, np.random.default_rng(2))
    cube = surrogate.encode(params)
    assert cube.min() >= 0 and cube.max() <= 1 + 1e-12
    for name, distribution in WIDE.items():
        assert all(distribution._contains(distribution.to_internal_repr(value)) for value in params[name])
    assert np.array_equal(surrogate.encode(records(params)[5])[0], cube[5])


def test_the_table_gives_mean_and_standard_error() -> None:
    rows = [
        {"surrogate": "gp", "workers": 8, "variant": variant.name, "seed": seed, "epochs": epochs}
        | {"time": epochs / 8, "trial": 9, "regret": regret, "truth": 0.99 - regret}
        for variant, regrets in ((OURS, (0.001, 0.003)), (RANDOM, (0.004, 0.004)))
        for epochs in (50, 100)
        for seed, regret in enumerate(regrets)
    ]
    frame = pd.DataFrame(rows)
    assert list(beside_ours(frame, RANDOM.name)) == pytest.approx([0.003, 0.001])
    out = io.StringIO()
    show(Console(file=out, width=200), frame)
    ours, random = (
        next(line for line in out.getvalue().splitlines() if variant.name in line)
        for variant in (OURS, RANDOM)
    )
    assert "0.200 ± 0.100" in ours
    assert "0.400 ± 0.000" in random and "+0.200 ± 0.100" in random
