"""Output that goes nowhere, terminals of another encoding, terminals that are closed."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import Project
from mlflow.entities import Run
from rich.console import Console

from digit_study.support.progress import JobProgress, job_bars
from digit_study.support.signals import Interrupted, deferred_signals, interruptible

ROOT = Path(__file__).parents[1]
SMALL = [
    "model=tiny",
    "training=smoke",
    "data=mnist_sample",
    "data.limit=300",
    "training.threads=1",
]
#: Long enough to be interrupted at any moment.
LONG = [*SMALL, "training.epochs=500"]
#: Prints until after its reader has gone, then says in a file that it came to its end.
TALKATIVE = """
import sys
from digit_study.support.console import protect_standard_streams
protect_standard_streams()
for number in range(5_000):
    print(f"line {number} …")
    print(f"line {number} …", file=sys.stderr)
sys.stdout.flush()
open(sys.argv[1], "w").write("done")
"""


def talk(redirected: str, tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Run TALKATIVE in a shell that redirects its output; its exit code, and what was printed."""
    script = tmp_path / "talk.py"
    script.write_text(TALKATIVE)
    ended = tmp_path / "ended"
    command = f"'{sys.executable}' '{script}' '{ended}' {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        check=False,
    )
    assert ended.read_text() == "done", done.stderr
    return done.returncode, done.stdout.decode("latin-1") + done.stderr.decode("latin-1")


@pytest.mark.parametrize(
    "redirected",
    [
        ">&- 2>/dev/null",
        "2>&- >/dev/null",
        ">&- 2>&- <&-",
        "2>&1 | head -1",
        "2>&1 | true",
        ">/dev/full 2>&1",
    ],
)
def test_output_that_goes_nowhere_ends_nothing(redirected: str, tmp_path: Path) -> None:
    code, printed = talk(redirected, tmp_path)
    assert code == 0 and "Error" not in printed and "Exception" not in printed


def test_what_a_full_disk_loses_is_told(tmp_path: Path) -> None:
    _, printed = talk(">/dev/full", tmp_path)
    lost = "WARNING: the output cannot be written (No space left on device): the rest of it is lost"
    assert printed.count(lost) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_replaced(encoding: str, tmp_path: Path) -> None:
    code, printed = talk("2>/dev/null", tmp_path, PYTHONIOENCODING=encoding)
    assert code == 0 and printed.splitlines()[0] == "line 0 ?"


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = "from digit_study.support.console import protect_standard_streams as protect\n"
    code += "protect(); import sys; file = open(sys.argv[1], 'w'); assert file.fileno() > 2"
    command = f"'{sys.executable}' -c \"$CODE\" '{tmp_path / 'file'}' >&- 2>&- <&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CODE": code}
    assert subprocess.run(["bash", "-c", command], env=environment, check=False).returncode == 0


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_narrow_terminal_cuts_the_names_of_jobs_and_nothing_else(width: int) -> None:
    terminal = Console(width=width, file=io.StringIO(), force_terminal=False)
    bars = job_bars(terminal, is_shown=True)
    jobs = JobProgress(bars, prints_epochs=False)
    jobs.begin(
        1,
        "3: model.filters=32 model.pooling=average training.learning_rate=0.00137 seed 1000001",
        4,
    )
    jobs.epoch(1, 2, {"val_accuracy": 0.9874, "val_loss": 0.0412})
    with terminal.capture() as captured:
        terminal.print(bars.get_renderable())
    [line] = captured.get().splitlines()
    assert line.startswith("3: model.") and "2.0/4" in line
    assert "val_accuracy 98.74 %  val_loss 0.0412 0:00:00 -:--:--" in line


