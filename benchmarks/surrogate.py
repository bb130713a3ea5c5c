"""Predicts the wide space from the recorded learning curves, to compare searches without training.

python -m benchmarks.surrogate   # how far it can be trusted: errors on curves that it has not seen
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from benchmarks.record import EPOCHS, FIRST_REFINED, TABLE, VAL_SIZE
from benchmarks.repeats import REPEATS
from tune_mnist.mnist.spaces import WIDE

Array = npt.NDArray[np.float64]
Params = Mapping[str, Any] | pd.DataFrame
"""Parameters of one configuration, or one configuration per row."""
CHANCE = 0.1
"""Accuracy of a model that guesses, or has diverged."""
KINDS = ("gp", "trees")
"""Regressions: a Gaussian process; extremely randomized trees, to see whether a result depends on the
first."""


@dataclass(frozen=True)
class Surrogate:
    """The wide space's learning curves: a configuration's mean, and its random deviation."""

    model: Any
    "Scikit-learn's: from `encode` to nines, one column per epoch."
    deviations: Array
    "Repeat x epoch: nines of a training minus its configuration's mean, scaled to the full deviation."
    nines_of_deviations: Array
    "By repeat: mean nines of its configuration at the last epoch."

    def truth(self, params: Params) -> Array:
        """Return the accuracies without randomness, configuration x epoch, 0..1."""
        return accuracy(self.model.predict(encode(params)))

    def train(self, params: Mapping[str, Any], seed: Sequence[int]) -> tuple[Array, float]:
        """Train a configuration once: its mean curve plus the random deviation of a real training.

        That is the number of nines by which one of the repeats with the nearest accuracies differed from the
        other repeats of its configuration.

        Returns:
            The accuracy of each epoch, in whole images of the validation split, and the mean of the last.
        """
        mean = self.truth(params)[0]
        near = np.argsort(np.abs(self.nines_of_deviations - nines(mean[-1])), kind="stable")[:NEAR]
        noisy = accuracy(nines(mean) + self.deviations[np.random.default_rng(seed).choice(near)])
        return np.round(noisy * VAL_SIZE) / VAL_SIZE, float(mean[-1])

    def best(self) -> float:
        """Return the highest accuracy at the last epoch of any configuration."""
        return optimum(self.model)[1]


def optimum(model: Any, draws: int = 50_000, steps: int = 12, seed: int = 0) -> tuple[dict[str, Any], float]:
    """Find the best configuration by many draws, then draws around the best; also return its accuracy."""
    rng = np.random.default_rng(seed)
    found = random_params(draws, rng)
    for step in range(steps):
        last = model.predict(encode(found))[:, -1]
        top = found.iloc[np.argsort(-last)[:20]]
        if step < steps - 1:
            found = pd.concat([top, _around(top, 100, 0.3 * 0.7**step, rng)], ignore_index=True)
    params = {str(name): values.tolist()[0] for name, values in top.items()}
    return params, float(accuracy(last.max()))


NEAR = 15
"""Trainings of five configurations, one of which gives a training its deviation."""


def fit(kind: str, table: pd.DataFrame, repeats: pd.DataFrame) -> Surrogate:
    """Fit a surrogate of one of KINDS to recorded curves, and its random deviations to the repeats."""
    curves = repeats.pivot(index=["configuration", "seed"], columns="epoch", values="accuracy")
    values = pd.DataFrame(nines(curves.fillna(CHANCE).to_numpy()), curves.index, curves.columns)
    groups = values.groupby(level="configuration")
    mean, count = groups.transform("mean"), groups.transform("count")
    deviations = (values - mean) * np.sqrt(count / (count - 1))
    return Surrogate(regression(kind, table), deviations.to_numpy(), mean.iloc[:, -1].to_numpy())


def regression(kind: str, table: pd.DataFrame) -> Any:
    """Fit one of KINDS to recorded curves: from `encode` to nines, one column per epoch."""
    model = _model(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: no influence
        model.fit(encode(_params(table)), nines(_curves(table)))
    return model


def load(kind: str) -> Surrogate:
    """Fit a surrogate to the tables of the repository."""
    return fit(kind, pd.read_parquet(TABLE), pd.read_parquet(REPEATS))


def nines(accuracies: npt.ArrayLike) -> Array:
    """Count the nines: -log10(1 - accuracy), a scale that separates the good ones."""
    return np.asarray(-np.log10(1 - np.minimum(accuracies, 1 - 1e-4)), np.float64)


def accuracy(values: npt.ArrayLike) -> Array:
    """Return the accuracies for numbers of nines, none of them below chance."""
    return np.asarray(np.maximum(1 - np.power(10.0, -np.asarray(values)), CHANCE), np.float64)


def encode(params: Params) -> Array:
    """Map parameters into the unit cube, one row per configuration: logs of log ranges, choices one-hot."""
    columns = []
    for name, distribution in WIDE.items():
        values = np.atleast_1d(params[name])
        if isinstance(distribution, CategoricalDistribution):
            columns += [values == choice for choice in distribution.choices]
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            scale = np.log if distribution.log else np.asarray
            low, high = scale(distribution.low), scale(distribution.high)
            columns.append((scale(values) - low) / (high - low))
    return np.column_stack(columns).astype(np.float64)


def random_params(count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw configurations of the wide space at random."""
    return pd.DataFrame({name: _decode(name, rng.random(count), rng) for name in WIDE})


