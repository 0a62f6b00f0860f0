"""What runs in a worker: its trials, their messages to the supervisor, and that it does not outlive that."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from digit_study.config.run_config import Config
from digit_study.support.messages import StudyError, is_infrastructure_fault
from digit_study.support.progress import epoch_progress
from digit_study.support.signals import (
    Interrupted,
    interruptible,
    native_stderr,
    raise_if_interrupted,
    signals_surface,
)
from digit_study.tracking.database import tracking_uri
from digit_study.tracking.spool import SpooledRun
from digit_study.trial.protocol import Pruned, TrialResult

#: Seconds that a trial asked to end has before it is killed.
GRACE_S = 8.0
#: Seconds that one has to draw its figures when all else has ended.
DRAWS_S = 60.0
#: Messages of trials without a result, their last ones, and the seconds they then have to end.
END_GRACE_S = {"failed": GRACE_S, "world": GRACE_S, "died": GRACE_S, "expired": 1.0}


def train_here(config: Config, run_id: str) -> TrialResult:
    """Run a trial in this process, which then holds TensorFlow, and show it; the run ends with it, however it ends."""
    # from here on it is known on disk: should this process be killed, the next command ends the run
    SpooledRun(run_id).open(tracking_uri(config.tracking.uri))
    try:
        with epoch_progress(config.model.name, config.epochs) as progress:
            with native_stderr(), signals_surface():
                from digit_study.trial.run_trial import run_trial
            return run_trial(config, run_id, on_steps=progress.steps, on_epoch=progress.epoch)
    except BaseException as error:  # also a Ctrl-C while TensorFlow is being imported
        from digit_study.tracking.runs import close_run

        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        close_run(
            tracking_uri(config.tracking.uri), run_id, status, f"{type(error).__name__}: {error}"
        )
        raise


def train(
    config: Config,
    run_id: str,
    send: Callable[[str, Any], None],
    ask: Callable[..., None],
    aside: bool = True,
) -> TrialResult | None:
    """Run a trial inside a worker: progress goes out by ``send``, every epoch by ``ask``, which may end it.

    The result goes out once it is kept, so that the figures are drawn ``aside`` from the slot; else when all is done.
    """
    with native_stderr(), signals_surface():
        from digit_study.trial.run_trial import forget_networks, run_trial
    tell: Callable[[TrialResult], None] = partial(send, "done") if aside else lambda result: None
    try:
        return run_trial(
            config, run_id, lambda *where: send("steps", where), ask, tell, data_figures=False
        )
    except Pruned:
        send("pruned", "others promise more")
        return None
    finally:
        forget_networks()


def serve(connection: Connection, target: Callable[..., Any], outcome: Path) -> None:
    """Run the ``target`` of a Worker on trial after trial, until one fails or the supervisor is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while _run(connection, target, outcome, *connection.recv()):
            pass
    except (EOFError, OSError):
        raise SystemExit(
            1
        ) from None  # the supervisor is gone; the run has been ended on the way here


def _run(
    connection: Connection, target: Callable[..., Any], outcome: Path, config: Config, run_id: str
) -> bool:
    """Run one trial and report on it; whether the process is fit for another."""
    is_told = False

    def send(kind: str, content: Any) -> None:
        nonlocal is_told
        is_told = is_told or kind in ("done", "pruned")
        if (
            kind == "done"
        ):  # by a file: a trial suspended in a message of more than one piece would stop its supervisor
            outcome.write_bytes(ForkingPickler.dumps(content))
            content = None
        connection.send((kind, content))

    def ask(*content: Any) -> None:
        send("epoch", content)
        while not connection.poll(0.1):
            raise_if_interrupted()
        if not connection.recv():
            raise Pruned

    try:
        with interruptible():
            result = target(config, run_id, send, ask)
            if not is_told:
                send("done", result)
            send("idle", None)
    except Interrupted as interrupted:
        raise SystemExit(interrupted.exit_code) from None
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}"
        send(
            "world" if is_infrastructure_fault(error) else "failed", reason[:2000]
        )  # 16 KiB and more would be sent in two pieces
        return False
    return True


def _end_with_parent() -> None:
    """End this trial, properly if it can, when the process that supervises it is gone."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)
