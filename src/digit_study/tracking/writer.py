"""The writer of a run, the only file that knows what a run records.

A run always ends with its true status. All is on disk in ``mlruns/.outbox/<run_id>`` before it is
uploaded; see `spool`.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from digit_study.config.run_config import Config
from digit_study.support.errors import first_line
from digit_study.support.formatting import accuracy_with_interval
from digit_study.support.redaction import without_password
from digit_study.support.rules import flatten
from digit_study.support.trial_status import STATUS_TAG, STOPPED_TAG, TrialStatus
from digit_study.tracking import pages, provenance
from digit_study.tracking.spool import MODEL, STOPPED, SpooledRun
from digit_study.tracking.store import Store
from digit_study.tracking.upload import has_uploader, upload_run

if TYPE_CHECKING:
    from digit_study.report.description import RunDescription
    from digit_study.tracking.system_metrics import SystemMetrics

#: Metrics of an epoch that are recorded, in this order.
EPOCH_METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "epoch_seconds",
    "images_per_second",
)
#: Metrics of quick epochs are uploaded together: a batch costs milliseconds however small it is.
SECONDS_A_BATCH = 1.0
#: The code that is saved with a model, by which MLflow serves it.
SERVING = Path(__file__).with_name("digit_model.py")
#: What a served model takes, for people.
INPUTS = "pixels (n, 28, 28, 1) or (n, 28, 28), 0 (paper) to 255 (ink), of any type of number"
#: How the params of a parent begin that are no part of its config.
BEST_OF = "best_of_"
#: Characters of a digest that MLflow keeps.
LONGEST_DIGEST = 36
#: Seconds between two samples of system metrics, as MLflow has it.
SAMPLE_S = 10.0
#: The one in C is five times as fast, where the package has it.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class RunWriter:
    """Writes one run to disk as it goes on.

    A background uploader uploads it, or this process where there is none. After the first fault of
    the store this process uploads nothing more until the end.
    """

    def __init__(self, store: Store, run_id: str, seconds_a_batch: float = SECONDS_A_BATCH) -> None:
        """Open the run: until its `end` its folder stays.

        Args:
            store: The store that the run is in.
            run_id: Id of the run.
            seconds_a_batch: Seconds from an upload on in which metrics of epochs wait for others.
        """
        self.store = store
        self.run_id = run_id
        self.spooled = SpooledRun(run_id, self.store.workspace)
        self.spooled.open(self.store.uri)
        #: What was wrong with the store when this process last uploaded; None if nothing.
        self.fault: str | None = None
        self._seconds_a_batch = seconds_a_batch
        self._uploaded_at = time.monotonic()
        self._system_metrics: SystemMetrics | None = None
        # the thread of system metrics records too
        self._lock = threading.RLock()

    @property
    def folder(self) -> Path:
        """Folder of the run: what is put there becomes an artifact."""
        return self.spooled.folder

    # ------------------------------------------------------------------------------- recorded

    def config(self, config: Config) -> None:
        """Record the composed config: every leaf as a param, and the whole as config.yaml.

        Passwords are left out.
        """
        tracking = config.tracking
        if tracking.uri is not None:
            public_uri = without_password(tracking.uri)
            config = replace(config, tracking=replace(tracking, uri=public_uri))
        text = yaml.dump(asdict(config), Dumper=DUMPER, sort_keys=False)
        (self.folder / "config.yaml").write_text(text)
        params = {key: str(value) for key, value in flatten(config).items()}
        self._record(params=params)

    def dataset(self, name: str, sha256: str, counts: Mapping[str, int]) -> None:
        """Record the digits as the run's input.

        Args:
            name: Name of the digits.
            sha256: Digest of the digits. MLflow keeps 36 characters of it; the run's tag has all.
            counts: Numbers of images, by what they are for.
        """
        dataset = {
            "name": name,
            "digest": sha256[:LONGEST_DIGEST],
            "profile": json.dumps({"sha256": sha256, **counts}),
        }
        self._record(dataset=dataset)

    def epoch(self, number: int, record: Mapping[str, float]) -> None:
        """Record the metrics of an epoch; those of short epochs are uploaded together.

        Args:
            number: Number of the epoch, from 1.
            record: Metrics by name; those that are not in `EPOCH_METRICS` are left out.
        """
        values = {name: float(record[name]) for name in EPOCH_METRICS if name in record}
        self._record(self._seconds_a_batch, metrics=values, step=number)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record several metrics at one step."""
        self._record(metrics=_floats(values), step=step)

    def result(self, values: Mapping[str, float], step: int) -> None:
        """Record the final metrics: a run that is cut off after this is FINISHED all the same."""
        self._record(metrics=_floats(values), step=step, result=True)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set several tags."""
        self._record(tags=dict(values))

    def best(self, ranking: pd.DataFrame, chosen_from: str) -> None:
        """Record the first of a ranking of this parent's runs.

        Args:
            ranking: A row for each run, the best first, with name, run_id, val_accuracy and its
                interval.
            chosen_from: What it is the best of, as ``20 trials``.
        """
        best = ranking.iloc[0]
        columns = ("val_accuracy", "val_accuracy_low", "val_accuracy_high")
        self.metrics({f"best_{column}": best[column] for column in columns})
        self.tags({"best.run_id": best["run_id"], "best.name": best["name"]})
        self.best_of(chosen_from, dict(best))

    def best_of(self, chosen_from: str, row: Mapping[str, Any]) -> None:
        """Record as a param of this parent which run is the best.

        MLflow lets no param change. The best of so many trials never does, and after more of them
        there is another param.

        Args:
            chosen_from: What it is the best of, as ``20 trials``.
            row: Its row of a ranking, with its name, its accuracy and the interval.
        """
        key = f"{BEST_OF}{chosen_from.replace(' ', '_')}"
        best = f"{row['name']}, {accuracy_with_interval(row)}"
        self._record(params={key: best})

    def describe(
        self, description: RunDescription, keys: Sequence[str] = (), child_tags: Sequence[str] = ()
    ) -> None:
        """Put a description on this parent's page, and its answer on the experiment's.

        Args:
            description: What the page says.
            keys: Keys of the config that the view of the children has columns for.
            child_tags: Tags of the children that it has columns for.
        """
        experiment = self.store.experiment_of(self.run_id)
        text = description.markdown(experiment, self.run_id)
        tags = {
            MLFLOW_RUN_NOTE: text,
            pages.ANSWER: description.answer,
        }
        note = {
            "keys": list(keys),
            "tags": list(child_tags),
        }
        self._record(tags=tags, note=note)

    def model(self, model: Any) -> None:
        """Record a float32 Keras model, which takes (n, 28, 28, 1) and returns (n, 10).

        The signature names the output alone: MLflow would refuse any input that is not exactly its
        schema. See `digit_model`, which converts it.

        Args:
            model: The model.
        """
        import mlflow.keras
        from mlflow.models import Model
        from mlflow.types import Schema, TensorSpec

        from digit_study.tracking._mlflow import skip_module_map

        skip_module_map()
        kind = np.dtype(np.float32)
        pixels = TensorSpec(kind, (-1, *model.input_shape[1:]), "pixels")
        probabilities = TensorSpec(kind, (-1, *model.output_shape[1:]), "probabilities")
        inputs = Schema([pixels])
        outputs = Schema([probabilities])
        requirements = [f"{name}=={version(name)}" for name in provenance.MODEL_REQUIREMENTS]
        folder = self.folder / MODEL
        description = Model()
        mlflow.keras.save_model(
            model,
            str(folder),
            mlflow_model=description,
            signature=mlflow.models.ModelSignature(inputs, outputs),
            metadata={"inputs": INPUTS},
            pip_requirements=requirements,
        )
        # MLflow saves no Keras model without a schema of its input
        description.signature = mlflow.models.ModelSignature(outputs=outputs)
        code = folder / "code"
        code.mkdir()
        shutil.copy2(SERVING, code)
        served = description.flavors["python_function"]
        served["loader_module"] = SERVING.stem
        served["code"] = code.name
        description.save(str(folder / "MLmodel"))

    def start_system_metrics(self, interval_s: float = SAMPLE_S) -> None:
        """Record what the machine is busy with until the run ends; see `system_metrics`.

        Args:
            interval_s: Seconds between two samples.
        """
        from digit_study.tracking.system_metrics import SystemMetrics

        self._system_metrics = SystemMetrics(self.metrics, interval_s)

    # ------------------------------------------------------------------------------- ended

    def close(self, status: str, reason: str) -> None:
        """End the run on disk because it could not go on; with its result it is FINISHED.

        Args:
            status: FAILED or KILLED.
            reason: Why, in one line.
        """
        self._stop_system_metrics()
        self.spooled.close(self.store.uri, status, reason)

    def finish(self) -> None:
        """End the run on disk as FINISHED; `upload` uploads it."""
        self._stop_system_metrics()
        self.spooled.end("FINISHED")

    def stop(self, reason: str) -> None:
        """End a run that was stopped before its last epoch, and upload it.

        It is FINISHED, because nothing went wrong. Its tags tell it from a run with a result.

        Args:
            reason: Why it was stopped.
        """
        self.tags({STATUS_TAG: TrialStatus.PRUNED, STOPPED_TAG: reason})
        self.end("FINISHED", {STOPPED: reason})

    def end(self, status: str, outcome: Mapping[str, Any]) -> Path | None:
        """End the run on disk and upload it.

        Args:
            status: FINISHED, FAILED or KILLED.
            outcome: More that is kept until the run is uploaded, as JSON.

        Returns:
            The folder that keeps what the store did not take; None if it has all, or if a
            background uploader uploads it.
        """
        self._stop_system_metrics()
        self.spooled.end(status, **outcome)
        return self.upload()

    def upload(self) -> Path | None:
        """Upload a run that has ended; return what `end` does."""
        self.fault = None
        self._upload()
        if self.fault is None:
            return None
        return self.folder

    # ------------------------------------------------------------------------------- private

    def _record(self, seconds_a_batch: float = 0.0, **record: Any) -> None:
        with self._lock:
            self.spooled.put(self.store.uri, **record)
            waited = time.monotonic() - self._uploaded_at
            if waited >= seconds_a_batch and self.fault is None:
                self._upload()

    def _upload(self) -> None:
        """Upload what is spooled, unless a background uploader does."""
        if has_uploader(self.store.uri, self.store.workspace):
            return
        fault = upload_run(self.spooled, self.store)
        self.fault = None
        if fault is not None:
            self.fault = first_line(fault)
        self._uploaded_at = time.monotonic()

    def _stop_system_metrics(self) -> None:
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = None


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
