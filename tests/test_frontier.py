"""The frontier: every network on the same seeds, resumed, drawn, opened once on sealed images."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import Done, Project

from digit_study.data.sources import sample_arrays
from digit_study.report.figures import charts, paired_figures
from digit_study.report.figures.ranking_figures import frontier_figure
from digit_study.stats.metrics import evaluate, misclassified_by_all
from digit_study.study.frontier import plan_frontier
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker

SCRIPT = "sweeps/frontier.py"
NETWORKS = (
    "frontier.networks={small: 'model=tiny training=smoke', "
    "two: 'model=tiny training=smoke model.members=2'}"
)


def table(*rows: tuple[str, int, float, bool, float]) -> pd.DataFrame:
    columns = ["name", "parameters", "mean", "front", "test_accuracy"]
    made = pd.DataFrame(rows, columns=columns)
    return made.assign(low=made["mean"] - 0.001, high=made["mean"] + 0.001, seeds=5, minutes=1.0)


def test_the_picture_shows_networks_front_sealed_readings_and_what_is_published() -> None:
    given = table(("tiny", 9_000, 0.992, True, 0.991), ("wide", 90_000, 0.991, False, np.nan))
    axes = frontier_figure(given, "mnist", is_mnist=True).axes[0]
    assert axes.get_xscale() == "log"
    texts = [text.get_text() for text in axes.texts]
    assert (
        texts[:2] == ["wide  99.10 %", "tiny  99.20 %"]
        and sum("chosen on the test set" in text for text in texts) == 2
    )
    assert any("sealed" in label for label in axes.get_legend_handles_labels()[1])


def test_what_is_published_of_mnist_is_not_drawn_for_other_digits() -> None:
    given = table(("tiny", 9_000, 0.992, True, np.nan))
    axes = frontier_figure(given, "own", is_mnist=False).axes[0]
    assert [text.get_text() for text in axes.texts] == ["tiny  99.20 %"]


def test_a_dollar_in_the_name_of_a_network_begins_no_formula(tmp_path: Path) -> None:
    figure = frontier_figure(table(("a$^$b", 9_000, 0.992, True, np.nan)), "mnist", is_mnist=True)
    charts.save(figure, tmp_path / "frontier.png")
    assert figure.axes[0].texts[0].get_text() == "a$^$b  99.20 %"


def test_images_that_all_networks_misclassify_and_labels_that_look_wrong() -> None:
    labels, sure = np.array([0, 1, 2, 3]), np.eye(10, dtype=np.float32)
    index = np.array([7, 9, 11, 13])
    says = [[0, 7, 2, 5], [0, 7, 2, 8], [0, 7, 4, 8]]
    found = misclassified_by_all([evaluate(labels, sure[predicted], index) for predicted in says])
    assert found[["index", "label", "says", "label_looks_wrong"]].to_numpy().tolist() == [
        [9, 1, 7, True],
        [13, 3, 8, False],
    ]
    assert found["agree"].tolist() == pytest.approx([1, 2 / 3])
    images = sample_arrays("train")[0][:4]
    figure = paired_figures.misclassified_by_all(found, images, index, 3)
    assert "2 of 4 validation images" in figure.get_suptitle()
    assert any("all say 7" in text.get_text() for text in figure.axes[0].texts)
    none = misclassified_by_all([evaluate(labels, sure[labels], index)])
    assert (
        "None"
        in paired_figures.misclassified_by_all(none, images, index, 1).axes[0].texts[0].get_text()
    )


@pytest.mark.slow
def test_a_frontier_goes_on_with_more_seeds_and_opens_the_seal_once_for_each_on_it(
    project: Project, typed_store: str
) -> None:
    def frontier(*words: str) -> Done:
        given = ("data=mnist_sample", "data.limit=300", NETWORKS, *words)
        return project.run(*given, script=SCRIPT, MLFLOW_TRACKING_URI=typed_store)

    first = frontier("frontier.seeds=2", "frontier.sealed=false")
    assert first.code == 0 and "4/4" in first.out and "has been opened" not in first.out, first.err
    again = frontier("frontier.seeds=3")
    assert again.code == 0 and "6/6" in again.out and "4/6" not in again.out
    client = mlflow.MlflowClient(typed_store)
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    (parent,) = [run for run in runs if run.data.tags["kind"] == "frontier"]
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == 6 and {run.info.status for run in children} == {"FINISHED"}
    small, two = sorted({run.data.metrics["parameters"] for run in children})
    assert two == 2 * small
    shown = Tracker(typed_store, Workspace(project.root)).artifact_table(
        parent.info.run_id, "frontier"
    )
    opened = again.out.count("The sealed test set has been opened")
    assert opened == shown["front"].sum() == shown["test_accuracy"].notna().sum() >= 1
    once_more = frontier("frontier.seeds=3")
    assert once_more.code == 0 and "has been opened" not in once_more.out


@pytest.mark.parametrize(
    "typed", ["training.epochs=7", "++training.epochs=7", "training=handwriting"]
)
def test_what_is_typed_holds_for_all_networks(typed: str, tmp_path: Path) -> None:
    planned = plan_frontier(["data=mnist_sample", NETWORKS, typed], Workspace(tmp_path))
    expected = {"training=handwriting": 12}.get(typed, 7)
    assert [entry.config.training.epochs for entry in planned.networks.values()] == [expected] * 2


def test_one_model_for_all_networks_is_refused(tmp_path: Path) -> None:
    networks = "frontier.networks={small: 'model=tiny', large: 'model=cnn'}"
    with pytest.raises(StudyError, match="must differ from each other, got small and large"):
        plan_frontier(["data=mnist_sample", networks, "model=deep"], Workspace(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ("{odd: 'model=tinny'}", ("`frontier.networks.odd`", "did you mean 'tiny'")),
        ("{one: 'model=tiny', other: 'model=tiny'}", ("one and other, which train the same",)),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    networks: str, words: tuple[str, ...], project: Project, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    done = project.run(
        f"frontier.networks={networks}", "data=mnist_sample", script=SCRIPT, MLFLOW_TRACKING_URI=uri
    )
    assert done.code != 0 and all(word in done.err for word in words)
    assert not (tmp_path / "none.db").exists()
