"""What a person meets in MLflow's pages: descriptions in Markdown, and addresses that open the right view."""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities import RunInfo
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from digit_study.report.description import escape, run_page
from digit_study.tracking.database import ARTIFACTS, SERVERS, version_named, view_command

#: Tag of a parent run: what it found, in a sentence.
ANSWER = "answer"
#: Tags of a parent that has only begun; there from the start, the answer stands before all others.
INITIAL = {ANSWER: "nothing has finished yet"}
#: Tags of an experiment that MLflow 3.17's page reads a view from, as JSON, when its address has ``viewStateShareKey``.
SHARED_VIEW = "mlflow.sharedViewState."
#: Where a bare ``mlflow ui`` listens, and what lets its pages show runs and metrics instead of what is for GenAI.
LOCAL, TRAINING = "http://127.0.0.1:5000", "workflowType=machine_learning"
#: The address of the newest result in the local store, which ``make ui`` opens.
NEWEST = ARTIFACTS / ".newest"
#: Parent runs whose answers an experiment's description holds.
MOST_PARENTS = 10
#: Experiment and place of the artifacts of runs, which never change.
_homes: dict[str, tuple[str, str]] = {}


def run_location(
    client: MlflowClient, run_id: str, known: RunInfo | None = None
) -> tuple[str, str]:
    """Id of the experiment that a run is in, and the URI of its artifacts; ``known`` or asked for once."""
    if run_id not in _homes:
        info = known or client.get_run(run_id).info
        _homes[run_id] = str(info.experiment_id), str(info.artifact_uri)
    return _homes[run_id]


def experiment_of(client: MlflowClient, run_id: str) -> str:
    """Id of the experiment that a run is in."""
    return run_location(client, run_id)[0]


def share_view(client: MlflowClient, experiment: str, run_id: str, keys: Sequence[str]) -> None:
    """Keep a view of the runs beneath ``run_id``: by validation accuracy, with columns for the config's ``keys``."""
    metrics = [f"metrics.`{name}`" for name in ("val_accuracy", "val_loss", "parameters")]
    view = {
        "searchFilter": f"tags.mlflow.parentRunId = '{run_id}'",
        "orderByKey": metrics[0],
        "orderByAsc": False,
        "selectedColumns": [*metrics, *(f"params.`{key}`" for key in keys)],
    }
    client.set_experiment_tag(experiment, f"{SHARED_VIEW}{run_id}", json.dumps(view))


def describe_experiment(client: MlflowClient, experiment: str, answers: Mapping[str, str]) -> None:
    """Let an experiment's description be the newest answers of its parent runs, each with its link.

    ``answers`` are those that the store may not have yet, by run id.
    """
    newest = ["attributes.start_time DESC"]
    parents = client.search_runs(
        [experiment], f"tags.{ANSWER} LIKE '%'", order_by=newest, max_results=MOST_PARENTS
    )
    lines = [
        f"[{escape(run.info.run_name)}]({run_page(experiment, run.info.run_id)}): "
        + escape(answers.get(run.info.run_id, run.data.tags[ANSWER]))
        for run in parents
    ]
    client.set_experiment_tag(experiment, MLFLOW_RUN_NOTE, "\n\n".join(lines))


def address(client: MlflowClient, uri: str, run_id: str, children: bool) -> str:
    """The command, where one is needed, and the address that show a run in the browser, or its ``children`` ranked.

    Without a store that answers it is the command alone.
    """
    with suppress(MlflowException, OSError):
        experiment = experiment_of(client, run_id)
        view = f"#/experiments/{experiment}/runs?viewStateShareKey={run_id}"
        return open_at(uri, view if children else run_page(experiment, run_id))
    return view_command(uri)


def open_at(uri: str, page: str) -> str:
    """The :func:`place` of a ``page`` with a new result, which ``make ui`` opens from now on if the store is local."""
    if not uri.startswith(SERVERS):
        with suppress(OSError):  # where it cannot be kept, `make ui` opens the front page
            NEWEST.write_text(f"{LOCAL}/{_for_training(page)}\n")
    return place(uri, page)


def place(uri: str, page: str) -> str:
    """The command, where one is needed, and the address of a ``page`` of the store at ``uri``."""
    if uri.startswith(SERVERS):
        return f"{view_command(uri).rstrip('/')}/{_for_training(page)}"
    return f"{view_command(uri)}, then {LOCAL}/{_for_training(page)}"


def _for_training(page: str) -> str:
    return f"{page}{'&' if '?' in page else '?'}{TRAINING}"


def model_place(uri: str, named: str) -> str:
    """The :func:`place` of a model ``named`` as in :data:`stores.NAMED`: of its version, or of the run that made it.

    Without a store that answers it is the command alone. A file has no page.
    """
    with suppress(MlflowException, OSError):
        client = MlflowClient(uri)
        if version := _version(client, named):
            return place(uri, model_page(*version))
        run_id = run_of_model(client, named)
        return place(uri, run_page(experiment_of(client, run_id), run_id))
    return view_command(uri)


def _version(client: MlflowClient, named: str) -> tuple[str, str] | None:
    """Name and version of a registered model ``named`` as in :data:`stores.NAMED`; None of any other."""
    kind, _, rest = named.partition(":/")
    name, _, number = rest.partition("/")
    version = version_named(named, client.tracking_uri) or number
    return (name.partition("@")[0], version) if kind == "models" and version else None


def run_of_model(client: MlflowClient, named: str) -> str:
    """The run that made a model ``named`` as in :data:`stores.NAMED`, other than a file."""
    if version := _version(client, named):
        return str(client.get_model_version(*version).run_id)
    kind, _, rest = named.partition(":/")
    name = rest.partition("/")[0]
    return name if kind == "runs" else str(client.get_logged_model(name).source_run_id)


def model_page(name: str, version: str = "") -> str:
    """The page of a registered model, or of one of its versions, as a link from any other page of MLflow."""
    page = f"#/models/{urllib.parse.quote(name, safe='')}"
    return f"{page}/versions/{version}" if version else page
