"""Compare two finished runs on their validation images. See --help."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # so that nothing needs to be installed

from digit_study import composition, launch
from digit_study.registry_config import CompareConfig, checked_config, validate_compare


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def answer(_: DictConfig) -> None:
    """Nothing: Hydra itself answers --help, --cfg job and the like, and for anything else it is not asked."""


def main() -> None:
    """Check the command line, then do what it says."""
    composition.register("compare", CompareConfig)
    if launch.asks_for_information(sys.argv[1:]):
        answer()
        return
    config = checked_config(sys.argv[1:], "compare", validate_compare)
    from digit_study import comparing

    comparing.serve(config)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
