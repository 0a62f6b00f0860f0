"""What runs in the process of a trial: the trial, what it tells its supervisor, and that it does not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from digit_study.config.run import Config
from digit_study.terminal.errors import StudyError
from digit_study.terminal.signals import Interrupted, Pruned, interruptible

#: Seconds that a trial asked to end has before it is killed.
GRACE_S = 8.0
#: Characters of a reason; a message of 16 KiB and more would be sent in two pieces.
LONGEST_REASON = 2000


def run(connection: Connection, target: Callable[..., Any], config: Config, run_id: str, outcome: Path) -> None:
    """Run ``target`` and tell the supervisor; ends the process with an exit code if that is not heard any more.

    Args:
        connection: to the supervisor.
        target: as :class:`digit_study.engine.process.TrialProcess` has it.
        config: of the trial.
        run_id: of its MLflow run.
        outcome: file that takes the result. What goes through the pipe is small enough to go in one piece, so that a
            trial that is stopped in the middle of a message does not stop its supervisor.
    """
    threading.Thread(target=_follow_parent, daemon=True).start()

    def send(kind: str, content: Any) -> None:
        connection.send((kind, content))

    def ask(content: Any) -> None:
        connection.send(("epoch", content))
        if not connection.recv():
            raise Pruned

    try:
        with interruptible():
            outcome.write_bytes(ForkingPickler.dumps(target(config, run_id, send, ask)))
            send("done", None)
    except Interrupted as interrupted:
        raise SystemExit(interrupted.exit_code) from None
    except (EOFError, BrokenPipeError):
        raise SystemExit(1) from None  # the supervisor is gone; the run has been ended on the way here
    except Exception as error:
        said = str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}"
        send("failed", said[:LONGEST_REASON])


def _follow_parent() -> None:
    """End this trial, truthfully if it can, when the process that supervises it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
