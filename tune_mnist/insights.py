"""What a run teaches, computed and not drawn: its facts, what matters, which ranges to widen."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, json_to_distribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_mnist.grid import ledger_of, records
from tune_mnist.hyperparameters import METRIC, TIME_ATTR, Hyperparameters
from tune_mnist.inherited import describe_inherited
from tune_mnist.ledger import UNENDED, Ledger, TrialRecord
from tune_mnist.scale import nines
from tune_mnist.spaces import to_config
from tune_mnist.timeline import stretches
from tune_mnist.tuner import FINISHED, Outcome
from tune_mnist.words import ahead, count, duration, first_line, share, short_value

T = TypeVar("T")

STATES = ("COMPLETE", "PRUNED", "FAIL", UNENDED)
"""States of trials, in the order in which they are listed."""
MIN_FINISHED = 4
"""Finished trials below which nothing is said about importance."""
EDGE = 0.05
"""Share of a range, at either end, in which a best value says that the range may be too narrow."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line about a run."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A value of the best trial that lies at the edge of its range."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it as advice: widen lr: 0.0098 of 0.001..0.01."""
        low, high = short_value(self.low), short_value(self.high)
        return f"widen {self.name}: {short_value(self.value)} of {low}..{high}"


class View:
    """A run as it is looked at; each part is made once, when it is asked for."""

    def __init__(self, outcome: Outcome) -> None:
        """Take what `tuner.look` gives."""
        self.outcome = outcome
        self.name = outcome.folder.name
        self.settings = outcome.settings
        self.ledger: Ledger = ledger_of(outcome.grid)
        self.trials: list[TrialRecord] = records(outcome.grid)
        "In the order of the study."
        self.failures: list[str] = []
        "What could not be computed or drawn, a line each."

    def tried(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """Let one part of a report fail alone: note it in ``failures``, and give something else."""
        try:
            return make()
        except Exception as error:  # of Optuna or a drawing library, which differ from version to version
            self.failures.append(f"{what} failed: {type(error).__name__}: {first_line(error)}")
            return otherwise

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """The search space."""
        return {name: json_to_distribution(one) for name, one in self.ledger.distributions.items()}

    def of_state(self, state: str) -> list[TrialRecord]:
        """List the trials of a state."""
        return [trial for trial in self.trials if trial.shown_state == state]

    @cached_property
    def finished(self) -> list[TrialRecord]:
        """The COMPLETE trials: those that have a final result."""
        return self.of_state("COMPLETE")

    @cached_property
    def best(self) -> TrialRecord | None:
        """The winner's trial, or before there is a winner the one with the highest accuracy of any epoch."""
        if winner := self.outcome.winner:
            return next((trial for trial in self.trials if trial.trial_id == winner.trial_id), None)
        reported = [trial for trial in self.trials if trial.epochs and trial.shown_state != "FAIL"]
        return max(reported, key=lambda trial: best_epoch(trial)[METRIC], default=None)

    @cached_property
    def study(self) -> Study:
        """An Optuna study of all trials, whose values are the `nines` of their accuracies."""
        return self._make_study(self.trials)

    def study_of_best(self, limit: int) -> Study:
        """Make an Optuna study of the best so many of the finished trials, and none of the others."""
        ranked = sorted(self.finished, key=lambda trial: -float(trial.last[METRIC]))
        return self._make_study(ranked[:limit])

    def _make_study(self, trials: Iterable[TrialRecord]) -> Study:
        study = optuna.create_study(direction="maximize", study_name=self.name)
        for trial in trials:
            params = {name: value for name, value in trial.params.items() if name in self.space}
            frozen = create_trial(
                state=TrialState[trial.shown_state],
                value=nines(trial.last[METRIC]) if trial.shown_state == "COMPLETE" else None,
                params=params,
                distributions={name: self.space[name] for name in params},
            )
            study.add_trial(frozen)
        return _StudyToLookAt(study.study_name, study._storage)

    @cached_property
    def importances(self) -> dict[str, float]:
        """Share of each hyper-parameter in the variance of the results, the largest first.

        PED-ANOVA (Watanabe et al., 2023) over the finished trials, Optuna's default; {} for fewer than
        MIN_FINISHED, or where all came to the same.
        """
        if (
            not self.space
            or len(self.finished) < MIN_FINISHED
            or len({trial.last[METRIC] for trial in self.finished}) == 1
        ):
            return {}
        # Here, as it imports scikit-learn where there is one: a second and a half of a search's start.
        from optuna.importance import get_param_importances

        return self.tried("the importance", lambda: get_param_importances(self.study), {})


class _StudyToLookAt(Study):
    """A study that hands out its own trials: of 10,000 Optuna's plots would make 36 copies, 2 s each."""

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return super().get_trials(deepcopy=False, states=states)


def best_epoch(trial: TrialRecord) -> dict[str, Any]:
    """Give a trial's report with the highest accuracy; it must have one."""
    return max(trial.epochs, key=lambda epoch: float(epoch[METRIC]))


def count_states(view: View) -> str:
    """Count the trials of each state: 7 COMPLETE, 13 PRUNED, 0 FAIL."""
    counts = {state: len(view.of_state(state)) for state in STATES}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n or state != UNENDED)


def say_how_it_ended(outcome: Outcome) -> str:
    """Say that a search has finished, or what ended it, or that it has not ended."""
    words = {None: "it runs, or was killed", FINISHED: "finished"}
    return words.get(outcome.ended_by, f"ended by {outcome.ended_by}")


def count_epochs(view: View) -> tuple[int, str]:
    """Count the epochs that were trained; say how many were planned, and what ASHA saved of those."""
    planned = sum(trial.epochs_planned for trial in view.trials)
    cut = [trial for trial in view.trials if trial.state == "PRUNED"]
    saved = sum(trial.epochs_planned - trial.epoch for trial in cut)
    return sum(trial.epoch for trial in view.trials), f"of {planned:,} planned; ASHA saved {saved:,}"


