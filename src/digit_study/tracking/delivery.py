"""How a run's folder in the outbox gets into its store: what is missing there, each thing once, by one process."""

import fcntl
import hashlib
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from digit_study.terminal import console
from digit_study.terminal.messages import first_line, without_password
from digit_study.tracking import stores, views
from digit_study.tracking.outbox import MODEL, Parcel, file_lock

#: What a store that cannot be reached raises, over HTTP, from a database or from the file system.
StoreFault = (MlflowException, OSError)
#: MLflow's codes for what no repetition helps: the run was deleted meanwhile, or a value is one that it does not take.
REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: Characters that MLflow takes as the value of a run's tag, and metrics that it takes at once.
LONGEST_TAG, MOST_METRICS = 8000, 800
Call = Callable[[], None]
#: Runs calls one after the other or together; returns what they raised.
RunAll = Callable[[Sequence[Call]], list[Exception]]
_experiments: dict[str, str] = {}


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


def experiment_of(client: mlflow.MlflowClient, run_id: str, known: str | None = None) -> str:
    """Id of the experiment that a run is in, ``known`` or asked for once."""
    if run_id not in _experiments:
        _experiments[run_id] = known or str(client.get_run(run_id).info.experiment_id)
    return _experiments[run_id]


class Delivery:
    """Sends one parcel; only one process does at a time."""

    def __init__(self, parcel: Parcel, client: mlflow.MlflowClient) -> None:
        self.parcel, self.client, self.run_id = parcel, client, parcel.run_id
        self.sent = parcel.sent

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
            is_gone = not self._due() and self.parcel.remove(self.sent["bytes"])
            if not is_gone and str(self.sent) != before:
                self.parcel.sent = self.sent

    def _due(self) -> list[Call]:
        """What can be sent now, in any order: first the log, then every file, then the end."""
        records, end = self.parcel.records(self.sent["bytes"])
        if end > self.sent["bytes"]:
            return [partial(self._log, records, end)]
        if self.parcel.is_open or not self.parcel.folder.is_dir():
            return []
        missing = {name: at for name, at in self.parcel.files().items() if self.sent["files"].get(name) != at}
        model = [name for name in missing if name.startswith(f"{MODEL}/")]
        calls: list[Call] = [partial(self._file, name, at) for name, at in missing.items() if name not in model]
        outcome = self.parcel.outcome
        if model and outcome.get("status") == "FINISHED" and not self.sent.get("dropped"):
            if "model_id" in self.sent:
                calls += [partial(self._model_file, name, missing[name]) for name in model]
            else:
                calls.append(self._create_model)
        elif "model_id" in self.sent and not self.sent.get("model_ready"):
            calls.append(self._finish_model)
        if not calls and outcome and self.sent.get("ended") != outcome["time"]:
            calls.append(self._end)
        return calls

    def _log(self, records: list[dict[str, Any]], end: int) -> None:
        metrics = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record.get("metrics", {}).items()
        ]
        params = {key: value for record in records for key, value in record.get("params", {}).items()}
        tags = {key: value for record in records for key, value in record.get("tags", {}).items()}
        said = [Param(key, value) for key, value in params.items()], [RunTag(key, text) for key, text in tags.items()]
        try:
            self._log_batch(metrics, *said)
        except MlflowException as fault:
            if not params or fault.error_code not in REFUSED:
                raise
            self._log_batch(metrics, [], said[1])  # params of a run that is opened again stay as they were
        for record in records:
            for kind, send in self._others.items():
                if kind in record:
                    send(**record[kind])
        self.sent["bytes"] = end

    def _log_batch(self, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        if metrics or params or tags:
            self.client.log_batch(self.run_id, metrics[:MOST_METRICS], params, tags)
        for at in range(MOST_METRICS, len(metrics), MOST_METRICS):
            self.client.log_batch(self.run_id, metrics[at : at + MOST_METRICS])

    @property
    def _others(self) -> dict[str, Callable[..., None]]:
        """What sends the records of these kinds."""
        return {"dataset": self._dataset, "note": self._note, "close": self._close, "drop_models": self._drop_models}

    def _dataset(self, name: str, digest: str, profile: str) -> None:
        entity = Dataset(name, digest, "local", f'{{"name": "{name}"}}', profile=profile)
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        with suppress(MlflowException):  # another run inserts the same digits at this moment: then they are there
            return self.client.log_inputs(self.run_id, inputs)
        return self.client.log_inputs(self.run_id, inputs)

    def _note(self, keys: Sequence[str]) -> None:
        """Let the pages of the experiment know of a parent's description, which are tags of its own."""
        experiment = experiment_of(self.client, self.run_id)
        views.share_view(self.client, experiment, self.run_id, keys)
        views.describe_experiment(self.client, experiment)

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
        experiment = experiment_of(self.client, self.run_id)
        return list(self.client.search_logged_models([experiment], filter_string=f"source_run_id = '{self.run_id}'"))

    def _file(self, name: str, at: list[int]) -> None:
        path, place = self.parcel.folder / name, str(Path(name).parent)
        self.client.log_artifact(self.run_id, str(path), None if place == "." else place)
        self.sent["files"][name] = at

    def _create_model(self) -> None:
        """Make the model's place in the store and let it name that; an earlier sender may have been killed here."""
        from mlflow.models import Model

        folder = self.parcel.folder / MODEL
        known = self._models() if self.sent.get("model") else []
        self.sent["model"] = True
        self.parcel.sent = self.sent
        if known:
            made = known[0]
        else:
            params = {key: text for one in self.parcel.records()[0] for key, text in one.get("params", {}).items()}
            experiment = experiment_of(self.client, self.run_id)
            made = self.client.create_logged_model(experiment, "model", self.run_id, params=params)
        described = Model.load(str(folder))
        described.artifact_path, described.run_id = made.artifact_location, self.run_id
        described.model_uuid = described.model_id = made.model_id
        described.save(str(folder / "MLmodel"))
        self.sent["model_id"] = made.model_id

    def _model_file(self, name: str, at: list[int]) -> None:
        path, place = self.parcel.folder / name, str(Path(name).parent.relative_to(MODEL))
        self.client.log_model_artifact(self.sent["model_id"], str(path), None if place == "." else place)
        self.sent["files"][name] = at

    def _finish_model(self) -> None:
        made = self.sent["model_id"]
        try:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(made, 0)])
        except MlflowException:  # the one thing that MLflow refuses to be told twice
            outputs = self.client.get_run(self.run_id).outputs
            if outputs is None or made not in [one.model_id for one in outputs.model_outputs]:
                raise
        self.client.finalize_logged_model(made, "READY")
        self.sent["model_ready"] = True

    def _end(self) -> None:
        outcome = self.parcel.outcome
        if outcome and self.sent.get("ended") != outcome["time"]:
            self.client.set_terminated(self.run_id, outcome["status"], outcome["time"])
            self.sent["ended"] = outcome["time"]


