"""How a run's folder in the outbox gets into its store: what is missing there, each thing once, by one process."""

import fcntl
import hashlib
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import mlflow
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
from digit_study.support.messages import first_line, without_password
from digit_study.tracking import database as stores
from digit_study.tracking import views
from digit_study.tracking.spool import MODEL, SpooledRun, file_lock

#: What a store that cannot be reached raises, over HTTP, from a database or from the file system.
StoreFault = (MlflowException, OSError)
#: MLflow's codes for what no repetition helps: the run was deleted meanwhile, or a value is one that it does not take.
REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: Characters that MLflow takes as the value of a run's tag, and metrics that it takes at once.
LONGEST_TAG, MOST_METRICS = 8000, 800
Call = Callable[[], None]
#: Runs calls one after the other or together; returns what they raised.
RunAll = Callable[[Sequence[Call]], list[Exception]]


def in_turn(calls: Sequence[Call]) -> list[Exception]:
    """Run calls up to the first one that fails."""
    for call in calls:
        if (fault := fault_of(call)) is not None:
            return [fault]
    return []


def fault_of(call: Call) -> Exception | None:
    """Run a call; returns what the store raised."""
    try:
        call()
    except StoreFault as fault:
        return fault
    return None


class RunUpload:
    """Sends one spooled; only one process does at a time."""

    def __init__(self, spooled: SpooledRun, client: mlflow.MlflowClient, is_log_only: bool) -> None:
        self.spooled, self.client, self.run_id, self.is_log_only = (
            spooled,
            client,
            spooled.run_id,
            is_log_only,
        )
        self.sent = spooled.sent

    def send(self, run_all: RunAll = in_turn) -> None:
        """Send what is missing, and remove a run that is whole; raises what the store raises."""
        before = str(self.sent)
        try:
            while calls := self._due():
                if faults := run_all(calls):
                    # artifacts that find no place keep nobody from knowing how the run ended
                    self._end()
                    raise faults[0]
        finally:
            is_gone = (
                not self.is_log_only and not self._due() and self.spooled.remove(self.sent["bytes"])
            )
            if not is_gone and str(self.sent) != before:
                self.spooled.sent = self.sent

    def _due(self) -> list[Call]:
        """What can be sent now, in any order: log and files, the model's files once they have a place, then the end."""
        records, end = self.spooled.records(self.sent["bytes"])
        calls = self._log(records, end) if end > self.sent["bytes"] else []
        if self.is_log_only or self.spooled.is_open or not self.spooled.folder.is_dir():
            return calls
        missing = {
            name: at
            for name, at in self.spooled.files().items()
            if self.sent["files"].get(name) != at
        }
        model = [name for name in missing if name.startswith(f"{MODEL}/")]
        calls += [
            partial(self._file, name, at) for name, at in missing.items() if name not in model
        ]
        is_dropped = self.sent.get("dropped") or any("drop_models" in record for record in records)
        if model and not is_dropped and self.spooled.outcome.get("status") == "FINISHED":
            if "model_place" in self.sent:
                calls += [partial(self._model_file, name, missing[name]) for name in model]
            else:
                calls.append(self._create_model)
        return calls or self._last(is_dropped)

    def _last(self, is_dropped: bool) -> list[Call]:
        """What is told when the store has all: that the model is whole, and how the run ended."""
        calls: list[Call] = []
        if "model_id" in self.sent and not is_dropped:
            calls += [] if self.sent.get("model_linked") else [self._link_model]
            calls += [] if self.sent.get("model_ready") else [self._finalize_model]
        return calls + ([self._end] if self._is_end_due else [])

    @property
    def _is_end_due(self) -> bool:
        """Whether the run has ended, and the store does not know how."""
        return bool(self.spooled.outcome) and self.sent.get("ended") != self.spooled.outcome["time"]

    def _log(self, records: list[dict[str, Any]], end: int) -> list[Call]:
        """What sends records of the log; it is sent up to byte ``end`` when the last of these calls is through."""
        # of a dataset, a note or an end the last one counts
        others = {
            kind: content
            for record in records
            for kind, content in record.items()
            if kind in self._others
        }
        calls: list[Call] = [partial(self._log_batch, records)]
        calls += [
            partial(call, **content)
            for kind, content in others.items()
            for call in self._others[kind]
        ]
        left = set(range(len(calls)))

        def send_one(number: int, call: Call) -> None:
            call()
            left.discard(number)
            if not left:
                self.sent["bytes"] = end

        return [partial(send_one, number, call) for number, call in enumerate(calls)]

    def _log_batch(self, records: list[dict[str, Any]]) -> None:
        metrics = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record.get("metrics", {}).items()
        ]
        said = [
            {key: value for record in records for key, value in record.get(kind, {}).items()}
            for kind in ("params", "tags")
        ]
        params, tags = (
            [Param(*one) for one in said[0].items()],
            [RunTag(*one) for one in said[1].items()],
        )
        try:
            self._log_at_most(metrics, params, tags)
        except MlflowException as fault:
            if not params or fault.error_code not in REFUSED:
                raise
            self._log_at_most(
                metrics, [], tags
            )  # params of a run that is opened again stay as they were

    def _log_at_most(self, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        if metrics or params or tags:
            self.client.log_batch(self.run_id, metrics[:MOST_METRICS], params, tags)
        for at in range(MOST_METRICS, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics[at : at + MOST_METRICS])

    @property
    def _others(self) -> dict[str, list[Callable[..., None]]]:
        """What sends the records of these kinds."""
        notes = [self._share_view, self._describe_experiment]
        return {
            "dataset": [self._dataset],
            "note": notes,
            "close": [self._close],
            "drop_models": [self._drop_models],
        }

    def _dataset(self, name: str, digest: str, profile: str) -> None:
        entity = Dataset(name, digest, "local", f'{{"name": "{name}"}}', profile=profile)
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        with suppress(
            MlflowException
        ):  # another run inserts the same digits at this moment: then they are there
            return self.client.log_inputs(self.run_id, inputs)
        return self.client.log_inputs(self.run_id, inputs)

    def _share_view(self, keys: Sequence[str], answer: str | None = None) -> None:
        views.share_view(
            self.client, views.experiment_of(self.client, self.run_id), self.run_id, keys
        )

    def _describe_experiment(self, keys: Sequence[str], answer: str | None = None) -> None:
        """Let the experiment's page know of a parent's ``answer``, which the store may not have yet."""
        experiment = views.experiment_of(self.client, self.run_id)
        views.describe_experiment(self.client, experiment, {self.run_id: answer} if answer else {})

    def _close(self, status: str, reason: str) -> None:
        if self.client.get_run(self.run_id).info.status == "RUNNING":
            self.client.set_tag(self.run_id, "failure", reason[:500])
            self.client.set_terminated(self.run_id, status)

    def _drop_models(self) -> None:
        """Delete the models of the run, from store and own disk; one that was not sent is not sent any more."""
        self.sent["dropped"] = True
        for model in self._models():
            self.client.delete_logged_model(model.model_id)
            if (place := urllib.parse.urlsplit(model.artifact_location)).scheme == "file":
                folder = Path(urllib.parse.unquote(place.path))
                rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # MLflow made one around it, which is empty now
                    folder.parent.rmdir()

    def _models(self) -> list[Any]:
        experiment = views.experiment_of(self.client, self.run_id)
        return list(
            self.client.search_logged_models(
                [experiment], filter_string=f"source_run_id = '{self.run_id}'"
            )
        )

    def _file(self, name: str, at: list[int]) -> None:
        self._upload(views.run_location(self.client, self.run_id)[1], name, Path(name).parent)
        self.sent["files"][name] = at

    def _upload(self, artifacts: str, name: str, place: Path) -> None:
        """Send a file of the folder; MLflow's client would ask the store once more where a run's or a model's lie."""
        folder = None if place == Path() else str(place)
        _repository(artifacts, self.client.tracking_uri).log_artifact(
            str(self.spooled.folder / name), folder
        )

    def _create_model(self) -> None:
        """Make the model's place in the store and let it name that; an earlier sender may have been killed here."""
        from mlflow.models import Model

        folder = self.spooled.folder / MODEL
        known = self._models() if self.sent.get("model") else []
        self.sent["model"] = True
        self.spooled.sent = self.sent
        if known:
            made = known[0]
        else:
            params = {
                key: text
                for one in self.spooled.records()[0]
                for key, text in one.get("params", {}).items()
            }
            experiment = views.experiment_of(self.client, self.run_id)
            made = self.client.create_logged_model(experiment, "model", self.run_id, params=params)
        described = Model.load(str(folder))
        described.artifact_path, described.run_id = made.artifact_location, self.run_id
        described.model_uuid = described.model_id = made.model_id
        described.save(str(folder / "MLmodel"))
        self.sent |= {"model_id": made.model_id, "model_place": made.artifact_location}

    def _model_file(self, name: str, at: list[int]) -> None:
        self._upload(self.sent["model_place"], name, Path(name).parent.relative_to(MODEL))
        self.sent["files"][name] = at

    def _link_model(self) -> None:
        made = self.sent["model_id"]
        try:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(made, 0)])
        except MlflowException:  # the one thing that MLflow refuses to be told twice
            outputs = self.client.get_run(self.run_id).outputs
            if outputs is None or made not in [one.model_id for one in outputs.model_outputs]:
                raise
        self.sent["model_linked"] = True

    def _finalize_model(self) -> None:
        self.client.finalize_logged_model(self.sent["model_id"], "READY")
        self.sent["model_ready"] = True

    def _end(self) -> None:
        if self._is_end_due:
            outcome = self.spooled.outcome
            self.client.set_terminated(self.run_id, outcome["status"], outcome["time"])
            self.sent["ended"] = outcome["time"]


