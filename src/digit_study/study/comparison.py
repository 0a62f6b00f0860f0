"""Two runs on the same validation images: what differs, by how much, and on which images.

Needs no TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Run

from digit_study.config.compare_config import CompareConfig
from digit_study.config.run_config import Config, StoreConfig, TrackingConfig
from digit_study.data import digits, sources
from digit_study.report.figures import charts, paired_figures
from digit_study.report.tables import flipped_table
from digit_study.report.terminal import print_facts, print_lines, print_table
from digit_study.stats.metrics import Evaluation, evaluation_from_table
from digit_study.stats.ranking import PairedTest, paired_test
from digit_study.support.errors import StudyError
from digit_study.support.formatting import accuracy_with_interval, p_value, points_with_interval
from digit_study.support.trial_status import FAILURE_TAG
from digit_study.support.workspace import Workspace
from digit_study.tracking.queries import recorded_config
from digit_study.tracking.session import Tracker, open_store

#: Images that the terminal lists; all are in the run's table.
MOST_IMAGES = 20


@dataclass(frozen=True)
class Compared:
    """One of two compared runs."""

    run: Run
    evaluation: Evaluation

    @property
    def run_id(self) -> str:
        """Return the id of the run."""
        return str(self.run.info.run_id)


@dataclass(frozen=True)
class Pair:
    """Two runs on the same images in the same order."""

    a: Compared
    b: Compared
    #: b against a.
    test: PairedTest
    #: Shape (n, 28, 28, 1), uint8.
    images: sources.Pixels
    #: Config of a.
    config: Config


@dataclass(frozen=True)
class Recorded:
    """A comparison as a run of its own."""

    run_id: str
    #: Where the run is spooled if the store did not take all of it, else ''.
    spooled_in: str


def compare(config: CompareConfig, workspace: Workspace) -> None:
    """Compare two runs, record the comparison in MLflow as a run of its own, and print it.

    Args:
        config: Which runs.
        workspace: Where the comparison is spooled.

    Raises:
        StudyError: If a run is missing, the two were not validated on the same images, or the
            store did not take the comparison.
    """
    tracker = open_store(config.tracking.uri, workspace)
    with tracker.readable_faults():
        pair = load_pair(tracker, config)
        recorded = _record(tracker, pair, config.tracking)
    _print(pair, recorded.run_id, tracker.address(recorded.run_id))
    if recorded.spooled_in:
        raise StudyError(
            f"the tracking store did not take the comparison: it is kept in {recorded.spooled_in}"
        )


def load_pair(tracker: Tracker, config: CompareConfig) -> Pair:
    """Pair two runs image by image.

    Args:
        tracker: The store of both runs.
        config: Which runs.

    Raises:
        StudyError: If a run is incomplete, or their digits or images differ.
    """
    first = tracker.finished_run(str(config.a), "a")
    second = tracker.finished_run(str(config.b), "b")
    _refuse_other_digits(first, second)
    table_a = tracker.predictions(first, "a")
    table_b = tracker.predictions(second, "b")
    _refuse_other_images(table_a, table_b)
    recipe = recorded_config(first)
    path = config.data.path or recipe.data.path
    source = sources.resolve(replace(recipe.data, path=path)).config
    loaded = digits.load_digits(source)
    if not np.array_equal(loaded.validation_index, table_a["index"]):
        raise StudyError(
            f"the validation images of run '{config.a}' must be those its config names, but its "
            "predictions are of others: compare runs whose tables/predictions.csv is as it was "
            "logged"
        )
    a = Compared(first, evaluation_from_table(table_a))
    b = Compared(second, evaluation_from_table(table_b))
    test = paired_test(a.evaluation.correct, b.evaluation.correct)
    return Pair(a, b, test, loaded.validation_images, replace(recipe, data=source))


def _refuse_other_digits(first: Run, second: Run) -> None:
    digests = [run.data.tags.get("dataset.sha256") for run in (first, second)]
    if digests[0] != digests[1]:
        raise StudyError(
            "`a` and `b` must be runs on the same digits, got dataset.sha256 "
            f"{digests[0]} and {digests[1]}: train both on the same data"
        )


def _refuse_other_images(first: pd.DataFrame, second: pd.DataFrame) -> None:
    if all(np.array_equal(first[column], second[column]) for column in ("index", "label")):
        return
    common = len(set(first["index"]) & set(second["index"]))
    raise StudyError(
        "`a` and `b` must be validated on the same images, got "
        f"{len(first):,} and {len(second):,} with {common:,} in common: "
        "train both with the same data.seed and data.validation"
    )


def _record(tracker: Tracker, pair: Pair, store: StoreConfig) -> Recorded:
    """Record the comparison as a run of its own."""
    experiment = tracker.client.get_experiment(pair.a.run.info.experiment_id).name
    tracking = TrackingConfig(
        uri=tracker.uri, tags=store.tags, note=store.note, experiment=experiment
    )
    config = replace(pair.config, tracking=tracking)
    tags = {
        "kind": "comparison",
        "compared.a": pair.a.run_id,
        "compared.b": pair.b.run_id,
        "mlflow.source.name": "sweeps/compare.py",
    }
    name = f"{pair.a.run_id[:8]} against {pair.b.run_id[:8]}"
    run_id = tracker.create_run(config, sources.dataset_name(config.data), name, **tags)
    log = tracker.writer(run_id)
    try:
        log.metrics(_metrics(pair))
        _write_files(pair, log.folder)
    except BaseException as fault:
        log.tags({FAILURE_TAG: f"{type(fault).__name__}: {fault}"[:500]})
        log.end("FAILED", {})
        raise
    return Recorded(run_id, str(log.end("FINISHED", {}) or ""))


def _metrics(pair: Pair) -> dict[str, float]:
    test = pair.test
    return {
        "accuracy_a": pair.a.evaluation.metrics["val_accuracy"],
        "accuracy_b": pair.b.evaluation.metrics["val_accuracy"],
        "difference": test.difference,
        "difference_low": test.low,
        "difference_high": test.high,
        "mcnemar_p": test.p_value,
        "validation_images": float(test.images),
        "only_a_right": float(test.only_first),
        "only_b_right": float(test.only_second),
    }


def _write_files(pair: Pair, folder: Path) -> None:
    """Write figures and tables of what differs."""
    a = pair.a.evaluation
    b = pair.b.evaluation
    names = (f"a: {pair.a.run.info.run_name}", f"b: {pair.b.run.info.run_name}")
    figures = folder / "figures"
    difference = paired_figures.confusion_difference(a, b, names)
    charts.save(difference, figures / "confusion_difference.png")
    charts.save(paired_figures.flipped(pair.images, a, b, names), figures / "flipped.png")
    charts.write_table(flips(a, b), folder, "flipped")
    change = pd.DataFrame(b.confusion - a.confusion).rename_axis("true").reset_index()
    charts.write_table(change, folder, "confusion_difference")


def _print(pair: Pair, run_id: str, view: str) -> None:
    """Print the test, the images that flipped, and where the figures are."""
    test = pair.test
    difference = points_with_interval(test.difference, test.low, test.high)
    print_facts(
        "Comparison on the same validation images",
        {
            f"a, run {pair.a.run_id}": accuracy_with_interval(pair.a.evaluation.metrics),
            f"b, run {pair.b.run_id}": accuracy_with_interval(pair.b.evaluation.metrics),
            "b minus a": f"{difference}, 95 % interval, {test.images:,} images",
            "exact McNemar p": p_value(test.p_value),
            "only a correct, only b correct": f"{test.only_first}, {test.only_second}",
        },
    )
    changed = flips(pair.a.evaluation, pair.b.evaluation)
    print_table(flipped_table(changed, MOST_IMAGES))
    print_lines(f"run {run_id} has figures of what differs; see them: {view}")


def flips(first: Evaluation, second: Evaluation) -> pd.DataFrame:
    """List the images that exactly one of two runs predicts correctly.

    Returns:
        Columns index, label, a, b and right (``a`` or ``b``).
    """
    columns = {
        "index": first.index,
        "label": first.labels,
        "a": first.predicted,
        "b": second.predicted,
        "right": np.where(second.correct, "b", "a"),
    }
    changed = first.correct != second.correct
    return pd.DataFrame({name: values[changed] for name, values in columns.items()})
