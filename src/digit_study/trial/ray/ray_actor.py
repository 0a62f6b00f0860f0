"""What runs on the nodes of a Ray cluster: a look at a node, and a slot, which is the local engine with one trial.

Imports only the standard library until a slot opens, so that a node without the packages can say which it lacks.
"""

import os
import pickle
import platform
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import Any

#: Seconds that a node waits for the port of the tracking server.
REACH_S = 5.0
#: Events that free a slot, as in :mod:`digit_study.trial.local.child`, whose import takes a second.
FINAL_KINDS = ("done", "pruned", "failed", "died", "expired", "world")


@dataclass(frozen=True)
class Needs:
    """What a node must have to run trials."""

    versions: Mapping[
        str, str
    ]  # the supervisor's packages by name; of another version is good enough
    server: tuple[str, int] | None = None  # host and port of the tracking store, where it has them
    only_host: str | None = None  # the one that has the tracking store, where it is a file


def look(needs: Needs) -> dict[str, Any]:
    """What there is to know of the node this runs on, by name; ``problem`` says why it can run nothing, if so."""
    found: dict[str, str | None] = {}
    for name in needs.versions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    told: dict[str, Any] = {"host": platform.node(), "versions": found}
    if told_problem := _problem(needs, found):
        return {**told, "problem": f"node {platform.node()} {told_problem}"}
    from digit_study.support import machine

    told |= {"cores": machine.cores(), "processor": machine.processor()}
    return {**told, "problem": None, "precision": machine.resolve_precision("auto")}


def _problem(needs: Needs, found: Mapping[str, str | None]) -> str | None:
    if missing := [f"{name} {needs.versions[name]}" for name, at in found.items() if at is None]:
        return f"lacks {', '.join(missing)}: install requirements.lock there"
    if needs.only_host not in (None, platform.node()):
        server = "mlflow server --host 0.0.0.0 --port 5000 --allowed-hosts '*'"
        remedy = f"start `{server}` there, and give tracking.uri=http://{needs.only_host}:5000"
        return f"cannot reach the tracking store, which is a file on {needs.only_host}: {remedy}"
    if needs.server is not None:
        try:
            socket.create_connection(needs.server, REACH_S).close()
        except OSError as fault:
            where = ":".join(map(str, needs.server))
            return f"cannot reach the tracking store at {where} ({fault}): name it with tracking.uri as nodes reach it"
    return None


class Slot:
    """A place for one trial at a time; its methods are called one after the other."""

    def open(
        self,
        needs: Needs,
        environment: Mapping[str, str],
        context: bytes,
        sha256: str,
        images: Any,
        labels: Any,
    ) -> tuple[str, str]:
        """Start the server that trials are forked from; returns the name of this process and the kind of its node.

        ``environment`` is the supervisor's as far as trials depend on it, passwords included: Ray shows no argument of
        a method. ``images`` (n, 28, 28, 1) and ``labels`` (n,) are the digits to train on and to select by.
        Raises ValueError if the node can run nothing.
        """
        facts = look(needs)
        if facts["problem"]:
            raise ValueError(facts["problem"])
        os.environ.update(environment)
        from digit_study.data import sources
        from digit_study.support import machine
        from digit_study.tracking import database as stores
        from digit_study.trial.local.pool import LocalEngine

        if sources.digest(images[..., 0], labels) != sha256:
            raise ValueError(
                f"the digits that arrived on {platform.node()} are not those of sha256 {sha256}"
            )
        sources.hand_over(stores.use_scratch() / "digits", sha256, images, labels)
        here = pickle.loads(context)
        self.engine = LocalEngine(here, self.launcher(here.data), aside=False)
        threading.Thread(target=_send_logs, args=(stores.tracking_uri(None),), daemon=True).start()
        self.number = self.told = 0
        self.run_ids: dict[int, str] = {}
        self.unread: list[tuple[int, str, bytes]] = []
        versions = " ".join(f"{name} {at}" for name, at in facts["versions"].items())
        return machine.process_name(), f"{facts['processor']}, {facts['cores']} cores, {versions}"

    def launcher(self, data: Any) -> Callable[..., Any]:
        """What starts a trial; most are on ``data``."""
        from digit_study.trial.local.worker import Worker, start_server

        start_server(data)
        return lambda config, run_id: Worker(train, config, run_id)

    def turn(
        self, number: int, command: bytes | None, acknowledged: int, timeout: float
    ) -> list[tuple[int, str, bytes]]:
        """Do a command, unless it was done already, and wait for news; returns all that came after ``acknowledged``.

        Commands and news are numbered: where a call or its answer got lost on the way, the same call is made again.
        """
        if command is not None and number > self.number:
            name, arguments = pickle.loads(command)
            if name == "submit":
                self.run_ids[arguments[0]] = arguments[2]
            getattr(self.engine, name)(*arguments)
            self.number = number
        self.unread = [one for one in self.unread if one[0] > acknowledged]
        if not self.unread:
            for event in self.engine.events(timeout):
                self.told += 1
                rest = unsent(self.run_ids.pop(event.key)) if event.kind in FINAL_KINDS else None
                content = pickle.dumps((event.kind, event.content, rest))
                self.unread.append((self.told, event.kind, content))
        return self.unread

    def stop(self) -> None:
        """End what runs, as KILLED."""
        from digit_study.tracking import database as stores
        from digit_study.tracking import runs as run_log
        from digit_study.tracking import spool as outbox
        from digit_study.tracking import upload as delivery

        self.engine.stop()
        for run_id in self.run_ids.values():
            delivery.send(outbox.SpooledRun(run_id), run_log.client_of(stores.tracking_uri(None)))


def train(config: Any, run_id: str, send: Callable[..., None], ask: Callable[..., None]) -> Any:
    """The local engine's trial, whose run also says on which machine it is; it is over when all of it can be handed."""
    from digit_study.tracking import database as stores
    from digit_study.tracking import provenance as origin
    from digit_study.tracking import runs as run_log
    from digit_study.trial.local import child

    run_log.tag_run(
        stores.tracking_uri(config.tracking.uri), run_id, origin.prefixed(origin.machine_tags())
    )
    return child.train(config, run_id, send, ask, aside=False)


def _send_logs(uri: str) -> None:
    """Let a server know of trials while they run, who do not wait for it; what they leave goes to the supervisor."""
    from digit_study.tracking.database import SERVERS

    if uri.startswith(SERVERS):
        from digit_study.tracking.uploader import BackgroundUploader

        with BackgroundUploader(uri, 0.0, is_log_only=True):
            threading.Event().wait()


def unsent(run_id: str) -> bytes | None:
    """What a run that has ended did not tell the tracking store, as a tar, and no more on this node, whose files go.

    What is on its way to the store just now is in it too: to be told twice changes nothing, and no slot waits for that.
    """
    from digit_study.tracking.spool import SpooledRun

    spooled = SpooledRun(run_id)
    if not spooled.outcome:  # all is told, or it was killed, of which the supervisor tells
        return None
    with BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(spooled.folder, run_id)
        shutil.rmtree(spooled.folder, ignore_errors=True)
        return buffer.getvalue()
