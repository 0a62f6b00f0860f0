"""Train one digit recognizer, or several with -m. See --help."""

import sys
from pathlib import Path

# Python puts this folder there itself, but not with -P, -I or PYTHONSAFEPATH
sys.path.insert(0, str(Path(__file__).resolve().parent))

from digit_study.config import command_line
from digit_study.config.run_config import Config
from digit_study.study.run_plan import asks_to_reproduce, plan_reproduction, plan_runs
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace


def main() -> None:
    """Check the whole command line, then train."""
    arguments = sys.argv[1:]
    workspace = Workspace.of_project()
    command_line.answer(arguments, "config", Config)
    if asks_to_reproduce(arguments):
        asked = plan_reproduction(arguments, workspace)
        from digit_study.study import reproduction

        reproduction.reproduce(asked, workspace)
        return
    plan = plan_runs(arguments, workspace)
    if plan.context.options.engine == "local":
        from digit_study.trial.local.server import start_server

        # it imports TensorFlow while this process imports MLflow
        start_server(workspace, plan.context.data)
    from digit_study.study import multirun

    multirun.run(plan)


if __name__ == "__main__":
    with readable_errors():
        main()