def send(parcel: Parcel, client: mlflow.MlflowClient, run_all: RunAll = in_turn) -> Exception | None:
    """Send what is missing of a run, unless another process does; returns what the store raised."""
    try:
        with file_lock(parcel.folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
            if is_ours and parcel.about:
                Delivery(parcel, client).send(run_all)
    except FileNotFoundError as gone:
        return gone if parcel.folder.is_dir() else None  # another process has just sent it all
    except MlflowException as fault:
        if fault.error_code not in REFUSED:
            return fault
        aside = parcel.set_aside()
        console.warn(f"the store does not take run {parcel.run_id}, it is kept in {aside}: {first_line(fault)}")
    except OSError as fault:
        return fault
    return None


def is_served(uri: str) -> bool:
    """Whether a courier delivers what lies in this outbox for the store at ``uri``."""
    with file_lock(courier_file(uri), fcntl.LOCK_SH | fcntl.LOCK_NB) as is_free:
        return not is_free


def courier_file(uri: str) -> Path:
    """The file whose lock the courier for the store at ``uri`` holds."""
    stores.ARTIFACTS.mkdir(parents=True, exist_ok=True)
    return stores.ARTIFACTS / f".courier-{hashlib.sha256(without_password(uri).encode()).hexdigest()[:12]}"
