"""What runs in a worker process: its trials, and their messages to the supervisor."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from digit_study.config.run_config import Config
from digit_study.model.training_state import Epoch
from digit_study.support.errors import StudyError, is_infrastructure_error
from digit_study.support.signals import (
    Interrupted,
    interruptible,
    native_stderr,
    raise_if_interrupted,
    signals_surface,
)
from digit_study.support.workspace import Workspace
from digit_study.tracking.location import store_uri
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Event,
    Failed,
    FailureCause,
    StepsDone,
    Stopped,
)
from digit_study.trial.protocol import TrialRequest, TrialResult, TrialStopped

#: Seconds that a trial has to end itself before it is killed.
GRACE_S = 8.0
#: Characters of a reason that are sent. A message of 16 KiB and more would go in two pieces, and a
#: trial that is suspended between them would stop its supervisor.
LONGEST_REASON = 2000


@dataclass(frozen=True)
class ResultWritten:
    """A trial has written its result into the file of its worker."""

    key: int


@dataclass(frozen=True)
class Idle:
    """A worker has done all that belongs to a trial, and could run another."""


#: What a worker sends; a result goes by file, as :class:`ResultWritten` says.
Message = Event | Idle


class Reporter:
    """Sends what happens in a trial to the supervisor.

    It listens to a trial as :class:`digit_study.trial.run_trial.Listener` says.
    """

    def __init__(self, key: int, connection: Connection, result_file: Path) -> None:
        self._key = key
        self._connection = connection
        self._result_file = result_file

    def on_steps(self, epoch: int, step: int, steps: int) -> None:
        """Report some steps of an epoch."""
        self._connection.send(StepsDone(self._key, epoch, step, steps))

    def on_epoch(self, epoch: int, record: Epoch) -> Decision:
        """Report an epoch and wait for the decision about it."""
        self._connection.send(EpochDone(self._key, epoch, record))
        while not self._connection.poll(0.1):
            raise_if_interrupted()
        decision: Decision = self._connection.recv()
        return decision

    def on_result(self, result: TrialResult) -> None:
        """Report the result of the trial."""
        # A result has more than 16 KiB, see LONGEST_REASON.
        self._result_file.write_bytes(ForkingPickler.dumps(result))
        self._connection.send(ResultWritten(self._key))

    def on_stop(self) -> None:
        """Report that the trial has ended after an epoch, as it was asked to."""
        self._connection.send(Stopped(self._key))

    def on_error(self, error: Exception) -> None:
        """Report that the trial has failed."""
        cause = FailureCause.TRIAL
        if is_infrastructure_error(error):
            cause = FailureCause.INFRASTRUCTURE
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, StudyError):
            reason = str(error)
        self._connection.send(Failed(self._key, cause, reason[:LONGEST_REASON]))

    def on_idle(self) -> None:
        """Report that the worker could run another trial."""
        self._connection.send(Idle())


#: What a worker calls for every trial, with its config and the id of its run. It reports the result
#: or the stop of the trial.
Target = Callable[[Config, str, Reporter], None]


def train(
    config: Config,
    run_id: str,
    reporter: Reporter,
    *,
    workspace: Workspace,
    digits_folder: Path | None = None,
    figures_in_background: bool = True,
) -> None:
    """Run a trial in a worker.

    Args:
        config: What to train, resolved.
        run_id: Id of the MLflow run that it writes.
        reporter: Sends what happens to the supervisor.
        workspace: Where the run is spooled.
        digits_folder: Folder of digits by their sha256, on a machine that was handed them.
        figures_in_background: Whether the result is reported before the figures are drawn, so that
            the next trial starts meanwhile.
    """
    with native_stderr(), signals_surface():
        from digit_study.tracking import provenance
        from digit_study.tracking.session import Tracker
        from digit_study.trial.run_trial import forget_networks, run_trial
    tracker = Tracker(store_uri(config.tracking.uri, workspace), workspace)
    if digits_folder is not None:
        # the run was created on another machine
        tracker.tag_run(run_id, provenance.prefixed(provenance.machine_tags()))
    try:
        run_trial(
            config,
            run_id,
            tracker,
            reporter,
            digits_folder=digits_folder,
            # a parent run has them for its children
            data_figures=config.tracking.parent_run_id is None,
            figures_in_background=figures_in_background,
        )
    except TrialStopped:
        reporter.on_stop()
    finally:
        forget_networks()


def run_trials(connection: Connection, target: Target, result_file: Path) -> None:
    """Run trial after trial until one fails or the supervisor is gone.

    Args:
        connection: Brings a :class:`TrialRequest` for each trial, and takes messages.
        target: What to call for every trial.
        result_file: Where results are left for the supervisor.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while _run(connection.recv(), connection, target, result_file):
            pass
    except (EOFError, OSError):
        # The supervisor is gone. The run has been ended on the way here.
        raise SystemExit(1) from None


def _run(request: TrialRequest, connection: Connection, target: Target, result_file: Path) -> bool:
    """Run a trial; return whether the process is fit for another."""
    reporter = Reporter(request.key, connection, result_file)
    try:
        with interruptible():
            target(request.config, request.run_id, reporter)
            reporter.on_idle()
    except Interrupted as interrupted:
        raise SystemExit(interrupted.exit_code) from None
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        reporter.on_error(error)
        return False
    return True


def _end_with_parent() -> None:
    """End this process, properly if it can, when its supervisor is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
