"""Where all networks fail: the validation images that none of them reads, and the labels that look wrong."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from digit_study.data.sources import CLASSES, Labels, Pixels
from digit_study.evaluation import charts
from digit_study.evaluation.metrics import Evaluation

SHOWN = 36


def unread(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row for each image that no network reads as its label, the surest first; all have the same images, in order.

    Columns are index, label, says (what most networks read), agree (the share of them that do, in [0, 1]), confidence
    (the mean probability of it), and label_looks_wrong: all networks read the same other digit.
    """
    first = evaluations[0]
    predicted = np.stack([one.predicted for one in evaluations])
    at = np.flatnonzero((predicted != first.labels).all(axis=0))
    votes = np.stack([(predicted[:, at] == digit).mean(axis=0) for digit in range(CLASSES)], axis=-1)
    says = votes.argmax(axis=1)
    mean = np.mean([one.probabilities[at] for one in evaluations], axis=0)
    found = pd.DataFrame({
        "index": first.index[at], "label": first.labels[at], "says": says,
        "agree": votes[np.arange(len(at)), says], "confidence": mean[np.arange(len(at)), says],
    })  # fmt: skip
    found["label_looks_wrong"] = found["agree"] == 1
    return found.sort_values(["agree", "confidence"], ascending=False, ignore_index=True)


def unread_figure(table: pd.DataFrame, images: Pixels, index: Labels, networks: int) -> Figure:
    """Draw the first rows of :func:`unread`; ``images`` (n, 28, 28, 1) stand at ``index`` (n,) of the source."""
    title = f"{len(table)} of {len(images):,} validation images are read by none of {networks} networks"
    if table.empty:
        return charts.message_figure("Images that no network reads", f"None: each of {len(images):,} is read by one.")
    shown, place = table.head(SHOWN), {int(one): at for at, one in enumerate(index)}
    captions = []
    for row in shown.to_dict("records"):
        look = charts.RED if row["label_looks_wrong"] else "black"
        agree = "all" if row["label_looks_wrong"] else f"{100 * row['agree']:.0f} %"
        captions.append((f"label {row['label']}\n{agree} say {row['says']}", look))
    wrong = int(table["label_looks_wrong"].sum())
    note = f"orange: all networks read the same other digit, the label looks wrong ({wrong})"
    pixels = images[[place[int(one)] for one in shown["index"]]]
    return charts.image_grid(pixels, title, note, 6, captions)
