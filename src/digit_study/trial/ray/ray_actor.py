"""What runs on the nodes of a Ray cluster: the inspection of a node, and actors that run trials.

It imports only the standard library until an actor opens, so that a node without the packages can
say which are missing.
"""

from __future__ import annotations

import os
import pickle
import platform
import socket
import threading
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digit_study.trial.events import Decision, EpochDone, Event, Failed, Finished, Stopped
from digit_study.trial.ray.messages import (
    ActorEvent,
    ActorSetup,
    Answer,
    NodeReport,
    OpenedActor,
    Requirements,
    TrialPhase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from digit_study.tracking.session import Tracker
    from digit_study.trial.local.pool import LocalEngine
    from digit_study.trial.protocol import EngineContext, TrialRequest

#: Seconds that a node waits for the port of the tracking server.
REACH_S = 5.0


def inspect_node(requirements: Requirements) -> NodeReport:
    """Return what there is to know of the node that this runs on."""
    versions = {name: _installed_version(name) for name in requirements.versions}
    problem = _problem(requirements, versions)
    if problem is not None:
        return NodeReport(versions, problem=f"node {platform.node()} {problem}")
    from digit_study.support import hardware

    return NodeReport(
        versions,
        cores=hardware.cores(),
        processor=hardware.processor(),
        precision=hardware.resolve_precision("auto"),
    )


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _problem(requirements: Requirements, versions: Mapping[str, str | None]) -> str | None:
    """Return why this node can run no trial, and what to do; None if it can."""
    missing = [
        f"{name} {requirements.versions[name]}"
        for name, installed in versions.items()
        if installed is None
    ]
    if missing:
        return f"lacks {', '.join(missing)}: install requirements.lock there"
    only_host = requirements.only_host
    if only_host not in (None, platform.node()):
        return (
            f"cannot reach the tracking store, which is a file on {only_host}: start "
            "`mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts '*'` there, and give "
            f"tracking.uri=http://{only_host}:5000"
        )
    if requirements.server is None:
        return None
    try:
        socket.create_connection(requirements.server, REACH_S).close()
    except OSError as fault:
        where = ":".join(map(str, requirements.server))
        return (
            f"cannot reach the tracking store at {where} ({fault}): name it with tracking.uri as "
            "nodes reach it"
        )
    return None


class TrialActor:
    """A slot on a node: it runs a trial at a time, in the node's local engine.

    Trials that were paused in it wait beside the trial that runs. Its methods are called in turn.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Make an actor that works in a folder, by default in that of the code on this node."""
        self._root = root
        #: Number of the last command that was done.
        self._command = 0
        #: Number of the last event.
        self._event = 0
        #: Ids of the runs of trials that have no outcome yet, by their key.
        self._run_ids: dict[int, str] = {}
        #: Events that the supervisor may not have.
        self._unacknowledged: list[ActorEvent] = []

    def open(self, setup: ActorSetup, images: Any, labels: Any) -> OpenedActor:
        """Start the server that trials are forked from.

        Ray shows no argument of a method, so that the passwords in ``setup`` are safe.

        Args:
            setup: What trials need.
            images: To train on and to select by, (n, 28, 28, 1) uint8.
            labels: Their labels, (n,) int64.

        Returns:
            How to call this actor.

        Raises:
            ValueError: If this node can run no trial.
        """
        report = inspect_node(setup.requirements)
        if report.problem:
            raise ValueError(report.problem)
        os.environ.update(setup.environment)
        from digit_study.data import sources
        from digit_study.support import processes
        from digit_study.support.scratch import use_scratch
        from digit_study.support.workspace import Workspace
        from digit_study.tracking.session import Tracker

        if sources.digest(images[..., 0], labels) != setup.sha256:
            raise ValueError(
                f"the digits that arrived on {platform.node()} are not those of sha256 "
                f"{setup.sha256}"
            )
        workspace = Workspace.of_project()
        if self._root is not None:
            workspace = Workspace(self._root)
        folder = use_scratch(workspace) / "digits"
        sources.store_train_part(folder, setup.sha256, images, labels)
        context = pickle.loads(setup.context)
        context = replace(context, workspace=workspace, digits_folder=folder)
        self._tracker = Tracker(context.tracking_uri, workspace)
        self._engine = self.local_engine(context)
        threading.Thread(target=_upload_logs, args=(self._tracker,), daemon=True).start()
        versions = " ".join(f"{name} {at}" for name, at in report.versions.items())
        node_kind = f"{report.processor}, {report.cores} cores, {versions}"
        return OpenedActor(processes.process_name(), node_kind)

    def local_engine(self, context: EngineContext) -> LocalEngine:
        """Open the node's engine; the server that workers are forked from starts now.

        A trial has its outcome when all of its run can be handed over, figures included.
        """
        from digit_study.trial.local.pool import LocalEngine

        return LocalEngine(context, figures_in_background=False)

    def exchange(
        self, number: int, command: bytes | None, acknowledged: int, timeout: float
    ) -> list[ActorEvent]:
        """Do a command, unless it was done already, and wait for events.

        Commands and events are numbered. If a call or its answer is lost on the way, the same call
        is made again, and does nothing twice.

        Args:
            number: Of the command, from 1.
            command: A pickled TrialRequest or Answer; None only waits.
            acknowledged: Number of the last event that the supervisor has.
            timeout: Seconds to wait at most.

        Returns:
            All events after ``acknowledged``.
        """
        if command is not None and number > self._command:
            is_paused = self._do(pickle.loads(command))
            self._command = number
            if is_paused:
                timeout = 0.0
        self._unacknowledged = [
            event for event in self._unacknowledged if event.number > acknowledged
        ]
        if not self._unacknowledged:
            self._unacknowledged = [self._numbered(event) for event in self._engine.events(timeout)]
        return self._unacknowledged

    def stop(self) -> None:
        """End the trial that runs, its run as KILLED."""
        self._engine.stop()
        for run_id in self._run_ids.values():
            self._tracker.upload_now(run_id)

    def _do(self, command: TrialRequest | Answer) -> bool:
        """Do a command; return whether a trial is paused by it, so that no event will come."""
        if isinstance(command, Answer):
            self._engine.answer(command.key, command.decision)
            return command.decision is Decision.PAUSE
        self._run_ids[command.key] = command.run_id
        self._engine.submit(command.key, command.config, command.run_id)
        return False

    def _numbered(self, event: Event) -> ActorEvent:
        """Return an event as it is sent; with the outcome goes what the run has not uploaded."""
        self._event += 1
        phase = TrialPhase.RUNNING
        packed = None
        match event:
            case EpochDone():
                phase = TrialPhase.WAITING
            case Finished() | Stopped() | Failed():
                phase = TrialPhase.ENDED
                packed = self._tracker.pack(self._run_ids.pop(event.key))
        return ActorEvent(self._event, event.key, phase, pickle.dumps((event, packed)))


def _upload_logs(tracker: Tracker) -> None:
    """Let a server know of trials while they run; no trial waits for it.

    All else that a run leaves goes to the supervisor.
    """
    from digit_study.tracking.location import is_server
    from digit_study.tracking.session import upload_logs

    if is_server(tracker.uri):
        with upload_logs(tracker.uri, tracker.workspace):
            threading.Event().wait()
