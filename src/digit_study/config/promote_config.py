"""The configs of ``conf/promote.yaml`` and ``conf/compare.yaml``, and the rules their values obey."""

import re
from dataclasses import dataclass, field

from digit_study.stats.gate import GateConfig as GateConfig
from digit_study.support.messages import Rule, between, check


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

    def validate(self) -> None:
        """Check every rule; raises StudyError with all that are broken."""
        given = [key for key in ("run_id", "rollback", "history") if getattr(self, key)]
        several = f"one of `run_id`, `rollback` and `history` can be given, got {' and '.join(given)}: drop one"
        check(self, PROMOTE_RULES, [several] if len(given) > 1 else [])


@dataclass(frozen=True)
class CompareConfig:
    """Two runs to compare, by their ids."""

    a: str | None = None
    b: str | None = None
    tracking: StoreConfig = field(default_factory=StoreConfig)
    data: FileConfig = field(default_factory=FileConfig)

    def validate(self) -> None:
        """Check every rule; raises StudyError with all that are broken."""
        others = [
            f"`{key}` must be the id of a finished run, got null: sweeps/compare.py a=<run_id> b=<run_id>"
            for key in "ab"
            if getattr(self, key) is None
        ]
        if self.a is not None and self.a == self.b:
            others.append(
                f"`a` and `b` must be two runs, got {self.a!r} twice: name another one as b"
            )
        check(self, dict.fromkeys("ab", RUN_ID), others)


RUN_ID = Rule("a run id", lambda value: bool(value.strip()))
PROMOTE_RULES: dict[str, Rule] = {
    "study": Rule("a name", lambda value: bool(value.strip())),
    "run_id": RUN_ID,
    "promote.margin": between(0, 1, "[)"),
    "promote.floor": between(0, 1),
    "promote.significance": between(0, 0.5, "(]"),
    "promote.model_name": Rule(
        "a letter or digit, then letters, digits, '-', '_' or '.'",
        lambda value: re.fullmatch(r"[A-Za-z0-9][\w.-]*", value, re.ASCII) is not None,
    ),
}
