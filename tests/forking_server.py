"""Runs commands one after the other, each in a process of its own that is forked from this one.

This one has imported the modules that it was given, so that a command costs what it does and not five seconds of
imports, nor another five in the server that its trials are forked from. Standard input gives a command a line, as JSON;
standard output answers with how it ended.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from importlib.metadata import version
from multiprocessing import util

gc.set_threshold(100_000, 20, 20)
for name in sys.argv[1:]:
    importlib.import_module(name)
if (
    "mlflow.pyfunc" in sys.modules
):  # what the server that trials are forked from asks as well: half a second
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    warn_dependency_requirement_mismatches([f"numpy=={version('numpy')}"])
if "seaborn" in sys.modules:  # fonts are looked for and opened once
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    figure.subplots().set(xlabel="x", title="0123456789")
    FigureCanvasAgg(figure).draw()
gc.freeze()  # what the imports left need not be gone through again in every child
answers = os.fdopen(os.dup(1), "w")


def answer(**facts: object) -> None:
    answers.write(json.dumps(facts) + "\n")
    answers.flush()


def keep(folder: str) -> None:
    """Return in a new process that leads a group and writes into pipes; wait for it, and leave word how it ended."""
    if (child := os.fork()) == 0:
        os.setsid()
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY), number)
        return
    answer(pid=child)
    answers.close()
    os.dup2(2, 1)  # whoever waits for the end of all answers need not wait for this command
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(f"{folder}/code.new", "w") as file:
        file.write(str(status))
    os.rename(f"{folder}/code.new", f"{folder}/code")
    os._exit(0)


def be_ready_to_serve() -> None:
    """Fork what becomes the first server of trials that this process starts: one with the imports done.

    It runs the line that multiprocessing would give a new interpreter, with the same files and environment.
    """
    ours, theirs = socket.socketpair()
    spawn, waiting = util.spawnv_passfds, [os.fork()]
    if waiting[0] == 0:
        ours.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # with which a real one is born
        received, files, _, _ = socket.recv_fds(theirs, 1 << 16, 8)
        while more := theirs.recv(1 << 16):
            received += more
        theirs.close()
        if not received:  # the command has ended without one
            os._exit(0)
        told = json.loads(received)
        # out of the way first: a number may be another one's place
        for number, place in zip(
            [os.dup2(file, 200 + file) for file in files], told["files"], strict=True
        ):
            os.dup2(number, place)
        os.closerange(200, 300)
        os.environ.clear()
        os.environ.update(told["environment"])
        tempfile.tempdir = None
        sys.path[0] = ""
        sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        exec(told["line"], {})
        sys.exit()
    theirs.close()

    def start(path: bytes, words: list[str], files: list[int]) -> int:
        if "multiprocessing.forkserver" not in words[-1] or not waiting:
            return spawn(path, words, files)
        server = waiting.pop()
        request = {"line": words[-1], "files": list(files), "environment": dict(os.environ)}
        with ours:
            try:
                socket.send_fds(ours, [json.dumps(request).encode()], files)
            except BrokenPipeError:  # it was killed
                return spawn(path, words, files)
        return server

    util.spawnv_passfds = start


for line in sys.stdin:
    request = json.loads(line)
    if "folder" in request:
        if os.fork() == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            keep(request["folder"])
            break
        continue
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (child := os.fork()) == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            break
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed = [os.pread(file.fileno(), 1 << 24, 0).decode() for file in (out, err)]
    answer(pid=child, code=status, out=printed[0], err=printed[1])
else:
    sys.exit()
answers.close()
os.environ.clear()
os.environ.update(request["environment"])
tempfile.tempdir = None  # the command's own, which TMPDIR may name
os.chdir(request["cwd"])
sys.argv = [request["script"], *request["words"]]
be_ready_to_serve()
sys.path[0] = os.path.dirname(os.path.abspath(request["script"]))
sys.path[1:1] = filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))
runpy.run_path(request["script"], run_name="__main__")