@lru_cache(maxsize=64)
def _repository(artifacts: str, tracking_uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifacts, tracking_uri)


def send(
    spooled: SpooledRun,
    client: mlflow.MlflowClient,
    run_all: RunAll = in_turn,
    is_log_only: bool = False,
) -> Exception | None:
    """Send what is missing of a run, unless another process does; returns what the store raised."""
    try:
        with file_lock(spooled.folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
            if is_ours and spooled.about:
                RunUpload(spooled, client, is_log_only).send(run_all)
    except FileNotFoundError as gone:
        return gone if spooled.folder.is_dir() else None  # another process has just sent it all
    except MlflowException as fault:
        if fault.error_code not in REFUSED:
            return fault
        aside = spooled.set_aside()
        console.warn(
            f"the store does not take run {spooled.run_id}, it is kept in {aside}: {first_line(fault)}"
        )
    except OSError as fault:
        return fault
    return None


def is_served(uri: str) -> bool:
    """Whether a uploader delivers what lies in this outbox for the store at ``uri``."""
    with file_lock(uploader_lock(uri), fcntl.LOCK_SH | fcntl.LOCK_NB) as is_free:
        return not is_free


def uploader_lock(uri: str) -> Path:
    """The file whose lock the uploader for the store at ``uri`` holds."""
    stores.ARTIFACTS.mkdir(parents=True, exist_ok=True)
    return (
        stores.ARTIFACTS
        / f".uploader-{hashlib.sha256(without_password(uri).encode()).hexdigest()[:12]}"
    )
