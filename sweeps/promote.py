"""Promote a network to champion, take that back, or print the ledger. See --help."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # so that nothing needs to be installed

from digit_study import composition, launch
from digit_study.registry_config import PromoteConfig, checked_config, spelled_out, validate_promote


@hydra.main(version_base="1.3", config_path="../conf", config_name="promote")
def answer(_: DictConfig) -> None:
    """Nothing: Hydra itself answers --help, --cfg job and the like, and for anything else it is not asked."""


def main() -> None:
    """Check the command line, then do what it says."""
    sys.argv[1:] = spelled_out(sys.argv[1:])
    composition.register("promote", PromoteConfig)
    if launch.asks_for_information(sys.argv[1:]):
        answer()
        return
    config = checked_config(sys.argv[1:], "promote", validate_promote)
    from digit_study import promotion

    promotion.serve(config)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
