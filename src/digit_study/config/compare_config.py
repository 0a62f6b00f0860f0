"""The config of ``conf/compare.yaml``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from digit_study.config.promote_config import RUN_ID, FileConfig
from digit_study.config.run_config import StoreConfig
from digit_study.support.rules import Validated


@dataclass(frozen=True)
class CompareConfig(Validated):
    """Name the two runs to compare.

    Attributes:
        a: Id of the first run.
        b: Id of the second run; differences are b minus a.
        tracking: MLflow's store.
        data: Where the digits are now.
    """

    a: Annotated[str | None, RUN_ID] = None
    b: Annotated[str | None, RUN_ID] = None
    tracking: StoreConfig = field(default_factory=StoreConfig)
    data: FileConfig = field(default_factory=FileConfig)

    def _relation_violations(self) -> Iterator[str]:
        ids = {"a": self.a, "b": self.b}
        for key, run_id in ids.items():
            if run_id is None:
                rule = f"`{key}` must be the id of a finished run"
                yield f"{rule}, got null: sweeps/compare.py a=<run_id> b=<run_id>"
        if self.a is not None and self.a == self.b:
            yield f"`a` and `b` must be two runs, got {self.a!r} twice: name another run as b"
        yield from self.tracking.violations()
