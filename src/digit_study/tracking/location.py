"""Where runs are tracked: the URI of the store, the names of experiments and models."""

import os

from digit_study.config.run_config import Config
from digit_study.support.redaction import without_password
from digit_study.support.workspace import Workspace

#: How the URI of a server begins, which creates its own tables and says where artifacts go.
SERVERS = ("http:", "https:", "databricks:")
#: Name of the experiment of runs on full MNIST.
EXPERIMENT = "digit-recognizer"
#: Name of the registered model.
REGISTERED_NAME = "digit-recognizer"
#: How the champion is named.
CHAMPION_URI = f"models:/{REGISTERED_NAME}@champion"
#: Ways to name a model, for messages.
MODEL_NAMES = f"{CHAMPION_URI}, models:/{REGISTERED_NAME}/3, runs:/<run id>/model or a .keras file"


#: Port of a bare ``mlflow ui``.
PORT = "5000"


def local_address(port: str | None = None) -> str:
    """Return where ``mlflow ui`` listens on this machine.

    Args:
        port: The port that it is given; None: MLFLOW_PORT, which it reads, or its own.
    """
    return f"http://127.0.0.1:{port or os.environ.get('MLFLOW_PORT') or PORT}"


def store_uri(configured: str | None, workspace: Workspace) -> str:
    """Return the URI of the tracking store.

    It is ``configured``, else ``MLFLOW_TRACKING_URI``, else the sqlite database of the workspace,
    which a bare ``mlflow ui`` opens.
    """
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or workspace.default_store


def is_server(uri: str) -> bool:
    """Return whether a store is an MLflow server, not a database."""
    return uri.startswith(SERVERS)


def experiment_name(config: Config, dataset: str) -> str:
    """Return the experiment of a run: as configured, else named after the project and the data."""
    if config.tracking.experiment:
        return config.tracking.experiment
    if dataset == "mnist":
        return EXPERIMENT
    return f"{EXPERIMENT}-{dataset}"


def view_command(uri: str, workspace: Workspace) -> str:
    """Return the command, or the address, that shows a store in a browser."""
    if is_server(uri):
        return without_password(uri)
    if uri == workspace.default_store:
        return "mlflow ui"
    return f"mlflow ui --backend-store-uri {quoted(uri)}"


def quoted(uri: str) -> str:
    """Return the URI of a store as a shell takes it, without its password."""
    escaped = without_password(uri).replace("'", "'\\''")
    return f"'{escaped}'"