def _decode(name: str, unit: Array, rng: np.random.Generator) -> Any:
    distribution: Any = WIDE[name]
    if isinstance(distribution, CategoricalDistribution):
        return rng.choice(np.array(distribution.choices, dtype=object), len(unit))
    low, high = distribution.low, distribution.high
    if distribution.log:
        return low * (high / low) ** unit
    value = low + unit * (high - low)
    if distribution.step is None:
        return value
    steps = np.round((value - low) / distribution.step)
    value = np.minimum(low + steps * distribution.step, high)  # 14 steps of 0.05 exceed 0.7
    return value.astype(int) if isinstance(distribution, IntDistribution) else value


def _around(top: pd.DataFrame, count: int, width: float, rng: np.random.Generator) -> pd.DataFrame:
    """Draw ``count`` configurations around each of ``top``: normal in the unit cube, some choices redrawn."""
    centres = top.loc[top.index.repeat(count)].reset_index(drop=True)
    drawn = random_params(len(centres), rng)
    for name, distribution in WIDE.items():
        if isinstance(distribution, CategoricalDistribution):
            drawn[name] = drawn[name].where(rng.random(len(drawn)) < 0.1, centres[name])
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            scale = np.log if distribution.log else np.asarray
            low, high = scale(distribution.low), scale(distribution.high)
            unit = (scale(centres[name]) - low) / (high - low) + rng.normal(0, width, len(centres))
            drawn[name] = _decode(name, np.clip(unit, 0, 1), rng)
    return drawn


def _model(kind: str) -> Any:
    if kind == "trees":
        return ExtraTreesRegressor(300, min_samples_leaf=2, n_jobs=1, random_state=0)
    if kind == "gp":
        dimensions = encode(random_params(1, np.random.default_rng(0))).shape[1]
        kernel = ConstantKernel() * Matern([2.0] * dimensions, (0.05, 100.0), nu=2.5)
        gp = GaussianProcessRegressor(kernel + WhiteKernel(0.05, (1e-4, 1.0)), random_state=0)
        return TransformedTargetRegressor(gp, transformer=StandardScaler())
    raise ValueError(f"kind is {kind}, but must be one of {', '.join(KINDS)}")


def _params(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop_duplicates("configuration").sort_values("configuration")[list(WIDE)]


def _curves(table: pd.DataFrame) -> Array:
    """Configuration x epoch."""
    curves = table.pivot(index="configuration", columns="epoch", values="accuracy").sort_index()
    return curves.fillna(CHANCE).to_numpy()


def cross_validate(kind: str, table: pd.DataFrame, folds: int = 10) -> pd.DataFrame:
    """Predict each recorded curve from the others, in folds; return the errors, one row per epoch.

    Only for the curves drawn at random: those around an optimum help one another too much.
    """
    recorded = _curves(table)
    at_random = np.sort(table["configuration"].unique()) < FIRST_REFINED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = accuracy(
            cross_val_predict(
                _model(kind),
                encode(_params(table)),
                nines(recorded),
                cv=KFold(folds, shuffle=True, random_state=0),
            )
        )
    recorded, predicted = recorded[at_random], predicted[at_random]
    top = recorded[:, -1] >= np.median(recorded[:, -1])
    rows = []
    for epoch in range(recorded.shape[1]):
        row: dict[str, Any] = {"kind": kind, "epoch": epoch + 1}
        for name, rows_of in (("", slice(None)), ("_upper_half", top)):
            known, guess = recorded[rows_of, epoch], predicted[rows_of, epoch]
            row["rmse" + name] = float(np.sqrt(np.mean((guess - known) ** 2)))
            row["rank_correlation" + name] = float(spearmanr(guess, known)[0])
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Print the errors of both surrogates, and the random deviation among the repeats."""
    table = pd.read_parquet(TABLE)
    shown = Table("surrogate", "epoch", *("error, all", "upper half", "rank correlation, all", "upper half"))
    for kind in KINDS:
        for row in cross_validate(kind, table).to_dict("records"):
            shown.add_row(
                *(kind, str(row["epoch"]), f"{100 * row['rmse']:.2f}", f"{100 * row['rmse_upper_half']:.2f}"),
                *(f"{row['rank_correlation']:.3f}", f"{row['rank_correlation_upper_half']:.3f}"),
            )
    console = Console(highlight=False)
    console.print(
        "Curves recorded at random, each predicted from nine tenths of all others; "
        "error: root of the mean square, in accuracy points"
    )
    console.print(shown)
    last = pd.read_parquet(REPEATS).query(f"epoch == {EPOCHS}").groupby("configuration")["accuracy"]
    values = last.agg(["mean", "std"]).sort_values("mean").to_numpy(float) * 100
    texts = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in values]
    console.print(f"By chance, mean and standard deviation over seeds: {', '.join(texts)}")
    ends = table[table["epoch"] == EPOCHS].set_index("configuration")["accuracy"]
    at_random, refined = ends[ends.index < FIRST_REFINED], ends[ends.index >= FIRST_REFINED]
    best = ", ".join(f"{kind} {load(kind).best():.4f}" for kind in KINDS)
    console.print(
        f"Best accuracy: {at_random.max():.4f} of {len(at_random)} trained at random; {refined.max():.4f} of "
        f"{len(refined)} that the surrogates proposed, whose mean is {refined.mean():.4f}; known to the "
        f"surrogates, on average over seeds: {best}"
    )


if __name__ == "__main__":
    main()
