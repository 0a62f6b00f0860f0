"""The only file that logs to MLflow. A run is created, told of epochs, given its result, and always ended truthfully.

Everything is on disk in ``mlruns/.outbox/<run_id>`` before it is sent; what a tracking server that went away did not
take stays there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME, MLFLOW_USER

from digit_study.config import machine as hardware
from digit_study.config.compose import ROOT
from digit_study.config.run import Config, flatten
from digit_study.terminal.errors import StudyError
from digit_study.terminal.redaction import without_password
from digit_study.terminal.signals import held_back
from digit_study.tracking.stores import ARTIFACTS, OUTBOX

EXPERIMENT = "digit-recognizer"
MODEL_NAME = "model"
#: Lets the UI open with runs and their metrics, not with what it has for language models.
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
EPOCH_METRICS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second",
)  # fmt: skip
RECORDED_VERSIONS = ("tensorflow", "keras", "numpy", "mlflow", "optuna")
#: Metrics of quick epochs go to the store together: a batch costs milliseconds however little it holds.
SECONDS_A_BATCH = 1.0
MODEL_REQUIREMENTS = ("tensorflow", "keras", "numpy")
#: The C one is five times as fast, where the package has it.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
#: What a store that cannot be reached raises, over HTTP, from a database or from the file system.
StoreFault = (MlflowException, OSError)


@cache
def client_of(uri: str) -> mlflow.MlflowClient:
    """The client of a store; MLflow needs a millisecond to make one."""
    return mlflow.MlflowClient(uri)


def experiment_name(config: Config, dataset: str) -> str:
    """Name of the experiment: as configured, else ``digit-recognizer``, with other data's name appended."""
    return config.tracking.experiment or (EXPERIMENT if dataset == "mnist" else f"{EXPERIMENT}-{dataset}")


def experiment_id(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Find or create the experiment; its artifacts lie in ``mlruns/<name>`` unless a server decides."""
    found = client.get_experiment_by_name(name)
    if found is None:
        remote = urllib.parse.urlsplit(uri).scheme in ("http", "https", "databricks")
        location = None if remote else (ARTIFACTS / urllib.parse.quote(name, safe=" ")).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=MODEL_TRAINING))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise StudyError(
            f"`tracking.experiment` must be an active experiment, got '{name}', which is deleted: "
            "choose another name, or restore it with `mlflow experiments restore`"
        )
    return str(found.experiment_id)


@cache
def _experiment_id(uri: str, name: str) -> str:
    """The same, asked for once by a process that creates many runs."""
    return experiment_id(client_of(uri), uri, name)


@cache
def code_tags() -> dict[str, str]:
    """Git commit and dirtiness of the project, and versions of the libraries that decide a result."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except FileNotFoundError:  # no git on this machine
        commit, changes = "unknown", "unknown"
    versions = {f"version.{name}": version(name) for name in RECORDED_VERSIONS}
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower(), **versions}


def create_run(config: Config, uri: str, dataset: str, name: str | None = None, **tags: str) -> str:
    """Create a RUNNING run that says what code, data and machine it comes from; returns its id."""
    client = client_of(uri)
    all_tags = {
        MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
        MLFLOW_USER: os.environ.get("USER", "unknown"),
        "dataset.name": dataset,
        "dataset.sha256": str(config.data.sha256),
        "pid": str(os.getpid()),
        "precision": config.training.precision,
        "threads": str(config.training.threads),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        **hardware.describe(),
        **code_tags(),
        **tags,
    }
    if config.tracking.parent_run_id:
        all_tags[MLFLOW_PARENT_RUN_ID] = config.tracking.parent_run_id
    run_name = config.tracking.run_name or name
    if run_name:
        all_tags[MLFLOW_RUN_NAME] = run_name
    experiment = _experiment_id(uri, experiment_name(config, dataset))
    # a signal between the store's commit and our hearing of the id would leave a run that nobody knows to end
    with held_back() as is_stopping:
        run_id = str(client.create_run(experiment, tags=all_tags, run_name=run_name).info.run_id)
        if is_stopping():
            client.set_terminated(run_id, "KILLED")
    return run_id


def close_run(uri: str, run_id: str, status: str, reason: str) -> None:
    """End a run whose process could not; one that ended itself stays as it is. A store that is gone is left alone."""
    client = client_of(uri)
    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, "failure", reason[:500])
            client.set_terminated(run_id, status)
    except StoreFault as fault:
        warnings.warn(f"run {run_id} could not be ended as {status}: {first_line(fault)}", stacklevel=2)


