"""MLflow's pages: their links, shared views, and the description of an experiment."""

import json
import urllib.parse
from collections.abc import Sequence

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from digit_study.report.markdown import escape, run_page
from digit_study.tracking.store import Store

#: Tag of a parent run: what it found, in a sentence.
ANSWER = "answer"
#: Tags of a parent run that has only begun: there from the start, the answer stands before others.
INITIAL = {ANSWER: "nothing has finished yet"}
#: How the tags of an experiment begin that MLflow 3.17's page reads a view from, as JSON, when its
#: address has ``viewStateShareKey``.
SHARED_VIEW = "mlflow.sharedViewState."
#: Lets a page show runs and metrics instead of what MLflow has for language models.
TRAINING = "workflowType=machine_learning"
#: Parent runs at most that an experiment's description names.
MOST_PARENTS = 10
#: Metrics that a shared view has columns for; the first sorts it.
VIEW_METRICS = ("val_accuracy", "val_loss", "robust_accuracy", "parameters")


def share_view(store: Store, run_id: str, keys: Sequence[str], tags: Sequence[str] = ()) -> None:
    """Keep a view of the children of a run, sorted by validation accuracy.

    Args:
        store: The store that the run is in.
        run_id: Id of the parent run.
        keys: Keys of the config that get a column each.
        tags: Tags that get a column each, before the keys.
    """
    metrics = [f"metrics.`{name}`" for name in VIEW_METRICS]
    named = [f"tags.`{tag}`" for tag in tags]
    params = [f"params.`{key}`" for key in keys]
    view = {
        "searchFilter": f"tags.{MLFLOW_PARENT_RUN_ID} = '{run_id}'",
        "orderByKey": metrics[0],
        "orderByAsc": False,
        "selectedColumns": [*metrics, *named, *params],
    }
    experiment = store.experiment_of(run_id)
    store.client.set_experiment_tag(experiment, f"{SHARED_VIEW}{run_id}", json.dumps(view))


def describe_experiment(store: Store, experiment: str) -> None:
    """Describe an experiment by the newest answers of its parent runs, each with its link.

    Args:
        store: The store that the experiment is in.
        experiment: Id of the experiment.
    """
    parents = store.client.search_runs(
        [experiment],
        f"tags.{ANSWER} LIKE '%'",
        order_by=["attributes.start_time DESC"],
        max_results=MOST_PARENTS,
    )
    lines = []
    for run in parents:
        name = escape(run.info.run_name)
        link = f"[{name}]({run_page(experiment, run.info.run_id)})"
        answer = escape(run.data.tags[ANSWER])
        lines.append(f"{link}: {answer}")
    description = "\n\n".join(lines)
    store.client.set_experiment_tag(experiment, MLFLOW_RUN_NOTE, description)


def model_page(name: str, version: str = "") -> str:
    """Return the page of a registered model, or of a version, as a link from any other page."""
    quoted = urllib.parse.quote(name, safe="")
    page = f"#/models/{quoted}"
    if version:
        return f"{page}/versions/{version}"
    return page


def for_training(page: str) -> str:
    """Return a page as it shows runs and metrics."""
    separator = "?"
    if "?" in page:
        separator = "&"
    return f"{page}{separator}{TRAINING}"
