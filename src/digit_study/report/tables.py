"""Tables as people see them, before any renderer: cells, headings, marks and legends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pandas as pd

from digit_study.support.formatting import p_value, with_interval

T = TypeVar("T")
#: Rows of the longest tables: a page with thousands cannot be read any more.
MOST_ROWS = 500


@dataclass(frozen=True)
class Estimate:
    """An accuracy and its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return with_interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Cell:
    """One value of a table."""

    #: What is read.
    text: str
    #: By what a page sorts; a cell with a number stands on the right.
    number: float | None = None
    #: The run that the cell leads to, where a renderer has links.
    run_id: str = ""


@dataclass(frozen=True)
class TableView:
    """Rows below headings, for any renderer."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    #: Numbers of the rows that stand out, counted from 0.
    marked: Sequence[int] = ()
    #: Numbers of the rows before which a line is drawn.
    sections: Sequence[int] = ()
    #: What the reader needs to know before the rows.
    note: str = ""
    #: What the words in the cells mean.
    legend: str = ""
    #: Headings of columns that are left out where there is no space for them, the first one first.
    optional: Sequence[str] = ()

    def without(self, heading: str) -> TableView:
        """Return the table without a column."""
        place = list(self.headings).index(heading)
        return replace(
            self,
            headings=_without(self.headings, place),
            rows=[_without(row, place) for row in self.rows],
        )

    @property
    def numeric(self) -> list[bool]:
        """Return for every column whether it holds numbers alone."""
        columns = range(len(self.headings))
        return [self._is_numeric(column) for column in columns]

    def _is_numeric(self, column: int) -> bool:
        return all(row[column].number is not None for row in self.rows)


def _without(items: Sequence[T], place: int) -> list[T]:
    before = items[:place]
    after = items[place + 1 :]
    return [*before, *after]


def number(value: Any, form: str = "{:,.0f}") -> Cell:
    """Return a number in its format; a dash, sorted last, where there is none.

    Args:
        value: A number, NaN or None.
        form: A format string with one field.
    """
    if value is None or value != value:
        return Cell("–", float("-inf"))
    return Cell(form.format(value), float(value))


def p_cell(value: float | None) -> Cell:
    """Return a p-value; a dash, sorted last, where there is none."""
    if value is None or value != value:
        return number(None)
    return Cell(p_value(value), value)


def setting(text: str | None) -> Cell:
    """Return the value of a setting as it stands in a name; a dash where it has none."""
    if text is None:
        return number(None)
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text)


def accuracy(estimate: Estimate) -> Cell:
    """Return an accuracy with its interval, sorted by the accuracy."""
    return Cell(str(estimate), estimate.value)


def trials_table(frame: pd.DataFrame, keys: Sequence[str], objectives: Iterable[str]) -> TableView:
    """Show the newest trials of a study.

    Args:
        frame: A row a trial, see :func:`digit_study.study.results.trials_frame`.
        keys: Searched config keys, a column each.
        objectives: Names of the metrics that are optimised, a column each.
    """
    objectives = list(objectives)
    trials = frame.tail(MOST_ROWS).to_dict("records")
    rows = []
    for trial in trials:
        state = str(trial["state"]).lower()
        reason = str(trial.get("reason") or "")
        values = [number(trial.get(name), "{:.6g}") for name in objectives]
        params = [_chosen(trial.get(key)) for key in keys]
        rows.append(
            [
                number(trial["number"]),
                Cell(state),
                *values,
                number(_seconds(trial), "{:.1f}"),
                *params,
                Cell(reason),
            ]
        )
    note = ""
    if len(frame) > len(trials):
        note = f"The last {MOST_ROWS} of {len(frame)}."
    headings = ["trial", "state", *objectives, "seconds", *_short_keys(keys), "reason"]
    has_reasons = any(row[-1].text for row in rows)
    if not has_reasons:
        headings.pop()
        rows = [row[:-1] for row in rows]
    return TableView(headings, rows, note=note)


def _short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last parts of keys, or the whole keys if two end alike."""
    short = [key.rsplit(".", 1)[-1] for key in keys]
    if len(set(short)) < len(short):
        return list(keys)
    return short


def _seconds(trial: Mapping[Any, Any]) -> float | None:
    if trial["finished"] is pd.NaT:
        return None
    duration = trial["finished"] - trial["started"]
    return float(duration.total_seconds())


def _chosen(value: Any) -> Cell:
    """Return the value of a searched key."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number:
        return number(value, "{:.4g}")
    if value is None:
        return Cell("–")
    return Cell(str(value))


def front_table(front: pd.DataFrame, objectives: Mapping[str, str]) -> TableView:
    """Show the Pareto front of several objectives, the best by the first one on top.

    Args:
        front: A row a trial with its number and every objective.
        objectives: Direction (``maximize`` or ``minimize``) by metric.
    """
    headings = [f"{metric} ({direction})" for metric, direction in objectives.items()]
    first, direction = next(iter(objectives.items()))
    is_minimized = direction == "minimize"
    ordered = front.sort_values(first, ascending=is_minimized)
    rows = []
    for trial in ordered.to_dict("records"):
        values = [number(trial[name], "{:.6g}") for name in objectives]
        rows.append([number(trial["number"], "{}"), *values])
    return TableView(["trial", *headings], rows, title="Pareto front")


def flipped_table(flips: pd.DataFrame, most_rows: int) -> TableView:
    """Show the images that exactly one of two runs predicts correctly.

    Args:
        flips: Columns index, label, a, b and right (``a`` or ``b``).
        most_rows: How many images are shown.
    """
    rows = []
    for flip in flips.head(most_rows).to_dict("records"):
        numbers = [number(flip[name], "{}") for name in ("index", "label", "a", "b")]
        correct = Cell(str(flip["right"]))
        rows.append([*numbers, correct])
    legend = ""
    if len(flips) > most_rows:
        legend = f"the first {most_rows}; all are in tables/flipped.csv"
    headings = ["image", "true digit", "a predicts", "b predicts", "correct"]
    title = f"Images that only one of the two predicts correctly ({len(flips)})"
    return TableView(headings, rows, title=title, legend=legend)
