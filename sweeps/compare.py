"""Compare two finished runs on their validation images. See --help."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config.promote import CompareConfig, checked_config, validate_compare
from digit_study.runs import plan as launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def answer(_: DictConfig) -> None:
    """Let Hydra answer --help, --cfg job and the like."""


def main() -> None:
    """Check the command line, then do what it says."""
    if launch.answered("compare", CompareConfig, sys.argv[1:], answer):
        return
    config = checked_config(sys.argv[1:], "compare", validate_compare)
    from digit_study.verify import comparing

    comparing.serve(config)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
