"""Studies that nobody searched, for pictures and pages of them."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState

from digit_study.config.space import Dimension
from digit_study.study.storage import StoredStudy

KEYS = {
    "training.learning_rate": Dimension(
        "training.learning_rate", "float", low=1e-4, high=1e-2, log=True
    ),
    "model.filters": Dimension("model.filters", "int", low=8, high=64, step=8),
    "model.pooling": Dimension(
        "model.pooling", "categorical", choices=("max", "average", "a long name " * 5)
    ),
    "model.dropout": Dimension("model.dropout", "float", low=0.0, high=0.6),
} | {f"model.key_{n}": Dimension(f"model.key_{n}", "float", low=0.0, high=1.0) for n in range(8)}


def study_of(
    count: int, keys: int = 4, objectives: int = 1, name: str = "s"
) -> tuple[Any, StoredStudy]:
    """A study with ``count`` trials, every fifth of which failed and every third pruned."""
    storage, chance = optuna.storages.InMemoryStorage(), random.Random(0)
    directions = ["maximize", "minimize", "minimize"][:objectives]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    dimensions = list(KEYS.values())[:keys]
    for number in range(count):
        trial = study.ask()
        for dimension in dimensions if number % 2 else dimensions[:-1]:  # conditions leave some out
            dimension.suggest(trial)
        if objectives == 1:
            for epoch in range(1, 4):
                trial.report(0.9 + chance.random() / 20 + epoch / 100, epoch)
        values = [
            0.9 + chance.random() / 10,
            *(chance.random() * 1e5 for _ in range(objectives - 1)),
        ]
        state = {4: TrialState.FAIL, 2: TrialState.PRUNED}.get(number % 5, TrialState.COMPLETE)
        study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)
    metrics = dict(zip(("val_accuracy", "parameters", "val_loss"), directions, strict=False))
    names = [dimension.key for dimension in dimensions]
    plan = SimpleNamespace(
        dimensions=dimensions, keys=names, objectives=metrics, study=SimpleNamespace(study=name)
    )
    return plan, StoredStudy(study, storage)
