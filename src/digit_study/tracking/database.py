"""Where results are kept: URIs, whether a store answers, its creation, scratch and model files. Imports MLflow late."""

import logging
import os
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from digit_study.config.compose import ROOT
from digit_study.config.run import Config
from digit_study.support import scratch
from digit_study.support.messages import StudyError, without_password, without_secrets
from digit_study.support.workspace import Workspace

ARTIFACTS = ROOT / "mlruns"
OUTBOX = ARTIFACTS / ".outbox"
#: How the URI of a server begins, which creates its own tables and says where artifacts go.
SERVERS = ("http:", "https:", "databricks:")
#: Packages of database drivers whose module has another name.
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
#: Seconds in which a server or database that is asked whether it is there must answer; slow ones take two.
ANSWERS_WITHIN_S = 6
#: Of several machines that create the same tables at the same moment one succeeds; the others find them there later.
TABLE_ATTEMPTS, TABLE_PAUSE_S = 5, 1.0
#: What may be heard of libraries, by logger.
QUIET = {
    "alembic": "WARNING", "mlflow": "WARNING", "sqlalchemy.pool": "CRITICAL", "mlflow.store.db": "CRITICAL",
    "urllib3.connectionpool": "ERROR",
}  # fmt: skip
EXPERIMENT = REGISTERED_NAME = "digit-recognizer"
CHAMPION_URI = f"models:/{REGISTERED_NAME}@champion"
NAMED = f"{CHAMPION_URI}, models:/{REGISTERED_NAME}/3, runs:/<run id>/model or a .keras file"
T = TypeVar("T")


def tracking_uri(configured: str | None) -> str:
    """``configured``, else MLFLOW_TRACKING_URI, else the sqlite database at the root that ``mlflow ui`` opens."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def experiment_name(config: Config, dataset: str) -> str:
    """Name of the experiment: as configured, else ``digit-recognizer``, with other data's name appended."""
    return config.tracking.experiment or (
        EXPERIMENT if dataset == "mnist" else f"{EXPERIMENT}-{dataset}"
    )


def view_command(uri: str) -> str:
    """The command, or the address, that shows the store at ``uri`` in a browser."""
    if uri.startswith("http"):
        return without_password(uri)
    own = uri == f"sqlite:///{ROOT / 'mlflow.db'}"
    return "mlflow ui" if own else f"mlflow ui --backend-store-uri '{without_password(uri)}'"


def check_store(uri: str, key: str = "tracking.uri") -> None:
    """Make sure that results can be kept at ``uri``, without creating anything; raises StudyError if they cannot."""
    scheme = uri.partition(":")[0] if "://" in uri else ""  # urlsplit raises on what is no host
    if scheme in ("http", "https"):
        rule, why, remedy = (
            "an MLflow server that answers",
            None,
            "start it, or leave the address out for ./mlflow.db",
        )
        # urllib: one request that is not repeated needs no session, and `requests` takes 0.15 s to import
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWERS_WITHIN_S).close()
        except urllib.error.HTTPError as error:
            if error.code not in (
                401,
                403,
            ):  # which ask who we are: MLflow's own client brings the credentials
                why = f"it answers {error.code} to /health, so it is no MLflow server; {remedy}"
        except (OSError, ValueError, HTTPException) as error:
            why = f"no answer ({getattr(error, 'reason', error)}); {remedy}"
    elif scheme == "sqlite":
        rule, why = "a sqlite database file that can be written", _sqlite_problem(uri)
    elif scheme.split("+")[0] in ("postgresql", "mysql", "mssql"):
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        rule, why = "a database that answers", None
        # else a host that drops packets is waited for by the minute
        options = {} if scheme.startswith("mssql") else {"connect_timeout": ANSWERS_WITHIN_S}
        try:
            create_engine(uri, connect_args=options).connect().close()
        except ImportError as error:
            rule, package = (
                "a database whose driver is installed",
                DRIVERS.get(str(error.name), error.name),
            )
            why = f"{error}; python -m pip install '{package}'"
        except (SQLAlchemyError, ValueError) as error:
            why = without_secrets(str(error), uri)
    elif scheme == "databricks":
        return
    else:
        rule, why = "a sqlite:///, http(s):// or database URI", "leave it out for ./mlflow.db"
    if why:
        named = (
            "MLFLOW_TRACKING_URI"
            if (key, uri) == ("tracking.uri", os.environ.get("MLFLOW_TRACKING_URI"))
            else key
        )
        raise StudyError(f"`{named}` must be {rule}, got '{without_password(uri)}': {why}")


