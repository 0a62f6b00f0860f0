"""The engine of a single run: it trains in this process, which then holds TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from digit_study.config.run_config import Config
from digit_study.support.processes import process_name
from digit_study.support.signals import native_stderr, signals_surface
from digit_study.trial.events import (
    Decision,
    EpochDone,
    EpochRecord,
    Event,
    Finished,
    StepsDone,
    Stopped,
)
from digit_study.trial.protocol import EngineContext, TrialRequest, TrialResult, TrialStopped


class InlineEngine:
    """An :class:`~digit_study.trial.protocol.Engine` that runs a trial inside :meth:`events`.

    It listens to the trial itself, see :class:`digit_study.trial.run_trial.Listener`. Nobody can
    take an event from :meth:`events` while this process trains. So steps and epochs go to a
    listener as they happen, and :meth:`events` yields the outcome alone. What the trial raises is
    raised there: a person sees it as an error of the command, whose process this is.
    """

    def __init__(
        self, context: EngineContext, listener: Callable[[StepsDone | EpochDone], None]
    ) -> None:
        """Open the engine.

        Args:
            context: Where runs are recorded. Its limits do not hold in this process.
            listener: Is called with steps and epochs. It may call :meth:`answer`; an epoch without
                an answer goes on.
        """
        self._context = context
        self._listener = listener
        self._request: TrialRequest | None = None
        self._decision = Decision.CONTINUE

    @property
    def free(self) -> int:
        """Number of trials that could start now: 0 or 1."""
        return 1 if self._request is None else 0

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        """Remember the trial that the next call of :meth:`events` runs."""
        self._request = TrialRequest(key, config, run_id)
        return process_name()

    def answer(self, key: int, decision: Decision) -> None:
        """Answer the epoch that the listener was just called with."""
        self._decision = decision

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        """Run the trial that was submitted, and yield its outcome.

        Raises:
            BaseException: What the trial raised; its run has ended then.
        """
        request = self._request
        if request is None:
            return
        try:
            outcome = self._run(request)
        finally:
            self._request = None
        yield outcome

    def stop(self) -> None:
        """Do nothing: no trial runs outside :meth:`events`."""

    def _run(self, request: TrialRequest) -> Finished | Stopped:
        """Run a trial; its run ends with it, however it ends."""
        from digit_study.tracking.location import store_uri
        from digit_study.tracking.session import Tracker

        workspace = self._context.workspace
        tracker = Tracker(store_uri(request.config.tracking.uri, workspace), workspace)
        # The run is known on disk now. If this process is killed, the next command ends it.
        tracker.writer(request.run_id)
        try:
            with native_stderr(), signals_surface():
                from digit_study.trial.run_trial import run_trial
            result = run_trial(
                request.config,
                request.run_id,
                tracker,
                self,
                digits_folder=self._context.digits_folder,
                result_before_figures=False,
            )
        except TrialStopped:
            return Stopped(request.key)
        except BaseException as error:  # also a Ctrl-C while TensorFlow is being imported
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            tracker.close_run(request.run_id, status, f"{type(error).__name__}: {error}")
            raise
        return Finished(request.key, result)

    def on_steps(self, epoch: int, step: int, steps: int) -> None:
        """Hand steps of the trial to the listener."""
        self._listener(StepsDone(self._key, epoch, step, steps))

    def on_epoch(self, epoch: int, record: EpochRecord) -> Decision:
        """Hand an epoch of the trial to the listener and return the answer."""
        self._decision = Decision.CONTINUE
        self._listener(EpochDone(self._key, epoch, record))
        return self._decision

    def on_result(self, result: TrialResult) -> None:
        """Do nothing: the result is returned as well."""

    @property
    def _key(self) -> int:
        assert self._request is not None
        return self._request.key
