"""Two runs on the same validation images: what differs, by how much, and on which images. Needs no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.table import Table

from digit_study.config.promote import CompareConfig
from digit_study.config.run import Config, TrackingConfig
from digit_study.data import digits as data
from digit_study.data import sources
from digit_study.evaluation import metrics as evaluation
from digit_study.evaluation.metrics import Evaluation, PairedTest
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.tracking import recorded, stores
from digit_study.tracking import run_log as tracking

SHOWN = 20


@dataclass(frozen=True)
class Pair:
    """Two runs on the same images in the same order.

    Attributes:
        runs: first and second.
        names: theirs, for figures.
        evaluations: what each said of the images.
        test: second against first.
        images: shape (n, 28, 28, 1), uint8.
        config: of the first.
    """

    runs: tuple[Run, Run]
    names: tuple[str, str]
    evaluations: tuple[Evaluation, Evaluation]
    test: PairedTest
    images: sources.Pixels
    config: Config


def serve(config: CompareConfig) -> None:
    """Compare two runs, keep the comparison in MLflow as a run of its own, and show it.

    Raises:
        StudyError: a run is not there, or the two have not seen the same images.
    """
    client, uri = recorded.open_store(config.tracking.uri)
    with recorded.store_faults(uri):
        pair = load_pair(client, uri, config)
        run_id, kept = _track(client, uri, pair)
    _show(pair, run_id, stores.look(uri))
    if kept:
        raise StudyError(f"the tracking store did not take the comparison: it is kept in {kept}")


def load_pair(client: MlflowClient, uri: str, config: CompareConfig) -> Pair:
    """Fetch two runs and pair them image by image.

    Raises:
        StudyError: a run is unknown, unfinished or without predictions, or the two differ in digits or images.
    """
    first, second = (
        recorded.finished_run(client, uri, str(run_id), key) for key, run_id in (("a", config.a), ("b", config.b))
    )
    require_same_digits(first, second)
    tables = recorded.predictions(client, first, "a"), recorded.predictions(client, second, "b")
    require_same_images(*tables)
    recipe = recorded.recorded_config(client, first)
    source = replace(recipe.data, path=config.data.path) if config.data.path else recipe.data
    recipe = replace(recipe, data=sources.resolve(source).config)
    digits = data.load_digits(recipe.data)
    if not np.array_equal(digits.validation_index, tables[0]["index"]):
        raise StudyError(
            f"the validation images of run '{config.a}' must be those its config names, but its predictions are of "
            "others: compare runs whose tables/predictions.csv is as it was logged"
        )
    scores = as_evaluation(tables[0]), as_evaluation(tables[1])
    names = (f"a: {recorded.name_of(first)}", f"b: {recorded.name_of(second)}")
    return Pair((first, second), names, scores, paired(*scores), digits.validation_images, recipe)


def require_same_digits(first: Run, second: Run) -> None:
    """Refuse runs on different digits.

    Raises:
        StudyError: their dataset.sha256 differ.
    """
    digests = [run.data.tags.get("dataset.sha256") for run in (first, second)]
    if digests[0] != digests[1]:
        raise StudyError(
            f"`a` and `b` must be runs on the same digits, got dataset.sha256 {digests[0]} and {digests[1]}: "
            "train both on the same data"
        )


def require_same_images(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Refuse tables of predictions that are not of the same validation images in the same order.

    Raises:
        StudyError: their indices or labels differ.
    """
    for column in ("index", "label"):
        if not np.array_equal(first[column], second[column]):
            shared = len(set(first["index"]) & set(second["index"]))
            raise StudyError(
                f"`a` and `b` must be validated on the same images, got {len(first):,} and {len(second):,} with "
                f"{shared:,} in common: train both with the same data.seed and data.validation"
            )


def as_evaluation(table: pd.DataFrame) -> Evaluation:
    """Turn tables/predictions.csv back into what it was written from."""
    probabilities = table[[f"p{digit}" for digit in range(evaluation.CLASSES)]].to_numpy(np.float32)
    predicted = table["predicted"].to_numpy(np.int64)
    # two digits that were a rounding apart can be equal in the table: the recorded answer counts
    off = np.flatnonzero(probabilities.argmax(axis=1) != predicted)
    probabilities[off, predicted[off]] = np.nextafter(probabilities[off].max(axis=1), np.float32(2))
    return evaluation.score(table["label"].to_numpy(np.int64), probabilities, table["index"].to_numpy(np.int64))


