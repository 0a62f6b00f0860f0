"""Search the config with Optuna. See --help; --plan says what would be searched and starts nothing."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config.study import StudyConfig  # noqa: E402
from digit_study.runs import plan as launch
from digit_study.terminal import console


@hydra.main(version_base="1.3", config_path="../conf", config_name="study")
def answer(_: DictConfig) -> None:
    """Let Hydra answer --help, --cfg job and the like."""


def main() -> None:
    """Check the whole study, then search."""
    arguments = ["search.plan=true" if argument == "--plan" else argument for argument in sys.argv[1:]]
    if launch.answered("study", StudyConfig, arguments, answer):
        return
    from digit_study.search.study_plan import plan_study, plan_table

    plan = plan_study(arguments)
    if plan.study.search.plan:
        console.console().print(plan_table(plan))
        return
    from digit_study.search.study_run import run_study

    run_study(plan)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
