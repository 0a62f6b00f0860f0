"""Search the config with Optuna. See --help; --plan shows the search and starts nothing."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import command_line
from digit_study.config.study_config import StudyConfig
from digit_study.support.console import console
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main(workspace: Workspace) -> None:
    """Check the whole study, then search."""
    sys.argv[1:] = ["search.plan=true" if word == "--plan" else word for word in sys.argv[1:]]
    command_line.answer(sys.argv[1:], "study", StudyConfig)
    from digit_study.study.study_plan import plan_study, plan_table

    plan = plan_study(sys.argv[1:], workspace)
    if plan.study.search.plan:
        console().print(plan_table(plan))
        return
    if plan.study.search.engine == "local":
        from digit_study.trial.local.server import start_server

        # it imports TensorFlow while this process imports MLflow
        start_server(plan.workspace, plan.context.data)
    from digit_study.study.results import RunResults
    from digit_study.study.search import run_study
    from digit_study.study.study_page import page_at_end
    from digit_study.tracking.session import Tracker

    results = RunResults(Tracker(plan.uri, plan.workspace))
    stored = run_study(plan, results=results, around=partial(page_at_end, plan, results))
    if plan.study.search.confirm:
        from digit_study.study.confirmation import confirm

        with page_at_end(plan, results):
            confirm(plan, stored, results)


if __name__ == "__main__":
    with readable_errors():
        main(Workspace.of_project())