@pytest.fixture
def heard_hangup() -> Iterator[None]:
    """SIGHUP ends this process, also where the tests were started by ``nohup``."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("heard_hangup")
def test_a_hangup_is_a_signal_to_end() -> None:
    with pytest.raises(Interrupted, match="SIGHUP") as caught, interruptible():
        signal.raise_signal(signal.SIGHUP)
    assert caught.value.exit_code == 129


@pytest.mark.usefixtures("heard_hangup")
def test_a_hangup_waits_for_what_must_be_whole() -> None:
    is_whole = False
    with (
        pytest.raises(Interrupted, match="SIGHUP"),
        interruptible(),
        deferred_signals() as is_pending,
    ):
        signal.raise_signal(signal.SIGHUP)
        is_whole = is_pending()
    assert is_whole


def test_nohup_is_obeyed() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(), deferred_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


# --------------------------------------------------------------------------- whole commands


def runs_of(uri: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments))


def shell(project: Project, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in the project, in which ``python`` is this interpreter."""
    # its path may hold a space
    python = 'python() { "$PYTHON" "$@"; }'
    return subprocess.run(
        ["bash", "-c", f"{python}; {line}; exit ${{PIPESTATUS[0]}}"],
        cwd=project.root,
        env={**project.environment, "PYTHON": sys.executable, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # what another encoding writes
        check=False,
    )


@pytest.mark.reliability
@pytest.mark.parametrize("redirected", [">&- 2>&-", "2>&1 | head -1"])
def test_a_run_is_kept_that_nobody_listens_to(
    redirected: str, project: Project, typed_store: str
) -> None:
    words = " ".join(SMALL)
    done = shell(
        project, f"python src/run.py {words} {redirected}", MLFLOW_TRACKING_URI=typed_store
    )
    (run,) = runs_of(typed_store)
    assert run.info.status == "FINISHED" and "val_accuracy" in run.data.metrics
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.reliability
def test_a_multirun_is_kept_on_a_terminal_of_ascii(project: Project, typed_store: str) -> None:
    words = " ".join(["-m", "model.filters=2,4", *SMALL])
    done = shell(
        project,
        f"python src/run.py {words}",
        MLFLOW_TRACKING_URI=typed_store,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0 and done.stdout.isascii()
    assert "Comparison on the validation images" in done.stdout
    assert [run.info.status for run in runs_of(typed_store)] == ["FINISHED"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_plan_is_shown_on_any_terminal(encoding: str, project: Project) -> None:
    done = shell(
        project,
        f"python sweeps/optuna_search.py --plan {' '.join(SMALL)}",
        PYTHONIOENCODING=encoding,
    )
    assert done.returncode == 0 and "Plan of study" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_refusal_to_predict_is_shown_on_any_terminal(
    encoding: str, project: Project, tmp_path: Path, typed_store: str
) -> None:
    done = shell(
        project,
        f"python src/predict.py '{tmp_path}/…×–.png'",
        PYTHONIOENCODING=encoding,
        MLFLOW_TRACKING_URI=typed_store,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("every path must exist")


@pytest.mark.reliability
def test_a_terminal_that_is_closed_ends_a_command_as_killed(
    project: Project, typed_store: str
) -> None:
    """A real terminal: its end is a SIGHUP to all in it, and an error to all that write to it."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "src/run.py", "-m", "model.filters=2,4", *LONG],
        cwd=project.root,
        env={**project.environment, "MLFLOW_TRACKING_URI": typed_store},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = b""
    while b"val_accuracy" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    runs = runs_of(typed_store)
    assert runs and {run.info.status for run in runs} == {"KILLED"}


@pytest.mark.reliability
def test_a_hangup_of_everyone_ends_a_multirun_as_killed(project: Project, typed_store: str) -> None:
    words = ["-m", "model.filters=2,4", "workers=1", *LONG]
    command = project.fork(*words, MLFLOW_TRACKING_URI=typed_store)
    command.wait_for("epoch")
    os.killpg(command.process.pid, signal.SIGHUP)
    done = command.finish()
    assert done.code == 128 + signal.SIGHUP
    assert "stopped by SIGHUP" in done.err and "Traceback" not in done.err
    runs = runs_of(typed_store)
    assert {run.info.status for run in runs} == {"KILLED"} and len(runs) == 2
