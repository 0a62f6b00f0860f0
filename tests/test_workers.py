"""A process per trial: what it says, how its end is told, and that nothing is left of it. No TensorFlow here."""

from __future__ import annotations

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

import psutil
import pytest
from conftest import Finalised

from digit_study.config.run_config import Config
from digit_study.support.messages import StudyError
from digit_study.support.signals import (
    Interrupted,
    deferred_signals,
    interruptible,
    signals_surface,
)
from digit_study.trial.local import worker as workers
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.local.worker import Message, Worker
from digit_study.trial.protocol import EngineContext, Pruned, run_to_end

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
Send, Ask = Callable[[str, Any], None], Callable[..., None]


@pytest.fixture(autouse=True)
def bare_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork from a server that has not loaded TensorFlow."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(workers, "start_server", lambda: context)


# what the processes run; the second argument stands for the id of a run


def finish(config: Config, run_id: str, send: Send, ask: Ask) -> str:
    send("steps", (1, 2, 3))
    ask(1, {"val_accuracy": 0.5})
    return f"{run_id} with {config.model.filters} filters in {os.getpid()}"


def refuse(config: Config, run_id: str, send: Send, ask: Ask) -> None:
    raise StudyError("`a` must be b, got c")


def stumble(config: Config, run_id: str, send: Send, ask: Ask) -> None:
    raise KeyError("x")


def leave(config: Config, run_id: str, send: Send, ask: Ask) -> None:
    os._exit(3)


def hang(config: Config, run_id: str, send: Send, ask: Ask) -> None:
    try:
        send("steps", (1, 1, 1))
        time.sleep(60)
    except Interrupted:
        Path(run_id).write_text("ended truthfully")
        raise


def ignore_signals(config: Config, run_id: str, send: Send, ask: Ask) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send("steps", (1, 1, 1))
    time.sleep(60)


def note_pruning(config: Config, run_id: str, send: Send, ask: Ask) -> str:
    try:
        ask(1, {})
    except Pruned:
        return "pruned"
    return "went on"


def flood(config: Config, run_id: str, send: Send, ask: Ask) -> bytes:
    return bytes(10_000_000)  # more than a pipe holds


