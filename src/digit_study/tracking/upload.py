"""How a spooled run gets into its store: each thing once, by one process at a time."""

import hashlib
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import yaml
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

from digit_study.support import console
from digit_study.support.errors import first_line
from digit_study.support.files import file_lock
from digit_study.support.redaction import without_password
from digit_study.support.trial_status import FAILURE_TAG, STOPPED_TAG
from digit_study.support.workspace import Workspace
from digit_study.tracking import pages
from digit_study.tracking.spool import MODEL, SpooledRun, replaces_status
from digit_study.tracking.store import Store, StoreFault

#: MLflow's codes for what no repetition helps: the run was deleted meanwhile, or a value is not
#: allowed.
REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: Metrics that MLflow takes in a batch with params and tags.
MOST_METRICS = 800
#: Characters at most of the reason of a run that is closed from outside.
LONGEST_REASON = 500
Call = Callable[[], None]
#: Runs calls sequentially or concurrently; returns what they raised.
RunAll = Callable[[Sequence[Call]], list[Exception]]


def run_sequentially(calls: Sequence[Call]) -> list[Exception]:
    """Run calls up to the first that fails; return what that raised."""
    for call in calls:
        fault = fault_of(call)
        if fault is not None:
            return [fault]
    return []


def fault_of(call: Call) -> Exception | None:
    """Run a call; return what the store raised, None if nothing."""
    try:
        call()
    except StoreFault as fault:
        return fault
    return None


