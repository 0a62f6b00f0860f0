"""Measure each shipped network: accuracy and size. See --help; the same command again goes on."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import command_line
from digit_study.config.promote_config import PromoteConfig, StoreConfig
from digit_study.config.study_config import StudyConfig
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main() -> None:
    """Train all, then open the sealed test set once for each network that no smaller one beats."""
    command_line.answer(sys.argv[1:], "study", StudyConfig)
    from digit_study.study import frontier

    workspace = Workspace.of_project()
    planned = frontier.plan_frontier(sys.argv[1:], workspace)
    race = frontier.measure(planned)
    from digit_study.registry import promotion

    own = planned.study.run.tracking
    asked = PromoteConfig(tracking=StoreConfig(planned.study.uri, own.tags, own.note))
    known = promotion.evidence_by_run(asked, workspace)
    table = frontier.table_of(race, known)
    front: list[str] = []
    if planned.study.study.frontier.sealed:
        front = list(table[table["front"]]["run_id"])
    try:
        for run_id in front:
            if run_id not in known:
                promotion.run(replace(asked, run_id=run_id), workspace)
    finally:  # a promotion that is refused takes nothing from what was measured
        table = frontier.table_of(race, promotion.evidence_by_run(asked, workspace))
        frontier.conclude(race, table)


if __name__ == "__main__":
    with readable_errors():
        main()
