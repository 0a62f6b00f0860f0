"""Optuna's samplers and pruners by the names the config gives them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from digit_study.config.study import SearchConfig, pruner_of
from digit_study.terminal.errors import StudyError


class _Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna draws brackets from the study's name too: two studies alike but for their names would differ."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        return super()._get_bracket_id(cast(Study, SimpleNamespace(study_name="")), trial)


class _TPE(optuna.samplers.TPESampler):
    """Optuna's own converts all params of all trials before every trial; here a finished one is converted once."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._rows: dict[tuple[int, tuple[str, ...]], list[float] | None] = {}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        keys = tuple(search_space)
        found = (self._row(trial, keys, search_space, study) for trial in trials)
        rows = [row for row in found if row is not None]
        columns = zip(*rows, strict=True) if rows else ([] for _ in keys)
        return {key: np.asarray(column) for key, column in zip(keys, columns, strict=True)}

    def _row(
        self, trial: FrozenTrial, keys: tuple[str, ...], search_space: dict[str, BaseDistribution], study: Study
    ) -> list[float] | None:
        if (trial.number, keys) in self._rows:
            return self._rows[trial.number, keys]
        params = self._get_params(trial, study)
        whole = search_space.keys() <= params.keys()
        row = [one.to_internal_repr(params[key]) for key, one in search_space.items()] if whole else None
        if trial.state.is_finished():
            self._rows[trial.number, keys] = row
        return row


#: Samplers that need a library of their own, and how to get it.
NEEDS = {"gp": ("torch", "pip install -e '.[gp]'"), "cmaes": ("cmaes", "pip install cmaes")}

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _TPE,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(
        seed=seed, scramble=True, warn_asynchronous_seeding=False, warn_independent_sampling=False
    ),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    # every grid point is enqueued; what is asked for beyond them is drawn at random
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
}

PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "hyperband": lambda epochs: _Hyperband(min_resource=1, max_resource=epochs),
    "successive_halving": lambda epochs: optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
    "median": lambda epochs: optuna.pruners.MedianPruner(n_startup_trials=5),
    "percentile": lambda epochs: optuna.pruners.PercentilePruner(25.0, n_startup_trials=5),
    "patient": lambda epochs: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(), patience=1),
    "none": lambda epochs: optuna.pruners.NopPruner(),
}


def check_sampler(name: str) -> None:
    """Make sure that the library a sampler needs is installed.

    Raises:
        StudyError: it is not; says what to install.
    """
    library, remedy = NEEDS.get(name, ("optuna", ""))
    if find_spec(library) is None:
        raise StudyError(f"`search.sampler`={name} needs the package {library}, which is not installed: {remedy}")


def make_sampler(search: SearchConfig, started_before: int) -> BaseSampler:
    """Build the sampler; a supervisor that joins or resumes a study draws other start-up trials than the one before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[search.sampler](search.seed + 7919 * started_before)


def make_pruner(search: SearchConfig, epochs: int) -> BasePruner:
    """Build the pruner for trials of at most ``epochs`` epochs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PRUNERS[pruner_of(search)](epochs)