def tag_run(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Set several tags of a run, ended or not. A store that is gone is left alone, with a warning."""
    try:
        client_of(uri).log_batch(run_id, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])
    except StoreFault as fault:
        warnings.warn(f"run {run_id} could not be tagged: {first_line(fault)}", stacklevel=2)


@cache
def _experiment_of(uri: str, run_id: str) -> str:
    return str(client_of(uri).get_run(run_id).info.experiment_id)


def drop_models(uri: str, run_id: str, sibling: str | None = None) -> None:
    """Delete the models of a run, from the store and, where they lie on this machine, from the disk.

    ``sibling`` is a run of the same experiment, which spares asking for it where models are dropped by the thousand.
    """
    client = client_of(uri)
    experiment = _experiment_of(uri, sibling or run_id)
    for model in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)
        place = urllib.parse.urlsplit(model.artifact_location)
        if place.scheme == "file":
            folder = Path(urllib.parse.unquote(place.path))
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # MLflow made one around it, which is empty now
                folder.parent.rmdir()


def reopen_run(uri: str, run_id: str) -> bool:
    """Set a run back to RUNNING; False where the store does not have it any more."""
    client = client_of(uri)
    try:
        found = client.get_run(run_id)
    except MlflowException:
        return False
    if found.info.lifecycle_stage == "active":
        client.update_run(run_id, status="RUNNING")
    return bool(found.info.lifecycle_stage == "active")


def close_children(
    uri: str, parent_run_id: str, status: str, spare: Callable[[Mapping[str, str]], bool] = lambda tags: False
) -> None:
    """End every run beneath ``parent_run_id`` that is still RUNNING, but for those whose tags ``spare`` picks."""
    client = client_of(uri)
    try:
        experiment = client.get_run(parent_run_id).info.experiment_id
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and attributes.status = 'RUNNING'"
        left = client.search_runs([experiment], query, max_results=1000)
    except StoreFault:  # the parent's own end says so
        return
    for run in (one for one in left if not spare(one.data.tags)):
        close_run(uri, run.info.run_id, status, "its supervisor ended before it")


class RunLog:
    """One MLflow run, written to as it goes on. After the first fault of the store nothing is sent until the end."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self.client = client_of(uri)
        self.folder = OUTBOX / run_id
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unsent: list[Metric] = []
        self.flushed = time.monotonic()
        self.sent: set[Path] = set()
        self.fault: str | None = None

    def config(self, config: Config) -> None:
        """Log the composed config: every leaf as a param, and the whole as config.yaml; passwords are left out."""
        if config.tracking.uri is not None:
            config = replace(config, tracking=replace(config.tracking, uri=without_password(config.tracking.uri)))
        (self.folder / "config.yaml").write_text(yaml.dump(asdict(config), Dumper=DUMPER, sort_keys=False))
        params = [Param(key, str(value)) for key, value in flatten(config).items()]
        self._send(lambda: self.client.log_batch(self.run_id, params=params))

    def dataset(self, name: str, sha256: str, counts: Mapping[str, int]) -> None:
        """Log the digits as the run's input. MLflow keeps 36 characters of a digest; the tag has them all."""
        profile = json.dumps({"sha256": sha256, **counts})
        entity = Dataset(name, sha256[:36], "local", json.dumps({"name": name}), profile=profile)
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        self._send(lambda: self.client.log_inputs(self.run_id, inputs))

    def epoch(self, number: int, record: Mapping[str, float]) -> None:
        """Log one epoch's metrics; ``number`` counts from 1. Those of epochs shorter than a second share a batch."""
        with (self.folder / "epochs.jsonl").open("a") as lines:
            lines.write(json.dumps({"epoch": number, **record}) + "\n")
        self._keep({name: record[name] for name in EPOCH_METRICS if name in record}, number)
        if time.monotonic() - self.flushed > SECONDS_A_BATCH:
            self._send(self._flush)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log several metrics at one step."""
        self._keep(values, step)
        self._send(self._flush)

    def _keep(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.unsent += [Metric(name, float(value), now, step) for name, value in values.items()]

    def tags(self, values: Mapping[str, str]) -> None:
        """Set several tags."""
        self._send(lambda: self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()]))

    def model(self, model: Any) -> None:
        """Log a float32 Keras model with signature and explicit requirements, behind all else that there is so far.

        MLflow ends the run as FINISHED when it has taken the model, so that nothing may be missing by then.
        """
        model.save(self.folder / "model.keras")
        self._send(self._send_artifacts)
        self._send(lambda: self._log_model(model))

    def end(self, status: str, outcome: Mapping[str, Any]) -> Path | None:
        """Send all that lies in the outbox and end the run as ``status``.

        Args:
            status: FINISHED, FAILED or KILLED.
            outcome: what a person needs should the store be gone: metrics, reason.

        Returns:
            None when everything arrived, else the folder where the outcome is kept.
        """
        (self.folder / "outcome.json").write_text(json.dumps({"status": status, **outcome}, indent=2))
        try:
            self._flush()
            self._send_artifacts()
            self.client.set_terminated(self.run_id, RunStatus.to_string(RunStatus.from_string(status)))
        except StoreFault as fault:
            self.fault = self.fault or first_line(fault)
        if self.fault is not None:
            return self.folder
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def _send_artifacts(self) -> None:
        for path in sorted({*self.folder.glob("*.yaml"), *self.folder.glob("*/*")} - self.sent):
            place = path.parent.relative_to(self.folder)
            self.client.log_artifact(self.run_id, str(path), None if place == Path() else str(place))
            self.sent.add(path)

    def _flush(self) -> None:
        if self.unsent:
            self.client.log_batch(self.run_id, metrics=self.unsent)
            self.unsent, self.flushed = [], time.monotonic()

    def _send(self, call: Any) -> None:
        if self.fault is not None:
            return
        try:
            call()
        except StoreFault as fault:
            self.fault = first_line(fault)

    def _log_model(self, model: Any) -> None:
        import mlflow.keras
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        signature = ModelSignature(
            Schema([TensorSpec(np.dtype(np.float32), (-1, *model.input_shape[1:]), "pixels")]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, *model.output_shape[1:]), "probabilities")]),
        )
        requirements = [f"{name}=={version(name)}" for name in MODEL_REQUIREMENTS]
        mlflow.set_tracking_uri(self.uri)
        with mlflow.start_run(run_id=self.run_id):
            mlflow.keras.log_model(model, name=MODEL_NAME, signature=signature, pip_requirements=requirements)


def first_line(fault: Exception) -> str:
    """What a fault says, short."""
    return str(fault).strip().split("\n")[0][:300]
