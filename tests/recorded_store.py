"""A tracking store with runs as ``src/run.py`` leaves them, made in a second, without TensorFlow.

A model here is a JSON file that says which sealed images it gets wrong, which
:func:`evaluate_sealed` reads.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

from digit_study.config.promote_config import GateConfig, PromoteConfig, StoreConfig
from digit_study.config.run_config import Config
from digit_study.data.sources import SAMPLE_SHA256, DataConfig
from digit_study.registry import promotion
from digit_study.registry.contest import NetworkFile, SealedResult
from digit_study.registry.registry import Registry
from digit_study.support.rules import flatten
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import quiet_mlflow
from digit_study.tracking.session import Tracker

SEALED = 1_000
#: Stand in for corrupted validation images.
ROBUST = 100
NAME = "digit-recognizer"


@dataclass(frozen=True)
class Store:
    uri: str
    client: mlflow.MlflowClient
    experiment: str

    @property
    def registry(self) -> Registry:
        return Registry(self.tracker, NAME)

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.uri, self.workspace)

    @property
    def workspace(self) -> Workspace:
        return Workspace(Path(self.uri.removeprefix("sqlite:///")).parent)

    def promote(self, config: PromoteConfig, **more: Any) -> None:
        """Do what ``config`` asks for, without TensorFlow."""
        promotion.run(config, self.workspace, **{"evaluate": evaluate_sealed, **more})

    def ask(self, run_id: str | None = None, **given: Any) -> PromoteConfig:
        gate = {
            key: given.pop(key)
            for key in ("margin", "floor", "significance", "dry_run")
            if key in given
        }
        return PromoteConfig(
            run_id=run_id, tracking=StoreConfig(self.uri), promote=GateConfig(**gate), **given
        )


def make_store(migrated: Path, folder: Path) -> Store:
    """A store in ``folder``: a copy of ``migrated``, an empty database."""
    quiet_mlflow()
    uri = f"sqlite:///{shutil.copy(migrated, folder / 'mlflow.db')}"
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    return Store(
        uri,
        client,
        client.create_experiment("digits", artifact_location=(folder / "artifacts").as_uri()),
    )


def open_copy(store: Store, folder: Path) -> Store:
    """The same store in another database, with its own ledger."""
    source = Path(store.uri.removeprefix("sqlite:///"))
    (folder / "mlruns").mkdir(parents=True)
    (folder / source.name).write_bytes(source.read_bytes())
    for ledger in (source.parent / "mlruns").glob("*.jsonl"):
        (folder / "mlruns" / ledger.name).write_bytes(ledger.read_bytes())
    uri = f"sqlite:///{folder / source.name}"
    return replace(store, uri=uri, client=mlflow.MlflowClient(uri, uri))


def add_run(
    store: Store,
    wrong: Sequence[int] = (),
    parameters: int = 1_000,
    *,
    status: str = "FINISHED",
    model: bool = True,
    tags: dict[str, str] | None = None,
    table: pd.DataFrame | None = None,
) -> str:
    """A run whose model reads every sealed image but ``wrong``."""
    client = store.client
    digest = (tags or {}).get("dataset.sha256", SAMPLE_SHA256)
    all_tags = {
        "dataset.name": "mnist_sample",
        "dataset.sha256": digest,
        "weights.sha256": "w",
        **(tags or {}),
    }
    run_id = client.create_run(store.experiment, tags=all_tags).info.run_id
    metrics = [Metric("parameters", parameters, 0, 0), Metric("val_accuracy", 0.97, 0, 0)]
    config = Config(data=DataConfig(source="mnist_sample", sha256=SAMPLE_SHA256))
    params = [Param(key, str(value)) for key, value in flatten(config).items()]
    client.log_batch(run_id, metrics=metrics, params=params)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if table is not None:
            table.to_csv(folder / "predictions.csv", index=False, float_format="%.7g")
            client.log_artifact(run_id, str(folder / "predictions.csv"), "tables")
        if model:
            _add_model(store, run_id, {"wrong": list(wrong), "parameters": parameters}, folder)
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return str(run_id)


def _add_model(store: Store, run_id: str, content: dict[str, Any], folder: Path) -> None:
    (folder / "model" / "data").mkdir(parents=True)
    (folder / "model" / "data" / "model.keras").write_text(json.dumps(content))
    made = store.client.create_logged_model(store.experiment, name="model", source_run_id=run_id)
    store.client.log_model_artifacts(made.model_id, str(folder / "model"))
    store.client.finalize_logged_model(made.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])


def add_study(store: Store, study: str, uid: str) -> str:
    """A parent run of a study, as a search leaves it."""
    tags = {"kind": "study", "study": study, "study.uid": uid}
    return str(store.client.create_run(store.experiment, tags=tags).info.run_id)


def add_confirmation(
    store: Store, study: str, winner: str, status: str = "FINISHED", uid: str | None = None
) -> str:
    run_id = store.client.create_run(store.experiment).info.run_id
    named = {"kind": "confirmation", "study": study, "winner.run_id": winner}
    if uid is not None:
        named["study.uid"] = uid
    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in named.items()])
    store.client.set_terminated(run_id, status)
    return str(run_id)


def evaluate_sealed(
    networks: Sequence[NetworkFile],
    source: DataConfig,
    record: Callable[[], None],
    threshold: float | None = None,
) -> SealedResult:
    """Stand in for :func:`digit_study.registry.contest.evaluate_sealed`."""
    record()
    contents = [json.loads(network.path.read_text()) for network in networks]
    correct = [~np.isin(np.arange(SEALED), content["wrong"]) for content in contents]
    parameters = [content["parameters"] for content in contents]
    # of the first images, as if they were corrupted validation images
    robust = [row[:ROBUST] for row in correct]
    return SealedResult(correct, parameters, "sealed", {}, robust)


def predictions(
    predicted: Sequence[int], labels: Sequence[int], index: Sequence[int]
) -> pd.DataFrame:
    """tables/predictions.csv of a run that is 91 % sure of everything."""
    rows = np.full((len(labels), 10), 0.01)
    rows[np.arange(len(labels)), predicted] = 0.91
    columns = {f"p{digit}": rows[:, digit] for digit in range(10)}
    correct = np.asarray(predicted) == np.asarray(labels)
    named = {
        "index": index,
        "label": labels,
        "predicted": predicted,
        "correct": correct,
        "confidence": 0.91,
    }
    return pd.DataFrame({**named, **columns})
