"""Model files, fetched from MLflow. MLflow is imported only to fetch one, TensorFlow never."""

from pathlib import Path

from digit_study.terminal.messages import StudyError, first_line
from digit_study.tracking.stores import require_store

REGISTERED_NAME = "digit-recognizer"
CHAMPION_URI = f"models:/{REGISTERED_NAME}@champion"
NAMED = f"{CHAMPION_URI}, models:/{REGISTERED_NAME}/3, runs:/<run id>/model or a .keras file"


def model_file(uri: str, tracking: str | None = None) -> Path:
    """Path of the Keras file of a model, named as in ``NAMED``, downloaded from ``tracking`` or the usual store.

    Raises StudyError if there is no such store, alias, version or run, or the model is not one of Keras.
    """
    if uri.endswith(".keras") and Path(uri).is_file():
        return Path(uri)
    if not uri.startswith(("models:/", "runs:/")):
        raise StudyError(f"`model` must be {NAMED}, got '{uri}'")
    remedy = "run `python src/run.py` and `python sweeps/promote.py`"
    store = require_store(tracking, "a model must be registered first", remedy)
    import mlflow

    mlflow.set_tracking_uri(store)  # the registry follows it; download_artifacts(tracking_uri=) asks another
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
        file = folder / "data" / "model.keras"
        if file.is_file():
            return file
        problem = f"be a Keras model, got '{uri}' without data/model.keras"
    except (mlflow.exceptions.MlflowException, OSError) as fault:
        problem = f"name a model that MLflow holds, got '{uri}' ({first_line(fault).rstrip('.')})"
    if not uri.startswith("models:/"):
        remedy = "see the runs with `mlflow ui`, or leave `model` out for the champion"
    elif versions := mlflow.MlflowClient().search_model_versions(f"name = '{REGISTERED_NAME}'", max_results=200):
        numbers = sorted(int(version.version) for version in versions)
        example, known = f"model=models:/{REGISTERED_NAME}/{numbers[-1]}", ", ".join(map(str, numbers))
        remedy = f"take one of the versions there are ({known}), as {example}, or promote one with sweeps/promote.py"
    else:
        remedy = f"no version of {REGISTERED_NAME} is registered yet; run `python sweeps/promote.py`"
    raise StudyError(f"`model` must {problem}: {remedy}")
