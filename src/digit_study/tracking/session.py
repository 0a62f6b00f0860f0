"""A tracking store as a command uses it: opened once, then everything that is recorded goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import mlflow
import pandas as pd
from mlflow.entities import Run

from digit_study.config.run_config import Config
from digit_study.stats.metrics import Evaluation
from digit_study.support.workspace import Workspace
from digit_study.tracking import database, queries, runs, views
from digit_study.tracking.runs import RunLog
from digit_study.tracking.uploader import BackgroundUploader

T = TypeVar("T")
U = TypeVar("U")


class Tracker:
    """One tracking store, and what is spooled for it on this machine.

    What is recorded is on disk first, and uploaded exactly once, whatever is killed.
    """

    def __init__(
        self, uri: str, workspace: Workspace, uploader: BackgroundUploader | None = None
    ) -> None:
        self.uri = uri
        self.workspace = workspace
        self._uploader = uploader

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client of the store."""
        return runs.client_of(self.uri)

    def create_run(self, config: Config, dataset: str, name: str | None = None, **tags: str) -> str:
        """Create a RUNNING run and return its id."""
        return runs.create_run(config, self.uri, dataset, name, **tags)

    def request_run(self, config: Config, dataset: str, name: str, **tags: str) -> Future[str]:
        """Create a RUNNING run without waiting for a slow server; the future holds its id."""
        if self._uploader is not None:
            return self._uploader.create_run(config, dataset, name, 0, **tags)
        created: Future[str] = Future()
        created.set_result(self.create_run(config, dataset, name, **tags))
        return created

    def writer(self, run_id: str) -> RunLog:
        """Open a run for writing; it stays open until its ``end`` is called."""
        return RunLog(self.uri, run_id)

    def close_run(self, run_id: str, status: str, reason: str) -> None:
        """End a run whose process could not; a run that has ended stays as it is."""
        runs.close_run(self.uri, run_id, status, reason)

    def close_children(self, parent_run_id: str, status: str) -> None:
        """End every child of a run that is still RUNNING."""
        runs.close_children(self.uri, parent_run_id, status)

    def reopen_run(self, run_id: str) -> bool:
        """Set a run back to RUNNING; return False where the store does not have it any more."""
        return runs.reopen_run(self.uri, run_id)

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set several tags of a run, ended or not."""
        runs.tag_run(self.uri, run_id, tags)

    def drop_models(self, run_id: str) -> None:
        """Delete the models of a run, from the store and from this machine."""
        runs.drop_models(self.uri, run_id)

    def add_file(self, run_id: str, path: Path) -> None:
        """Add a file to the artifacts of a run, or replace the one of its name."""
        runs.add_file(self.uri, run_id, path)

    def is_spooled(self, run_id: str) -> bool:
        """Return whether the store does not have all of a run yet."""
        return runs.is_kept_here(run_id)

    def children(self, parent_run_id: str, condition: str) -> list[tuple[str, dict[str, str]]]:
        """Return ids and tags of the children of a run that meet a condition of MLflow's search."""
        return runs.children(self.uri, parent_run_id, condition)

    def children_tagged(
        self, parent_run_id: str, tags: Mapping[str, str]
    ) -> list[tuple[str, dict[str, str]]]:
        """Return ids and tags of the children of a run that have all of ``tags``."""
        return queries.children_tagged(self.uri, parent_run_id, tags)

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """Return the id of the newest run in any experiment that has all of ``tags``."""
        return queries.find_run(self.uri, tags)

    def finished_metrics(self, run_id: str) -> dict[str, float] | None:
        """Return the final metrics of a run that has its result, None of any other."""
        return queries.finished_metrics(self.uri, run_id)

    def runs_with_models(self, parent_run_id: str) -> set[str]:
        """Return the ids of all runs that have a model, in the experiment of a run."""
        return queries.runs_with_models(self.uri, parent_run_id)

    def epoch_values(self, run_id: str, metric: str) -> dict[int, float]:
        """Return a metric of a run after every epoch, by the number of the epoch."""
        return queries.epoch_values(self.uri, run_id, metric)

    def artifact_table(self, run_id: str, name: str) -> pd.DataFrame:
        """Return ``tables/<name>.csv`` of a run."""
        return queries.artifact_table(self.uri, run_id, name)

    def newest_confirmation(self, study: str, since: float) -> Run | None:
        """Return the latest confirmation of a study that began after ``since`` (Unix seconds)."""
        return queries.newest_confirmation(self.uri, study, since)

    def each(self, ask: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """Return what ``ask`` returns for every item, in order; a server is asked concurrently."""
        return queries.each(self.uri, ask, items)

    def finished_run(self, run_id: str, key: str) -> Run:
        """Return a training run that ended well.

        Args:
            run_id: What a person gave.
            key: The config key that was set to it, for messages.

        Raises:
            StudyError: If there is no such run, or it did not end well.
        """
        return queries.finished_run(self.client, self.uri, run_id, key)

    def confirmed_winner(self, study: str) -> str:
        """Return the run id of the winner of a study's latest confirmation; StudyError without."""
        return queries.confirmed_winner(self.client, study)

    def predictions(self, run: Run, key: str) -> pd.DataFrame:
        """Return the predictions.csv of a run; StudyError, which names ``key``, if it is gone."""
        return queries.predictions(self.client, run, key)

    def evaluation_of_model(self, named: str) -> Evaluation:
        """Return how the run that made a model predicted its validation images."""
        return queries.evaluation_of_model(named, self.uri)

    @contextmanager
    def readable_faults(self) -> Iterator[None]:
        """Turn what the store raises inside the block into one readable message."""
        with queries.store_faults(self.uri):
            yield

    def address(self, run_id: str, *, children: bool = False) -> str:
        """Return the command and the address that show a run, or its children ranked, in a browser."""
        return views.address(self.client, self.uri, run_id, children)

    @property
    def fault(self) -> str | None:
        """What is wrong with the store at this moment, None where nothing is."""
        return self._uploader.fault if self._uploader is not None else None

    def wait(self, seconds: float | None = None) -> int:
        """Wait until the store has every run that has ended.

        Args:
            seconds: How long to wait at most; None waits until the outage time-out.

        Returns:
            The number of runs that are still spooled.
        """
        if self._uploader is None:
            return 0
        return self._uploader.wait(seconds)


def open_store(configured: str | None, workspace: Workspace) -> Tracker:
    """Open a store that exists already.

    Raises:
        StudyError: If there is none, or it does not answer.
    """
    _, uri = queries.open_store(configured)
    return Tracker(uri, workspace)


@contextmanager
def session(
    uri: str, workspace: Workspace, outage_timeout: float, key: str = "outage_timeout"
) -> Iterator[Tracker]:
    """Open a store: create its tables, upload what earlier commands left, upload in the background.

    Args:
        uri: URI of the tracking store.
        workspace: Where runs are spooled.
        outage_timeout: Minutes for which the store may be unreachable.
        key: Config key that sets ``outage_timeout``, for messages.

    Raises:
        StudyError: At the end, if the store has not taken all results; they stay spooled.
    """
    database.prepare_store(uri)
    with BackgroundUploader(uri, outage_timeout, key) as uploader:
        yield Tracker(uri, workspace, uploader)
