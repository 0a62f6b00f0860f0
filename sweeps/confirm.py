"""Train a study's best configurations again on fresh seeds and name the winner. See --help."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config import compose as composition
from digit_study.config.study import StudyConfig, validate_study  # noqa: E402
from digit_study.runs import plan as launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="study")
def answer(_: DictConfig) -> None:
    """Let Hydra answer --help, --cfg job and the like."""


def main() -> None:
    """Check everything, then confirm."""
    arguments = sys.argv[1:]
    if launch.answered("study", StudyConfig, arguments, answer):
        return
    typed: StudyConfig = composition.compose_config(arguments, "study")
    validate_study(typed)
    from digit_study.search.study_store import find_study

    find_study(typed)  # a name that is not there is answered before MLflow is imported
    from digit_study.verify.confirmation import confirm, plan_confirmation

    plan, study = plan_confirmation(arguments, typed)
    confirm(plan, study)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
