"""Train one digit recognizer, or several with -m. See --help."""

import sys
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from digit_study.config import compose
from digit_study.config.run_config import Config, resolve_config
from digit_study.study.run_plan import plan, plan_reproduction
from digit_study.support.signals import readable_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def task(composed: DictConfig) -> None:
    """Run one job that Hydra composed."""
    from digit_study.study import multirun

    config, source = resolve_config(cast(Config, OmegaConf.to_object(composed)))
    around = HydraConfig.get()
    if around.mode == RunMode.RUN:
        with readable_errors():  # Hydra would put a line of its own before the message
            multirun.run_single(config, source.name, around.overrides.task)
    else:
        live = around.runtime.choices["hydra/launcher"] == "basic"
        multirun.run_job(config, list(around.overrides.task), Path(around.runtime.output_dir), live)


def main() -> None:
    """Check the whole command line, then let Hydra launch it."""
    words = sys.argv[1:]
    compose.answer(words, "config", Config)
    if any(word.startswith("reproduce=") and word != "reproduce=null" for word in words):
        asked = plan_reproduction(words)
        from digit_study.study import reproduction

        reproduction.reproduce(asked)
    elif (planned := plan(words)).multirun:
        if planned.parallel == 1 and planned.context is None:
            from digit_study.trial.local import worker

            worker.start_server(
                planned.jobs[0].config.data
            )  # it imports TensorFlow while this process imports MLflow
        from digit_study.study import multirun

        multirun.run_many(planned, task)
    else:
        compose.run_hydra(task, planned.resolved_overrides())


if __name__ == "__main__":
    with readable_errors():
        main()
