"""A process per trial: what it says, how its end is told, and that nothing is left of it. No TensorFlow here."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from conftest import Finalised
from tracked import CONFIG, created

from digit_study.config.run_config import Config
from digit_study.support.errors import StudyError
from digit_study.support.signals import (
    Interrupted,
    deferred_signals,
    interruptible,
    signals_surface,
)
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Event,
    Failed,
    FailureCause,
    Finished,
    StepsDone,
)
from digit_study.trial.local import server
from digit_study.trial.local.child import Message, Reporter, Target
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.local.worker import Worker
from digit_study.trial.protocol import EngineContext, TrialRequest

pytestmark = pytest.mark.reliability
ROOT = Path(__file__).parents[1]


def bare_server() -> Any:
    """Return what forks from a server that has not loaded TensorFlow."""
    return multiprocessing.get_context("forkserver")


def worker_of(
    target: Target, run_id: str = "run", config: Config | None = None, **more: Any
) -> Worker:
    request = TrialRequest(1, config or Config(), run_id)
    return Worker(target, request, start_server=bare_server, **more)


def context(**more: Any) -> EngineContext:
    within = Workspace(Path("/nowhere"))
    return EngineContext(workspace=within, tracking_uri=within.default_store, **more)


def pid_of(trial: Worker) -> int:
    assert trial.name is not None
    return int(trial.name.split(":")[1])


def engine_of(target: Target, **more: Any) -> LocalEngine:
    def launch(request: TrialRequest) -> Worker:
        return Worker(target, request, start_server=bare_server)

    return LocalEngine(context(**more), launch)


# what the processes run; the second argument stands for the id of a run


def finish(config: Config, run_id: str, reporter: Reporter) -> None:
    reporter.on_steps(1, 2, 3)
    reporter.on_epoch(1, {"val_accuracy": 0.5})
    result = f"{run_id} with {config.model.filters} filters in {os.getpid()}"
    reporter.on_result(result)  # type: ignore[arg-type]


def refuse(config: Config, run_id: str, reporter: Reporter) -> None:
    raise StudyError("`a` must be b, got c")


def stumble(config: Config, run_id: str, reporter: Reporter) -> None:
    raise KeyError("x")


def leave(config: Config, run_id: str, reporter: Reporter) -> None:
    os._exit(3)


def hang(config: Config, run_id: str, reporter: Reporter) -> None:
    try:
        reporter.on_steps(1, 1, 1)
        time.sleep(60)
    except Interrupted:
        Path(run_id).write_text("ended truthfully")
        raise


def ignore_signals(config: Config, run_id: str, reporter: Reporter) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reporter.on_steps(1, 1, 1)
    time.sleep(60)


def note_decision(config: Config, run_id: str, reporter: Reporter) -> None:
    reporter.on_result(str(reporter.on_epoch(1, {})))  # type: ignore[arg-type]


def flood(config: Config, run_id: str, reporter: Reporter) -> None:
    more_than_a_pipe_holds = bytes(10_000_000)
    reporter.on_result(more_than_a_pipe_holds)  # type: ignore[arg-type]


def follow(trial: Worker, handle: Callable[[Event], None] = lambda event: None) -> Any:
    """Run the trial of a worker to its end; return its result, or raise why there is none."""
    engine = LocalEngine(context(), lambda request: trial)
    try:
        engine.submit(1, Config(), "run")
        while True:
            for event in engine.events():
                handle(event)
                if isinstance(event, EpochDone):
                    engine.answer(event.key, Decision.CONTINUE)
                if isinstance(event, Failed):
                    raise StudyError(event.reason)
                if isinstance(event, Finished):
                    return event.result
    finally:
        engine.stop()


def heard(target: Target, run_id: str = "run") -> tuple[Any, list[Event]]:
    """Return the result of a trial and its events."""
    events: list[Event] = []
    return follow(worker_of(target, run_id), events.append), events


def begun(target: Target, run_id: str = "run") -> Iterator[Worker]:
    trial = worker_of(target, run_id)
    while trial.receive() is None:
        multiprocessing.connection.wait(trial.waitables())
    yield trial
    trial.stop(0)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Worker]:
    yield from begun(hang, str(tmp_path / "note"))


def test_a_trial_reports_and_returns_from_a_process_of_its_own() -> None:
    result, events = heard(finish)
    assert result.startswith("run with 32 filters in ") and not result.endswith(str(os.getpid()))
    assert events == [
        StepsDone(1, 1, 2, 3),
        EpochDone(1, 1, {"val_accuracy": 0.5}),
        Finished(1, result),
    ]


def test_a_result_larger_than_a_pipe_arrives() -> None:
    assert len(heard(flood)[0]) == 10_000_000


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        (refuse, StudyError, r"^`a` must be b, got c$"),
        (stumble, StudyError, r"^KeyError: 'x'$"),
        (leave, StudyError, r"^the trial's process ended with exit code 3 and no result$"),
    ],
)
def test_a_trial_that_fails_says_why(
    target: Callable[..., Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        heard(target)


def test_a_trial_that_is_stopped_while_it_sends_its_result_does_not_stop_its_supervisor() -> None:
    trial = worker_of(flood)
    multiprocessing.connection.wait([trial.connection])
    time.sleep(0.5)  # it sends on as far as the pipe takes it
    with suppress(psutil.NoSuchProcess):  # it may have sent all by now, which is as good
        psutil.Process(pid_of(trial)).suspend()
    heard: list[Message | None] = []
    listener = threading.Thread(target=lambda: heard.append(trial.receive()), daemon=True)
    listener.start()
    listener.join(5.0)
    trial.stop(0.1)
    assert [type(message) for message in heard if message] == [Finished]
    assert not trial.result_file.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_trial_that_is_killed_is_known_at_once(number: signal.Signals, hanging: Worker) -> None:
    os.kill(pid_of(hanging), number)
    started = time.monotonic()
    with pytest.raises(StudyError, match=f"was killed by {number.name}"):
        follow(hanging)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("decision", list(Decision))
def test_the_answer_to_an_epoch_decides(decision: Decision) -> None:
    trial = worker_of(note_decision)
    messages: list[Message] = []
    while not messages or not isinstance(messages[-1], Finished):
        message = trial.receive()
        if message is None:
            multiprocessing.connection.wait(trial.waitables())
            continue
        messages.append(message)
        if isinstance(message, EpochDone):
            trial.answer(decision)
    trial.stop()
    assert messages == [EpochDone(1, 1, {}), Finished(1, str(decision))]  # type: ignore[arg-type]


def ends(engine: LocalEngine, threads: int = 1) -> Any:
    """Return the result of a trial, None without, once its worker is idle if it can be."""
    training = replace(Config().training, threads=threads)
    engine.submit(1, replace(Config(), training=training), "run")
    for _ in range(400):
        for event in engine.events(0.05):
            if isinstance(event, EpochDone):
                engine.answer(event.key, event.record.get("decision", Decision.CONTINUE))
            last = event
        if not engine.trials and not engine.finishing:
            return getattr(last, "result", None)
    raise AssertionError("nothing has been heard")


def name_itself(config: Config, run_id: str, reporter: Reporter) -> None:
    reporter.on_result(os.getpid())  # type: ignore[arg-type]


def stop_itself(config: Config, run_id: str, reporter: Reporter) -> None:
    assert reporter.on_epoch(1, {"decision": Decision.STOP}) is Decision.STOP  # type: ignore[dict-item]
    reporter.on_stop()


def test_a_worker_runs_trial_after_trial_and_a_new_one_what_it_cannot() -> None:
    engine = engine_of(name_itself)
    first = ends(engine)
    assert ends(engine) == first != os.getpid()
    other = ends(engine, threads=2)  # TensorFlow's threads are those of its first trial
    assert other != first and ends(engine, threads=2) == other and not psutil.pid_exists(first)
    waits = psutil.Process(other)
    waits.kill()  # it is no trial that died
    waits.wait(10)
    third = ends(engine, threads=2)
    assert third != other
    engine.stop()
    assert not psutil.pid_exists(third) and not engine.idle


def test_a_worker_runs_only_so_many_trials() -> None:
    def launch(request: TrialRequest) -> Worker:
        return Worker(name_itself, request, start_server=bare_server, max_trials=2)

    engine = LocalEngine(context(), launch)
    first = ends(engine)
    assert [ends(engine) == first for _ in range(2)] == [True, False]
    engine.stop()


def test_a_worker_whose_trial_was_stopped_takes_another_and_one_whose_trial_failed_none() -> None:
    for target, is_left in ((stop_itself, 1), (refuse, 0), (stumble, 0), (leave, 0)):
        engine = engine_of(target)
        ends(engine)
        assert len(engine.idle) == is_left
        engine.stop()


def test_where_nothing_is_done_in_the_background_the_next_trial_takes_the_same_worker() -> None:
    """As on a GPU, whose memory a second process would lack.

    The next trial is submitted as soon as the first has its result.
    """

    def launch(request: TrialRequest) -> Worker:
        return Worker(name_itself, request, start_server=bare_server)

    engine = LocalEngine(context(), launch, figures_in_background=False)
    found = []
    for number in range(20):
        engine.submit(number, Config(), "run")
        while engine.trials:
            found += [event.result for event in engine.events() if isinstance(event, Finished)]
    engine.stop()
    assert len(found) == 20 and len(set(found)) == 1


def test_events_carry_the_key_of_their_trial() -> None:
    engine = engine_of(finish, slots=2)
    for key in (7, 8):
        engine.submit(key, Config(), "run")
    keys: dict[type, list[int]] = {}
    while engine.trials:
        for event in engine.events():
            keys.setdefault(type(event), []).append(event.key)
            if isinstance(event, EpochDone):
                engine.answer(event.key, Decision.CONTINUE)
    engine.stop()
    assert {kind: sorted(found) for kind, found in keys.items()} == {
        StepsDone: [7, 8],
        EpochDone: [7, 8],
        Finished: [7, 8],
    }


def test_memory_that_is_limited_is_that_of_one_trial() -> None:
    engine = engine_of(name_itself, trial_memory=4.0)
    assert ends(engine) != ends(engine)
    engine.stop()


def in_another_process(statement: str, *arguments: str) -> list[str]:
    """Return a command that runs a statement in which this module is ``t``."""
    lines = [
        "import pathlib, sys, time",
        f"sys.path[:0] = {[str(ROOT / 'src'), str(ROOT / 'tests')]}",
        "import test_workers as t",
        statement,
    ]
    return [sys.executable, "-c", "; ".join(lines), *arguments]


def wait_in_a_trial(config: Config, run_id: str, reporter: Reporter) -> None:
    reporter.on_steps(1, 1, 1)
    time.sleep(60)


def fill_the_disk(config: Config, run_id: str, reporter: Reporter) -> None:
    raise RuntimeError("save") from OSError(errno.ENOSPC, "No space left on device")


def next_event(engine: LocalEngine, kinds: tuple[type[Event], ...]) -> Event:
    """Return the next event of these kinds."""
    for _ in range(400):
        for event in engine.events():
            if isinstance(event, kinds):
                return event
    raise AssertionError("nothing has been heard")


@pytest.mark.parametrize(
    ("killed", "cause", "words"),
    [
        ("trial", FailureCause.PROCESS, "SIGKILL"),
        (
            "trial for memory",
            FailureCause.INFRASTRUCTURE,
            "killed by the kernel, for no memory was left",
        ),
        (
            "server and trial",
            FailureCause.INFRASTRUCTURE,
            "the server that it was forked from was killed",
        ),
        ("disk", FailureCause.INFRASTRUCTURE, "RuntimeError: save"),
    ],
)
def test_an_engine_tells_faults_of_the_infrastructure_from_those_of_a_trial(
    killed: str, cause: FailureCause, words: str
) -> None:
    target = fill_the_disk if killed == "disk" else wait_in_a_trial
    memory_kills = [0]

    def launch(request: TrialRequest) -> Worker:
        return Worker(
            target, request, start_server=bare_server, memory_kills=lambda: memory_kills[0]
        )

    engine = LocalEngine(context(), launch)
    engine.submit(1, Config(), "run")
    if killed != "disk":
        assert isinstance(next_event(engine, (StepsDone, Failed)), StepsDone)
        trial = psutil.Process(pid_of(engine.trials[1]))
        if killed == "trial for memory":
            memory_kills[0] += 1
        if killed == "server and trial":
            trial.parent().kill()
        os.kill(trial.pid, signal.SIGKILL)
    event = next_event(engine, (Failed,))
    assert isinstance(event, Failed) and (event.key, event.cause) == (1, cause)
    assert words in event.reason
    engine.stop()


def draw_for_long(config: Config, run_id: str, reporter: Reporter) -> None:
    uri = str(config.tracking.uri)
    workspace = Workspace(Path(uri.removeprefix("sqlite:///")).parent)
    writer = Tracker(uri, workspace).writer(run_id)
    (writer.folder / "model").mkdir()
    mlflow.models.Model().save(str(writer.folder / "model" / "MLmodel"))
    writer.result({"val_accuracy": 0.5}, step=1)
    with deferred_signals():
        reporter.on_result(config.tracking.run_name)  # type: ignore[arg-type]
        time.sleep(0.5 if config.tracking.run_name == "soon" else 60)
        writer.finish()


def test_a_trial_that_only_draws_holds_no_slot_and_loses_no_result(
    store: str, tmp_path: Path
) -> None:
    tracker = Tracker(store, Workspace(tmp_path))

    def launch(request: TrialRequest) -> Worker:
        return Worker(draw_for_long, request, start_server=bare_server)

    there = EngineContext(workspace=tracker.workspace, tracking_uri=store)
    engine = LocalEngine(there, launch, drawing_time=2.0)
    names = ("soon", "killed", "at the end")
    runs = {name: created(tracker) for name in names}
    for number, (name, run_id) in enumerate(runs.items()):
        assert engine.free == 1
        tracking = replace(CONFIG.tracking, uri=store, run_name=name)
        engine.submit(number, replace(CONFIG, tracking=tracking), run_id)
        assert engine.free == 0
        event = next_event(engine, (Finished, Failed))
        assert event == Finished(number, name)  # type: ignore[arg-type]
        if name == "soon":
            while engine.finishing:
                assert not list(engine.events())
        if name == "killed":
            os.kill(pid_of(engine.finishing[0]), signal.SIGKILL)
    assert tracker.finished_metrics(runs["at the end"]) == {"val_accuracy": 0.5}
    engine.stop()
    tracker.upload_left()
    client = mlflow.MlflowClient(tracker.uri)
    ended = {name: client.get_run(run_id) for name, run_id in runs.items()}
    assert {run.info.status for run in ended.values()} == {"FINISHED"}
    assert {run.data.metrics["val_accuracy"] for run in ended.values()} == {0.5}
    assert [len(run.outputs.model_outputs) for run in ended.values()] == [1, 1, 1]
    reasons = {name: run.data.tags.get("failure", "") for name, run in ended.items()}
    killed = "it has its result, but not all figures: its process ended before it"
    assert reasons == {"soon": "", "killed": killed, "at the end": killed}


def test_an_idle_worker_does_not_outlive_its_supervisor() -> None:
    command = in_another_process(
        "print(t.ends(t.engine_of(t.name_itself)), flush=True); time.sleep(60)"
    )
    supervisor = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    assert supervisor.stdout
    idle = psutil.Process(int(supervisor.stdout.readline()))
    supervisor.kill()
    idle.wait(10)
    assert supervisor.communicate(timeout=10)[1] == ""


def test_stopping_lets_a_trial_end_itself(hanging: Worker, tmp_path: Path) -> None:
    hanging.stop()
    assert (tmp_path / "note").read_text() == "ended truthfully"
    assert hanging.process.exitcode == 128 + signal.SIGTERM


def test_a_trial_that_does_not_listen_is_killed() -> None:
    trial = next(begun(ignore_signals))
    trial.stop(grace=0.2)
    assert trial.process.exitcode == -signal.SIGKILL


def test_what_the_supervisor_raises_ends_the_trial(tmp_path: Path) -> None:
    trial = worker_of(hang, str(tmp_path / "note"))

    def interrupt(event: Event) -> None:
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        follow(trial, interrupt)
    assert (tmp_path / "note").exists() and not psutil.pid_exists(pid_of(trial))


def supervise(folder: Path) -> None:
    """Start a trial, write down its process, and never answer it."""
    trial = worker_of(hang, str(folder / "note"))
    multiprocessing.connection.wait(trial.waitables())
    (folder / "pid.new").write_text(str(pid_of(trial)))
    (folder / "pid.new").rename(folder / "pid")
    time.sleep(60)


def test_a_trial_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    """Also when the supervisor is killed without a chance to say anything."""
    command = in_another_process("t.supervise(pathlib.Path(sys.argv[1]))", str(tmp_path))
    supervisor = subprocess.Popen(command)
    while not (tmp_path / "pid").exists():
        assert supervisor.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    supervisor.kill()
    supervisor.wait()
    child.wait(10)
    assert (tmp_path / "note").read_text() == "ended truthfully"


def server_command(*statements: str) -> list[str]:
    """Return a command that starts the server in the workspace that its argument names."""
    lines = [
        "import pathlib, sys, time",
        "from digit_study.support.workspace import Workspace",
        "from digit_study.trial.local.server import start_server",
        "start_server(Workspace(pathlib.Path(sys.argv[1])))",
        *statements,
    ]
    return [sys.executable, "-c", "; ".join(lines)]


def test_a_ctrl_c_during_the_imports_of_the_server_leaves_no_traceback(tmp_path: Path) -> None:
    command = [*server_command("print('up', flush=True)", "time.sleep(30)"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    children = psutil.Process(process.pid).children()
    for _ in range(20):
        for child in children:
            child.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    process.kill()
    assert process.communicate(timeout=30)[1] == ""
    psutil.wait_procs(children, timeout=10)


def test_the_server_starts_however_long_the_path_of_the_project_is_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    """The kernel takes at most 107 bytes as the path of a socket."""
    root = tmp_path / ("long" * 30)
    (temporary := tmp_path / "temporary").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(temporary)}
    command = [*server_command(), str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    scratch = root / "mlruns" / ".scratch"
    assert [path.name for path in scratch.iterdir()] == [".lock"]
    assert not list(temporary.iterdir())


def test_the_server_finds_this_package_and_loads_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    server.start_server(Workspace(tmp_path))
    try:
        assert str(ROOT / "src") in os.environ["PYTHONPATH"].split(os.pathsep)
        assert multiprocessing.forkserver._forkserver._preload_modules == [
            "digit_study.trial.local.preload"
        ]
    finally:
        multiprocessing.forkserver.set_forkserver_preload(["__main__"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_exception_once_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught, interruptible():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:  # the clean-up is not cut short by an impatient second one
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 128 + number and signal.getsignal(number) is before


def test_a_signal_that_an_import_turns_into_a_fault_of_its_own_is_a_signal_all_the_same() -> None:
    with pytest.raises(Interrupted), interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            raise ImportError("to use Keras, you need TensorFlow") from None
    with pytest.raises(ImportError), interruptible(), signals_surface():
        raise ImportError("there is none")
    with pytest.raises(Interrupted), interruptible(), signals_surface(), suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)


class Broken:
    """Has another fault in its finaliser."""

    def __del__(self) -> None:
        _ = 1 / 0


def test_a_signal_that_is_lost_in_a_finaliser_is_raised_at_the_end_and_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []
    reported = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: reported.append(lost.exc_type))
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        Finalised()
        done.append("the rest")
        Broken()
    assert done == ["the rest"] and reported == [ZeroDivisionError]
    Broken()
    assert reported == [ZeroDivisionError] * 2


class Native:
    """Its finaliser is what TensorFlow's native code is to a signal: it makes a SystemError of it."""

    def __del__(self) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error


def test_a_signal_that_native_code_makes_an_error_of_is_not_told_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: reported.append(lost.exc_type))
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        Native()
    assert reported == []


def test_this_module_needs_no_tensorflow() -> None:
    """Workers are supervised by a process that never imports it."""
    modules = "digit_study.trial.local.pool, digit_study.trial.protocol"
    line = f"import sys; sys.path.insert(0, 'src'); import {modules}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT).returncode == 0


def test_a_signal_waits_until_what_must_be_whole_is_done() -> None:
    done = []
    with (
        pytest.raises(Interrupted, match="SIGTERM"),
        interruptible(),
        deferred_signals() as is_stopping,
    ):
        done.append(is_stopping())
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(is_stopping())
        done.append("the rest")
    assert done == [False, True, "the rest"]
