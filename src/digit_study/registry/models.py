"""Models as a person names them, and the files they stand for. MLflow is imported late."""

from pathlib import Path

from digit_study.support.messages import StudyError, first_line
from digit_study.support.workspace import Workspace
from digit_study.tracking import database
from digit_study.tracking.location import MODEL_NAMES, REGISTERED_NAME, store_uri

#: Where a Keras model lies among the files that MLflow keeps of it.
KERAS_FILE = Path("data") / "model.keras"


def model_file(named: str, configured: str | None, workspace: Workspace) -> Path:
    """Return the Keras file of a model, downloaded from its store where it lies on a server.

    Args:
        named: The model, in one of the ways of :data:`~digit_study.tracking.location.MODEL_NAMES`.
        configured: URI of the tracking store; None for the usual one.
        workspace: Where the usual store lies.

    Raises:
        StudyError: If there is no such store, alias, version, run or Keras model. Its cause is
            what MLflow raised.
    """
    if named.endswith(".keras") and Path(named).is_file():
        return Path(named)
    if not named.startswith(("models:/", "runs:/")):
        raise StudyError(f"`model` must be {MODEL_NAMES}, got '{named}'")
    uri = database.require_store(
        configured,
        "a model must be registered first",
        "run `python src/run.py` and `python sweeps/promote.py`",
    )
    database.send_kept(uri)
    import mlflow

    # The registry follows this URI; the argument tracking_uri of download_artifacts does not.
    mlflow.set_tracking_uri(uri)
    try:
        file = Path(mlflow.artifacts.download_artifacts(named)) / KERAS_FILE
        if not file.is_file():
            raise FileNotFoundError(f"it has no {KERAS_FILE}")
    except (mlflow.exceptions.MlflowException, OSError) as fault:
        why = first_line(fault).rstrip(".")
        raise StudyError(
            f"`model` must name a Keras model that MLflow holds, got '{named}' ({why}): "
            f"{_remedy(named)}"
        ) from fault
    return file


def _remedy(named: str) -> str:
    """Return what to do about a model that MLflow does not hold."""
    import mlflow

    if not named.startswith("models:/"):
        return "see the runs with `mlflow ui`, or leave `model` out for the champion"
    versions = mlflow.MlflowClient().search_model_versions(
        f"name = '{REGISTERED_NAME}'", max_results=200
    )
    if not versions:
        return f"no version of {REGISTERED_NAME} is registered yet; run `python sweeps/promote.py`"
    numbers = sorted(int(version.version) for version in versions)
    known = ", ".join(map(str, numbers))
    return (
        f"take one of the versions there are ({known}), as "
        f"model=models:/{REGISTERED_NAME}/{numbers[-1]}, or promote one with sweeps/promote.py"
    )


def version_named(named: str, configured: str | None, workspace: Workspace) -> str | None:
    """Return the version that ``models:/name@alias`` stands for at this moment.

    Args:
        named: The model as a person named it.
        configured: URI of the tracking store; None for the usual one.
        workspace: Where the usual store lies.

    Returns:
        The number of the version; None where ``named`` has no alias and so never moves.

    Raises:
        MlflowException: If the store does not answer or the alias is gone.
    """
    name, at, alias = named.removeprefix("models:/").partition("@")
    if not at or not named.startswith("models:/"):
        return None
    import mlflow

    client = mlflow.MlflowClient(store_uri(configured, workspace))
    return str(client.get_model_version_by_alias(name, alias).version)
