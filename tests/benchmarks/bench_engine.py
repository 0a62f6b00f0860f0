"""What the Ray engine costs a trial against the local one, how soon the first trial begins, and how busy slots are.

    python tests/benchmarks/bench_engine.py [trials] [slots]

Starts a Ray cluster on this machine. Prints the milliseconds that a stub trial of three epochs takes on one slot of
either engine, which should differ by less than 150; the seconds from a search's start to the first step of its first
trial, at most 12 on Ray; and which share of their time ``slots`` are busy, from when all of them are open, while
``trials`` stub trials of two seconds run, at least 90 %. On a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "src"), str(HERE.parents[1]), str(HERE.parent)]

from stub_worker import Stub, Stubs, plan  # noqa: E402

from digit_study.study import search as study_run  # noqa: E402
from digit_study.support.scratch import use_scratch  # noqa: E402
from digit_study.support.workspace import Workspace  # noqa: E402
from digit_study.tracking.database import create_store  # noqa: E402
from digit_study.tracking.session import Tracker  # noqa: E402
from digit_study.trial.events import Decision, StepsDone  # noqa: E402
from digit_study.trial.local.pool import LocalEngine  # noqa: E402
from digit_study.trial.protocol import (  # noqa: E402
    ENGINES,
    Engine,
    EngineContext,
    TrialRequest,
)
from digit_study.trial.ray.ray_actor import TrialActor  # noqa: E402
from digit_study.trial.ray.ray_engine import RayEngine  # noqa: E402

TRIAL_S = 2.0


class StubActor(TrialActor):
    """An actor that runs stub trials that take no time."""

    seconds = 0.0

    def local_engine(self, context: EngineContext) -> LocalEngine:
        """Open an engine of stubs, slowed down."""
        stubs = Stubs(context.tracking_uri)
        # its imports, which a real actor's trials are forked with
        stubs.tracker.client.search_experiments()

        def launch(request: TrialRequest) -> Any:
            return SlowStub(stubs, request, "done", self.seconds)

        return LocalEngine(context, launch, figures_in_background=False)


class SlowActor(StubActor):
    """An actor that runs stub trials of two seconds."""

    seconds = TRIAL_S


class SlowStub(Stub):
    """A stub that waits before each epoch."""

    def __init__(self, owner: Stubs, request: TrialRequest, end: str, seconds: float) -> None:
        super().__init__(owner, request, end)
        self.pause = seconds / request.config.training.epochs

    def answer(self, decision: Decision) -> None:
        """Take the decision about an epoch, and take the time of the next."""
        time.sleep(self.pause)
        super().answer(decision)


@contextlib.contextmanager
def cluster(slots: int, folder: str) -> Iterator[str]:
    """A Ray cluster on this machine with as many cores as ``slots``; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        "start",
        "--head",
        "--block",
        f"--port={port}",
        f"--num-cpus={slots}",
        "--include-dashboard=false",
    ]
    line = [str(Path(sys.executable).with_name("ray")), *words, f"--temp-dir={folder}/r"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(line, stdout=quiet, stderr=quiet, start_new_session=True) as head:
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                time.sleep(0.2)
            time.sleep(3.0)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(30)


def search(
    engine: Callable[[EngineContext], Engine], *words: str
) -> list[tuple[float, str | None]]:
    """Times, in seconds, at which the trials of a study started and the names of their slots, and of its end."""
    began: list[tuple[float, str | None]] = []

    def opened(limits: EngineContext) -> Engine:
        made = engine(limits)
        submit = made.submit

        def timed(*given: Any) -> str | None:
            began.append((time.perf_counter(), submit(*given)))
            return began[-1][1]

        made.submit = timed  # type: ignore[method-assign]
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        study_run.run_study(plan("search.pruner=none", "search.sampler=random", *words), opened)
    return [*began, (time.perf_counter(), None)]


def each(engine: Callable[[EngineContext], Engine], few: int, *words: str) -> float:
    """Seconds that one of a few trials takes."""
    (began, _), *_, (ended, _) = search(engine, f"search.trials={few}", *words)
    return (ended - began) / few


def first_step(*words: str) -> float:
    """Seconds from a plan to the first step of a real trial."""
    began = time.perf_counter()
    found = plan("search.trials=1", *words)
    engine = ENGINES[found.study.search.engine](found.context)
    try:
        while not engine.free:
            list(engine.events())
        tracker = Tracker(found.uri, found.workspace)
        engine.submit(0, found.run, tracker.create_run(found.run, found.dataset))
        while not [event for event in engine.events() if isinstance(event, StepsDone)]:
            pass
        return time.perf_counter() - began
    finally:
        engine.stop()


def main(trials: int, slots: int) -> None:
    """Measure all three."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = uri = f"sqlite:///{folder}/mlflow.db"
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])
        workspace = Workspace(Path(folder))
        use_scratch(workspace)
        create_store(uri, workspace)
        study_run._report = lambda *arguments: None
        with cluster(slots, folder) as address:
            ray = ("search.engine=ray", f"search.address={address}")
            few = min(100, trials)
            local = each(Stubs(uri).engine, few, "study=local")
            remote = each(
                lambda context: RayEngine(context, "bench_engine:StubActor"),
                few,
                *ray,
                "study=ray",
            )
            times = f"local {1000 * local:.0f} ms, ray {1000 * remote:.0f} ms"
            print(f"a stub trial: {times}, {1000 * (remote - local):.0f} more")
            print(f"first step after: local {first_step():.1f} s, ray {first_step(*ray):.1f} s")
            *began, ended = search(lambda context: RayEngine(context, "bench_engine:SlowActor"), *ray, "study=busy",
                                   f"search.trials={trials}", f"search.workers={slots}")  # fmt: skip
            names = [name for _, name in began]
            last = next(place for place in range(trials) if len(set(names[: place + 1])) == slots)
            (first, _), (opened, _), (final, _) = began[0], began[last], began[-1]
            busy = (trials - 1 - last) * TRIAL_S / slots / (final - opened)
            told = f"{trials} stub trials of {TRIAL_S:g} s on {slots} slots"
            print(
                f"{told}: {ended[0] - first:.1f} s, all open after {opened - first:.1f} s, then busy {100 * busy:.0f} %"
            )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 1000,
        int(sys.argv[2]) if len(sys.argv) > 2 else 16,
    )
