"""Where runs are kept: the tracking URI, whether it can be reached, and its creation. Imports MLflow only to create."""

from __future__ import annotations

import os
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from digit_study.config.compose import ROOT
from digit_study.terminal.errors import StudyError
from digit_study.terminal.redaction import without_password, without_secrets

ARTIFACTS = ROOT / "mlruns"
OUTBOX = ARTIFACTS / ".outbox"
REACHABLE_WITHIN_S = 0.8
#: Packages of database drivers whose module has another name.
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
#: Of several machines that create the same tables at the same moment one succeeds; the others find them there later.
TABLE_ATTEMPTS, TABLE_PAUSE_S = 5, 1.0
T = TypeVar("T")


def tracking_uri(configured: str | None) -> str:
    """``configured``, else MLFLOW_TRACKING_URI, else the sqlite database at the root that ``mlflow ui`` opens."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def check_store(uri: str, key: str = "tracking.uri") -> None:
    """Make sure that results can be kept at ``uri``, without creating anything.

    Raises:
        StudyError: it cannot be written or reached, or it is no such store.
    """
    scheme = uri.partition(":")[0] if "://" in uri else ""  # urlsplit raises on what is no host
    if scheme in ("http", "https"):
        _check_server(uri, key)
    elif scheme == "sqlite":
        _check_sqlite(Path(uri.removeprefix("sqlite:///")), uri, key)
    elif scheme.split("+")[0] in ("postgresql", "mysql", "mssql"):
        _check_database(uri, key)
    elif scheme != "databricks":
        raise StudyError(
            f"`{key}` must be a sqlite:///, http(s):// or database URI, got '{without_password(uri)}': "
            "leave it null for ./mlflow.db"
        )


def _check_server(uri: str, key: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACHABLE_WITHIN_S):
            return
    except urllib.error.HTTPError as error:
        if error.code in (
            401,
            403,
        ):  # it is there, and asks who we are: MLflow's own client brings the credentials
            return
        why = f"it answers {error.code} to /health, so it is no MLflow server"
    except (OSError, ValueError, HTTPException) as error:
        why = f"no answer ({getattr(error, 'reason', error)})"
    raise StudyError(
        f"`{key}` must be an MLflow server that answers, got '{without_password(uri)}': {why}; "
        "start it, or leave the key null for ./mlflow.db"
    )


def _check_sqlite(path: Path, uri: str, key: str) -> None:
    in_memory = not uri.startswith("sqlite:///") or path.name == ":memory:"
    why = "it would be gone with the process" if in_memory else _sqlite_flaw(path)
    if why:
        raise StudyError(f"`{key}` must be a sqlite database file that can be written, got '{uri}': {why}")


def _sqlite_flaw(path: Path) -> str | None:
    if path.is_dir():
        return "that is a directory"
    if path.exists():
        return _not_a_database(path)
    if not path.parent.is_dir():
        return f"the directory {path.parent} does not exist: make it first"
    return None if _can_write(path.parent) else f"the directory {path.parent} cannot be written"


def _can_write(directory: Path) -> bool:
    """Whether a file can really be made there: permission bits do not tell for root, /proc or a read-only mount."""
    probe = directory / f".digit-study-probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database that is there; one that is not is not made."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)


def _not_a_database(path: Path) -> str | None:
    try:
        with closing(_connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE").close()
            connection.execute("ROLLBACK").close()
            connection.execute("SELECT count(*) FROM sqlite_master").close()
    except sqlite3.OperationalError as error:
        # another run writing at this moment is no fault
        return None if "locked" in str(error) else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    return None


def _check_database(uri: str, key: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        create_engine(uri, connect_args=_within_seconds(uri)).connect().close()
    except ImportError as error:
        package = DRIVERS.get(str(error.name), error.name)
        raise StudyError(
            f"`{key}` must be a database whose driver is installed, got '{without_password(uri)}': {error}; "
            f"python -m pip install '{package}'"
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        why = without_secrets(str(error), uri)
        raise StudyError(f"`{key}` must be a database that answers, got '{without_password(uri)}': {why}") from None


def _within_seconds(uri: str) -> dict[str, Any]:
    """Else a host that drops packets is waited for by the minute."""
    return {"connect_timeout": 5} if uri.startswith(("postgresql", "mysql")) else {}


def look(uri: str) -> str:
    """The command, or the address, that shows the store at ``uri`` in a browser."""
    if uri.startswith("http"):
        return without_password(uri)
    is_default = uri == f"sqlite:///{ROOT / 'mlflow.db'}"
    return "mlflow ui" if is_default else f"mlflow ui --backend-store-uri '{without_password(uri)}'"


def prepare_store(uri: str) -> None:
    """Create or migrate the store at ``uri``, once, however many processes ask at the same moment."""
    import logging

    from filelock import FileLock

    quiet_mlflow()
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # it logs a traceback when a signal ends a query; what matters is raised too
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    if urllib.parse.urlsplit(uri).scheme in ("http", "https", "databricks"):
        return
    ARTIFACTS.mkdir(exist_ok=True)
    # MLflow's migrations take no lock of their own: of four that start together three crash
    with FileLock(ARTIFACTS / ".store.lock"):
        create_sqlite(uri, _create_tables)
        with_tables(lambda: mlflow.MlflowClient(uri).search_experiments(max_results=1), not uri.startswith("sqlite:"))


def with_tables(open_store: Callable[[], T], is_shared: bool) -> T:
    """Open what creates its tables where they are missing; where machines share it, again until that has settled."""
    for _ in range(TABLE_ATTEMPTS - 1 if is_shared else 0):
        try:
            return open_store()
        except Exception:  # the last attempt's is raised
            time.sleep(TABLE_PAUSE_S)
    return open_store()


def _create_tables(uri: str) -> None:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()


def is_missing(uri: str) -> bool:
    """Whether ``uri`` is of a sqlite file that does not exist yet."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def require_store(uri: str, rule: str, remedy: str) -> None:
    """Make sure that a store is there already, for MLflow would create an empty one.

    Args:
        uri: of the store.
        rule: what must be so for there to be one.
        remedy: what makes it so.

    Raises:
        StudyError: it is not there, or cannot be reached.
    """
    check_store(uri)
    if is_missing(uri):
        file = Path(uri.removeprefix("sqlite:///"))
        raise StudyError(
            f"{rule}, but there is no database at '{file}': {remedy}, or name the store with tracking.uri=…"
        )