def _sqlite_problem(uri: str) -> str | None:
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.name == ":memory:":
        return "it would be gone with the process"
    if path.is_dir():
        return "that is a directory"
    if path.exists():
        try:
            with closing(_connect(uri)) as connection:
                for statement in (
                    "BEGIN IMMEDIATE",
                    "ROLLBACK",
                    "SELECT count(*) FROM sqlite_master",
                ):
                    connection.execute(statement).close()
        except sqlite3.DatabaseError as error:
            if "locked" not in str(error):  # another run that writes at this moment is no fault
                return str(error)
    elif not path.parent.is_dir():
        return f"the directory {path.parent} does not exist: make it first"
    else:  # permission bits do not tell for root, /proc or a read-only mount: a file must really be made
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError:
            return f"the directory {path.parent} cannot be written"
    return None


def _connect(uri: str) -> sqlite3.Connection:
    """Open a sqlite database that is there; one that is not is not made, and no other is opened."""
    path = Path(uri.removeprefix("sqlite:///"))
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)


def is_missing(uri: str) -> bool:
    """Whether ``uri`` is of a sqlite file that does not exist yet."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def require_store(configured: str | None, rule: str, remedy: str) -> str:
    """The :func:`tracking_uri` of a store that is there, for MLflow would create an empty one; StudyError if not."""
    uri = tracking_uri(configured)
    check_store(uri)
    if is_missing(uri):
        where = f"there is no database at '{uri.removeprefix('sqlite:///')}'"
        raise StudyError(f"{rule}, but {where}: {remedy}, or name the store with tracking.uri=…")
    return uri


def require_run(uri: str, run_id: str, key: str) -> None:
    """Raise :func:`unknown_run` if a sqlite store does not hold a run; needs no MLflow, and asks no other store."""
    # missing, locked, or of another version: MLflow says later what there is to say
    with suppress(sqlite3.DatabaseError), closing(_connect(uri)) as connection:
        if not connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone():
            raise unknown_run(uri, run_id, key)


def unknown_run(uri: str, run_id: str, key: str) -> StudyError:
    """What to say of a run id that a store does not know."""
    wrong = f"`{key}` must be the id of a run, got '{run_id}', which is unknown"
    return StudyError(f"{wrong}: see the ids with `{view_command(uri)}`")


def prepare_store(uri: str) -> None:
    """Create or migrate the store at ``uri``, once, however many processes ask, and send it what is kept for it."""
    quiet_mlflow()
    import mlflow

    # tracebacks when a signal ends a query or the disk is full, and every repetition: what matters is raised too
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    use_scratch()
    if not uri.startswith(SERVERS):
        from digit_study.tracking._mlflow import create_tables

        # MLflow's migrations take no lock of their own: of four that start together three crash
        with FileLock(ARTIFACTS / ".store.lock"):
            is_shared = not uri.startswith("sqlite:")
            create_sqlite(uri, create_tables)
            with_tables(
                lambda: mlflow.MlflowClient(uri).search_experiments(max_results=1), is_shared
            )
    send_kept(uri)


def send_kept(uri: str) -> None:
    """Send what earlier commands could not; without any of that nothing is imported."""
    if OUTBOX.is_dir() and any(OUTBOX.glob("[!.]*")):
        from digit_study.tracking.uploader import deliver

        deliver(uri)


def with_tables(open_store: Callable[[], T], is_shared: bool) -> T:
    """Open what creates its tables where they are missing; where machines share it, again until that has settled."""
    for _ in range(TABLE_ATTEMPTS - 1 if is_shared else 0):
        try:
            return open_store()
        except Exception:  # the last attempt's is raised
            time.sleep(TABLE_PAUSE_S)
    return open_store()


def create_sqlite(uri: str, create: Callable[[str], None]) -> None:
    """Create the sqlite file of ``uri`` if it is missing: beside its place first, so that it is whole or not there."""
    if not is_missing(uri):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    new = path.with_name(
        f".{path.name}.new"
    )  # only one process is here at a time: what lies there is left over
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    create(f"sqlite:///{new}")
    # a write-ahead log: half the waiting for the disk, and readers and writers do not block each other
    with closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=WAL").close()
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


def use_scratch() -> Path:
    """Use the project's scratch folder."""
    return scratch.use_scratch(Workspace.of_project())
