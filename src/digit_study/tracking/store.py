"""A tracking store as MLflow's client sees it, and the workspace that spools runs for it."""

import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import mlflow
from mlflow.entities import RunInfo
from mlflow.exceptions import MlflowException

from digit_study.support.errors import StudyError
from digit_study.support.signals import deferred_signals
from digit_study.support.workspace import Workspace
from digit_study.tracking import location
from digit_study.tracking.database import restore_command

#: What a store that cannot be reached raises, over HTTP, from a database or from the file system.
StoreFault = (MlflowException, OSError)
#: Questions that a server is asked at a time: each waits for its answer.
AT_A_TIME = 16
#: Lets MLflow's page of an experiment open with runs and their metrics, not with what it has for
#: language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
#: What databases say of a row that another process has just inserted: sqlite and PostgreSQL, SQL
#: Server (the next two), MySQL.
COLLISIONS = (
    "unique constraint",
    "unique key constraint",
    "primary key constraint",
    "duplicate entry",
)
T = TypeVar("T")
U = TypeVar("U")


def _insert(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what inserts rows; call again if another process inserted one at the same moment."""
    try:
        return call(*args, **kwargs)
    except MlflowException as fault:
        text = str(fault).lower()
        if not any(words in text for words in COLLISIONS):
            raise
        return call(*args, **kwargs)


class StoreClient(mlflow.MlflowClient):
    """MLflow's client, several of which may write to a run at the same moment.

    MLflow looks whether a tag or a dataset is there, and inserts it if not. Another process may
    insert it between the two. The second attempt finds it there.
    """

    def log_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Log metrics, params and tags of a run."""
        return _insert(super().log_batch, *args, **kwargs)

    def log_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Log the datasets of a run."""
        return _insert(super().log_inputs, *args, **kwargs)

    def set_tag(self, *args: Any, **kwargs: Any) -> Any:
        """Set a tag of a run."""
        return _insert(super().set_tag, *args, **kwargs)

    def set_experiment_tag(self, *args: Any, **kwargs: Any) -> Any:
        """Set a tag of an experiment."""
        return _insert(super().set_experiment_tag, *args, **kwargs)


class DatabaseClient(StoreClient):
    """MLflow's client of a database, during whose calls a signal waits.

    An exception in a transaction would leave the database locked.
    """

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        return deferred_signals()(found)


@dataclass(frozen=True)
class RunLocation:
    """Where a run is; it never changes."""

    #: Id of its experiment.
    experiment: str
    #: URI of its artifacts.
    artifacts: str


class Store:
    """One tracking store, and the workspace that spools runs for it."""

    def __init__(self, uri: str, workspace: Workspace) -> None:
        """Name the store; it is not asked yet.

        Args:
            uri: URI of the store.
            workspace: Where runs are spooled on this machine.
        """
        self.uri = uri
        self.workspace = workspace
        self._experiment_ids: dict[str, str] = {}
        self._locations: dict[str, RunLocation] = {}

    @property
    def is_server(self) -> bool:
        """Return whether it is an MLflow server, which takes many requests at a time."""
        return location.is_server(self.uri)

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client of the store. A server's calls may end at any moment."""
        if self.is_server:
            return StoreClient(self.uri)
        return DatabaseClient(self.uri)

    @property
    def view_command(self) -> str:
        """Return the command, or the address, that shows the store in a browser."""
        return location.view_command(self.uri, self.workspace)

    def experiment_id(self, name: str) -> str:
        """Find or create an experiment.

        Its artifacts lie in the workspace, unless a server decides where.

        Args:
            name: Name of the experiment.

        Returns:
            Its id.

        Raises:
            StudyError: If it was deleted.
        """
        if name not in self._experiment_ids:
            self._experiment_ids[name] = self._find_or_create(name)
        return self._experiment_ids[name]

    def _find_or_create(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = None
            if not self.is_server:
                folder = urllib.parse.quote(name, safe=" ")
                place = (self.workspace.artifacts / folder).as_uri()
            try:
                return str(self.client.create_experiment(name, place, EXPERIMENT_TAGS))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:  # so no other process was faster
                    raise
        if found.lifecycle_stage == "active":
            return str(found.experiment_id)
        command = restore_command(self.uri, "experiment", found.experiment_id, self.workspace)
        raise StudyError(
            f"`tracking.experiment` must be an active experiment, got '{name}', which is deleted: "
            f"choose another name, or restore it with `{command}`"
        )

    def location(self, run_id: str, known: RunInfo | None = None) -> RunLocation:
        """Return where a run is.

        Args:
            run_id: Id of the run.
            known: What MLflow said of the run; without it the store is asked, once.
        """
        if run_id not in self._locations:
            info = known or self.client.get_run(run_id).info
            found = RunLocation(str(info.experiment_id), str(info.artifact_uri))
            self._locations[run_id] = found
        return self._locations[run_id]

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment that a run is in."""
        return self.location(run_id).experiment

    def each(self, ask: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """Return what ``ask`` returns for every item, in order; a server is asked concurrently."""
        if not self.is_server:
            return [ask(item) for item in items]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return list(pool.map(ask, items))
