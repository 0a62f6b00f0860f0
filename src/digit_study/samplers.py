"""Optuna's samplers and pruners by the names the config gives them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import cast

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from digit_study.errors import StudyError
from digit_study.search_config import SearchConfig, pruner_of


class _Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna draws brackets from the study's name too: two studies alike but for their names would differ."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        return super()._get_bracket_id(cast(Study, SimpleNamespace(study_name="")), trial)


#: Samplers that need a library of their own, and how to get it.
NEEDS = {"gp": ("torch", "pip install -e '.[gp]'"), "cmaes": ("cmaes", "pip install cmaes")}

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
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
