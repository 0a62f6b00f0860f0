"""The study in one page: what stands on it, and its HTML, which needs no other file."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from digit_study.report.figures.interactive import Picture
from digit_study.report.ranking import RankedRow
from digit_study.report.tables import TableView
from digit_study.report.templates import template

#: Mistakes of a network that the page shows: those that it was surest of.
MISTAKES_A_NETWORK = 40


@dataclass(frozen=True)
class Answer:
    """What the study says."""

    #: The accuracy with its interval.
    value: str
    #: The network that has it; empty where there is no answer yet.
    network: str
    #: What the answer rests on, in sentences.
    basis: Sequence[str]


@dataclass(frozen=True)
class ConfirmationReport:
    """The latest confirmation of a study."""

    table: TableView
    winner: RankedRow
    #: The candidates as the page draws them. Each has name, mean, low, high, winner,
    #: sweep_val_accuracy (None where it was not recorded), and values, the accuracy of every seed.
    candidates: Sequence[dict[Any, Any]]
    summary: str
    #: The best run of every candidate.
    run_ids: Sequence[str]


@dataclass(frozen=True)
class NetworkComparison:
    """The best networks, image by image, as JSON for the script of the page."""

    #: Each has name, epoch, val_accuracy and val_loss.
    curves: Sequence[dict[str, Any]]
    #: Each has name, run_id, confusion (10, 10), and ``says`` and ``sure`` for each of the images.
    compared: Sequence[dict[str, Any]]
    #: Each has index, label and png (base64).
    images: Sequence[dict[str, Any]]
    #: What is missing, and why.
    note: str


@dataclass(frozen=True)
class StudyReport:
    """All that the page shows; it has an attribute for each of its parts."""

    name: str
    written: str
    answer: Answer
    facts: dict[str, str]
    leaderboard: TableView
    #: Of several objectives.
    front: TableView | None
    trials: TableView
    pictures: Sequence[Picture]
    networks: NetworkComparison
    confirmation: ConfirmationReport | None
    promotions: TableView
    origins: dict[str, str]
    commands: dict[str, str]

    def html(self) -> str:
        """Return the page as HTML that loads nothing."""
        figures = []
        for picture in self.pictures:
            if picture.figure is not None:
                figures.append({"name": picture.name, "figure": picture.figure})
        drawn = json.dumps({"pictures": figures}, separators=(",", ":"))
        packed = {"plotly": _packed_plotly(), "drawn": _packed(drawn)}
        confirmed: Sequence[dict[Any, Any]] = []
        if self.confirmation is not None:
            confirmed = self.confirmation.candidates
        data = {
            "curves": self.networks.curves,
            "compared": self.networks.compared,
            "images": self.networks.images,
            "confirmed": confirmed,
            "most": MISTAKES_A_NETWORK,
        }
        return template("study.html").render(page=self, data=data, packed=packed)


def _packed(text: str) -> str:
    """Return a text as gzip in base64, which the page unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _packed_plotly() -> str:
    """Return plotly.js, which alone is nearly five megabytes, packed."""
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())
