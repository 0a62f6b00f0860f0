"""``mlflow server`` in a single process; the command itself starts another for uvicorn.

python tests/serve.py <folder to run in> [options of mlflow server]
"""

import os
import runpy
import sys
from typing import Any

import mlflow.server
from mlflow.cli import cli


def run_here(command: list[str], *, extra_env: dict[str, str], **_: Any) -> None:
    """Run ``python -m uvicorn …`` until a signal ends it."""
    os.environ.update(extra_env)
    sys.argv = command[2:]
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    sys.exit()


os.chdir(sys.argv[1])
mlflow.server._exec_cmd = run_here
cli(["server", "--workers", "1", *sys.argv[2:]])
