"""The best networks image by image, for the study page: learning curves, confusions, mistakes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from digit_study.data import digits, sources
from digit_study.data.sources import DataConfig
from digit_study.report.study_report import MISTAKES_A_NETWORK, NetworkComparison
from digit_study.stats.metrics import Evaluation
from digit_study.study.results import MOST_NETWORKS, RunResults
from digit_study.support.errors import StudyError, first_line
from digit_study.support.suggestions import short_names

#: Metrics of a learning curve.
CURVES = ("val_accuracy", "val_loss")


@dataclass(frozen=True)
class _Images:
    """Images as base64 PNG by their index, or the reason why there are none."""

    png: Mapping[int, str]
    problem: str = ""


def compare_networks(
    results: RunResults, source: DataConfig, board: pd.DataFrame
) -> NetworkComparison:
    """Collect the best networks of a leaderboard.

    Networks are left out that cannot be read, or were validated on other images than the first.

    Args:
        results: Results of the runs.
        source: The digits that they were validated on.
        board: The leaderboard.
    """
    top = board.head(MOST_NETWORKS)
    run_ids = [str(run_id) for run_id in top["run_id"]]
    names, _ = short_names([str(name) for name in top["name"]])
    best = dict(zip(run_ids, names, strict=True))
    evaluations = _comparable(results, list(best))
    mistakes: set[int] = set()
    for evaluation in evaluations.values():
        mistakes.update(_surest_mistakes(evaluation).tolist())
    shown = sorted(mistakes)
    images = _load_images(source, shown)
    notes = [images.problem]
    missing = len(best) - len(evaluations)
    if missing:
        notes.append(f"Of {missing} networks there are no predictions that can be read.")
    compared = []
    labels: dict[int, int] = {}
    for run_id, evaluation in evaluations.items():
        compared.append(_compared(best[run_id], run_id, evaluation, shown))
        indices = evaluation.index.tolist()
        labels.update(zip(indices, evaluation.labels.tolist(), strict=True))
    cells = []
    for index in shown:
        cells.append({"index": index, "label": labels[index], "png": images.png.get(index)})
    curves = results.tracker.each(lambda run: _curve(results, *run), best.items())
    note = " ".join(filter(None, notes))
    return NetworkComparison(curves, compared, cells, note)


def _comparable(results: RunResults, run_ids: Sequence[str]) -> dict[str, Evaluation]:
    """Return the evaluations on the same images, by the id of the run."""
    evaluations = results.evaluations(run_ids)
    found: dict[str, Evaluation] = {}
    first: Evaluation | None = None
    for run_id, evaluation in zip(run_ids, evaluations, strict=True):
        if evaluation is None:
            continue
        if first is None:
            first = evaluation
        if np.array_equal(evaluation.index, first.index):
            found[run_id] = evaluation
    return found


def _surest_mistakes(evaluation: Evaluation) -> npt.NDArray[np.int64]:
    """Return the index of each of the mistakes that a network was surest of."""
    wrong = np.flatnonzero(~evaluation.correct)
    confidence = evaluation.probabilities.max(axis=1)
    order = np.argsort(-confidence[wrong], kind="stable")
    surest = wrong[order][:MISTAKES_A_NETWORK]
    return evaluation.index[surest]


def _compared(
    name: str, run_id: str, evaluation: Evaluation, shown: Sequence[int]
) -> dict[str, Any]:
    positions = np.searchsorted(evaluation.index, shown)
    confidence = evaluation.probabilities.max(axis=1)[positions]
    percent = np.round(100 * confidence).astype(int)
    return {
        "name": name,
        "run_id": run_id,
        "confusion": evaluation.confusion.tolist(),
        "says": evaluation.predicted[positions].tolist(),
        "sure": percent.tolist(),
    }


def _curve(results: RunResults, run_id: str, name: str) -> dict[str, Any]:
    """Return a network's validation by epoch; epochs count from 1."""
    values = _epoch_values(results, run_id)
    epochs = sorted(set[int]().union(*values.values()))
    curve: dict[str, Any] = {"name": name, "epoch": epochs}
    for metric, by_epoch in values.items():
        curve[metric] = [_finite(by_epoch.get(epoch)) for epoch in epochs]
    return curve


def _epoch_values(results: RunResults, run_id: str) -> dict[str, dict[int, float]]:
    result = results.remembered(run_id)
    if result is None:
        ask = partial(results.tracker.epoch_values, run_id)
        values = results.tracker.each(ask, CURVES)
        return dict(zip(CURVES, values, strict=True))
    found: dict[str, dict[int, float]] = {}
    for metric in CURVES:
        values_of_metric = [record[metric] for record in result.epochs]
        found[metric] = dict(enumerate(values_of_metric, start=1))
    return found


def _finite(value: float | None) -> float | None:
    """Return a number, None for an epoch that diverged: JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return value


def _load_images(source: DataConfig, shown: Sequence[int]) -> _Images:
    """Return validation images as PNG, ink on paper."""
    if not shown:
        return _Images({})
    try:
        loaded = digits.load_digits(sources.resolve(source).config)
    except (StudyError, OSError) as fault:
        problem = "The digits are not there any more, so no mistake is shown as an image"
        return _Images({}, f"{problem}: {first_line(fault)}")
    positions = {int(index): position for position, index in enumerate(loaded.validation_index)}
    if not positions.keys() >= set(shown):
        problem = (
            "The digits are others than these networks were validated on: "
            "no mistake is shown as an image."
        )
        return _Images({}, problem)
    png = {}
    for index in shown:
        pixels = loaded.validation_images[positions[index]]
        png[index] = _png(pixels)
    return _Images(png)


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image (28, 28, 1) as PNG in base64, ink on paper."""
    file = io.BytesIO()
    image = Image.fromarray(255 - pixels[..., 0])
    image.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
