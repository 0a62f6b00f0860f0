"""The only file that logs runs. A run is created, receives epochs and its result, and always ends with its true status.

All is on disk in ``mlruns/.outbox/<run_id>`` before it is sent, see :mod:`digit_study.tracking.spool`.
"""

import json
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_USER,
)

from digit_study.config.run import Config
from digit_study.report.description import RunDescription
from digit_study.support import machine
from digit_study.support.console import accuracy_with_interval, warn
from digit_study.support.messages import StudyError, first_line, flatten, without_password
from digit_study.support.signals import deferred_signals
from digit_study.tracking import database as stores
from digit_study.tracking import provenance as origin
from digit_study.tracking import upload as delivery
from digit_study.tracking import views
from digit_study.tracking.database import SERVERS
from digit_study.tracking.spool import MODEL, SpooledRun
from digit_study.tracking.upload import StoreFault

EPOCH_METRICS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second",
)  # fmt: skip
#: Metrics of quick epochs go to the store together: a batch costs milliseconds however little it holds.
SECONDS_A_BATCH = 1.0
#: Seconds from which a run also has metrics of its machine, as MLflow's page "System metrics" names them.
SYSTEM_AFTER_S = 3.0
#: How the params of a parent begin that are no part of its config.
BEST_OF = "best_of_"
#: The C one is five times as fast, where the package has it.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class DatabaseClient(mlflow.MlflowClient):
    """MLflow's client, for each of whose calls a signal waits: one inside a transaction leaves the database locked."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found if name.startswith("_") or not callable(found) else deferred_signals()(found)


@cache
def client_of(uri: str) -> mlflow.MlflowClient:
    """The client of a store; MLflow needs a millisecond to make one. A server's calls may end at any moment."""
    return mlflow.MlflowClient(uri) if uri.startswith(SERVERS) else DatabaseClient(uri)


@cache
def experiment_id(uri: str, name: str) -> str:
    """Find or create an experiment, artifacts in ``mlruns`` unless a server decides; StudyError if it was deleted."""
    client = client_of(uri)
    if (found := client.get_experiment_by_name(name)) is None:
        location = (
            None
            if uri.startswith(SERVERS)
            else (stores.ARTIFACTS / urllib.parse.quote(name, safe=" ")).as_uri()
        )
        # lets the UI open with runs and their metrics, not with what it has for language models
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        wrong = (
            f"`tracking.experiment` must be an active experiment, got '{name}', which is deleted"
        )
        raise StudyError(
            f"{wrong}: choose another name, or restore it with `mlflow experiments restore`"
        )
    return str(found.experiment_id)


def create_run(config: Config, uri: str, dataset: str, name: str | None = None, **tags: str) -> str:
    """Create a RUNNING run that says what code, data and machine it comes from; returns its id."""
    client, named = client_of(uri), config.tracking.run_name or name
    experiment = experiment_id(uri, stores.experiment_name(config, dataset))
    # a signal between the store's commit and our receiving the id would leave a run that nobody knows to end
    with deferred_signals() as is_stopping:
        made = client.create_run(
            experiment, tags=run_tags(config, dataset, **tags), run_name=named
        ).info
        if is_stopping():
            client.set_terminated(made.run_id, "KILLED")
    views.run_location(client, made.run_id, made)
    return str(made.run_id)


def run_tags(config: Config, dataset: str, **tags: str) -> dict[str, str]:
    """All tags that a run of this process has from its beginning, in the order in which MLflow's page shows them."""
    parent = config.tracking.parent_run_id
    return {
        MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
        MLFLOW_USER: machine.user_name(),
        **({MLFLOW_PARENT_RUN_ID: parent} if parent else {}),
        **tags,
        "dataset.name": dataset,
        "dataset.sha256": str(config.data.sha256),
        **origin.technical(config),
    }


def close_run(uri: str, run_id: str, status: str, reason: str) -> None:
    """End a run whose process could not; one that has ended stays as it is."""
    SpooledRun(run_id).close(uri, status, reason)
    _post(uri, run_id)


def delete_run(uri: str, run_id: str) -> None:
    """Delete a run that nothing came of."""
    client_of(uri).delete_run(run_id)


def children(uri: str, parent_run_id: str, condition: str) -> list[tuple[str, dict[str, str]]]:
    """Ids and tags of the runs beneath a parent that meet a condition of MLflow's search."""
    client = client_of(uri)
    experiment = views.experiment_of(client, parent_run_id)
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and {condition}"
    return [
        (run.info.run_id, dict(run.data.tags))
        for run in client.search_runs([experiment], query, max_results=5000)
    ]


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
    """Set several tags of a run, ended or not."""
    SpooledRun(run_id).put(uri, tags={key: value[:5000] for key, value in tags.items()})
    _post(uri, run_id)


def is_kept_here(run_id: str) -> bool:
    """Whether the store does not have all of a run yet."""
    return SpooledRun(run_id).folder.is_dir()


def drop_models(uri: str, run_id: str) -> None:
    """Delete the models of a run, from store and own disk."""
    SpooledRun(run_id).put(uri, drop_models={})
    _post(uri, run_id)


def add_file(uri: str, run_id: str, path: Path) -> None:
    """Add a file to the artifacts of a run, ended or not; what is there of the same name is replaced."""
    SpooledRun(run_id).put_file(uri, path)
    _post(uri, run_id)


