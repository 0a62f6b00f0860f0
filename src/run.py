"""Train one digit recognizer, or several with -m. See --help."""

import sys
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from digit_study.config import compose as composition
from digit_study.config.run import Config
from digit_study.runs import plan as launch


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def task(composed: DictConfig) -> None:
    """Run one job that Hydra composed."""
    from digit_study.config.resolve import resolve_config
    from digit_study.runs import multirun

    config, source = resolve_config(cast(Config, OmegaConf.to_object(composed)))
    around = HydraConfig.get()
    if around.mode == RunMode.RUN:
        with launch.readable_errors():  # Hydra would put a line of its own before the message
            multirun.run_single(config, source.name, around.overrides.task)
        return
    live = around.runtime.choices["hydra/launcher"] == "basic"
    multirun.run_job(config, list(around.overrides.task), Path(around.runtime.output_dir), live)


def main() -> None:
    """Check the whole command line, then let Hydra launch it."""
    composition.register()
    if launch.asks_for_information(sys.argv[1:]):
        task()
        return
    if any(word.startswith("reproduce=") and word != "reproduce=null" for word in sys.argv[1:]):
        asked = launch.asked_reproduction(sys.argv[1:])
        from digit_study.verify import reproduction

        reproduction.reproduce(asked)
        return
    plan = launch.plan(sys.argv[1:])
    if not plan.multirun:
        launch.run_hydra(task, plan.settled())
        return
    from digit_study.runs import multirun

    multirun.run_many(plan, task)


if __name__ == "__main__":
    with launch.readable_errors():
        main()
