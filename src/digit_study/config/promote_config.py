"""The config of ``conf/promote.yaml``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from digit_study.config.run_config import StoreConfig as StoreConfig
from digit_study.stats.gate import GateConfig as GateConfig
from digit_study.support.rules import Rule, Validated

NAME = Rule("a name", lambda value: bool(value.strip()))
RUN_ID = Rule("a run id", lambda value: bool(value.strip()))


@dataclass(frozen=True)
class FileConfig:
    """Say where the digits of a run are now.

    Attributes:
        path: Their mnist.npz, if it has moved since the run; None: where the run found it.
    """

    path: str | None = None


@dataclass(frozen=True)
class PromoteConfig(Validated):
    """Describe a promotion, a rollback or a look at the ledger.

    Attributes:
        study: The study whose confirmed winner is the challenger.
        run_id: The challenger, instead of the confirmed winner.
        rollback: Give the alias ``champion`` back to the version before.
        history: Print the ledger.
        promote: What the challenger must show.
        tracking: MLflow's store.
        data: Where the digits are now.
    """

    study: Annotated[str, NAME] = "default"
    run_id: Annotated[str | None, RUN_ID] = None
    rollback: bool = False
    history: bool = False
    promote: GateConfig = field(default_factory=GateConfig)
    tracking: StoreConfig = field(default_factory=StoreConfig)
    data: FileConfig = field(default_factory=FileConfig)

    def _relation_violations(self) -> Iterator[str]:
        requests = ("run_id", "rollback", "history")
        given = [key for key in requests if getattr(self, key)]
        if len(given) > 1:
            named = " and ".join(given)
            rule = "one of `run_id`, `rollback` and `history` can be given"
            yield f"{rule}, got {named}: drop one"
        yield from self.tracking.violations()
