"""How much each searched key matters, and on how many trials that rests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

#: Finished trials at least that must have a key. Of fewer values the density that PED-ANOVA
#: estimates is mostly its prior.
LEAST_TRIALS = 5
#: Share of the finished trials at least that must have a key. PED-ANOVA divides by this share: if
#: the best trials have a key by chance, that counts up to five times.
LEAST_SHARE = 0.2
#: Share of the finished trials that count as the best, once these are :data:`LEAST_TRIALS`; it is
#: Optuna's default. Of fewer trials the best half is taken: a tenth of them would be one or two.
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
        named = ", ".join(f"{key} ({count})" for key, count in self.left_out.items())
        return f"{text} Left out, because too few of them have it: {named}."

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
    counts = {key: sum(key in trial.params for trial in complete) for key in keys}
    trials = {key: count for key, count in counts.items() if count}
    finished = len(complete)
    least = max(LEAST_TRIALS, LEAST_SHARE * finished)
    known = [key for key, count in trials.items() if count >= least]
    if not known:
        return KeyImportances(trials=trials, finished=finished)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator(finished), params=known, target=target
    )
    best = math.ceil(best_share(finished) * finished)
    return KeyImportances(shares, trials, finished, best)


def best_share(finished: int) -> float:
    """Return which share of the finished trials counts as the best, at most a half."""
    return min(0.5, max(BEST_SHARE, LEAST_TRIALS / finished))


def evaluator(finished: int) -> PedAnovaImportanceEvaluator:
    """Return PED-ANOVA for a number of finished trials, at least 1."""
    return PedAnovaImportanceEvaluator(target_quantile=best_share(finished))
