"""Compare two finished runs on their validation images. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config.compare_config import CompareConfig
from digit_study.study.run_plan import plan_task
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace

if __name__ == "__main__":
    with readable_errors():
        workspace = Workspace.of_project()
        config = plan_task(sys.argv[1:], "compare", CompareConfig, workspace)
        from digit_study.study.comparison import compare

        compare(config, workspace)
