"""How well each shipped network reads, at how many parameters. See --help; the same command again goes on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import compose
from digit_study.config.promote import PromoteConfig, StoreConfig
from digit_study.config.study import StudyConfig
from digit_study.terminal.signals import readable_errors


def main() -> None:
    """Train all, then open the sealed test set once for each network that no smaller one beats."""
    compose.answer(sys.argv[1:], "study", StudyConfig)
    from digit_study.verify import frontier

    plan, configs = frontier.plan_frontier(sys.argv[1:])
    work = frontier.measure(plan, configs)
    from digit_study.champion import promotion

    store = StoreConfig(plan.uri)
    known = promotion.evidence(plan.uri, PromoteConfig().promote.model_name)
    table = frontier.table_of(work, known)
    front = list(table[table["front"]]["run_id"])
    for run_id in [one for one in front if plan.study.frontier.sealed and one not in known]:
        promotion.serve(PromoteConfig(run_id=run_id, tracking=store))
    frontier.conclude(work, frontier.table_of(work, promotion.evidence(plan.uri, PromoteConfig().promote.model_name)))


if __name__ == "__main__":
    with readable_errors():
        main()
