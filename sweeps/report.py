"""Write a study as one HTML page. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import command_line
from digit_study.config.study_config import StudyConfig
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main() -> None:
    """Find the study, then write its page."""
    typed: StudyConfig = command_line.checked(sys.argv[1:], "study", StudyConfig)
    from digit_study.study.storage import find_study

    workspace = Workspace.of_project()
    find_study(typed, workspace)  # a wrong name is answered before MLflow is imported
    from digit_study.study.results import RunResults
    from digit_study.study.study_page import plan_page, show
    from digit_study.tracking.session import open_store

    tracker = open_store(typed.tracking.uri, workspace)
    plan, stored = plan_page(typed, tracker)
    show(plan, stored, RunResults(tracker))


if __name__ == "__main__":
    with readable_errors():
        main()
