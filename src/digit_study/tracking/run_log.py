"""The only file that logs runs. A run is created, receives epochs and its result, and always ends with its true status.

All is on disk in ``mlruns/.outbox/<run_id>`` before it is sent; what a server that went away did not take stays there.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.parse
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME, MLFLOW_USER

from digit_study.config import machine
from digit_study.config.compose import ROOT
from digit_study.config.run import Config
from digit_study.terminal.console import accuracy_with_interval
from digit_study.terminal.messages import StudyError, first_line, flatten, without_password
from digit_study.terminal.signals import deferred_signals
from digit_study.tracking import views
from digit_study.tracking.stores import ARTIFACTS, OUTBOX, SERVERS

EXPERIMENT = "digit-recognizer"
EPOCH_METRICS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second",
)  # fmt: skip
MODEL_REQUIREMENTS = ("tensorflow", "keras", "numpy")
RECORDED_VERSIONS = (*MODEL_REQUIREMENTS, "mlflow", "optuna")
#: Metrics of quick epochs go to the store together: a batch costs milliseconds however little it holds.
SECONDS_A_BATCH = 1.0
#: Seconds from which a run also has metrics of its machine, as MLflow's page "System metrics" names them.
SYSTEM_AFTER_S = 3.0
#: How the params of a parent begin that are no part of its config.
BEST_OF = "best_of_"
#: Characters that MLflow takes as the value of a run's tag.
LONGEST_TAG = 8000
#: The C one is five times as fast, where the package has it.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
#: What a store that cannot be reached raises, over HTTP, from a database or from the file system.
StoreFault = (MlflowException, OSError)


class DatabaseClient(mlflow.MlflowClient):
    """MLflow's client, for each of whose calls a signal waits: one inside a transaction leaves the database locked."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found if name.startswith("_") or not callable(found) else deferred_signals()(found)


@cache
def client_of(uri: str) -> mlflow.MlflowClient:
    """The client of a store; MLflow needs a millisecond to make one. A server's calls may end at any moment."""
    return mlflow.MlflowClient(uri) if uri.startswith(SERVERS) else DatabaseClient(uri)


def experiment_name(config: Config, dataset: str) -> str:
    """Name of the experiment: as configured, else ``digit-recognizer``, with other data's name appended."""
    return config.tracking.experiment or (EXPERIMENT if dataset == "mnist" else f"{EXPERIMENT}-{dataset}")


@cache
def experiment_id(uri: str, name: str) -> str:
    """Find or create an experiment, artifacts in ``mlruns`` unless a server decides; StudyError if it was deleted."""
    client = client_of(uri)
    if (found := client.get_experiment_by_name(name)) is None:
        location = None if uri.startswith(SERVERS) else (ARTIFACTS / urllib.parse.quote(name, safe=" ")).as_uri()
        # lets the UI open with runs and their metrics, not with what it has for language models
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        wrong = f"`tracking.experiment` must be an active experiment, got '{name}', which is deleted"
        raise StudyError(f"{wrong}: choose another name, or restore it with `mlflow experiments restore`")
    return str(found.experiment_id)


@cache
def code_tags() -> dict[str, str]:
    """Git commit and dirtiness of the project, and versions of the libraries that decide a result."""
    told = {"git.commit": "rev-parse HEAD", "git.dirty": "status --porcelain"}
    for tag, words in told.items():
        command = ["git", "-C", str(ROOT), *words.split()]
        try:
            told[tag] = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
        except (FileNotFoundError, subprocess.CalledProcessError):  # no git on this machine, or no repository
            told[tag] = "unknown"
    told["git.dirty"] = str(bool(told["git.dirty"])).lower()
    return {**told, **{f"version.{name}": version(name) for name in RECORDED_VERSIONS}}


def _technical(config: Config) -> dict[str, str]:
    """Arithmetic, machine and code that a run comes from, by name."""
    return {
        "pid": str(os.getpid()),
        "precision": config.training.precision,
        "threads": str(config.training.threads),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "host": platform.node(),
        "os": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        **code_tags(),
    }


