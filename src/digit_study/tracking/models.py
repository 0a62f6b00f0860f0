"""Models that a person names: their version, their Keras file, their run. Imports MLflow late."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digit_study.support.errors import StudyError, first_line
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import require_store
from digit_study.tracking.location import MODEL_NAMES, REGISTERED_NAME, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from digit_study.tracking.store import Store

#: How the names begin of models that a store holds.
SCHEMES = ("models:/", "runs:/")
#: The Keras file among the artifacts of a model.
KERAS_FILE = Path("data") / "model.keras"
#: Versions at most that a message lists.
MOST_VERSIONS = 200
#: How MLflow's message begins when a model is known and its files are not there.
NO_FILES = "No such artifact"


@dataclass(frozen=True)
class FoundModel:
    """A model whose file is on this machine."""

    #: The version that an alias named; None where the name has no alias.
    version: str | None
    file: Path


def model_file(named: str, configured: str | None, workspace: Workspace) -> Path:
    """Return the path of the Keras file of a model, as :func:`find_model` finds it."""
    return find_model(named, configured, workspace).file


def find_model(
    named: str, configured: str | None, workspace: Workspace, key: str = "model"
) -> FoundModel:
    """Find the Keras file of a model, and download it where a store holds it.

    What earlier commands left to upload is uploaded first.

    Args:
        named: The model, as in `location.MODEL_NAMES`.
        configured: URI of the store; None for the usual one.
        workspace: Whose store is the usual one.
        key: The setting that names the model, for messages.

    Raises:
        StudyError: If there is no such store, alias, version, run or Keras model; what was found
            is its cause.
    """
    if named.endswith(".keras") and Path(named).is_file():
        return FoundModel(None, Path(named))
    if not named.startswith(SCHEMES):
        raise StudyError(f"`{key}` must be {MODEL_NAMES}, got '{named}'")
    remedy = "run `python src/run.py` and `python sweeps/promote.py`"
    uri = require_store(configured, "a model must be registered first", remedy, workspace)
    import mlflow

    from digit_study.tracking.store import Store
    from digit_study.tracking.uploader import upload_left

    store = Store(uri, workspace)
    upload_left(store)
    # the registry follows it; download_artifacts(tracking_uri=) asks another
    mlflow.set_tracking_uri(uri)
    version = None
    try:
        # asked before: should the alias move in between, the file is newer than the version, and
        # whoever looks for a newer version finds one
        if _has_alias(named):
            version = _version_of_alias(store.client, named)
        file = Path(mlflow.artifacts.download_artifacts(named)) / KERAS_FILE
    except (mlflow.exceptions.MlflowException, OSError) as fault:
        raise _no_model(store, named, fault, key) from fault
    if not file.is_file():
        missing = FileNotFoundError(f"it has no {KERAS_FILE}")
        raise _no_model(store, named, missing, key) from missing
    return FoundModel(version, file)


def _no_model(store: Store, named: str, cause: Exception, key: str) -> StudyError:
    """Return the error for a name that no Keras model has."""
    rule = f"`{key}` must name a Keras model that MLflow holds"
    reason = first_line(cause).rstrip(".")
    if reason.startswith(NO_FILES):
        remedy = (
            "bring them back from a copy, or promote another with sweeps/promote.py run_id=<id>"
        )
        return StudyError(f"{rule}, got '{named}', whose files are gone from the store: {remedy}")
    return StudyError(f"{rule}, got '{named}' ({reason}): {_remedy(store, named, key)}")


def _remedy(store: Store, named: str, key: str) -> str:
    if not named.startswith("models:/"):
        return f"see the runs with `mlflow ui`, or leave `{key}` out for the champion"
    found = store.client.search_model_versions(
        f"name = '{REGISTERED_NAME}'", max_results=MOST_VERSIONS
    )
    numbers = sorted(int(version.version) for version in found)
    if not numbers:
        return f"no version of {REGISTERED_NAME} is registered yet; run `python sweeps/promote.py`"
    known = ", ".join(str(number) for number in numbers)
    example = f"{key}=models:/{REGISTERED_NAME}/{numbers[-1]}"
    return (
        f"take one of the versions there are ({known}), as {example}, or promote one with "
        "sweeps/promote.py"
    )


def version_named(named: str, configured: str | None, workspace: Workspace) -> str | None:
    """Return the version that ``models:/name@alias`` names at this moment.

    Args:
        named: The model.
        configured: URI of the store; None for the usual one.
        workspace: Whose store is the usual one.

    Returns:
        The number of the version; None if the name has no alias: it never moves.

    Raises:
        MlflowException: If the store does not answer or the alias is gone.
    """
    if not _has_alias(named):
        # a client would make a store where there is none
        return None
    import mlflow

    client = mlflow.MlflowClient(store_uri(configured, workspace))
    return _version_of_alias(client, named)


def _version_of_alias(client: MlflowClient, named: str) -> str:
    name, _, alias = named.removeprefix("models:/").partition("@")
    return str(client.get_model_version_by_alias(name, alias).version)


def _has_alias(named: str) -> bool:
    return named.startswith("models:/") and "@" in named


def model_version(client: MlflowClient, named: str) -> ModelVersion | None:
    """Return the version of a registered model, None if the model is named otherwise.

    Args:
        client: MLflow's client of the store.
        named: The model, as in `location.MODEL_NAMES`, but no file.

    Raises:
        MlflowException: If the store does not know it.
    """
    if not named.startswith("models:/"):
        return None
    rest = named.removeprefix("models:/")
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return client.get_model_version_by_alias(name, alias)
    name, _, number = rest.partition("/")
    if not number:
        return None
    return client.get_model_version(name, number)


def run_of_model(client: Any, named: str) -> str:
    """Return the id of the run that made a model.

    Args:
        client: MLflow's client of the store.
        named: The model, as in `location.MODEL_NAMES`, but no file.

    Raises:
        MlflowException: If the store does not know it.
    """
    version = model_version(client, named)
    if version is not None:
        return str(version.run_id)
    kind, _, rest = named.partition(":/")
    name = rest.partition("/")[0]
    if kind == "runs":
        return name
    return str(client.get_logged_model(name).source_run_id)
