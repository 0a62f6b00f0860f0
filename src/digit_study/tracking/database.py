"""The database or server that holds runs: whether it answers, its creation. Imports MLflow late."""

import atexit
import base64
import logging
import os
import sqlite3
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from digit_study.support import scratch
from digit_study.support.errors import StudyError
from digit_study.support.redaction import without_password, without_secrets
from digit_study.support.sqlite import SQLITE, connect, sqlite_path, sqlite_uri
from digit_study.support.workspace import Workspace
from digit_study.tracking import location
from digit_study.tracking.location import is_server, store_uri
from digit_study.tracking.relocation import follow_project

#: Packages of database drivers whose module has another name.
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
#: Seconds in which a server or a database that is asked whether it is there must answer.
ANSWERS_WITHIN_S = 6
#: Attempts to create tables in a database that several machines share: of those that create them
#: at the same moment one succeeds, and the others find them there later.
TABLE_ATTEMPTS = 5
#: Seconds between two of these attempts.
TABLE_PAUSE_S = 1.0
#: Endings of the files beside a database in which sqlite keeps what is not in it yet.
LOG_ENDINGS = ("-wal", "-shm", "-journal")
#: HTTP status codes of a server that wants to know who asks: MLflow's client has the credentials.
ASKS_WHO = (401, 403)
#: The lowest level at which a library may log, by logger. Below it are tracebacks when a signal
#: ends a query or the disk is full, and every repetition: what matters is raised too.
LOG_LEVELS = {
    "alembic": "WARNING",
    "mlflow": "WARNING",
    "sqlalchemy.pool": "CRITICAL",
    "mlflow.store.db": "CRITICAL",
    "urllib3.connectionpool": "ERROR",
}
#: Settings of MLflow and its libraries, unless the user set them: no telemetry, no minutes of
#: retries, no progress bars.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why nothing can be kept at a URI."""

    #: What must be there instead, as a noun.
    rule: str
    #: What was found, and the remedy.
    reason: str


def check_store(uri: str, key: str = "tracking.uri") -> None:
    """Make sure that results can be kept at a URI, without creating anything.

    Args:
        uri: URI of a tracking store, or of a database.
        key: The config key that was set to it, for the message.

    Raises:
        StudyError: If they cannot.
    """
    if not is_server(uri):
        _check_environment()
    problem = _problem_of(uri)
    if problem is None:
        return
    is_from_environment = key == "tracking.uri" and uri == os.environ.get("MLFLOW_TRACKING_URI")
    if is_from_environment:
        key = "MLFLOW_TRACKING_URI"
    wrong = f"`{key}` must be {problem.rule}, got '{without_password(uri)}'"
    raise StudyError(f"{wrong}: {problem.reason}")


def _check_environment() -> None:
    """Make sure that MLflow's migrations of databases can be used; raises StudyError.

    They lie in the Python environment, and their tool takes a percent sign for its own.
    """
    if "%" in sys.prefix:
        rule = "the Python environment must lie in a folder without %, for MLflow"
        remedy = "make it in another folder, or rename this one and make it anew"
        raise StudyError(f"{rule}, got '{sys.prefix}': {remedy}")


def _problem_of(uri: str) -> Problem | None:
    """Return what is wrong with the store at ``uri``, found out by asking it."""
    # urlsplit raises on what is no host
    scheme = uri.partition(":")[0] if "://" in uri else ""
    kind = scheme.split("+")[0]
    if kind in ("http", "https"):
        return _server_problem(uri)
    if scheme == "sqlite":
        reason = _sqlite_problem(uri)
        if reason is None:
            return None
        return Problem("a sqlite database file that can be written", reason)
    if kind in ("postgresql", "mysql", "mssql"):
        return _database_problem(uri, kind)
    if scheme == "databricks":
        return None
    return Problem("a sqlite:///, http(s):// or database URI", "leave it out for ./mlflow.db")


def _server_problem(uri: str) -> Problem | None:
    rule = "an MLflow server that answers"
    remedy = "start it, or leave the address out for ./mlflow.db"
    # One request that is not repeated needs no session, and `requests` takes 0.15 s to import. What
    # follows takes a hundredth of a second, which no typo should wait for.
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        request = Request(_health_address(uri), headers=_credentials(uri))
        urlopen(request, timeout=ANSWERS_WITHIN_S).close()
    except HTTPError as error:
        if error.code in ASKS_WHO:
            return None
        reason = f"it answers {error.code} to /health, so it is no MLflow server; {remedy}"
        return Problem(rule, reason)
    except (OSError, ValueError, HTTPException) as error:
        return Problem(rule, f"no answer ({getattr(error, 'reason', error)}); {remedy}")
    return None


