"""Promote a network to champion, take that back, or print the ledger. See --help."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digit_study.config.promote import PromoteConfig, checked_config, spelled_out, validate_promote
from digit_study.runs import plan as launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="promote")
def answer(_: DictConfig) -> None:
    """Let Hydra answer --help, --cfg job and the like."""


def main() -> None:
    """Check the command line, then do what it says."""
    sys.argv[1:] = spelled_out(sys.argv[1:])
    if launch.answered("promote", PromoteConfig, sys.argv[1:], answer):
        return
    config = checked_config(sys.argv[1:], "promote", validate_promote)
    from digit_study.champion import promotion

    promotion.serve(config)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
