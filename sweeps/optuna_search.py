"""Search the config with Optuna. See --help; --plan says what would be searched and starts nothing."""

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import compose
from digit_study.config.study import StudyConfig
from digit_study.terminal.console import console
from digit_study.terminal.signals import readable_errors


def main() -> None:
    """Check the whole study, then search."""
    sys.argv[1:] = ["search.plan=true" if word == "--plan" else word for word in sys.argv[1:]]
    compose.answer(sys.argv[1:], "study", StudyConfig)
    from digit_study.search.plan import plan_study, plan_table

    plan = plan_study(sys.argv[1:])
    if plan.study.search.plan:
        console().print(plan_table(plan))
        return
    if plan.study.search.engine == "local":
        from digit_study.engine import worker

        worker.start_server(plan.limits.data)  # it imports TensorFlow while this process imports MLflow
    from digit_study.pages.study import page_at_end
    from digit_study.pages.watch import watched
    from digit_study.search.run import run_study

    stored = run_study(plan, alongside=watched if plan.study.search.watch else nullcontext, around=page_at_end)
    if plan.study.search.confirm:
        from digit_study.verify.confirmation import confirm

        with page_at_end(plan):
            confirm(plan, stored)


if __name__ == "__main__":
    with readable_errors():
        main()
