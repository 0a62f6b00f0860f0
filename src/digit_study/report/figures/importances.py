"""How much each searched key matters, and on how many trials that rests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

#: Finished trials at least that must have a key, and that count as the best. PED-ANOVA estimates a
#: density of each: of fewer values it is mostly the prior, and Optuna asks for five.
LEAST_TRIALS = 5
#: Of the best trials, at least so many must have a key, and at least half: the values of one or two
#: differ from those of all trials by chance, and by the most.
LEAST_BEST = 3
#: Share of the finished trials that count as the best, Optuna's default. A tenth of 20 trials would
#: be two: of so few more are taken, at most the best half.
BEST_SHARE = 0.1
#: Returns what a trial is judged by; the lower, the better.
Target = Callable[[FrozenTrial], float]


@dataclass(frozen=True)
class KeyImportances:
    """How much of the differences between finished trials each key explains."""

    #: Shares of 1 by key, the most important key first; only of keys that enough trials have.
    shares: Mapping[str, float] = field(default_factory=dict)
    #: How many finished trials have each key.
    trials: Mapping[str, int] = field(default_factory=dict)
    #: How many trials have finished.
    finished: int = 0
    #: How many of them count as the best.
    best: int = 0

    @property
    def problem(self) -> str:
        """Return why there are no importances; empty where there are."""
        if self.shares:
            return ""
        return (
            f"importances need {LEAST_TRIALS} finished trials with a key, and "
            f"{self.finished} have finished"
        )

    @property
    def left_out(self) -> dict[str, int]:
        """Return the keys that too few trials have, with how many have them."""
        return {key: count for key, count in self.trials.items() if key not in self.shares}

    @property
    def basis(self) -> str:
        """Return what the shares rest on, in sentences."""
        text = f"It compares the best {self.best} of {self.finished} finished trials with all."
        if not self.left_out:
            return text
        keys = [f"{key} ({count} trials)" for key, count in self.left_out.items()]
        named = ", ".join(keys)
        return (
            f"{text} Left out, because too few of the finished or of the best trials have it: "
            f"{named}."
        )

    def label(self, key: str) -> str:
        """Return a key, with how many trials have it where these are not all."""
        if self.trials[key] == self.finished:
            return key
        return f"{key} ({self.trials[key]} trials)"


def key_importances(
    study: Study, keys: Sequence[str], target: Target | None = None
) -> KeyImportances:
    """Evaluate importances by PED-ANOVA, of the keys that enough finished trials have.

    Args:
        study: What is evaluated.
        keys: Config keys that are searched.
        target: What trials are judged by; None is the only objective.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    finished = len(complete)
    trials: dict[str, int] = {}
    for key in keys:
        count = _count_trials_with(key, complete)
        if count:
            trials[key] = count
    best = _best(study, complete, target)
    least_best = max(LEAST_BEST, len(best) / 2)
    known = []
    for key, count in trials.items():
        among_best = _count_trials_with(key, best)
        if count >= LEAST_TRIALS and among_best >= least_best:
            known.append(key)
    if not known:
        return KeyImportances(trials=trials, finished=finished)
    shares = optuna.importance.get_param_importances(
        study,
        evaluator=evaluator(finished),
        params=known,
        target=target,
    )
    return KeyImportances(shares, trials, finished, len(best))


def _count_trials_with(key: str, trials: Sequence[FrozenTrial]) -> int:
    """Count the trials that have a key."""
    return sum(key in trial.params for trial in trials)


def _best(
    study: Study, complete: Sequence[FrozenTrial], target: Target | None
) -> list[FrozenTrial]:
    """Return the trials that PED-ANOVA compares with all: the best ones, with ties."""
    if not complete:
        return []
    if target is not None:
        losses = [target(trial) for trial in complete]
    else:
        sign = 1.0
        if study.direction is StudyDirection.MAXIMIZE:
            sign = -1.0
        losses = [sign * trial.values[0] for trial in complete]
    finished = len(complete)
    count = math.ceil(best_share(finished) * finished)
    cutoff = sorted(losses)[count - 1]
    return [trial for trial, loss in zip(complete, losses, strict=True) if loss <= cutoff]


def best_share(finished: int) -> float:
    """Return which share of the finished trials counts as the best, at most a half."""
    least_share = LEAST_TRIALS / finished
    return min(0.5, max(BEST_SHARE, least_share))


def evaluator(finished: int) -> PedAnovaImportanceEvaluator:
    """Return PED-ANOVA for a number of finished trials, at least 1."""
    return PedAnovaImportanceEvaluator(target_quantile=best_share(finished))
