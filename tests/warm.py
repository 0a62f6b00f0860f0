"""Runs commands one after the other, each in a process of its own that is forked from this one.

This one has imported the modules that it was given, so that a command costs what it does and not five seconds of
imports. Standard input gives a command a line, as JSON; standard output answers with how it ended.
"""

import gc
import importlib
import json
import os
import runpy
import sys
import tempfile

gc.set_threshold(100_000, 20, 20)
for name in sys.argv[1:]:
    importlib.import_module(name)
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
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            break
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed = [os.pread(file.fileno(), 1 << 24, 0).decode() for file in (out, err)]
    answer(code=status, out=printed[0], err=printed[1])
else:
    sys.exit()
answers.close()
os.environ.clear()
os.environ.update(request["environment"])
tempfile.tempdir = None  # the command's own, which TMPDIR may name
os.chdir(request["cwd"])
sys.argv = [request["script"], *request["words"]]
sys.path[0] = os.path.dirname(os.path.abspath(request["script"]))
sys.path[1:1] = filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))
runpy.run_path(request["script"], run_name="__main__")
