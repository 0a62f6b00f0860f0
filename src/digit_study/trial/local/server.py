"""The process that workers are forked from: it has imported TensorFlow and loaded the digits."""

import atexit
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path

import psutil

from digit_study.data.sources import DataConfig
from digit_study.support.files import write_whole
from digit_study.support.scratch import use_scratch
from digit_study.support.workspace import Workspace

#: File in the scratch folder that says which digits the server loads. multiprocessing imports the
#: module that it preloads without any argument. The scratch folder is what both processes know: it
#: is TMPDIR of either.
PRELOAD_FILE = "preload.json"
#: Starts the server if it does not run, and returns what makes processes that it forks.
StartServer = Callable[[], ForkServerContext]


def start_server(
    workspace: Workspace, data: DataConfig | None = None, digits_folder: Path | None = None
) -> ForkServerContext:
    """Start the server in the background, unless it runs already; the first trial waits for it.

    Args:
        workspace: Where its temporary files lie.
        data: Digits to load before any trial, resolved. Trials may be on others too.
        digits_folder: Folder of digits by their sha256, see
            :class:`~digit_study.trial.protocol.EngineContext`.

    Returns:
        What makes processes that the server forks.
    """
    scratch = use_scratch(workspace)
    if data is not None and data.sha256 is not None:
        folder = None if digits_folder is None else str(digits_folder)
        wanted = {"data": asdict(data), "digits_folder": folder}
        # the server may be reading what an earlier call wrote
        write_whole(scratch / PRELOAD_FILE, json.dumps(wanted).encode())
    context = multiprocessing.get_context("forkserver")
    _put_sources_on_path()
    context.set_forkserver_preload(["digit_study.trial.local.preload"])
    # A Ctrl-C in the middle of its imports would end the server with a traceback. So it is born
    # with SIGINT blocked, which its preload undoes; a Ctrl-C that comes here meanwhile is delayed.
    # The resource tracker's start unblocks SIGINT, so it comes first. The SIGHUP of a closed
    # terminal ends neither: the tracker keeps it blocked, and the preload ignores it.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return context


def _put_sources_on_path() -> None:
    """Let the server find this package: Python 3.11 starts it without this process's sys.path."""
    source = str(Path(__file__).parents[3])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])


@atexit.register
def _stop_server() -> None:
    """Kill the server, which would outlive this process by seconds while it is importing."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any("multiprocessing.forkserver" in word for word in process.cmdline()):
                process.kill()