class RunUpload:
    """Uploads one spooled run; its caller holds the lock of the run's folder.

    What the store has is noted in ``sent``, and written to disk whenever an upload ends.
    """

    def __init__(self, spooled: SpooledRun, store: Store, *, is_log_only: bool) -> None:
        """Prepare an upload.

        Args:
            spooled: The run.
            store: Where it goes.
            is_log_only: Whether to leave files, model and the end of the run to others.
        """
        self._spooled = spooled
        self._store = store
        self._client = store.client
        self._run_id = spooled.run_id
        self._is_log_only = is_log_only
        self._sent = spooled.sent
        self._repositories: dict[str, Any] = {}

    def run(self, run_all: RunAll = run_sequentially) -> None:
        """Upload what is missing, and remove a run that is whole; raise what the store raises."""
        before = str(self._sent)
        try:
            while calls := self._due():
                faults = run_all(calls)
                if faults:
                    # that artifacts cannot be stored must not hide how the run ended
                    self._end()
                    raise faults[0]
        finally:
            if not self._remove_if_whole() and str(self._sent) != before:
                self._spooled.sent = self._sent

    def _remove_if_whole(self) -> bool:
        if self._is_log_only or self._due():
            return False
        return self._spooled.remove(lambda: not self._due())

    # ------------------------------------------------------------------------------- what is due

    def _due(self) -> list[Call]:
        """Return what can be uploaded now, in any order.

        Log and files come first, then the model's files once the store has named their place, then
        the links between run and model and the end of the run.
        """
        start = self._sent["bytes"]
        records = self._spooled.records(start)
        calls: list[Call] = []
        if records.end > start:
            calls.append(partial(self._log, records.found, records.end))
        if self._is_log_only or self._spooled.is_open or not self._spooled.folder.is_dir():
            return calls
        drops_models = any("drop_models" in record for record in records.found)
        is_dropped = drops_models or bool(self._sent.get("dropped"))
        calls += self._file_calls(is_dropped=is_dropped)
        return calls or self._last_calls(is_dropped=is_dropped)

    def _file_calls(self, *, is_dropped: bool) -> list[Call]:
        calls: list[Call] = []
        model_files: dict[str, list[int]] = {}
        for name, version in self._spooled.files().items():
            if self._sent["files"].get(name) == version:
                continue
            if name.startswith(f"{MODEL}/"):
                model_files[name] = version
            else:
                calls.append(partial(self._file, name, version))
        has_ended_well = self._spooled.outcome.get("status") == "FINISHED"
        if not model_files or is_dropped or not has_ended_well:
            return calls
        if "model_place" not in self._sent:
            return [*calls, self._create_model]
        for name, version in model_files.items():
            calls.append(partial(self._model_file, name, version))
        return calls

    def _last_calls(self, *, is_dropped: bool) -> list[Call]:
        """Return what follows when the store has all files."""
        calls: list[Call] = []
        if "model_id" in self._sent and not is_dropped:
            if not self._sent.get("model_linked"):
                calls.append(self._link_model)
            if not self._sent.get("model_ready"):
                calls.append(self._finalize_model)
        if self._is_end_due:
            calls.append(self._end)
        return calls

    @property
    def _is_end_due(self) -> bool:
        """Return whether the run has ended, and the store does not know how."""
        outcome = self._spooled.outcome
        return bool(outcome) and self._sent.get("ended") != outcome["time"]

    # ------------------------------------------------------------------------------- the log

    def _log(self, records: list[dict[str, Any]], end: int) -> None:
        """Upload records up to byte ``end``; after a fault all of them are uploaded again."""
        self._log_batch(records)
        uploads: dict[str, Callable[..., None]] = {
            "dataset": self._dataset,
            "note": self._note,
            "close": self._close,
            "drop_models": self._drop_models,
        }
        special: dict[str, Any] = {}  # of several of a kind the last counts
        for record in records:
            for kind, content in record.items():
                if kind in uploads:
                    special[kind] = content
        for kind, content in special.items():
            uploads[kind](**content)
        self._sent["bytes"] = end

    def _log_batch(self, records: list[dict[str, Any]]) -> None:
        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for record in records:
            params |= record.get("params", {})
            tags |= record.get("tags", {})
            values = record.get("metrics", {})
            for name, value in values.items():
                metrics.append(Metric(name, value, record["time"], record["step"]))
        run_params = [Param(name, value) for name, value in params.items()]
        run_tags = [RunTag(name, value) for name, value in tags.items()]
        try:
            self._log_in_parts(metrics, run_params, run_tags)
        except MlflowException as fault:
            if not params or fault.error_code not in REFUSED:
                raise
            # params of a run that is opened again stay as they were
            self._log_in_parts(metrics, [], run_tags)

    def _log_in_parts(self, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        if metrics or params or tags:
            first = metrics[:MOST_METRICS]
            self._client.log_batch(self._run_id, first, params, tags)
        for start in range(MOST_METRICS, len(metrics), MOST_METRICS):
            part = metrics[start : start + MOST_METRICS]
            self._client.log_batch(self._run_id, part)

    def _dataset(self, name: str, digest: str, profile: str) -> None:
        source = f'{{"name": "{name}"}}'
        entity = Dataset(name, digest, "local", source, profile=profile)
        context = InputTag("mlflow.data.context", "training")
        inputs = [DatasetInput(entity, [context])]
        self._client.log_inputs(self._run_id, inputs)

    def _note(self, keys: Sequence[str], tags: Sequence[str] = (), **_: str) -> None:
        """Share a view of a parent's children, and put its answer on the experiment's page.

        Earlier versions recorded the answer here too. It is a tag of the run, and logged first.
        """
        pages.share_view(self._store, self._run_id, keys, tags)
        pages.describe_experiment(self._store, self._experiment)

    def _close(self, status: str, reason: str) -> None:
        run = self._client.get_run(self._run_id)
        known = run.info.status
        if known != "RUNNING" and not replaces_status(known, status):
            return
        tag = FAILURE_TAG
        if status == "FINISHED":
            tag = STOPPED_TAG
            if FAILURE_TAG in run.data.tags:
                self._client.delete_tag(self._run_id, FAILURE_TAG)
        self._client.set_tag(self._run_id, tag, reason[:LONGEST_REASON])
        self._client.set_terminated(self._run_id, status)

    def _drop_models(self) -> None:
        """Delete the models of the run, from the store and this machine; none follows later."""
        self._sent["dropped"] = True
        for model in self._models():
            self._client.delete_logged_model(model.model_id)
            artifacts = urllib.parse.urlsplit(model.artifact_location)
            if artifacts.scheme == "file":
                path = urllib.parse.unquote(artifacts.path)
                folder = Path(path)
                rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # MLflow made a folder around it, which is empty now
                    folder.parent.rmdir()

    def _models(self) -> list[Any]:
        of_run = f"source_run_id = '{self._run_id}'"
        return list(self._client.search_logged_models([self._experiment], filter_string=of_run))

    @property
    def _experiment(self) -> str:
        return self._store.experiment_of(self._run_id)

    # ------------------------------------------------------------------------------- files

    def _file(self, name: str, version: list[int]) -> None:
        artifacts = self._store.location(self._run_id).artifacts
        self._upload(artifacts, name, Path(name).parent)
        self._sent["files"][name] = version

    def _upload(self, artifacts: str, name: str, folder: Path) -> None:
        """Upload a file; MLflow's client would ask the store once more where artifacts go."""
        if artifacts not in self._repositories:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            repository = get_artifact_repository(artifacts, self._store.uri)
            self._repositories[artifacts] = repository
        target = None  # the root of the artifacts
        if folder != Path():
            target = str(folder)
        path = str(self._spooled.folder / name)
        self._repositories[artifacts].log_artifact(path, target)

    # ------------------------------------------------------------------------------- the model

    def _create_model(self) -> None:
        """Create the model in the store, which names the place of its files, and note its id.

        An earlier upload may have been killed between the two.
        """
        from mlflow.models import Model

        known = []
        if self._sent.get("model"):
            known = self._models()
        self._sent["model"] = True
        self._spooled.sent = self._sent
        if known:
            created = known[0]
        else:
            params = self._spooled.params()
            created = self._client.create_logged_model(
                self._experiment, "model", self._run_id, params=params
            )
        file = self._spooled.folder / MODEL / "MLmodel"
        # Model.load would take the path for a URI and decode it
        content = yaml.safe_load(file.read_text())
        description = Model.from_dict(content)
        description.artifact_path = created.artifact_location
        description.run_id = self._run_id
        description.model_uuid = created.model_id
        description.model_id = created.model_id
        description.save(str(file))
        self._sent["model_id"] = created.model_id
        self._sent["model_place"] = created.artifact_location

    def _model_file(self, name: str, version: list[int]) -> None:
        folder = Path(name).parent.relative_to(MODEL)
        self._upload(self._sent["model_place"], name, folder)
        self._sent["files"][name] = version

    def _link_model(self) -> None:
        model_id = self._sent["model_id"]
        try:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model_id, 0)])
        except MlflowException:  # MLflow refuses to log this twice
            outputs = self._client.get_run(self._run_id).outputs
            linked = []
            if outputs:
                linked = [model.model_id for model in outputs.model_outputs]
            if model_id not in linked:
                raise
        self._sent["model_linked"] = True

    def _finalize_model(self) -> None:
        self._client.finalize_logged_model(self._sent["model_id"], "READY")
        self._sent["model_ready"] = True

    # ------------------------------------------------------------------------------- the end

    def _end(self) -> None:
        if self._is_end_due:
            outcome = self._spooled.outcome
            self._client.set_terminated(self._run_id, outcome["status"], outcome["time"])
            self._sent["ended"] = outcome["time"]