def facts(view: View) -> list[Fact]:
    """Tell a run in some ten lines."""
    outcome, settings, ledger, trials = view.outcome, view.settings, view.ledger, view.trials
    trained, of_planned = count_epochs(view)
    images = (
        f"{count(settings.train_size, 'training image')}" if settings.train_size else "all training images"
    )
    side_by_side = len({stretch.worker for stretch in stretches(ledger)})
    hours = max(outcome.seconds, 1e-9) / 3600
    over = len(trials) - len(view.of_state(UNENDED))
    return [
        Fact(
            label="Search",
            value=f"{settings.sampler} in space {settings.space}",
            note=f"seed {settings.seed}; {settings.dataset}, {images}; {say_how_it_ended(outcome)}",
        ),
        Fact(label="Trials", value=f"{len(trials)} of {settings.num_samples}", note=count_states(view)),
        Fact(label="Epochs", value=f"{trained:,}", note=of_planned),
        Fact(
            label="Wall time",
            value=duration(outcome.seconds),
            note=f"{count(len(ledger.sessions), 'session')}"
            + (f"; at most {count(side_by_side, 'trial')} side by side" if side_by_side else ""),
        ),
        Fact(
            label="Pace",
            value=f"{over / hours:.0f} trials an hour",
            note=f"{trained / hours:.0f} epochs an hour",
        ),
        *([known] if (known := known_before(view)) else []),
        *_best_facts(view),
    ]


def known_before(view: View) -> Fact | None:
    """Tell the trials of earlier runs, beside which the best of this run's own is put; None without any."""
    inherited = view.ledger.inherited
    if not inherited:
        return None
    runs = ", ".join(dict.fromkeys(trial.run for trial in inherited))
    note = f"of {runs} ({describe_inherited(inherited)}), counted nowhere else"
    if ended := [trial.last[METRIC] for trial in view.trials if trial.epochs and trial.shown_state != "FAIL"]:
        difference = ahead(max(ended), max(trial.value for trial in inherited))
        note += f"; the best of this run's own, {max(ended):.2%}, is {difference}"
    return Fact(label="Known before", value=count(len(inherited), "trial"), note=note)


def compare_with_blog(view: View) -> Fact | None:
    """Tell the blog's hand-set trial: of one that was cut, beside the best trial at that epoch.

    None where there is no such trial, or it is the best itself.
    """
    best, blog = view.best, next((trial for trial in view.trials if trial.hand_set), None)
    if best is None or blog is None or blog is best or not blog.epochs:
        return None
    then, value = best.find(blog.epoch), blog.last[METRIC]
    if blog.shown_state == "COMPLETE" or then is None:
        note = f"epoch {blog.epoch}; the best is {ahead(_best_score(view, best)[0], value)}"
    else:
        note = f"stopped at epoch {blog.epoch}, where the best trial had {then[METRIC]:.2%}"
    return Fact(label="Blog's settings", value=f"{value:.2%}", note=note)


def _best_score(view: View, best: TrialRecord) -> tuple[float, int]:
    """Give the accuracy of the best trial and its epoch: those of the winner, once there is one."""
    if winner := view.outcome.winner:
        return winner.accuracy, winner.epoch
    report = best_epoch(best)
    return report[METRIC], report[TIME_ATTR]


def _best_facts(view: View) -> list[Fact]:
    best, winner, val_size = view.best, view.outcome.winner, view.settings.val_size
    if best is None:
        return [Fact(label="Best", value="none yet", note="no trial has reported an epoch")]
    accuracy, epoch = _best_score(view, best)
    where = f"trial {best.number} at epoch {epoch} of {best.epochs_planned}"
    found = [
        Fact(
            label="Best, validation",
            value=share(accuracy, val_size),
            note=f"{where}; n = {val_size:,}, ± standard error",
        )
    ]
    found += [blog] if (blog := compare_with_blog(view)) else []
    if winner:
        test = share(winner.test_accuracy, winner.test_size)
        found.append(
            Fact(label="Winner, test", value=test, note=f"n = {winner.test_size:,}, ± standard error")
        )
    return found


def edges(view: View) -> list[Edge]:
    """List the values of the best trial that lie at the edge of a range which could be wider."""
    best, found = view.best, []
    if best is None:
        return []
    for name, value in best.params.items():
        one = view.space.get(name)
        if not isinstance(one, FloatDistribution | IntDistribution) or one.low == one.high:
            continue
        scale = math.log if one.log else float
        position = (scale(value) - scale(one.low)) / (scale(one.high) - scale(one.low))
        if not EDGE < position < 1 - EDGE and _could_be_wider(best.params, name, one, up=position > 0.5):
            found.append(Edge(name=name, value=value, low=one.low, high=one.high))
    return found


def _could_be_wider(
    params: Mapping[str, Any], name: str, one: FloatDistribution | IntDistribution, *, up: bool
) -> bool:
    """Tell whether a value beyond the end of a range would still be a hyper-parameter."""
    step = one.step or (one.high - one.low) / 100
    if one.log:
        beyond: float = one.high * 1.1 if up else one.low / 1.1
    else:
        beyond = one.high + step if up else one.low - step
    if isinstance(one, IntDistribution):
        beyond = math.ceil(beyond) if up else math.floor(beyond)
    try:
        config = to_config({**params, name: beyond}, max_epochs=max(int(params.get("epochs", 1)), 1))
        Hyperparameters(**{**config, **({"epochs": beyond} if name == "epochs" else {})})
    except (ValueError, TypeError):
        return False
    return True
