"""How well each shipped network reads, at how many parameters. See --help; the same command again goes on."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import compose
from digit_study.config.promote_config import PromoteConfig, StoreConfig
from digit_study.config.study_config import StudyConfig
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main() -> None:
    """Train all, then open the sealed test set once for each network that no smaller one beats."""
    compose.answer(sys.argv[1:], "study", StudyConfig)
    from digit_study.study import frontier

    plan, networks = frontier.plan_frontier(sys.argv[1:])
    work = frontier.measure(plan, networks)
    from digit_study.registry import promotion

    workspace = Workspace.of_project()
    asked = PromoteConfig(tracking=StoreConfig(plan.uri))
    known = promotion.evidence_by_run(asked, workspace)
    table = frontier.table_of(work, known)
    front = list(table[table["front"]]["run_id"]) if plan.study.frontier.sealed else []
    try:
        for run_id in [one for one in front if one not in known]:
            promotion.run(replace(asked, run_id=run_id), workspace)
    finally:  # a promotion that is refused takes nothing from what was measured
        frontier.conclude(
            work, frontier.table_of(work, promotion.evidence_by_run(asked, workspace))
        )


if __name__ == "__main__":
    with readable_errors():
        main()