def upload_run(
    spooled: SpooledRun,
    store: Store,
    run_all: RunAll = run_sequentially,
    *,
    is_log_only: bool = False,
) -> Exception | None:
    """Upload what is missing of a run, unless another process does.

    A run that the store will never take is moved away, with a warning.

    Args:
        spooled: The run.
        store: Where it goes.
        run_all: How calls are made.
        is_log_only: Whether to leave files, model and the end of the run to others.

    Returns:
        What the store raised, None if nothing.
    """
    try:
        with file_lock(spooled.folder / ".lock", wait=False) as is_ours:
            if is_ours and spooled.about:
                upload = RunUpload(spooled, store, is_log_only=is_log_only)
                upload.run(run_all)
    except FileNotFoundError as gone:
        if spooled.folder.is_dir():
            return gone
        return None  # another process has just uploaded all of it
    except MlflowException as fault:
        if fault.error_code not in REFUSED:
            return fault
        kept = f"the store does not take run {spooled.run_id}, it is kept in {spooled.refuse()}"
        console.warn(f"{kept}: {first_line(fault)}")
    except OSError as fault:
        return fault
    return None


def has_uploader(uri: str, workspace: Workspace) -> bool:
    """Return whether a background uploader uploads what is spooled for a store."""
    lock = uploader_lock(uri, workspace)
    with file_lock(lock, exclusive=False, wait=False) as is_free:
        return not is_free


def uploader_lock(uri: str, workspace: Workspace) -> Path:
    """Return the file whose lock the background uploader for a store holds."""
    workspace.artifacts.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(without_password(uri).encode()).hexdigest()
    return workspace.artifacts / f".uploader-{digest[:12]}"
