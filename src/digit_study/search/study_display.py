"""What a person sees of a sweep: a live table on a terminal, a line a trial elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from digit_study.terminal.console import accuracy_with_interval, apart, console

if TYPE_CHECKING:
    import pandas as pd

    from digit_study.search.sweep import Running, Sweep

STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


class Display:
    """Observes a sweep.

    Args:
        best: the best trial so far as text, asked for when a trial has ended.
        live: the live area of a terminal, or None where there is none.
    """

    def __init__(self, best: Callable[[], str], live: Live | None) -> None:
        self.best, self.live = best, live
        self.best_now = "none yet"
        self.waited_for: list[int] = []
        self.terminal = live.console if live else console()

    def ended(self, number: int, state: str, text: str) -> None:
        """Say how a trial ended."""
        self.best_now = self.best()  # another machine may have found a better one
        line = Text(f"trial {number:<4} ")
        line.append(f"{state:<9}", STYLES.get(state, ""))
        line.append(f"{text}   best so far: {self.best_now}")
        self.terminal.print(line)

    def waiting(self, numbers: list[int]) -> None:
        """Say once which trials of other processes are waited for."""
        if numbers and numbers != self.waited_for:
            self.terminal.print(f"waiting for what other processes run: trial {', '.join(map(str, numbers))}")
        self.waited_for = numbers

    def update(self, sweep: Sweep) -> None:
        """Redraw what runs."""
        if self.live is not None:
            self.live.update(Group(_table(sweep), Text(self._foot(sweep))))

    def _foot(self, sweep: Sweep) -> str:
        seconds = sweep.seconds_left()
        eta = "?" if seconds is None else str(timedelta(seconds=round(seconds)))
        return f"best so far: {self.best_now}   trials left: {sweep.left + len(sweep.running)}   time left: about {eta}"


def _table(sweep: Sweep) -> Table:
    table = Table("trial", "epoch", sweep.objectives[0], "configuration", title="running", title_justify="left")
    for number, running in sorted(sweep.running.items()):
        table.add_row(str(number), f"{running.epoch:.1f}/{running.epochs}", _value(running), _params(running))
    return table


def _value(running: Running) -> str:
    return "" if running.value is None else f"{running.value:.5f}"


def _params(running: Running) -> str:
    again = "" if running.replicate_of is None else f"(a further seed of trial {running.replicate_of}) "
    return again + " ".join(f"{key.split('.')[-1]}={value:.3g}" if isinstance(value, float) else
                            f"{key.split('.')[-1]}={value}" for key, value in running.params.items())  # fmt: skip


def board_table(board: pd.DataFrame, title: str) -> Table:
    """Configurations by rank, as a narrow terminal can show them; all of their numbers are on the parent run."""
    names, legend = apart(board, "= cannot be told from the best (5 %)")
    table = Table(title=title, title_justify="left", caption=legend, caption_justify="left")
    for heading in ("rank", "val accuracy [95 %]", "parameters", "seeds", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("trial: configuration", overflow="fold")
    for name, row in zip(names, board.to_dict("records"), strict=True):
        table.add_row(
            str(row["rank"]), accuracy_with_interval(row), f"{row['parameters']:,.0f}", str(row["seeds"]),
            "=" if row["tied"] else "", name,
        )  # fmt: skip
    return table


def front_table(trials: pd.DataFrame, objectives: dict[str, str]) -> Table:
    """The Pareto front: what no other trial beats in every objective, the best by the first objective on top."""
    table = Table(title="Pareto front", title_justify="left")
    table.add_column("trial", justify="right")
    for metric, direction in objectives.items():
        table.add_column(f"{metric} ({direction})", justify="right")
    first, direction = next(iter(objectives.items()))
    for row in (
        trials[trials["front"].astype(bool)].sort_values(first, ascending=direction == "minimize").to_dict("records")
    ):
        table.add_row(str(row["number"]), *(f"{row[metric]:.6g}" for metric in objectives))
    return table


@contextmanager
def display(best: Callable[[], str]) -> Iterator[Display]:
    """Show a sweep for as long as the block lasts."""
    if not sys.stdout.isatty():
        yield Display(best, None)
        return
    with Live(console=console(), refresh_per_second=4, transient=True) as live:
        yield Display(best, live)
