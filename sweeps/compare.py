"""Compare two finished runs on their validation images. See --help."""

import sys
from pathlib import Path
from typing import cast

import hydra
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # so that nothing needs to be installed

from digit_study import composition, launch
from digit_study.registry_config import CompareConfig, check_command, validate_compare


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def task(composed: DictConfig) -> None:
    """Do what Hydra composed."""
    with launch.readable_errors():
        from digit_study import comparing

        comparing.serve(cast(CompareConfig, OmegaConf.to_object(composed)))


def main() -> None:
    """Check the command line, then let Hydra launch it."""
    composition.register("compare", CompareConfig)
    if not launch.asks_for_information(sys.argv[1:]):
        check_command(sys.argv[1:], "compare", CompareConfig, validate_compare)
    task()


if __name__ == "__main__":
    with launch.readable_errors():
        main()
