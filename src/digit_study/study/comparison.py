"""Two runs on the same validation images: what differs, by how much, and on which images. Needs no TensorFlow."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.table import Table

from digit_study.config.promote_config import CompareConfig
from digit_study.config.run_config import Config, TrackingConfig
from digit_study.data import digits, sources
from digit_study.report.figures import charts
from digit_study.stats.metrics import Evaluation, evaluation_of
from digit_study.stats.ranking import PairedTest, paired_test
from digit_study.support import console
from digit_study.support.messages import StudyError
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.tracking import views

ROWS = 20  # of the table on the terminal


@dataclass(frozen=True)
class Pair:
    """Two runs, first and second, on the same images in the same order."""

    runs: tuple[Run, Run]
    evaluations: tuple[Evaluation, Evaluation]
    test: PairedTest  # second against first
    images: sources.Pixels  # (n, 28, 28, 1), uint8
    config: Config  # of the first


def serve(config: CompareConfig) -> None:
    """Compare two runs, record the comparison in MLflow as a run of its own, and print it.

    Raises StudyError if a run is missing, or the two were not validated on the same images.
    """
    client, uri = lookup.open_store(config.tracking.uri)
    with lookup.store_faults(uri):
        pair = load_pair(client, uri, config)
        run_id, kept = _record(client, uri, pair)
    _print(pair, run_id, views.address(client, uri, run_id, children=False))
    if kept:
        raise StudyError(f"the tracking store did not take the comparison: it is kept in {kept}")


def load_pair(client: MlflowClient, uri: str, config: CompareConfig) -> Pair:
    """Pair two runs image by image; raises StudyError if one is not there whole, or their digits or images differ."""
    first, second = (
        lookup.finished_run(client, uri, str(getattr(config, key)), key) for key in "ab"
    )
    digests = [run.data.tags.get("dataset.sha256") for run in (first, second)]
    if digests[0] != digests[1]:
        rule, remedy = "`a` and `b` must be runs on the same digits", "train both on the same data"
        raise StudyError(f"{rule}, got dataset.sha256 {digests[0]} and {digests[1]}: {remedy}")
    one, other = lookup.predictions(client, first, "a"), lookup.predictions(client, second, "b")
    if not all(np.array_equal(one[column], other[column]) for column in ("index", "label")):
        found = f"{len(one):,} and {len(other):,} with {len(set(one['index']) & set(other['index'])):,} in common"
        remedy = "train both with the same data.seed and data.validation"
        raise StudyError(f"`a` and `b` must be validated on the same images, got {found}: {remedy}")
    recipe = lookup.recorded_config(first)
    source = replace(recipe.data, path=config.data.path or recipe.data.path)
    recipe = replace(recipe, data=sources.resolve(source).config)
    loaded = digits.load_digits(recipe.data)
    if not np.array_equal(loaded.validation_index, one["index"]):
        raise StudyError(
            f"the validation images of run '{config.a}' must be those its config names, but its predictions are of "
            "others: compare runs whose tables/predictions.csv is as it was logged"
        )
    before, after = evaluation_of(one), evaluation_of(other)
    test = paired_test(before.correct, after.correct)
    return Pair((first, second), (before, after), test, loaded.validation_images, recipe)


def _record(client: MlflowClient, uri: str, pair: Pair) -> tuple[str, str]:
    """Return the id of the new run, and where it is kept if the store did not take all of it, else ''."""
    a, b = (str(run.info.run_id) for run in pair.runs)
    experiment = client.get_experiment(pair.runs[0].info.experiment_id).name
    config = replace(pair.config, tracking=TrackingConfig(uri=uri, experiment=experiment))
    tags = {
        "kind": "comparison",
        "compared.a": a,
        "compared.b": b,
        "mlflow.source.name": "sweeps/compare.py",
    }
    dataset = digits.dataset_name(config.data)
    run_id = run_log.create_run(config, uri, dataset, f"{a[:8]} against {b[:8]}", **tags)
    log, (before, after), test = run_log.RunLog(uri, run_id), pair.evaluations, pair.test
    names = f"a: {pair.runs[0].info.run_name}", f"b: {pair.runs[1].info.run_name}"
    try:
        log.metrics({
            "accuracy_a": before.metrics["val_accuracy"], "accuracy_b": after.metrics["val_accuracy"],
            "difference": test.difference, "difference_low": test.low, "difference_high": test.high,
            "mcnemar_p": test.p_value, "validation_images": float(test.images),
            "only_a_right": float(test.only_first), "only_b_right": float(test.only_second),
        })  # fmt: skip
        figures = log.folder / "figures"
        charts.save(
            confusion_difference(before, after, names), figures / "confusion_difference.png"
        )
        charts.save(flipped(pair.images, before, after, names), figures / "flipped.png")
        charts.write_table(flips(before, after), log.folder, "flipped")
        change = pd.DataFrame(after.confusion - before.confusion).rename_axis("true").reset_index()
        charts.write_table(change, log.folder, "confusion_difference")
    except BaseException as fault:
        log.tags({"failure": f"{type(fault).__name__}: {fault}"[:500]})
        log.end("FAILED", {})
        raise
    return run_id, str(log.end("FINISHED", {}) or "")


def _print(pair: Pair, run_id: str, where_to_look: str) -> None:
    terminal, test, changed = console.console(), pair.test, flips(*pair.evaluations)
    table = Table(title="Comparison, b minus a", show_header=False, title_justify="left")
    for key, run, score in zip("ab", pair.runs, pair.evaluations, strict=True):
        table.add_row(
            f"{key}, run {run.info.run_id}", console.accuracy_with_interval(score.metrics)
        )
    low, high = 100 * test.low, 100 * test.high
    table.add_row(
        "difference",
        f"{100 * test.difference:+.2f} points [{low:+.2f}, {high:+.2f}], n = {test.images}",
    )
    table.add_row("exact McNemar p", f"{test.p_value:.4g}")
    table.add_row("only a right, only b right", f"{test.only_first}, {test.only_second}")
    terminal.print(table)
    table = Table(title=f"Images that flipped ({len(changed)})", title_justify="left")
    for heading in ("index", "true", "a says", "b says", "right"):
        table.add_column(heading, justify="right")
    for row in changed.head(ROWS).itertuples(index=False, name=None):
        table.add_row(*map(str, row))
    table.caption = (
        f"the first {ROWS}; all are in tables/flipped.csv" if len(changed) > ROWS else None
    )
    terminal.print(table)
    where = (
        f"run {run_id}; confusions and images that flipped are among its figures: {where_to_look}"
    )
    terminal.print(where, soft_wrap=True)


def flips(first: Evaluation, second: Evaluation) -> pd.DataFrame:
    """List the images that exactly one of the two reads right: index, label, a, b, right ("a" or "b")."""
    right = np.where(second.correct, "b", "a")
    columns = {
        "index": first.index,
        "label": first.labels,
        "a": first.predicted,
        "b": second.predicted,
        "right": right,
    }
    changed = first.correct != second.correct
    return pd.DataFrame({name: values[changed] for name, values in columns.items()})


def confusion_difference(first: Evaluation, second: Evaluation, names: tuple[str, str]) -> Figure:
    """Draw which confusions ``second`` makes more often (red) or less often (blue) than ``first``, in images."""
    before, after = (charts.shorten(name) for name in names)
    figure = charts.new_figure(9, 7.6, f"Predictions of {after} minus those of {before}")
    label = "more mistakes (red) or fewer (blue), images"
    charts.confusion_heatmap(figure.subplots(), second.confusion - first.confusion, "+d", label)
    return figure


def flipped(
    images: charts.Numbers, first: Evaluation, second: Evaluation, names: tuple[str, str]
) -> Figure:
    """Draw the 36 images with the largest difference in probability of those that only one of two models reads right.

    ``images`` (n, 28, 28, 1) are in the order of both evaluations; raises ValueError if these two orders differ.
    """
    if not np.array_equal(first.index, second.index):
        raise ValueError(
            "`first` and `second` must be evaluations of the same images in the same order"
        )
    before, after = (charts.shorten(name) for name in names)
    title, labels, right = (
        f"Images that flip between {before} and {after}",
        first.labels,
        second.correct,
    )
    changed = np.flatnonzero(first.correct != right)
    if changed.size == 0:
        return charts.message_figure(
            title, f"None: both are right on the same images of {len(right):,}."
        )
    gap = (second.probabilities - first.probabilities)[changed, labels[changed]]
    shown = changed[np.argsort(-np.abs(gap), kind="stable")][:36]
    texts = [f"true {labels[i]}\n{first.predicted[i]} → {second.predicted[i]}" for i in shown]
    colours = [charts.BLUE if right[i] else charts.RED for i in shown]
    better, worse = int(right[changed].sum()), int((~right[changed]).sum())
    note = f"{before} → {after}: blue, only the second is right ({better}); orange, only the first ({worse})"
    return charts.image_grid(images[shown], title, note, 6, list(zip(texts, colours, strict=True)))
