"""Runs of a store: created, ended for others, tagged. `writer` writes what a run records."""

import shutil
import sys
import tarfile
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)

from digit_study.config.run_config import Config
from digit_study.support import processes
from digit_study.support.console import warn
from digit_study.support.errors import first_line
from digit_study.support.signals import deferred_signals
from digit_study.support.trial_status import ABANDONED
from digit_study.tracking import provenance
from digit_study.tracking.location import experiment_name
from digit_study.tracking.spool import SpooledRun
from digit_study.tracking.store import Store, StoreFault
from digit_study.tracking.upload import has_uploader, upload_run

#: Characters of a tag's value; the rest is cut.
LONGEST_VALUE = 5000
#: Runs at most that a search returns.
MOST_RUNS = 5000


class Runs(Store):
    """A store whose runs are created, ended and tagged.

    All but the creation of a run is on disk first, and uploaded at once where no background
    uploader does that; what a store that is gone misses is uploaded later.
    """

    def create_run(self, config: Config, dataset: str, name: str | None = None, **tags: str) -> str:
        """Create a RUNNING run that says what code, data and machine it comes from.

        Args:
            config: The resolved config of the run.
            dataset: Name of the digits.
            name: Name of the run, unless the config has one.
            **tags: More tags.

        Returns:
            The id of the run.
        """
        experiment = experiment_name(config, dataset)
        experiment_id = self.experiment_id(experiment)
        all_tags = run_tags(config, dataset, **tags)
        shown = config.tracking.run_name or name
        # a signal between the store's commit and our receiving the id would leave a run that
        # nobody knows to end
        with deferred_signals() as is_stopping:
            created = self.client.create_run(experiment_id, tags=all_tags, run_name=shown)
            info = created.info
            if is_stopping():
                self.client.set_terminated(info.run_id, "KILLED")
        self.location(info.run_id, info)
        return str(info.run_id)

    def request_run(self, config: Config, dataset: str, name: str, **tags: str) -> Future[str]:
        """Create a run as :meth:`create_run` does.

        Returns:
            A future that has the id of the run, or what the store raised.
        """
        created: Future[str] = Future()
        try:
            created.set_result(self.create_run(config, dataset, name, **tags))
        except Exception as error:
            created.set_exception(error)
        return created

    def claim_run(self, run_id: str) -> None:
        """Note on disk that this process supervises a run, until another process writes it.

        If this process is killed before that, the next command ends the run.
        """
        self.spooled(run_id).open(self.uri)

    def close_run(self, run_id: str, status: str, reason: str) -> None:
        """End a run whose process could not; a run that has ended stays as it is.

        Args:
            run_id: Id of the run.
            status: FAILED or KILLED; FINISHED of a trial that was stopped on purpose.
            reason: Why, in one line.
        """
        self.spooled(run_id).close(self.uri, status, reason)
        self._upload(run_id)

    def close_children(self, parent_run_id: str, status: str) -> None:
        """End every child of a run that is still RUNNING.

        Args:
            parent_run_id: Id of the parent run.
            status: FAILED or KILLED.
        """
        is_running = "attributes.status = 'RUNNING'"
        with suppress(*StoreFault):  # the end of the parent reports it
            for run_id, _ in self.children(parent_run_id, is_running):
                self.close_run(run_id, status, ABANDONED)

    def reopen_run(self, run_id: str) -> None:
        """Set a run that was found back to RUNNING; raise what the store raises."""
        self.client.update_run(run_id, status="RUNNING")

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set several tags of a run, ended or not; long values are cut."""
        cut = {key: value[:LONGEST_VALUE] for key, value in tags.items()}
        self.spooled(run_id).put(self.uri, tags=cut)
        self._upload(run_id)

    def drop_models(self, run_id: str) -> None:
        """Delete the models of a run, from the store and from this machine."""
        self.spooled(run_id).put(self.uri, drop_models={})
        self._upload(run_id)

    def add_file(self, run_id: str, path: Path) -> None:
        """Add a file to the artifacts of a run, ended or not; a file of its name is replaced."""
        self.spooled(run_id).put_file(self.uri, path)
        self._upload(run_id)

    def is_spooled(self, run_id: str) -> bool:
        """Return whether the store does not have all of a run yet."""
        return self.spooled(run_id).folder.is_dir()

    def children(self, parent_run_id: str, condition: str) -> list[tuple[str, dict[str, str]]]:
        """Return the children of a run that meet a condition of MLflow's search.

        Args:
            parent_run_id: Id of the parent run.
            condition: In MLflow's syntax.

        Returns:
            The id and the tags of each.
        """
        experiment = self.experiment_of(parent_run_id)
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and {condition}"
        found = self.client.search_runs([experiment], query, max_results=MOST_RUNS)
        return [(run.info.run_id, dict(run.data.tags)) for run in found]

    def spooled(self, run_id: str) -> SpooledRun:
        """Return the folder of what a run still has to upload."""
        return SpooledRun(run_id, self.workspace)

    def upload_now(self, run_id: str) -> None:
        """Upload what is spooled of a run, even where a background uploader would do it.

        What the store does not take stays spooled.
        """
        upload_run(self.spooled(run_id), self)

    def pack(self, run_id: str) -> bytes | None:
        """Take a run that has ended out of the spool of this machine, for `unpack` on another.

        What is being uploaded at this moment is in it too: to upload it twice changes nothing.

        Returns:
            A tar archive. None if the store has all of the run, or if it was killed: then whoever
            supervises it ends it.
        """
        spooled = self.spooled(run_id)
        if not spooled.outcome:
            return None
        with BytesIO() as buffer:
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                archive.add(spooled.folder, run_id)
            shutil.rmtree(spooled.folder, ignore_errors=True)
            return buffer.getvalue()

    def unpack(self, packed: bytes) -> None:
        """Spool what another machine has packed; done twice it changes nothing.

        Args:
            packed: What `pack` returned there.
        """
        with TemporaryDirectory() as name:
            folder = Path(name)
            with tarfile.open(fileobj=BytesIO(packed)) as archive:
                archive.extractall(folder, filter="data")
            for path in folder.iterdir():
                run_id = path.name
                packed_run = SpooledRun(run_id, self.workspace, spool=folder)
                self.spooled(run_id).merge(self.uri, packed_run)

    def _upload(self, run_id: str) -> None:
        """Upload what is spooled of a run, or leave it to the background uploader."""
        if has_uploader(self.uri, self.workspace):
            return
        fault = upload_run(self.spooled(run_id), self)
        if fault is not None:
            missed = f"run {run_id} could not be uploaded whole, the rest is kept in mlruns/.outbox"
            warn(f"{missed}: {first_line(fault)}")


def run_tags(config: Config, dataset: str, **tags: str) -> dict[str, str]:
    """Return all tags that a run of this process begins with, in the order of MLflow's page.

    Args:
        config: The resolved config of the run.
        dataset: Name of the digits.
        **tags: More tags, which stand before those of data and provenance.
    """
    command = Path(sys.argv[0])
    tracking = config.tracking
    found = {
        MLFLOW_SOURCE_NAME: command.name,
        MLFLOW_USER: processes.user_name(),
    }
    if tracking.parent_run_id:
        found[MLFLOW_PARENT_RUN_ID] = tracking.parent_run_id
    found |= tracking.own_tags
    if tracking.note:
        found[MLFLOW_RUN_NOTE] = tracking.note
    found |= tags
    found["dataset.name"] = dataset
    found["dataset.sha256"] = str(config.data.sha256)
    return found | provenance.technical(config)