def _post(uri: str, run_id: str) -> None:
    """Send what a run has to tell, or leave it to the uploader; a store that is gone is told, and sent to later."""
    if (
        not delivery.is_served(uri)
        and (fault := delivery.send(SpooledRun(run_id), client_of(uri))) is not None
    ):
        warn(
            f"run {run_id} could not be told all, which is kept in mlruns/.outbox: {first_line(fault)}"
        )


class RunLog:
    """One run, written to disk as it goes on, and sent to MLflow by a uploader, or by this process where there is none.

    After the first fault of the store nothing is sent until the end.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self.spooled = SpooledRun(run_id)
        self.spooled.open(uri)
        self.folder = self.spooled.folder
        self.opened = self.flushed = time.monotonic()
        self.fault: str | None = None

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """The client of its store; for a database its import takes half a second, which one with a uploader saves."""
        return client_of(self.uri)

    def config(self, config: Config) -> None:
        """Log the composed config: every leaf as a param, and the whole as config.yaml; passwords are left out."""
        if config.tracking.uri is not None:
            config = replace(
                config, tracking=replace(config.tracking, uri=without_password(config.tracking.uri))
            )
        (self.folder / "config.yaml").write_text(
            yaml.dump(asdict(config), Dumper=DUMPER, sort_keys=False)
        )
        self._tell(params={key: str(value) for key, value in flatten(config).items()})

    def dataset(self, name: str, sha256: str, counts: Mapping[str, int]) -> None:
        """Log the digits as the run's input. MLflow keeps 36 characters of a digest; the tag has them all."""
        self._tell(
            dataset={
                "name": name,
                "digest": sha256[:36],
                "profile": json.dumps({"sha256": sha256, **counts}),
            }
        )

    def epoch(self, number: int, record: Mapping[str, float]) -> None:
        """Log one epoch's metrics; ``number`` counts from 1. Those of epochs shorter than a second share a batch."""
        values = {name: record[name] for name in EPOCH_METRICS if name in record}
        if time.monotonic() - self.opened > SYSTEM_AFTER_S:
            values |= machine.system_metrics()
        self.metrics(values, number, SECONDS_A_BATCH)

    def metrics(self, values: Mapping[str, float], step: int = 0, interval: float = 0.0) -> None:
        """Log several metrics at one step; they wait for later ones until ``interval`` seconds after the last batch."""
        self._tell(
            interval, metrics={name: float(value) for name, value in values.items()}, step=step
        )

    def result(self, values: Mapping[str, float], step: int) -> None:
        """Log the final metrics: a run that is cut off after this is FINISHED none the less."""
        self._tell(
            metrics={name: float(value) for name, value in values.items()}, step=step, result=True
        )

    def tags(self, values: Mapping[str, str]) -> None:
        """Set several tags."""
        self._tell(tags=dict(values))

    def best(self, board: pd.DataFrame, among: str) -> None:
        """Log the first of a ranking of this parent's runs, which it is the best ``among``, as ``20 trials``."""
        best = board.iloc[0]
        self.metrics(
            {f"best_val_accuracy{end}": best[f"val_accuracy{end}"] for end in ("", "_low", "_high")}
        )
        self.tags({"best.run_id": best["run_id"], "best.name": best["name"]})
        self.best_of(among, dict(best))

    def best_of(self, among: str, row: Mapping[str, Any]) -> None:
        """Log as a param of this parent which is the best ``among`` its runs: name and accuracy of a ranking's row."""
        # MLflow lets no param change; that of so many trials never does, and after more of them there is another
        self._tell(
            params={
                f"{BEST_OF}{among.replace(' ', '_')}": f"{row['name']}, {accuracy_with_interval(row)}"
            }
        )

    def describe(self, note: RunDescription, keys: Sequence[str] = ()) -> None:
        """Put a note on this parent's page and its answer on the experiment's; the view has columns for ``keys``."""
        text = note.markdown(views.experiment_of(self.client, self.run_id), self.run_id)
        said = {"keys": list(keys), "answer": note.answer}
        self._tell(tags={MLFLOW_RUN_NOTE: text, views.ANSWER: note.answer}, note=said)

    def model(self, model: Any) -> None:
        """Log a float32 Keras model."""
        import mlflow.keras
        from mlflow.types import Schema, TensorSpec

        pixels = TensorSpec(np.dtype(np.float32), (-1, *model.input_shape[1:]), "pixels")
        probabilities = TensorSpec(
            np.dtype(np.float32), (-1, *model.output_shape[1:]), "probabilities"
        )
        signature = mlflow.models.ModelSignature(Schema([pixels]), Schema([probabilities]))
        requirements = [f"{name}=={version(name)}" for name in origin.MODEL_REQUIREMENTS]
        place = str(self.folder / MODEL)
        mlflow.keras.save_model(model, place, signature=signature, pip_requirements=requirements)

    def end(self, status: str, outcome: Mapping[str, Any]) -> Path | None:
        """End the run as FINISHED, FAILED or KILLED; returns the folder that keeps what the store did not take, if so.

        None where a uploader sends it.
        """
        self.spooled.end(status, **outcome)
        return self.deliver()

    def deliver(self) -> Path | None:
        """Send a run that has ended; returns what :meth:`end` does."""
        self.fault = None
        self._send()
        return None if self.fault is None else self.folder

    def _tell(self, interval: float = 0.0, **record: Any) -> None:
        self.spooled.put(self.uri, **record)
        if time.monotonic() - self.flushed >= interval and self.fault is None:
            self._send()

    def _send(self) -> None:
        if not delivery.is_served(self.uri):
            fault = delivery.send(self.spooled, self.client)
            self.fault, self.flushed = first_line(fault) if fault else None, time.monotonic()