class Recorder:
    """Keeps what a trial reports."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def steps(self, *where: int) -> None:
        self.messages.append(("steps", where))

    def epoch(self, *what: Any) -> None:
        self.messages.append(("epoch", what))


def follow(trial: Worker, progress: Any) -> Any:
    engine = LocalEngine(EngineContext(), lambda config, run_id: trial)
    try:
        return run_to_end(engine, Config(), "run", progress)
    finally:
        engine.stop()


def heard(target: Callable[..., Any], run_id: str = "run") -> tuple[Any, list[Message]]:
    recorder = Recorder()
    return follow(Worker(target, Config(), run_id), recorder), recorder.messages


def begun(target: Callable[..., Any], run_id: str = "run") -> Iterator[Worker]:
    trial = Worker(target, Config(), run_id)
    while trial.receive() is None:
        multiprocessing.connection.wait(trial.waitables())
    yield trial
    trial.stop(0)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Worker]:
    yield from begun(hang, str(tmp_path / "note"))


def test_a_trial_reports_and_returns_from_a_process_of_its_own() -> None:
    result, messages = heard(finish)
    assert result.startswith("run with 32 filters in ") and not result.endswith(str(os.getpid()))
    assert messages == [("steps", (1, 2, 3)), ("epoch", (1, {"val_accuracy": 0.5}))]


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
    trial = Worker(flood, Config(), "r")
    multiprocessing.connection.wait([trial.connection])
    time.sleep(0.5)  # it sends on as far as the pipe takes it
    with suppress(psutil.NoSuchProcess):  # it may have sent all by now, which is as good
        psutil.Process(trial.process.pid).suspend()
    heard: list[Message | None] = []
    listener = threading.Thread(target=lambda: heard.append(trial.receive()), daemon=True)
    listener.start()
    listener.join(5.0)
    trial.stop(0.1)
    assert [message[0] for message in heard if message] == ["done"] and not trial.outcome.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_trial_that_is_killed_is_known_at_once(number: signal.Signals, hanging: Worker) -> None:
    os.kill(hanging.process.pid, number)
    started = time.monotonic()
    with pytest.raises(StudyError, match=f"was killed by {number.name}"):
        follow(hanging, Recorder())
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("go_on", "end"), [(True, "went on"), (False, "pruned")])
def test_the_answer_to_an_epoch_decides(go_on: bool, end: str) -> None:
    trial = Worker(note_pruning, Config(), "run")
    messages: list[Message] = []
    while not messages or messages[-1][0] != "done":
        message = trial.receive()
        if message is None:
            multiprocessing.connection.wait(trial.waitables())
            continue
        messages.append(message)
        if message[0] == "epoch":
            trial.answer(go_on)
    trial.stop()
    assert messages[-1][1] == end


def ends(engine: LocalEngine, threads: int = 1) -> Any:
    """The content of the last event of a trial, which is let go on, and is idle after it if it can be."""
    engine.submit(1, replace(Config(), training=replace(Config().training, threads=threads)), "run")
    for _ in range(400):
        for event in engine.events(0.05):
            if event.kind == "epoch":
                engine.answer(event.key, event.content[1].get("promise", True))
            elif event.kind != "steps":
                last = event
        if not engine.trials and not engine.finishing:
            return last.content
    raise AssertionError("nothing has been heard")


def name_itself(config: Config, run_id: str, send: Send, ask: Ask) -> int:
    return os.getpid()


def prune_itself(config: Config, run_id: str, send: Send, ask: Ask) -> None:
    with suppress(Pruned):
        ask(1, {"promise": False})
    send("pruned", "others promise more")


def engine_of(target: Callable[..., Any], limits: EngineContext | None = None) -> LocalEngine:
    return LocalEngine(
        limits or EngineContext(), lambda config, run_id: Worker(target, config, run_id)
    )


def test_a_worker_runs_trial_after_trial_and_a_new_one_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    monkeypatch.setattr(workers, "MOST_TRIALS", 2)
    assert [ends(engine, threads=2) == third for _ in range(2)] == [True, False]
    engine.stop()
    assert not psutil.pid_exists(third) and not engine.idle


def test_a_worker_whose_trial_was_pruned_takes_another_and_one_whose_trial_failed_none() -> None:
    for target, is_left in ((prune_itself, 1), (refuse, 0), (stumble, 0), (leave, 0)):
        engine = engine_of(target)
        ends(engine)
        assert len(engine.idle) == is_left
        engine.stop()


def test_where_nothing_is_done_aside_the_next_trial_takes_the_same_worker() -> None:
    """As on a GPU, whose memory a second process would lack; it is submitted as soon as the first has its result."""
    engine = LocalEngine(
        EngineContext(), lambda config, run_id: Worker(name_itself, config, run_id), aside=False
    )
    found = []
    for number in range(20):
        engine.submit(number, Config(), "run")
        while engine.trials:
            found += [event.content for event in engine.events()]
    engine.stop()
    assert len(found) == 20 and len(set(found)) == 1


def test_memory_that_is_limited_is_that_of_one_trial() -> None:
    engine = engine_of(name_itself, EngineContext(memory=4.0))
    assert ends(engine) != ends(engine)
    engine.stop()


def test_an_idle_worker_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    lines = f"import sys, time; sys.path[:0] = {[str(ROOT / 'src'), str(ROOT / 'tests')]}; import test_workers as t"
    bare = "t.workers.start_server = lambda: t.multiprocessing.get_context('forkserver')"
    command = (
        f"{lines}; {bare}; print(t.ends(t.engine_of(t.name_itself)), flush=True); time.sleep(60)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", command], stdout=-1, stderr=-1, text=True)
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
    (trial,) = [next(begun(ignore_signals))]
    trial.stop(grace=0.2)
    assert trial.process.exitcode == -signal.SIGKILL


def test_what_the_supervisor_raises_ends_the_trial(tmp_path: Path) -> None:
    trial = Worker(hang, Config(), str(tmp_path / "note"))

    class Impatient(Recorder):
        def steps(self, *where: int) -> None:
            raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        follow(trial, Impatient())
    assert (tmp_path / "note").exists() and not psutil.pid_exists(trial.process.pid)


def supervise(folder: Path) -> None:
    """Start a trial, write down its process, and never answer it."""
    trial = Worker(hang, Config(), str(folder / "note"))
    multiprocessing.connection.wait(trial.waitables())
    (folder / "pid.new").write_text(str(trial.process.pid))
    (folder / "pid.new").rename(folder / "pid")
    time.sleep(60)


def test_a_trial_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    """Also when the supervisor is killed without a chance to say anything."""
    lines = f"import sys, pathlib; sys.path[:0] = {[str(ROOT / 'src'), str(ROOT / 'tests')]}; import test_workers as t"
    bare = "t.workers.start_server = lambda: t.multiprocessing.get_context('forkserver')"
    command = f"{lines}; {bare}; t.supervise(pathlib.Path({str(tmp_path)!r}))"
    supervisor = subprocess.Popen([sys.executable, "-c", command])
    while not (tmp_path / "pid").exists():
        assert supervisor.poll() is None
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    supervisor.kill()
    supervisor.wait()
    child.wait(10)
    assert (tmp_path / "note").read_text() == "ended truthfully"


def test_a_ctrl_c_during_the_imports_of_the_server_leaves_no_traceback() -> None:
    lines = ("import time", "from digit_study.trial.local import worker", "worker.start_server()")
    code = "; ".join([*lines, "print('up', flush=True)", "time.sleep(30)"])
    environment = os.environ | {"PYTHONPATH": str(Path(workers.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=-1, stderr=-1, text=True
    )
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
    lines = (
        "import pathlib, sys",
        "from digit_study.trial.local import worker",
        "from digit_study.tracking import database as stores",
    )
    code = "; ".join(
        [*lines, "stores.ARTIFACTS = pathlib.Path(sys.argv[1])", "worker.start_server()"]
    )
    (artifacts := tmp_path / ("long" * 30)).mkdir()
    (temporary := tmp_path / "temporary").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", code, str(artifacts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (artifacts / ".scratch").iterdir()] == [".lock"] and not list(
        temporary.iterdir()
    )


def test_the_real_server_finds_this_package_and_loads_tensorflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    workers.start_server()
    try:
        assert str(Path(workers.__file__).parents[2]) in os.environ["PYTHONPATH"].split(os.pathsep)
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
    done, told = [], list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        Finalised()
        done.append("the rest")
        Broken()
    assert done == ["the rest"] and told == [ZeroDivisionError]
    Broken()
    assert told == [ZeroDivisionError] * 2


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
    told = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        Native()
    assert told == []


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
