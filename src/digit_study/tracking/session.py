"""A tracking store as a command uses it: everything that is recorded goes through it."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow

from digit_study.config.run_config import Config
from digit_study.report.markdown import run_page
from digit_study.support.workspace import Workspace
from digit_study.tracking import models, pages
from digit_study.tracking.database import create_store, require_store
from digit_study.tracking.location import local_address
from digit_study.tracking.queries import Queries
from digit_study.tracking.runs import Runs
from digit_study.tracking.store import StoreFault
from digit_study.tracking.uploader import (
    LONGEST_PAUSE_S,
    QUIET_S,
    BackgroundUploader,
    upload_left,
)
from digit_study.tracking.writer import RunWriter


class Tracker(Queries):
    """One tracking store, and what is spooled for it on this machine.

    What is recorded is on disk first, and uploaded exactly once, whatever is killed. Runs are
    created, ended and tagged as `Runs` says, written by a `RunWriter`, and found by `Queries`.
    """

    def __init__(
        self, uri: str, workspace: Workspace, uploader: BackgroundUploader | None = None
    ) -> None:
        """Name the store; `session` and `open_store` also check and prepare it.

        Args:
            uri: URI of the store.
            workspace: Where runs are spooled on this machine.
            uploader: What uploads in the background; None where runs upload themselves.
        """
        super().__init__(uri, workspace)
        self._uploader = uploader

    def request_run(self, config: Config, dataset: str, name: str, **tags: str) -> Future[str]:
        """Create a RUNNING run without waiting for a slow server.

        Args:
            config: The resolved config of the run.
            dataset: Name of the digits.
            name: Name of the run, unless the config has one.
            **tags: More tags.

        Returns:
            A future of the run's id.
        """
        if self._uploader is None:
            return super().request_run(config, dataset, name, **tags)
        return self._uploader.request_run(config, dataset, name, **tags)

    def writer(self, run_id: str) -> RunWriter:
        """Open a run for writing; it stays open until its ``end`` is called."""
        return RunWriter(self, run_id)

    @property
    def fault(self) -> str | None:
        """Return what is wrong with the store at this moment, None where nothing is."""
        if self._uploader is None:
            return None
        return self._uploader.fault

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

    def upload_left(self) -> None:
        """Upload what commands that have ended could not."""
        upload_left(self)

    def address(self, run_id: str, *, children: bool = False) -> str:
        """Return what shows a run in a browser: the command, where it is needed, and the address.

        From now on ``make ui`` opens it, if the store is local.

        Args:
            run_id: Id of the run.
            children: Whether to show the children of the run, ranked, instead of itself.

        Returns:
            Command and address; the command alone where the store does not answer.
        """
        with suppress(*StoreFault):
            experiment = self.experiment_of(run_id)
            page = run_page(experiment, run_id)
            if children:
                page = f"#/experiments/{experiment}/runs?viewStateShareKey={run_id}"
            return self.newest_address(page)
        return self.view_command

    def newest_address(self, page: str) -> str:
        """Return the `page_address` of a page with a new result, which ``make ui`` opens.

        Args:
            page: As `markdown.run_page` and `pages.model_page` return it.
        """
        if not self.is_server:
            with suppress(OSError):  # where it cannot be kept, `make ui` opens the front page
                address_line = f"{local_address()}/{pages.for_training(page)}\n"
                self.workspace.newest_result.write_text(address_line)
        return self.page_address(page)

    def page_address(self, page: str) -> str:
        """Return the command, where it is needed, and the address of a page of MLflow."""
        page = pages.for_training(page)
        if self.is_server:
            server = self.view_command.rstrip("/")
            return f"{server}/{page}"
        return f"{self.view_command}, then {local_address()}/{page}"

    def model_address(self, named: str) -> str:
        """Return what shows a model in a browser: its version, or the run that made it.

        Args:
            named: The model, as in `location.MODEL_NAMES`, but no file.

        Returns:
            Command and address; the command alone where the store does not answer or know it.
        """
        with suppress(*StoreFault):
            version = models.model_version(self.client, named)
            if version is not None:
                return self.page_address(pages.model_page(version.name, version.version))
            run_id = models.run_of_model(self.client, named)
            return self.page_address(run_page(self.experiment_of(run_id), run_id))
        return self.view_command

    def model_file(self, named: str) -> Path:
        """Return the Keras file of a model; StudyError if there is none."""
        return models.model_file(named, self.uri, self.workspace)


def open_store(configured: str | None, workspace: Workspace) -> Tracker:
    """Open a store that exists already, and upload what earlier commands left.

    MLflow's registry and artifacts follow it in this process.

    Args:
        configured: URI of the store; None for the usual one.
        workspace: Where runs are spooled.

    Raises:
        StudyError: If there is none, or it does not answer.
    """
    rule = "runs must have been tracked first"
    uri = require_store(configured, rule, "run `python src/run.py`", workspace)
    create_store(uri, workspace)
    mlflow.set_tracking_uri(uri)
    tracker = Tracker(uri, workspace)
    tracker.upload_left()
    return tracker


@contextmanager
def session(
    uri: str,
    workspace: Workspace,
    outage_timeout: float,
    key: str = "outage_timeout",
    *,
    longest_pause: float = LONGEST_PAUSE_S,
    quiet_time: float = QUIET_S,
) -> Iterator[Tracker]:
    """Open a store: create its tables, upload what earlier commands left, then in the background.

    Args:
        uri: URI of the tracking store.
        workspace: Where runs are spooled.
        outage_timeout: Minutes for which the store may be unreachable.
        key: Config key that sets ``outage_timeout``, for messages.
        longest_pause: Seconds at most between two attempts to upload.
        quiet_time: Seconds after which a person is told what is waited for.

    Yields:
        What everything is recorded through.

    Raises:
        StudyError: At the end, if the store has not taken all results; they stay spooled.
    """
    create_store(uri, workspace)
    runs = Runs(uri, workspace)
    upload_left(runs)
    background = BackgroundUploader(
        runs, outage_timeout, key, longest_pause=longest_pause, quiet_time=quiet_time
    )
    with background as uploader:
        yield Tracker(uri, workspace, uploader)


@contextmanager
def upload_logs(uri: str, workspace: Workspace) -> Iterator[None]:
    """Upload what runs log while they go on, in the background, and nothing else of them.

    Args:
        uri: URI of the tracking store.
        workspace: Where runs are spooled.
    """
    runs = Runs(uri, workspace)
    with BackgroundUploader(runs, 0.0, "search.outage_timeout", is_log_only=True):
        yield
