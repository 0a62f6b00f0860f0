"""Runs as MLflow holds them: found, checked, and turned back into what made them. Needs no TensorFlow."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from digit_study.config import compose as composition
from digit_study.config.run import Config, TrackingConfig, validate
from digit_study.terminal.errors import StudyError
from digit_study.terminal.naming import nearest
from digit_study.terminal.redaction import without_password
from digit_study.tracking.stores import look, prepare_store, require_store, tracking_uri, unknown_run

#: MLflow's codes for "there is no such thing", as its several stores spell it.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
#: Tags by which a run that is not a training run names the one that a person probably means.
POINTERS = ("winner.run_id", "best.run_id")


def open_store(configured: str | None) -> tuple[mlflow.MlflowClient, str]:
    """Connect to a store that exists already; returns the client and the store's URI.

    Raises:
        StudyError: there is none, or it does not answer.
    """
    uri = tracking_uri(configured)
    require_store(uri, "runs must have been tracked first", "run `python src/run.py`")
    prepare_store(uri)
    mlflow.set_tracking_uri(uri)  # the registry and the artifacts follow it
    return mlflow.MlflowClient(), uri


@contextmanager
def store_faults(uri: str) -> Iterator[None]:
    """Turn what a store raises inside the block into one readable message."""
    try:
        yield
    except MlflowException as fault:
        first = str(fault).strip().split("\n")[0][:300]
        raise StudyError(
            f"`tracking.uri` must be an MLflow store that answers, got '{without_password(uri)}', which said: {first}; "
            "make it answer, then run the same command again"
        ) from fault


def finished_run(client: mlflow.MlflowClient, uri: str, run_id: str, key: str) -> Run:
    """Look up a training run that ended well; ``key`` is what the person set to ``run_id``.

    Raises:
        StudyError: it is unknown, deleted, not finished, or no training run.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as fault:
        if fault.error_code not in ABSENT:
            raise
        raise unknown_run(uri, run_id, key) from None
    if run.info.lifecycle_stage != "active":
        raise StudyError(f"`{key}` must be a run that is not deleted, got '{run_id}': `mlflow runs restore` it")
    if run.info.status != "FINISHED":
        raise StudyError(
            f"`{key}` must be a finished run, got '{run_id}', which is {run.info.status}: "
            f"wait for it, or take another one; {_seen(uri)}"
        )
    if "weights.sha256" not in run.data.tags:
        raise StudyError(
            f"`{key}` must be a training run, got '{run_id}', which is a {run.data.tags.get('kind', 'run of others')}: "
            f"{_pointed(run) or _seen(uri)}"
        )
    return run


def _seen(uri: str) -> str:
    return f"see the ids with `{look(uri)}`"


def _pointed(run: Run) -> str:
    found = [run.data.tags[tag] for tag in POINTERS if tag in run.data.tags]
    return f"take the run it names, {found[0]}" if found else ""


def confirmed_winner(client: mlflow.MlflowClient, study: str) -> str:
    """Run id of the winner of the latest finished confirmation of ``study``.

    Raises:
        StudyError: there is no such study, or it has not been confirmed.
    """
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(  # the name is compared here: MLflow's filters cannot quote a quote
        experiments,
        "tags.kind = 'confirmation' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=5_000,
    )
    tags = [run.data.tags for run in runs]
    winners = [one["winner.run_id"] for one in tags if one.get("study") == study and "winner.run_id" in one]
    if winners:
        return str(winners[0])
    raise StudyError(_unconfirmed(client, experiments, study))


def _unconfirmed(client: mlflow.MlflowClient, experiments: list[str], study: str) -> str:
    runs = client.search_runs(experiments, "tags.study LIKE '%'", max_results=5_000)
    names = {run.data.tags["study"] for run in runs}
    remedy = "or promote a run of your choice with run_id=<run_id>"
    if study not in names:
        return (
            f"`study` must be one that was searched and confirmed, got '{study}', of which this store holds nothing"
            f"{nearest(study, names)}; run `python sweeps/optuna_search.py study={study}` and "
            f"`python sweeps/confirm.py study={study}`, {remedy}"
        )
    trained = [run for run in runs if run.data.tags["study"] == study and "weights.sha256" in run.data.tags]
    done = sum(run.info.status == "FINISHED" for run in trained)
    return (
        f"`study` must have a confirmed winner, got '{study}' with {done} finished runs and no finished confirmation: "
        f"{'' if done else 'let it finish a trial, then '}run `python sweeps/confirm.py study={study}`, {remedy}"
    )


def recorded_config(client: mlflow.MlflowClient, run: Run) -> Config:
    """Rebuild the config of a run from its config.yaml, or from its params where that artifact is gone.

    Tracking is left at its defaults: it says where the run went, not what it was.

    Raises:
        StudyError: neither is there, or this version of the code does not know what they say.
    """
    flat = _from_artifact(client, run) or dict(run.data.params)
    if not flat:
        raise StudyError(f"a run must hold its config, got '{run.info.run_id}' without config.yaml and params")
    composition.register()
    keep = {key: text for key, text in flat.items() if not key.startswith(("tracking.", "reproduce"))}
    try:
        config: Config = composition.compose_config([_override(key, text) for key, text in keep.items()])
        validate(config)
    except StudyError as fault:
        raise StudyError(
            f"the config of run '{run.info.run_id}' must be one this code knows: {fault}; "
            f"check out the code it was made with, git commit {run.data.tags.get('git.commit', 'unknown')}"
        ) from None
    return replace(config, tracking=TrackingConfig(), reproduce=None)


def _from_artifact(client: mlflow.MlflowClient, run: Run) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(run.info.run_id, "config.yaml", folder)
            return dict(_flat(yaml.safe_load(Path(path).read_text()), ""))
        except (MlflowException, OSError, yaml.YAMLError, AttributeError):  # gone or garbled: the params have it too
            return {}


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _override(key: str, text: str) -> str:
    # quoted, a value is a string, which the schema converts; a backslash is special before a quote only
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"{key}=null" if text == "None" else f"{key}='{quoted}'"


def predictions(client: mlflow.MlflowClient, run: Run, key: str) -> pd.DataFrame:
    """The run's tables/predictions.csv: index, label, predicted, correct, confidence, p0 to p9.

    Raises:
        StudyError: it is gone.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return pd.read_csv(client.download_artifacts(run.info.run_id, "tables/predictions.csv", folder))
        except (MlflowException, OSError, pd.errors.ParserError) as fault:
            why = str(fault).strip().split("\n")[0][:200]
            raise StudyError(
                f"`{key}` must be a run with tables/predictions.csv, got '{run.info.run_id}' ({why}): "
                "train it again with `python src/run.py`"
            ) from None


def name_of(run: Run) -> str:
    """Short name of a run for tables and figures."""
    return str(run.info.run_name or run.info.run_id[:8])
