"""Measure each shipped network: accuracy and size. See --help; the same command again goes on."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import compose
from digit_study.config.promote import PromoteConfig, StoreConfig
from digit_study.config.study import StudyConfig
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main() -> None:
    """Train all, then open the sealed test set once for each network that no smaller one beats."""
    compose.answer(sys.argv[1:], "study", StudyConfig)
    from digit_study.study import frontier

    workspace = Workspace.of_project()
    plan, networks = frontier.plan_frontier(sys.argv[1:])
    work = frontier.measure(plan, networks, workspace)
    from digit_study.registry import promotion

    asked = PromoteConfig(tracking=StoreConfig(plan.uri))
    known = promotion.evidence_by_run(asked)
    table = frontier.table_of(work, known)
    front: list[str] = []
    if plan.study.frontier.sealed:
        front = list(table[table["front"]]["run_id"])
    try:
        for run_id in front:
            if run_id not in known:
                promotion.serve(replace(asked, run_id=run_id))
    finally:  # a promotion that is refused takes nothing from what was measured
        table = frontier.table_of(work, promotion.evidence_by_run(asked))
        frontier.conclude(work, table, workspace)


if __name__ == "__main__":
    with readable_errors():
        main()
