"""Train a study's best configurations again on fresh seeds and name the winner. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import command_line
from digit_study.config.study_config import StudyConfig
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main() -> None:
    """Find the study, then confirm it."""
    typed: StudyConfig = command_line.checked(sys.argv[1:], "study", StudyConfig)
    from digit_study.study.storage import find_study

    workspace = Workspace.of_project()
    find_study(typed, workspace)  # a wrong name is answered before MLflow is imported
    from digit_study.study.confirmation import confirm, plan_confirmation
    from digit_study.study.results import RunResults
    from digit_study.study.study_page import page_at_end
    from digit_study.tracking.session import Tracker

    plan, stored = plan_confirmation(sys.argv[1:], typed, workspace)
    results = RunResults(Tracker(plan.uri, workspace))
    with page_at_end(plan, results):
        confirm(plan, stored, results)


if __name__ == "__main__":
    with readable_errors():
        main()
