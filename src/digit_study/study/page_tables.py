"""The tables of the page: every cell as it is read, and as it is sorted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from digit_study.registry.ledger import Entry
from digit_study.support.console import with_interval
from digit_study.support.messages import short_names

#: Rows of the longest tables: a page with thousands is no page any more.
MOST_ROWS = 500


@dataclass(frozen=True)
class Cell:
    """One value: ``text`` is read; a ``number`` makes it sort as one and stand on the right."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows beneath headings; ``marked`` are the rows that stand out, ``note`` is read above."""

    headings: list[str]
    rows: list[list[Cell]]
    marked: list[int] = field(default_factory=list)
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers alone."""
        return [
            all(row[at].number is not None for row in self.rows) for at in range(len(self.headings))
        ]


def number(value: Any, form: str = "{:,.0f}") -> Cell:
    """A number in its format; a dash, sorted last, where there is none."""
    if value is None or value != value:
        return Cell("–", float("-inf"))
    return Cell(form.format(value), float(value))


def accuracy(value: float, low: float, high: float) -> Cell:
    """An accuracy with its 95 % interval, all in [0, 1]."""
    return Cell(with_interval(value, low, high), value)


def leaderboard_table(board: pd.DataFrame) -> Table:
    """The configurations of a leaderboard, best first; marked are those that could be the best."""
    shown = board.head(MOST_ROWS).to_dict("records")
    names, shared = short_names([str(row["name"]) for row in shown])
    headings = [
        "rank",
        "val accuracy [95 %]",
        "could be best",
        "p",
        "parameters",
        "trial: configuration",
    ]
    rows = [
        [
            number(row["rank"]), accuracy(row["val_accuracy"], row["val_accuracy_low"], row["val_accuracy_high"]),
            Cell("yes" if row["tied"] else "no"), number(row["p_adjusted"], "{:.3f}"), number(row["parameters"]),
            Cell(name), number(row["val_loss"], "{:.4f}"), number(row["training_seconds"], "{:.1f}"),
            number(row["seeds"]), Cell(str(row["run_id"])),
        ]
        for name, row in zip(names, shown, strict=True)
    ]  # fmt: skip
    tied = [place for place, row in enumerate(shown) if row["tied"]]
    notes = [f"All: {shared}."] * bool(shared) + [f"The best {MOST_ROWS} of {len(board)}."] * (
        len(board) > len(rows)
    )
    return Table([*headings, "val loss", "seconds", "seeds", "run"], rows, tied, " ".join(notes))


def trials_table(frame: pd.DataFrame, keys: Iterable[str], objectives: Iterable[str]) -> Table:
    """The newest trials, with every objective and every searched key of ``search.report.trials_frame``."""
    shown, keys, objectives = frame.tail(MOST_ROWS).to_dict("records"), list(keys), list(objectives)
    rows = []
    for row in shown:
        values = [number(row.get(name), "{:.6g}") for name in objectives]
        seconds = (
            (row["finished"] - row["started"]).total_seconds()
            if row["finished"] is not pd.NaT
            else None
        )
        chosen = []
        for value in map(row.get, keys):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            chosen.append(
                number(value, "{:.4g}") if is_number else Cell("–" if value is None else str(value))
            )
        ended = [Cell(str(row["state"]).lower()), *values, number(seconds, "{:.1f}")]
        rows.append([number(row["number"]), *ended, *chosen, Cell(str(row.get("reason") or ""))])
    note = f"The last {MOST_ROWS} of {len(frame)}." if len(frame) > len(shown) else ""
    return Table(["trial", "state", *objectives, "seconds", *keys, "reason"], rows, [], note)


def front_table(front: pd.DataFrame, objectives: Mapping[str, str]) -> Table:
    """The trials that no other beats in every objective."""
    headings = ["trial", *(f"{metric} ({direction})" for metric, direction in objectives.items())]
    records = front.to_dict("records")
    rows = [
        [number(row["number"]), *(number(row[name], "{:.6g}") for name in objectives)]
        for row in records
    ]
    return Table(headings, rows)


def confirmation_table(ranking: pd.DataFrame) -> Table:
    """Candidates with the noise of an accuracy by seeds, by images and by both, in percentage points."""
    names, shared = short_names([str(name) for name in ranking["name"]])
    rows = []
    for name, row in zip(names, ranking.to_dict("records"), strict=True):
        noise = [row[f"sd_{by}"] for by in ("seeds", "images", "both")]
        shown = [number(None if one is None else 100 * one, "{:.3f}") for one in noise]
        verdict = "winner" if row["winner"] else "could be best" if row["tied"] else "worse"
        facts = [
            number(row["parameters"]),
            Cell(name),
            number(row["seeds"]),
            Cell(str(row["run_id"])),
        ]
        ends = accuracy(row["mean"], row["low"], row["high"])
        rows.append([number(row["rank"]), ends, Cell(verdict), *shown, *facts])
    headings = [
        "rank",
        "mean over seeds [95 %]",
        "verdict",
        "± of seeds",
        "± of images",
        "± of both",
        "parameters",
    ]
    won = [place for place, winner in enumerate(ranking["winner"]) if winner]
    note = f"All: {shared}." if shared else ""
    return Table([*headings, "trial: configuration", "seeds", "best run"], rows, won, note)


def ledger_table(entries: Iterable[Entry], run_ids: Iterable[str]) -> Table:
    """Promotions and rollbacks, newest first; marked are those of the runs of this study."""
    own, rows, marked = set(run_ids), list[list[Cell]](), list[int]()
    for place, entry in enumerate(reversed(list(entries))):
        start = entry.start
        texts = (
            start.get("at"),
            f"{start.get('kind')}: {entry.outcome_text}",
            entry.reason,
        )
        rows.append([Cell(str(text)) for text in (*texts, start.get("run_id"), start.get("who"))])
        marked += [place] if start.get("run_id") in own else []
    return Table(["date", "decision", "evidence", "run", "who"], rows, marked)
