"""The schemas of ``conf/promote.yaml`` and ``conf/compare.yaml``, and the rules their values obey."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.utils import get_args_parser

from digit_study.config import compose as composition
from digit_study.config.run import Rule, above, below, between, broken_rules, complaint, flatten
from digit_study.terminal.errors import StudyError
from digit_study.tracking.stores import check_store, require_run, tracking_uri

#: Keys that hold the id of a run.
RUN_IDS = ("run_id", "a", "b")
#: Options a person may type, and the keys they stand for.
SYNONYMS = {
    "--dry-run": "promote.dry_run=true",
    "--rollback": "rollback=true",
    "--history": "history=true",
}


@dataclass(frozen=True)
class GateConfig:
    """What a challenger must show before the alias ``champion`` moves.

    Attributes:
        margin: how much accuracy a smaller network may give up, as a fraction; 0.001 is ten images of MNIST's 10,000.
        floor: accuracy the first champion must have. A linear classifier reads 92 % of MNIST and nearest neighbours
            95 % (LeCun et al. 1998, table 2), so a convolutional network below 95 % is broken.
        significance: McNemar's p must lie below it for "better".
        dry_run: say what would be compared and touch nothing.
        model_name: of the registered model.
    """

    margin: float = 0.001
    floor: float = 0.95
    significance: float = 0.05
    dry_run: bool = False
    model_name: str = "digit-recognizer"


@dataclass(frozen=True)
class StoreConfig:
    """MLflow's store; null is MLFLOW_TRACKING_URI, else ./mlflow.db."""

    uri: str | None = None


@dataclass(frozen=True)
class FileConfig:
    """Where the digits of the run lie now, should the file it was made with have moved; null: where they lay."""

    path: str | None = None


@dataclass(frozen=True)
class PromoteConfig:
    """One promotion, rollback or look at the ledger. ``run_id`` null takes the confirmed winner of ``study``."""

    study: str = "default"
    run_id: str | None = None
    rollback: bool = False
    history: bool = False
    promote: GateConfig = field(default_factory=GateConfig)
    tracking: StoreConfig = field(default_factory=StoreConfig)
    data: FileConfig = field(default_factory=FileConfig)


@dataclass(frozen=True)
class CompareConfig:
    """Two runs to compare, by their ids."""

    a: str | None = None
    b: str | None = None
    tracking: StoreConfig = field(default_factory=StoreConfig)
    data: FileConfig = field(default_factory=FileConfig)


PROMOTE_RULES: dict[str, Rule] = {
    "study": Rule("a name", lambda value: bool(value.strip())),
    "run_id": Rule("a run id", lambda value: bool(value.strip())),
    "promote.margin": below(0, 1),
    "promote.floor": between(0, 1),
    "promote.significance": above(0, 0.5),
    "promote.model_name": Rule(
        "a letter or digit, then letters, digits, '-', '_' or '.'",
        lambda value: re.fullmatch(r"[A-Za-z0-9][\w.-]*", value, re.ASCII) is not None,
    ),
}
COMPARE_RULES: dict[str, Rule] = {key: Rule("a run id", lambda value: bool(value.strip())) for key in "ab"}


def validate_promote(config: PromoteConfig) -> None:
    """Check every rule of a promotion.

    Raises:
        StudyError: lists every rule that is broken.
    """
    complaint("\n".join([*broken_rules(flatten(config), PROMOTE_RULES), *_promote_relations(config)]))


def _promote_relations(config: PromoteConfig) -> Iterator[str]:
    if config.rollback and config.history:
        yield "one of `rollback` and `history` can be true, got both: drop one"
    if config.run_id is not None and (config.rollback or config.history):
        verb = "rollback" if config.rollback else "history"
        yield f"`run_id` names a run to promote, got {config.run_id!r} together with {verb}=true: drop one"


def validate_compare(config: CompareConfig) -> None:
    """Check every rule of a comparison.

    Raises:
        StudyError: lists every rule that is broken.
    """
    complaint("\n".join([*broken_rules(flatten(config), COMPARE_RULES), *_compare_relations(config)]))


def _compare_relations(config: CompareConfig) -> Iterator[str]:
    for key, value in (("a", config.a), ("b", config.b)):
        if value is None:
            yield f"`{key}` must be the id of a finished run, got null: sweeps/compare.py a=<run_id> b=<run_id>"
    if config.a is not None and config.a == config.b:
        yield f"`a` and `b` must be two runs, got {config.a!r} twice: name another one as b"


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line with options such as ``--dry-run`` as the keys they stand for."""
    return [SYNONYMS.get(word, word) for word in arguments]


def checked_config(arguments: Sequence[str], root: str, validate: Callable[[Any], None]) -> Any:
    """Compose ``conf/<root>.yaml`` with a command line, and check it and its store; nothing is written.

    Raises:
        StudyError: anything that can be known to be wrong without asking MLflow.
    """
    args = get_args_parser().parse_args(list(arguments))
    if args.multirun:
        raise StudyError(f"sweeps/{root}.py does one thing at a time, got -m: drop it")
    config = composition.compose_config(args.overrides, root=root)
    validate(config)
    uri = tracking_uri(config.tracking.uri)
    check_store(uri)
    for key in RUN_IDS:
        if getattr(config, key, None) is not None:
            require_run(uri, getattr(config, key), key)
    return config