def paired(first: Evaluation, second: Evaluation) -> PairedTest:
    """Test two evaluations of the same images against each other."""
    return evaluation.paired_test(first.predicted == first.labels, second.predicted == second.labels)


def flips(first: Evaluation, second: Evaluation) -> pd.DataFrame:
    """Images that exactly one of the two reads right: index, label, a, b, right."""
    at = np.flatnonzero((first.predicted == first.labels) != (second.predicted == second.labels))
    right = np.where(second.predicted[at] == second.labels[at], "b", "a")
    columns = {"index": first.index, "label": first.labels, "a": first.predicted, "b": second.predicted}
    return pd.DataFrame({**{name: values[at] for name, values in columns.items()}, "right": right})


def _track(client: MlflowClient, uri: str, pair: Pair) -> tuple[str, str]:
    from digit_study.evaluation import charts as figures
    from digit_study.training import artifacts as report
    from digit_study.verify import comparison_figures

    first, second = (str(run.info.run_id) for run in pair.runs)
    experiment = client.get_experiment(pair.runs[0].info.experiment_id).name
    config = replace(pair.config, tracking=TrackingConfig(uri=uri, experiment=experiment))
    tags = {"kind": "comparison", "compared.a": first, "compared.b": second, "mlflow.source.name": "sweeps/compare.py"}
    dataset = data.dataset_name(pair.config.data)
    run_id = tracking.create_run(config, uri, dataset, f"{first[:8]} against {second[:8]}", **tags)
    log = tracking.RunLog(uri, run_id)
    try:
        log.metrics(as_metrics(pair))
        scores = pair.evaluations
        drawn = comparison_figures.confusion_difference(*scores, pair.names)
        figures.save(drawn, log.folder / "figures" / "confusion_difference.png")
        images = comparison_figures.flipped(pair.images, *scores, pair.names)
        figures.save(images, log.folder / "figures" / "flipped.png")
        report.write_table(flips(*scores), log.folder, "flipped")
        change = pd.DataFrame(scores[1].confusion - scores[0].confusion).rename_axis("true").reset_index()
        report.write_table(change, log.folder, "confusion_difference")
    except BaseException as fault:
        log.tags({"failure": f"{type(fault).__name__}: {fault}"[:500]})
        log.end("FAILED", {})
        raise
    return run_id, str(log.end("FINISHED", {}) or "")


def as_metrics(pair: Pair) -> dict[str, float]:
    """The comparison's numbers by name."""
    test, (first, second) = pair.test, pair.evaluations
    return {
        "accuracy_a": first.metrics["val_accuracy"],
        "accuracy_b": second.metrics["val_accuracy"],
        "difference": test.difference,
        "difference_low": test.low,
        "difference_high": test.high,
        "mcnemar_p": test.p_value,
        "only_a_right": float(test.only_first),
        "only_b_right": float(test.only_second),
        "validation_images": float(test.images),
    }


def _show(pair: Pair, run_id: str, look: str) -> None:
    terminal, test = console.console(), pair.test
    table = Table(title="Comparison, b minus a", show_header=False, title_justify="left")
    for key, run, score in zip("ab", pair.runs, pair.evaluations, strict=True):
        table.add_row(f"{key}, run {run.info.run_id}", console.accuracy_with_interval(score.metrics))
    low, high = 100 * test.low, 100 * test.high
    table.add_row("difference", f"{100 * test.difference:+.2f} points [{low:+.2f}, {high:+.2f}], n = {test.images}")
    table.add_row("exact McNemar p", f"{test.p_value:.4g}")
    table.add_row("only a right, only b right", f"{test.only_first}, {test.only_second}")
    terminal.print(table)
    flipped = flips(*pair.evaluations)
    terminal.print(_flipped_table(flipped))
    terminal.print(f"run {run_id}; confusions and images that flipped are among its figures: {look}", markup=False)


def _flipped_table(flipped: pd.DataFrame) -> Table:
    table = Table(title=f"Images that flipped ({len(flipped)})", title_justify="left")
    for heading in ("index", "true", "a says", "b says", "right"):
        table.add_column(heading, justify="right")
    for row in flipped.head(SHOWN).to_dict("records"):
        table.add_row(*(str(row[name]) for name in ("index", "label", "a", "b", "right")))
    if len(flipped) > SHOWN:
        table.caption = f"the first {SHOWN}; all are in tables/flipped.csv"
    return table