def create_run(config: Config, uri: str, dataset: str, name: str | None = None, **tags: str) -> str:
    """Create a RUNNING run that says what code, data and machine it comes from; returns its id."""
    client, parent = client_of(uri), config.tracking.parent_run_id
    all_tags = {
        MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
        MLFLOW_USER: machine.user_name(),
        **({MLFLOW_PARENT_RUN_ID: parent} if parent else {}),
        # MLflow's page shows tags in this order
        **tags,
        "dataset.name": dataset,
        "dataset.sha256": str(config.data.sha256),
        **{f"{views.TECHNICAL}{name}": value for name, value in _technical(config).items()},
    }
    experiment, run_name = experiment_id(uri, experiment_name(config, dataset)), config.tracking.run_name or name
    # a signal between the store's commit and our receiving the id would leave a run that nobody knows to end
    with deferred_signals() as is_stopping:
        run_id = str(client.create_run(experiment, tags=all_tags, run_name=run_name).info.run_id)
        if is_stopping():
            client.set_terminated(run_id, "KILLED")
    return run_id


def close_run(uri: str, run_id: str, status: str, reason: str) -> None:
    """End a run whose process could not; one that has ended stays as it is. A store that is gone only warns."""
    client = client_of(uri)
    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, "failure", reason[:500])
            client.set_terminated(run_id, status)
    except StoreFault as fault:
        warnings.warn(f"run {run_id} could not be ended as {status}: {first_line(fault)}", stacklevel=2)


def children(uri: str, parent_run_id: str, condition: str) -> list[tuple[str, dict[str, str]]]:
    """Ids and tags of the runs beneath a parent that meet a condition of MLflow's search."""
    client = client_of(uri)
    experiment = client.get_run(parent_run_id).info.experiment_id
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and {condition}"
    return [(run.info.run_id, dict(run.data.tags)) for run in client.search_runs([experiment], query, max_results=5000)]


def close_children(uri: str, parent_run_id: str, status: str) -> None:
    """End every run beneath ``parent_run_id`` that is still RUNNING."""
    with suppress(*StoreFault):  # the parent's own end says so
        for run_id, _ in children(uri, parent_run_id, "attributes.status = 'RUNNING'"):
            close_run(uri, run_id, status, "its supervisor ended before it")


