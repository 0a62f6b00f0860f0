"""The config of a run: everything that decides its outcome, and what ``auto`` becomes.

A new setting is a field with its rule where its group is declared (``data/sources.py``,
``model/networks.py``, ``model/recipe.py``, or here), a line in its ``conf/`` group, and the stage
that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from digit_study.config import engine_config
from digit_study.config.engine_config import EngineConfig
from digit_study.data import digits, sources
from digit_study.model import networks, recipe
from digit_study.support import hardware
from digit_study.support.errors import StudyError
from digit_study.support.rules import Validated

#: Names of tags that MLflow takes.
TAG_NAME = re.compile(r"[\w./ -]{1,250}")
#: How names of tags begin that MLflow or the project sets itself.
RESERVED_PREFIXES = ("mlflow.", "technical.", "dataset.", "weights.", "best.", "trial.", "study.")
#: Names of tags that the project sets itself.
RESERVED_TAGS = ("kind", "study", "answer", "failure", "continues")


@dataclass(frozen=True)
class StoreConfig:
    """Name MLflow's store, and what a person notes there.

    Attributes:
        uri: URI of the store; None: MLFLOW_TRACKING_URI, else ./mlflow.db.
        tags: Own tags of what a command records, by name.
        note: A note on what a command records, in Markdown.
    """

    uri: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)
    note: str | None = None

    @property
    def own_tags(self) -> dict[str, str]:
        """Return the tags that a person gave, as MLflow takes them."""
        return {str(name): str(value) for name, value in self.tags.items()}

    def violations(self) -> Iterator[str]:
        """Say which tags have a name that means something else."""
        for name in self.own_tags:
            is_reserved = name in RESERVED_TAGS or name.startswith(RESERVED_PREFIXES)
            if not TAG_NAME.fullmatch(name):
                allowed = "letters, digits, '_', '-', '.', ' ' and '/'"
                yield f"`tracking.tags` must have names of {allowed}, got {name!r}"
            elif is_reserved:
                yield f"`tracking.tags` has {name!r}, which the project sets itself: rename it"


@dataclass(frozen=True)
class TrackingConfig(StoreConfig):
    """Say where the results of runs go.

    Attributes:
        experiment: Name of the MLflow experiment; None: named after the data.
        run_name: Name of the run; None: named after its overrides.
        parent_run_id: The run under which this run is nested.
        save_model: Whether the trained model is kept.
        system_metrics: Whether MLflow records the load of the machine while it trains.
    """

    experiment: str | None = None
    run_name: str | None = None
    parent_run_id: str | None = None
    save_model: bool = True
    system_metrics: bool = False


@dataclass(frozen=True)
class Config(EngineConfig, Validated):
    """Describe a run: what decides its outcome, where that is kept, and where it is trained.

    What passes :meth:`validate` can be built and trained.

    Attributes:
        data: The digits.
        model: The network.
        training: How the network is fitted.
        tracking: Where results go.
        reproduce: Id of a run to train again and compare with.
        fresh: Whether a single run or a -m that was interrupted starts anew.
    """

    data: sources.DataConfig = field(default_factory=sources.DataConfig)
    model: networks.ModelConfig = field(default_factory=networks.ModelConfig)
    training: recipe.TrainingConfig = field(default_factory=recipe.TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    reproduce: str | None = None
    fresh: bool = False

    @property
    def epochs(self) -> int:
        """Return the largest number of epochs, those of all members counted."""
        return self.training.epochs * self.model.members

    def _relation_violations(self) -> Iterator[str]:
        yield from networks.relation_violations(self.model)
        yield from sources.relation_violations(self.data)
        yield from engine_config.relation_violations(self)
        yield from self.tracking.violations()


def resolve_config(
    config: Config, parallel: int = 1, precision: str | None = None
) -> tuple[Config, sources.Source]:
    """Decide what a validated config leaves open: data, precision and threads.

    Resolving a resolved config changes nothing.

    Args:
        config: A validated config.
        parallel: Runs that share the cores of this machine, 1 or more.
        precision: What ``auto`` means where the run is trained; None: on this machine.

    Returns:
        The resolved config, and the digits that were found.

    Raises:
        StudyError: If the digits are gone or others, or fewer than a batch.
    """
    source = sources.resolve(config.data)
    train_size, _ = digits.split_sizes(source.images, source.config)
    training = config.training
    if training.batch_size > train_size:
        rule = f"`training.batch_size` is at most the {train_size} digits there are to train on"
        raise StudyError(f"{rule}, got {training.batch_size}: lower it, or raise data.limit")
    if precision is None or training.precision != "auto":
        precision = hardware.resolve_precision(training.precision)
    share_of_cores = max(1, hardware.cores() // parallel)
    required_cores = int(config.resources.get("cpu", 0))
    threads = training.threads or required_cores or share_of_cores
    training = replace(training, precision=precision, threads=threads)
    resolved = replace(config, data=source.config, training=training)
    return resolved, source
