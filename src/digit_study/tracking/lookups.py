"""Finds runs again, and what they hold: all that is read back from MLflow while a study goes on."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from digit_study.tracking.run_log import StoreFault, client_of, first_line


def finished_metrics(uri: str, run_id: str) -> dict[str, float] | None:
    """Final metrics of a run that FINISHED; None of any other."""
    run = client_of(uri).get_run(run_id)
    return dict(run.data.metrics) if run.info.status == "FINISHED" else None


def finished_children(uri: str, parent_run_id: str) -> list[tuple[str, dict[str, str]]]:
    """Ids and tags of the FINISHED runs beneath a parent."""
    client = client_of(uri)
    experiment = client.get_run(parent_run_id).info.experiment_id
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and attributes.status = 'FINISHED'"
    return [(run.info.run_id, dict(run.data.tags)) for run in client.search_runs([experiment], query, max_results=5000)]


def children_tagged(uri: str, parent_run_id: str, tags: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Ids and tags of the runs beneath a parent that have all these tags; none where the store is gone."""
    client = client_of(uri)
    query = " and ".join(
        f"tags.`{key}` = '{value}'" for key, value in {MLFLOW_PARENT_RUN_ID: parent_run_id, **tags}.items()
    )
    try:
        found = client.search_runs([client.get_run(parent_run_id).info.experiment_id], query, max_results=5000)
    except StoreFault as fault:
        warnings.warn(f"the runs beneath {parent_run_id} could not be looked at: {first_line(fault)}", stacklevel=2)
        return []
    return [(run.info.run_id, dict(run.data.tags)) for run in found]


def runs_with_models(uri: str, parent_run_id: str) -> set[str]:
    """Ids of all runs that have a model, in the experiment of ``parent_run_id``."""
    client, found, token = client_of(uri), set(), None
    experiment = client.get_run(parent_run_id).info.experiment_id
    while True:
        page = client.search_logged_models([experiment], page_token=token)
        found |= {str(model.source_run_id) for model in page}
        token = page.token
        if not token:
            return found


def find_run(uri: str, tags: Mapping[str, str]) -> str | None:
    """The newest run in any experiment that has all these tags."""
    client = client_of(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs(experiments, query, max_results=1)
    return str(found[0].info.run_id) if found else None


def read_text(uri: str, run_id: str, path: str) -> str:
    """A text artifact of a run."""
    client = client_of(uri)
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_text()