def reopen_run(uri: str, run_id: str) -> bool:
    """Set a run back to RUNNING; False where the store does not have it any more."""
    try:
        is_active = bool(client_of(uri).get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False
    if is_active:
        client_of(uri).update_run(run_id, status="RUNNING")
    return is_active


def tag_run(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Set several tags of a run, ended or not. A store that is gone only warns."""
    try:
        client_of(uri).log_batch(run_id, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])
    except StoreFault as fault:
        warnings.warn(f"run {run_id} could not be tagged: {first_line(fault)}", stacklevel=2)


def add_file(uri: str, run_id: str, path: Path) -> None:
    """Add a file to the artifacts of a run, ended or not; what is there of the same name is replaced."""
    client_of(uri).log_artifact(run_id, str(path))


class RunLog:
    """One MLflow run, written to as it goes on. After the first fault of the store nothing is sent until the end."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id, self.client = uri, run_id, client_of(uri)
        self.folder = OUTBOX / run_id
        self.folder.mkdir(parents=True, exist_ok=True)
        self.unsent: list[Metric] = []
        self.opened = self.flushed = time.monotonic()
        self.sent: set[Path] = set()
        self.fault: str | None = None

    def config(self, config: Config) -> None:
        """Log the composed config: every leaf as a param, and the whole as config.yaml; passwords are left out."""
        if config.tracking.uri is not None:
            config = replace(config, tracking=replace(config.tracking, uri=without_password(config.tracking.uri)))
        (self.folder / "config.yaml").write_text(yaml.dump(asdict(config), Dumper=DUMPER, sort_keys=False))
        params = [Param(key, str(value)) for key, value in flatten(config).items()]
        self._send(self.client.log_batch, self.run_id, params=params)

    def dataset(self, name: str, sha256: str, counts: Mapping[str, int]) -> None:
        """Log the digits as the run's input. MLflow keeps 36 characters of a digest; the tag has them all."""
        profile = json.dumps({"sha256": sha256, **counts})
        entity = Dataset(name, sha256[:36], "local", json.dumps({"name": name}), profile=profile)
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]

        def log_inputs() -> None:
            with suppress(MlflowException):  # another run inserts the same digits at this moment: then they are there
                return self.client.log_inputs(self.run_id, inputs)
            return self.client.log_inputs(self.run_id, inputs)

        self._send(log_inputs)

    def epoch(self, number: int, record: Mapping[str, float]) -> None:
        """Log one epoch's metrics; ``number`` counts from 1. Those of epochs shorter than a second share a batch."""
        with (self.folder / "epochs.jsonl").open("a") as lines:
            lines.write(json.dumps({"epoch": number, **record}) + "\n")
        values = {name: record[name] for name in EPOCH_METRICS if name in record}
        if time.monotonic() - self.opened > SYSTEM_AFTER_S:
            values |= machine.system_metrics()
        self.metrics(values, number, SECONDS_A_BATCH)

    def metrics(self, values: Mapping[str, float], step: int = 0, interval: float = 0.0) -> None:
        """Log several metrics at one step; they wait for later ones until ``interval`` seconds after the last batch."""
        now = int(time.time() * 1000)
        self.unsent += [Metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self.flushed >= interval:
            self._send(self._flush)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set several tags."""
        self._send(self.client.log_batch, self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def best(self, board: pd.DataFrame, among: str) -> None:
        """Log the first of a ranking of this parent's runs, which it is the best ``among``, as ``20 trials``."""
        best = board.iloc[0]
        self.metrics({f"best_val_accuracy{end}": best[f"val_accuracy{end}"] for end in ("", "_low", "_high")})
        self.tags({"best.run_id": best["run_id"], "best.name": best["name"]})
        # MLflow lets no param change; that of so many trials never does, and after more of them there is another
        key, text = f"{BEST_OF}{among.replace(' ', '_')}", f"{best['name']}, {accuracy_with_interval(dict(best))}"

        def send() -> None:
            if key not in self.client.get_run(self.run_id).data.params:
                self.client.log_batch(self.run_id, params=[Param(key, text)])

        self._send(send)

    def describe(self, note: views.Note, keys: Sequence[str] = ()) -> None:
        """Put a note on this parent's page and its answer on the experiment's; the view has columns for ``keys``."""

        def send() -> None:
            experiment = str(self.client.get_run(self.run_id).info.experiment_id)
            tags = {MLFLOW_RUN_NOTE: note.markdown(experiment, self.run_id), views.ANSWER: note.answer}
            tagged = [RunTag(key, text[:LONGEST_TAG]) for key, text in tags.items()]
            self.client.log_batch(self.run_id, tags=tagged)
            views.share_view(self.client, experiment, self.run_id, keys)
            views.describe_experiment(self.client, experiment)

        self._send(send)

    def model(self, model: Any) -> None:
        """Log a float32 Keras model, last of all: MLflow ends the run as FINISHED when it has taken it."""

        def log_model() -> None:
            import mlflow.keras
            from mlflow.types import Schema, TensorSpec

            pixels = TensorSpec(np.dtype(np.float32), (-1, *model.input_shape[1:]), "pixels")
            probabilities = TensorSpec(np.dtype(np.float32), (-1, *model.output_shape[1:]), "probabilities")
            signature = mlflow.models.ModelSignature(Schema([pixels]), Schema([probabilities]))
            requirements = [f"{name}=={version(name)}" for name in MODEL_REQUIREMENTS]
            mlflow.set_tracking_uri(self.uri)
            whole = nullcontext() if self.uri.startswith(SERVERS) else deferred_signals()
            with whole, mlflow.start_run(run_id=self.run_id):
                mlflow.keras.log_model(model, name="model", signature=signature, pip_requirements=requirements)

        model.save(self.folder / "model.keras")
        self._send(self._send_artifacts)
        self._send(log_model)

    def end(self, status: str, outcome: Mapping[str, Any]) -> Path | None:
        """End the run as FINISHED, FAILED or KILLED; returns the folder that keeps what did not arrive, if so."""
        (self.folder / "outcome.json").write_text(json.dumps({"status": status, **outcome}, indent=2))
        try:
            self._flush()
            self._send_artifacts()
            self.client.set_terminated(self.run_id, status)
        except StoreFault as fault:
            self.fault = self.fault or first_line(fault)
        if self.fault is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return None if self.fault is None else self.folder

    def _flush(self) -> None:
        if self.unsent:
            self.client.log_batch(self.run_id, metrics=self.unsent)
            self.unsent, self.flushed = [], time.monotonic()

    def _send_artifacts(self) -> None:
        for path in sorted({*self.folder.glob("*.yaml"), *self.folder.glob("*/*")} - self.sent):
            place = path.parent.relative_to(self.folder)
            self.client.log_artifact(self.run_id, str(path), None if place == Path() else str(place))
            self.sent.add(path)

    def _send(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        if self.fault is None:
            try:
                call(*arguments, **named)
            except StoreFault as fault:
                self.fault = first_line(fault)
