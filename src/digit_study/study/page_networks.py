"""The best networks image by image, as the page compares them: learning curves, confusions, mistakes as images."""

import base64
import io
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from digit_study.data import digits, sources
from digit_study.data.sources import DataConfig
from digit_study.stats.metrics import Evaluation
from digit_study.study import results as report
from digit_study.study.results import MOST_NETWORKS
from digit_study.support.messages import StudyError, first_line, short_names
from digit_study.tracking import queries as lookup

#: Mistakes of a network that are shown: those it was surest of.
MOST_MISTAKES = 40


@dataclass(frozen=True)
class Networks:
    """What the page's script draws, as JSON; a note says what is missing, and why."""

    curves: list[dict[str, Any]]  # name, epoch, val_accuracy, val_loss
    compared: list[
        dict[str, Any]
    ]  # name, run_id, confusion (10, 10), says and sure of each of the images
    images: list[dict[str, Any]]  # index, label, png (base64)
    note: str


def networks(uri: str, source: DataConfig, board: pd.DataFrame) -> Networks:
    """The best of a leaderboard, whose runs are in the store ``uri`` and were validated on digits of ``source``."""
    top = board.head(MOST_NETWORKS)
    names, _ = short_names([str(name) for name in top["name"]])
    best = dict(zip(map(str, top["run_id"]), names, strict=True))
    # left out are those that cannot be read, or were validated on other images than the first
    read: dict[str, Evaluation] = {}
    mistakes: set[int] = set()
    for run_id, one in zip(
        best, lookup.each(uri, partial(report.evaluation, uri), best), strict=True
    ):
        if one is not None and all(
            np.array_equal(one.index, other.index) for other in read.values()
        ):
            read[run_id] = one
            wrong = np.flatnonzero(~one.correct)
            surest = wrong[np.argsort(-one.probabilities.max(axis=1)[wrong], kind="stable")]
            mistakes |= set(one.index[surest[:MOST_MISTAKES]].tolist())
    shown = sorted(mistakes)
    images, note = _images(source, shown)
    if len(read) < len(best):
        note = " ".join(
            [
                note,
                f"Of {len(best) - len(read)} networks there are no predictions that can be read.",
            ]
        )
    compared = []
    for run_id, one in read.items():
        places = np.searchsorted(one.index, shown)
        sure = np.round(100 * one.probabilities.max(axis=1)[places]).astype(int)
        says = {"says": one.predicted[places].tolist(), "sure": sure.tolist()}
        compared.append(
            {"name": best[run_id], "run_id": run_id, "confusion": one.confusion.tolist(), **says}
        )
    labels = {
        int(i): int(label)
        for one in read.values()
        for i, label in zip(one.index, one.labels, strict=True)
    }
    cells = [{"index": index, "label": labels[index], "png": images.get(index)} for index in shown]
    curves = lookup.each(uri, lambda run: _curve(uri, *run), best.items())
    return Networks(curves, compared, cells, note.strip())


def _curve(uri: str, run_id: str, name: str) -> dict[str, Any]:
    """A network's validation by epoch; epochs count from 1."""
    names = "val_accuracy", "val_loss"
    if (result := report.result_of(uri, run_id)) is not None:
        values = [
            {at: record[key] for at, record in enumerate(result.epochs, start=1)} for key in names
        ]
    else:
        values = lookup.each(uri, partial(lookup.epoch_values, uri, run_id), names)
    metrics = dict(zip(names, values, strict=True))
    epochs = sorted(set[int]().union(*metrics.values()))
    # a diverged epoch is a gap: JSON has no NaN
    lines = {
        key: [value if math.isfinite(value := found.get(at, math.nan)) else None for at in epochs]
        for key, found in metrics.items()
    }
    return {"name": name, "epoch": epochs, **lines}


def _images(source: DataConfig, shown: list[int]) -> tuple[dict[int, str], str]:
    """PNGs by index, base64, ink on paper; or none, and a sentence that says why the digits are not there."""
    if not shown:
        return {}, ""
    try:
        loaded = digits.load_digits(sources.resolve(source).config)
    except (StudyError, OSError) as fault:
        return (
            {},
            f"The digits are not there any more, so no mistake can be shown as an image: {first_line(fault)}",
        )
    place = {int(index): at for at, index in enumerate(loaded.validation_index)}
    if not place.keys() >= set(shown):
        return (
            {},
            "The digits are others than these networks were validated on: no mistake is shown as an image.",
        )
    drawn = {}
    for index in shown:
        file = io.BytesIO()
        Image.fromarray(255 - loaded.validation_images[place[index]][..., 0]).save(
            file, format="png", optimize=True
        )
        drawn[index] = base64.b64encode(file.getvalue()).decode()
    return drawn, ""