def require_run(uri: str, run_id: str, key: str) -> None:
    """Make sure that a sqlite store that is there holds a run, before MLflow is imported; other stores are asked later.

    Args:
        uri: of the store.
        run_id: of the run.
        key: what the person set to ``run_id``.

    Raises:
        StudyError: it does not.
    """
    if not uri.startswith("sqlite:///") or is_missing(uri):
        return
    try:
        with closing(_connect(Path(uri.removeprefix("sqlite:///")))) as connection:
            is_known = connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    except sqlite3.DatabaseError:  # locked, or of another version: MLflow says what there is to say
        return
    if not is_known:
        raise unknown_run(uri, run_id, key)


def unknown_run(uri: str, run_id: str, key: str) -> StudyError:
    """What to say of a run id that a store does not know."""
    return StudyError(
        f"`{key}` must be the id of a run, got '{run_id}', which is unknown: see the ids with `{look(uri)}`"
    )


def create_sqlite(uri: str, create: Callable[[str], None]) -> None:
    """Create the sqlite file of ``uri`` if it is missing: beside its place first, so that it is whole or not there.

    Its journal is a write-ahead log: half the waiting for the disk, and readers and writers do not block each other.
    """
    if not is_missing(uri):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    new = path.with_name(f".{path.name}.new")  # only one process is here at a time: what lies there is left over
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    create(f"sqlite:///{new}")
    connection = sqlite3.connect(new)
    connection.execute("PRAGMA journal_mode=WAL").close()
    connection.close()
    new.replace(path)


def quiet_mlflow() -> None:
    """Settings of a good guest, unless the user set them: no telemetry, no minutes of retries, no progress bars."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
