"""A ranking of runs, configurations, candidates or networks, whatever it is rendered as."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import pandas as pd

from digit_study.report.tables import (
    Cell,
    Estimate,
    TableView,
    accuracy,
    number,
    p_cell,
    setting,
)
from digit_study.stats.race import ACCURACY_COLUMNS
from digit_study.support.suggestions import SplitNames, short_names, split_names


class RankingKind(Enum):
    """What is ranked."""

    #: Runs of ``run.py -m``.
    RUNS = auto()
    #: Runs of ``run.py -m`` of which each has validation images of its own.
    UNPAIRED_RUNS = auto()
    #: Configurations of a study.
    CONFIGURATIONS = auto()
    #: Candidates of a confirmation, each over its seeds.
    CANDIDATES = auto()
    #: Networks of the frontier, by their size.
    NETWORKS = auto()


class Medium(Enum):
    """Where a ranking is shown."""

    TERMINAL = auto()
    #: The description of a run in MLflow.
    DESCRIPTION = auto()
    #: The study page, which alone has room for every column.
    PAGE = auto()


@dataclass(frozen=True)
class RankedRow:
    """One run, configuration, candidate or network; it has an attribute for each column.

    Numbers that are not known are NaN.
    """

    rank: int
    name: str
    #: The run, or the best of several.
    run_id: str
    accuracy: Estimate
    parameters: float
    seeds: int
    #: Whether it is not significantly different from the best.
    is_tied: bool
    is_winner: bool
    #: Whether no smaller network is as good.
    is_on_front: bool
    loss: float
    #: Accuracy on corrupted validation images; NaN of runs of an earlier version.
    robust: float
    seconds: float
    minutes: float
    p_value: float
    p_seeds: float
    p_images: float
    #: Standard deviations of the accuracy, in [0, 1], by seeds, by images and by both.
    sd_seeds: float
    sd_images: float
    sd_both: float
    #: Accuracy on the sealed test images, where they were opened for it.
    sealed: Estimate | None

    @property
    def verdict(self) -> str:
        """Return in a word how it stands to the best."""
        if self.is_winner:
            return "winner"
        if self.is_tied and self.rank == 1:
            return "best"
        if self.is_tied:
            return "tied"
        return "worse"


@dataclass(frozen=True)
class Column:
    """One column of a ranking."""

    heading: str
    cell: Callable[[RankedRow], Cell]
    media: Sequence[Medium] = tuple(Medium)


def _sealed_accuracy(row: RankedRow) -> Cell:
    if row.sealed is None:
        return Cell("")
    return accuracy(row.sealed)


def _name(row: RankedRow) -> Cell:
    return Cell(row.name, run_id=row.run_id)


def _front(row: RankedRow) -> Cell:
    if row.is_on_front:
        return Cell("yes")
    return Cell("no")


_ON_PAGE = (Medium.PAGE,)
_RUN = Column("run", _name)
#: The page has a column for each of its settings instead.
_CONFIGURATION = Column("trial: configuration", _name)
_NETWORK = Column("network", _name)
_VERDICT = Column("verdict", lambda row: Cell(row.verdict))
_RANK = Column("rank", lambda row: number(row.rank))
_ACCURACY = Column("accuracy [95 % interval]", lambda row: accuracy(row.accuracy))
_MEAN = Column("mean accuracy [95 %]", lambda row: accuracy(row.accuracy))
_PARAMETERS = Column("parameters", lambda row: number(row.parameters))
_SEEDS = Column("seeds", lambda row: number(row.seeds))
_ROBUST = Column("robust", lambda row: number(100 * row.robust, "{:.2f} %"))
_LOSS = Column("loss", lambda row: number(row.loss, "{:.4f}"))
_SECONDS = Column("seconds", lambda row: number(row.seconds, "{:.1f}"))
_P_VALUE = Column("p", lambda row: p_cell(row.p_value))
_RUN_ID = Column(
    "run id",
    lambda row: Cell(row.run_id, run_id=row.run_id),
    (Medium.TERMINAL, Medium.PAGE),
)


def _on_page(column: Column) -> Column:
    return Column(column.heading, column.cell, _ON_PAGE)


#: Columns by what is ranked.
COLUMNS: dict[RankingKind, tuple[Column, ...]] = {
    RankingKind.RUNS: (
        _RANK,
        _RUN,
        _ACCURACY,
        _ROBUST,
        _LOSS,
        _PARAMETERS,
        _SECONDS,
        _P_VALUE,
        _VERDICT,
        _RUN_ID,
    ),
    RankingKind.UNPAIRED_RUNS: (
        _RUN,
        _ACCURACY,
        _ROBUST,
        _LOSS,
        _PARAMETERS,
        _SECONDS,
        _RUN_ID,
    ),
    RankingKind.CONFIGURATIONS: (
        _RANK,
        _ACCURACY,
        _VERDICT,
        _ROBUST,
        _on_page(_P_VALUE),
        _PARAMETERS,
        _SEEDS,
        _CONFIGURATION,
        _on_page(_LOSS),
        _on_page(_SECONDS),
        _on_page(_RUN_ID),
    ),
    RankingKind.CANDIDATES: (
        _RANK,
        _MEAN,
        _VERDICT,
        _ROBUST,
        _SEEDS,
        _PARAMETERS,
        _CONFIGURATION,
        Column("± seeds", lambda row: number(100 * row.sd_seeds, "{:.3f}"), _ON_PAGE),
        Column("± images", lambda row: number(100 * row.sd_images, "{:.3f}"), _ON_PAGE),
        Column("± both", lambda row: number(100 * row.sd_both, "{:.3f}"), _ON_PAGE),
        Column("p, seeds", lambda row: p_cell(row.p_seeds), _ON_PAGE),
        Column("p, images", lambda row: p_cell(row.p_images), _ON_PAGE),
        _on_page(_RUN_ID),
    ),
    RankingKind.NETWORKS: (
        _NETWORK,
        _PARAMETERS,
        Column("minutes", lambda row: number(row.minutes, "{:.1f}")),
        _MEAN,
        _ROBUST,
        _SEEDS,
        Column("on the front", _front),
        Column("sealed test images [95 %]", _sealed_accuracy),
    ),
}
#: What a narrow terminal does not show, the first one first.
OPTIONAL = ("run id", "loss", "seconds", "p", "minutes", "robust", "parameters", "seeds")
#: What a column says that all rankings have.
_ROBUST_LEGEND = "robust: accuracy on corrupted validation images"
#: What the words in the cells mean.
LEGENDS = {
    RankingKind.RUNS: (
        "tied: not significantly different from the best "
        "(p > 0.05; McNemar, for all comparisons together)"
    ),
    RankingKind.UNPAIRED_RUNS: (
        "each run has validation images of its own: a difference is of the images too, "
        "so there is no paired p"
    ),
    RankingKind.CONFIGURATIONS: (
        "tied: not significantly different from the best "
        "(McNemar, 95 % confidence for all comparisons together)"
    ),
    RankingKind.CANDIDATES: (
        "tied: not significantly different from the best (Tukey over seeds, or Holm over images)"
    ),
    RankingKind.NETWORKS: (
        "on the front: no network as small is as good; "
        "minutes of one network; sealed test images: the first seed"
    ),
}


@dataclass(frozen=True)
class RankedTable:
    """A ranking, best first; networks of the frontier by their size."""

    kind: RankingKind
    rows: Sequence[RankedRow]

    @classmethod
    def of(cls, kind: RankingKind, ranking: pd.DataFrame) -> RankedTable:
        """Make a ranking of what ``stats`` computed.

        Args:
            kind: What is ranked.
            ranking: Rows with name, run_id, parameters, seeds, tied and an accuracy with its ends:
                val_accuracy, val_accuracy_low and val_accuracy_high, or mean, low and high. See
                :func:`digit_study.stats.ranking.pooled_leaderboard` and
                :func:`digit_study.stats.race.confirmed_ranking` for the others.
        """
        named = ranking.rename(columns=ACCURACY_COLUMNS)
        records = named.to_dict("records")
        return cls(kind, [_row(place, row) for place, row in enumerate(records, start=1)])

    @property
    def winner(self) -> RankedRow:
        """Return the candidate that won."""
        return next(row for row in self.rows if row.is_winner)

    def view(self, medium: Medium, *, title: str = "", most_rows: int | None = None) -> TableView:
        """Return the table as a medium shows it.

        Args:
            medium: Where it is shown.
            title: What stands above it.
            most_rows: How many rows are shown; None shows all.
        """
        chosen = self.rows[:most_rows]
        names, shared = short_names([row.name for row in chosen])
        shown = [replace(row, name=name) for row, name in zip(chosen, names, strict=True)]
        split = None
        if medium is Medium.PAGE:
            split = split_names(names)
        headings: list[str] = []
        rows: list[list[Cell]] = [[] for _ in shown]
        for column in self._columns(medium):
            if column is _CONFIGURATION and split is not None:
                headings += ["trial", *split.keys]
                _add_settings(rows, split)
                continue
            headings.append(column.heading)
            for cells, row in zip(rows, shown, strict=True):
                cells.append(column.cell(row))
        return TableView(
            headings,
            rows,
            title=title,
            marked=[position for position, row in enumerate(shown) if self._is_marked(row)],
            sections=self._sections(shown),
            note=" ".join(
                filter(None, [self._groups(), _note(shared, len(shown), len(self.rows))])
            ),
            legend=f"{LEGENDS[self.kind]}; {_ROBUST_LEGEND}",
            optional=[heading for heading in OPTIONAL if heading in headings],
        )

    def _columns(self, medium: Medium) -> list[Column]:
        """Return the columns that a medium has, without one that says 1 seed in every row."""
        columns = [column for column in COLUMNS[self.kind] if medium in column.media]
        is_single = all(row.seeds == 1 for row in self.rows)
        if self.kind is RankingKind.CONFIGURATIONS and is_single:
            columns.remove(_SEEDS)
        return columns

    def _is_marked(self, row: RankedRow) -> bool:
        """Return whether a row stands out: the winner, or all that may be the best."""
        if self.kind is RankingKind.CANDIDATES:
            return row.is_winner
        if self.kind is RankingKind.NETWORKS:
            return row.is_on_front
        return row.is_tied

    def _sections(self, shown: Sequence[RankedRow]) -> list[int]:
        """Return where the candidates begin that left the race before its end."""
        if self.kind is not RankingKind.CANDIDATES:
            return []
        return [at for at, row in enumerate(shown) if row.seeds < self._most_seeds][:1]

    def _groups(self) -> str:
        """Say in which groups candidates stand that have unequal numbers of seeds."""
        if self.kind is not RankingKind.CANDIDATES:
            return ""
        stayed = sum(row.seeds == self._most_seeds for row in self.rows)
        left = len(self.rows) - stayed
        if left == 0:
            return ""
        return (
            f"First the {stayed} with all {self._most_seeds} seeds, below the line the {left} that "
            "left the race earlier; both by their means."
        )

    @property
    def _most_seeds(self) -> int:
        return max(row.seeds for row in self.rows)


def _add_settings(rows: Sequence[list[Cell]], split: SplitNames) -> None:
    """Add the number of a trial and a cell for each of its settings to every row."""
    for cells, trial, settings in zip(rows, split.trials, split.settings, strict=True):
        cells.append(setting(trial))
        cells += [setting(settings.get(key)) for key in split.keys]


def splits_view(means: pd.DataFrame) -> TableView:
    """Return the table of configurations that were trained on several splits.

    Args:
        means: What :func:`digit_study.stats.ranking.mean_over_splits` returns.
    """
    rows = []
    for row in means.to_dict("records"):
        cells = [
            Cell(row["name"]),
            number(row["splits"]),
            number(100 * row["mean_val_accuracy"], "{:.2f} %"),
            number(100 * row["sd_val_accuracy"], "{:.2f}"),
            number(100 * row["min_val_accuracy"], "{:.2f} %"),
            number(100 * row["max_val_accuracy"], "{:.2f} %"),
            number(row["parameters"]),
        ]
        rows.append(cells)
    return TableView(
        ["configuration", "splits", "mean", "± points", "lowest", "highest", "parameters"],
        rows,
        title="Mean validation accuracy over the splits",
        legend="± points: standard deviation over the splits (data.seed)",
    )


def _note(shared: str, shown: int, count: int) -> str:
    """Return what all rows share, and how many there are if not all are shown."""
    notes = []
    if shared:
        notes.append(f"All have {shared}.")
    if count > shown:
        notes.append(f"The best {shown} of {count}.")
    return " ".join(notes)


def _row(place: int, record: dict[Any, Any]) -> RankedRow:
    return RankedRow(
        rank=int(record.get("rank", place)),
        name=str(record["name"]),
        run_id=str(record["run_id"]),
        accuracy=_estimate(record, "val_accuracy"),
        parameters=record["parameters"],
        seeds=int(record.get("seeds", 1)),
        is_tied=bool(record["tied"]),
        is_winner=bool(record.get("winner", False)),
        is_on_front=bool(record.get("front", False)),
        loss=record.get("val_loss", math.nan),
        robust=record.get("robust_accuracy", math.nan),
        seconds=record.get("training_seconds", math.nan),
        minutes=record.get("minutes", math.nan),
        p_value=record.get("p_adjusted", math.nan),
        p_seeds=record.get("p_seeds", math.nan),
        p_images=record.get("p_images", math.nan),
        sd_seeds=record.get("sd_seeds", math.nan),
        sd_images=record.get("sd_images", math.nan),
        sd_both=record.get("sd_both", math.nan),
        sealed=_sealed_estimate(record),
    )


def _estimate(record: dict[Any, Any], metric: str) -> Estimate:
    return Estimate(record[metric], record[f"{metric}_low"], record[f"{metric}_high"])


def _sealed_estimate(record: dict[Any, Any]) -> Estimate | None:
    if math.isnan(record.get("test_accuracy", math.nan)):
        return None
    return _estimate(record, "test_accuracy")