def _health_address(uri: str) -> str:
    """Return where a server says whether it is well, without the credentials of its URI."""
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    path = f"{parts.path.rstrip('/')}/health"
    return urllib.parse.urlunsplit((parts.scheme, host, path, "", ""))


def _credentials(uri: str) -> dict[str, str]:
    """Return the header of the user and the password that a URI has; none where it has none."""
    credentials = urllib.parse.urlsplit(uri).netloc.rpartition("@")[0]
    if not credentials:
        return {}
    plain = urllib.parse.unquote(credentials).encode()
    return {"Authorization": f"Basic {base64.b64encode(plain).decode()}"}


def _version_problem(revisions: Sequence[str]) -> str | None:
    """Return why a database of MLflow cannot be used by the MLflow that is installed.

    Args:
        revisions: What its table ``alembic_version`` holds.
    """
    package = find_spec("mlflow")  # which does not import it
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0], "store", "db_migrations", "versions")
    known = {path.name.partition("_")[0] for path in folder.glob("*.py")}
    if not known or known.issuperset(revisions):
        return None
    from importlib.metadata import version

    return (
        f"it was written by a newer MLflow than {version('mlflow')}, which is installed here: "
        "use that one, or name another store with tracking.uri=…"
    )


def _database_problem(uri: str, kind: str) -> Problem | None:
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError

    options: dict[str, int] = {}
    if kind != "mssql":  # without this a host that drops packets is waited for by the minute
        options["connect_timeout"] = ANSWERS_WITHIN_S
    try:
        engine = create_engine(uri, connect_args=options)
        with engine.connect() as connection:
            names = inspect(connection).get_table_names()
            revisions: Sequence[Any] = []
            if {"alembic_version", "experiments"} <= set(names):
                revisions = connection.execute(
                    text("SELECT version_num FROM alembic_version")
                ).all()
        engine.dispose()
    except ImportError as error:
        package = DRIVERS.get(str(error.name), error.name)
        rule = "a database whose driver is installed"
        return Problem(rule, f"{error}; python -m pip install '{package}'")
    except (SQLAlchemyError, ValueError) as error:
        return Problem("a database that answers", without_secrets(str(error), uri))
    reason = _version_problem([str(revision) for (revision,) in revisions])
    if reason is not None:
        return Problem("a database of this MLflow or an older one", reason)
    return None


def _sqlite_problem(uri: str) -> str | None:
    path = sqlite_path(uri)
    if not uri.startswith(SQLITE) or path.name == ":memory:":
        return "it would be gone with the process"
    if path.is_dir():
        return "that is a directory"
    if path.exists():
        return _file_problem(uri)
    if not path.parent.is_dir():
        return f"the directory {path.parent} does not exist: make it first"
    # permission bits say nothing about root, /proc or a read-only mount: a file must be made
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError:
        return f"the directory {path.parent} cannot be written"
    return None


def _file_problem(uri: str) -> str | None:
    """Return why a sqlite file that exists cannot be written."""
    try:
        with closing(connect(sqlite_path(uri))) as connection:
            connection.execute("BEGIN IMMEDIATE").close()
            connection.execute("ROLLBACK").close()
            tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
            revisions: list[tuple[str]] = []
            if ("alembic_version",) in tables and ("experiments",) in tables:
                revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):  # another run writes at this moment
            return None
        return str(error)
    return _version_problem([str(revision) for (revision,) in revisions])


def is_missing(uri: str) -> bool:
    """Return whether a URI is that of a sqlite file that does not exist yet."""
    return uri.startswith(SQLITE) and not sqlite_path(uri).exists()


def require_store(configured: str | None, rule: str, remedy: str, workspace: Workspace) -> str:
    """Return the URI of a store that exists: MLflow would create an empty one.

    Args:
        configured: The URI of the config, or None for the usual store.
        rule: What must hold, for the message.
        remedy: What to do first, for the message.
        workspace: Whose store is the usual one.

    Raises:
        StudyError: If there is no store, or it does not answer.
    """
    uri = store_uri(configured, workspace)
    check_store(uri)
    if is_missing(uri):
        reason = f"there is no database at '{sqlite_path(uri)}'"
        raise StudyError(f"{rule}, but {reason}: {remedy}, or name the store with tracking.uri=…")
    follow_project(uri, workspace)
    _remove_stray_folder_at_exit(uri)
    return uri


