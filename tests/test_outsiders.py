"""What people of other projects stumble over: their folders, servers, settings and files."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, Project
from mlflow.entities import Run

from digit_study.study.run_plan import plan_runs
from digit_study.support.workspace import Workspace

SMALL = ["data=mnist_sample", "model=tiny", "training=smoke", "data.limit=300"]


def runs_of(uri: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments))


# ---------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("words", "sets"),
    [
        (["model.filters=4,8"], 1),
        (["data.limit=200,300"], 1),
        (["data.validation=1000,1250"], 2),
        (["data.validation=1000,null"], 1),
        (["data.seed=0,1,2"], 3),
    ],
)
def test_it_is_known_before_training_which_runs_share_their_images(
    words: list[str], sets: int, store: str
) -> None:
    plan = plan_runs(["-m", "data=mnist_sample", "model=tiny", *words], Workspace(ROOT))
    assert plan.validation_sets == sets


@pytest.mark.slow
def test_splits_of_the_data_are_not_ranked_but_averaged(project: Project, typed_store: str) -> None:
    done = project.run("-m", "data.seed=0,1", *SMALL, MLFLOW_TRACKING_URI=typed_store)
    assert done.code == 0, done.err
    assert done.out.startswith("The runs have 2 different sets of validation images")
    assert "verdict" not in done.out and "Mean validation accuracy over the splits" in done.out
    (parent,) = [run for run in runs_of(typed_store) if run.data.tags.get("kind") == "multirun"]
    children = [run for run in runs_of(typed_store) if run.info.run_id != parent.info.run_id]
    accuracies = [run.data.metrics["val_accuracy"] for run in children]
    assert parent.data.metrics["mean_val_accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert "over 2 splits" in parent.data.tags["answer"]


@pytest.mark.slow
def test_validation_sets_of_two_sizes_have_a_table_each(project: Project, typed_store: str) -> None:
    words = ["-m", "data.validation=200,400", "model.filters=2,4", *SMALL]
    done = project.run(*words, MLFLOW_TRACKING_URI=typed_store)
    assert done.code == 0, done.err
    assert done.out.count("Comparison on the validation images") == 2
    (parent,) = [run for run in runs_of(typed_store) if run.data.tags.get("kind") == "multirun"]
    tables = mlflow.MlflowClient(typed_store).list_artifacts(parent.info.run_id, "tables")
    assert {Path(table.path).name for table in tables} == {"comparison.csv", "comparison_2.csv"}
