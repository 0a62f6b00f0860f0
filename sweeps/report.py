"""Write a study as one HTML page. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import compose
from digit_study.config.study_config import StudyConfig
from digit_study.support.signals import readable_errors

if __name__ == "__main__":
    with readable_errors():
        typed: StudyConfig = compose.checked(sys.argv[1:], "study", StudyConfig)
        from digit_study.study.storage import find_study

        find_study(typed)  # a name that is not there is answered before MLflow is imported
        from digit_study.study import study_page as study

        study.show(*study.plan_page(typed))
