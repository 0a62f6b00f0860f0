"""``make ui``: MLflow's pages on this machine, opened on the newest result.

It starts without MLflow's client, whose import takes a second, and becomes ``mlflow ui`` at its
end: ``python -m digit_study.tracking.ui [what mlflow ui takes]``.
"""

import os
import subprocess
import sys
import urllib.parse
from argparse import ArgumentParser
from collections.abc import Sequence

from digit_study.support.workspace import Workspace
from digit_study.tracking.location import local_address
from digit_study.tracking.relocation import follow_project

#: What MLflow's server warns of, which nobody who looks at results can change.
IGNORED = "ignore:starlette.middleware.wsgi is deprecated"
#: Opens an address once the server is there.
OPEN_LATER = "import sys, time, webbrowser; time.sleep(8); webbrowser.open(sys.argv[1])"


def port_of(arguments: Sequence[str]) -> str | None:
    """Return the port that arguments of ``mlflow ui`` set, None where they set none."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--port", "-p", nargs="?")
    known, _ = parser.parse_known_args(arguments)
    port: str | None = known.port
    return port


def newest_address(workspace: Workspace, arguments: Sequence[str]) -> str | None:
    """Return the address of the newest result on the server that arguments start.

    Args:
        workspace: Where results are kept.
        arguments: What ``mlflow ui`` is given.

    Returns:
        None where there is no result yet.
    """
    try:
        noted = workspace.newest_result.read_text().strip()
    except OSError:
        return None
    page = urllib.parse.urlsplit(noted)
    return f"{local_address(port_of(arguments))}/#{page.fragment}"


def main(arguments: Sequence[str]) -> None:
    """Let the store follow its project, name the newest result, and become ``mlflow ui``."""
    workspace = Workspace.of_project()
    follow_project(workspace.default_store, workspace)
    address = newest_address(workspace, arguments)
    if address is not None:
        print(f"the newest result: {address}", flush=True)
        subprocess.Popen(
            [sys.executable, "-c", OPEN_LATER, address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    os.chdir(workspace.root)
    os.environ.setdefault("PYTHONWARNINGS", IGNORED)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