def require_run(uri: str, run_id: str, key: str, workspace: Workspace) -> None:
    """Make sure that a sqlite store holds a run; no other store is asked, and MLflow not needed.

    Args:
        uri: URI of the store.
        run_id: What a person gave.
        key: The config key that was set to it, for the message.
        workspace: Whose store is the usual one.

    Raises:
        StudyError: If it does not.
    """
    if not uri.startswith(SQLITE):
        return
    # a database that is missing, locked or of another version: MLflow says later what is wrong
    with suppress(sqlite3.DatabaseError), closing(connect(sqlite_path(uri))) as connection:
        if not connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone():
            raise unknown_run(uri, run_id, key, workspace)


def unknown_run(uri: str, run_id: str, key: str, workspace: Workspace) -> StudyError:
    """Return the error for a run id that a store does not know."""
    wrong = f"`{key}` must be the id of a run, got '{run_id}', which is unknown"
    return StudyError(f"{wrong}: see the ids with `{location.view_command(uri, workspace)}`")


def restore_command(
    uri: str, kind: Literal["run", "experiment"], deleted_id: str, workspace: Workspace
) -> str:
    """Return the command that restores a deleted run or experiment.

    Args:
        uri: URI of the store.
        kind: Which of the two it is.
        deleted_id: Its id.
        workspace: Whose store is the usual one.
    """
    command = f"mlflow {kind}s restore --{kind}-id {deleted_id}"
    if uri == workspace.default_store:
        return command
    return f"MLFLOW_TRACKING_URI={location.quoted(uri)} {command}"


def create_store(uri: str, workspace: Workspace) -> None:
    """Create or migrate the tables of a store, once, however many processes ask.

    A server has created its own.
    """
    quiet_mlflow()
    import mlflow

    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    scratch.use_scratch(workspace)
    if is_server(uri):
        return
    from digit_study.tracking._mlflow import create_tables

    follow_project(uri, workspace)
    _remove_stray_folder_at_exit(uri)
    # MLflow's migrations take no lock of their own: of four that start together three crash
    with workspace.lock(".store.lock"):
        default_artifacts = (workspace.artifacts / "0").as_uri()
        if uri.startswith(SQLITE):
            create_sqlite(uri, lambda new: create_tables(new, default_artifacts))
            atexit.register(empty_log, uri)
        else:
            with_tables(lambda: create_tables(uri, default_artifacts), is_shared=True)
        mlflow.MlflowClient(uri).search_experiments(max_results=1)


def _remove_stray_folder_at_exit(uri: str) -> None:
    """Let the command, at its end, remove an empty folder that MLflow makes by mistake.

    MLflow makes the folder that a sqlite file lies in. SQLAlchemy decodes the file's URI and MLflow
    does not, so that a second folder is made, with the encoded name.
    """
    encoded = Path(uri.removeprefix(SQLITE)).parent
    if uri.startswith(SQLITE) and encoded != sqlite_path(uri).parent:
        atexit.register(_remove_if_empty, encoded)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not there, or in use
        folder.rmdir()


def with_tables(
    open_store: Callable[[], T], *, is_shared: bool, pause_s: float = TABLE_PAUSE_S
) -> T:
    """Open what creates its tables where they are missing.

    Args:
        open_store: Opens it.
        is_shared: Whether other machines may create the tables too; then it is opened again
            after a failure, until one of them has.
        pause_s: Seconds between two attempts.

    Returns:
        What ``open_store`` returns. The failure of the last attempt is raised.
    """
    attempts = TABLE_ATTEMPTS if is_shared else 1
    for _ in range(attempts - 1):
        try:
            return open_store()
        except Exception:
            time.sleep(pause_s)
    return open_store()


def create_sqlite(uri: str, create: Callable[[str], None]) -> None:
    """Create the sqlite file of a URI if it is missing.

    It is created under another name first, so that it is whole or not there. Only one process may
    do so at a time: files of that name are leftovers.

    Args:
        uri: URI of the file; others are ignored.
        create: Creates the tables in the file at a URI.
    """
    if not is_missing(uri):
        return
    path = sqlite_path(uri)
    new = path.with_name(f".{path.name}.new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    # whoever deletes a database leaves its log, which sqlite would apply to the new one
    for ending in LOG_ENDINGS:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    create(sqlite_uri(new))
    # a write-ahead log halves the waiting for the disk; readers and writers do not block each other
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=WAL").close()
    new.replace(path)


def empty_log(uri: str) -> None:
    """Move what sqlite's log holds into the database, so that its file alone can be copied.

    sqlite does this itself when the last connection is closed, but MLflow leaves its connections
    open. While another process uses the database, what it needs stays in the log; that process
    empties it when it ends.

    Args:
        uri: URI of the database; nothing happens where there is none.
    """
    with suppress(sqlite3.Error), closing(connect(sqlite_path(uri), locked_for=0.0)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()


def quiet_mlflow() -> None:
    """Set the environment variables of `SETTINGS` that the user has not set."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
