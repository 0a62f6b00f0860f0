"""What a person sees in the terminal: progress while a run goes on, tables at its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from digit_study.terminal.naming import told_apart

if TYPE_CHECKING:  # half a second that --help can do without
    import pandas as pd

Record = Mapping[str, float]


def console() -> Console:
    """Standard output; plain and never wrapped where it is piped."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())


def complain(message: str) -> None:
    """Print a message to standard error, in one piece."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="red", markup=False)


def warn(message: str) -> None:
    """Print a warning that nobody can miss to standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"WARNING: {message}", style="bold yellow", markup=False
    )


def percent(fraction: float, digits: int = 2) -> str:
    """``0.9912`` as ``99.12 %``."""
    return f"{100 * fraction:.{digits}f} %"


def accuracy_with_interval(metrics: Mapping[Any, Any]) -> str:
    """``99.12 % [98.82, 99.34]``: accuracy and its 95 % interval."""
    low, high = 100 * metrics["val_accuracy_low"], 100 * metrics["val_accuracy_high"]
    return f"{percent(metrics['val_accuracy'])} [{low:.2f}, {high:.2f}]"


class Ticker:
    """Follows one training: a bar on a terminal, a line an epoch elsewhere."""

    def __init__(self, label: str, epochs: int, bar: Progress | None) -> None:
        self.label, self.epochs, self.bar = label, epochs, bar
        self.task = bar.add_task(label, total=epochs, news="starting") if bar else None
        self.news = "starting"

    def steps(self, epoch: int, step: int, steps: int) -> None:
        """Show ``step`` of ``steps`` in ``epoch``."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=epoch - 1 + step / steps, news=self.news)

    def epoch(self, number: int, record: Record) -> None:
        """Show a finished epoch."""
        self.news = f"val_accuracy {percent(record['val_accuracy'])}  val_loss {record['val_loss']:.4f}"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=number, news=self.news)
            return
        print(
            f"{self.label}  epoch {number}/{self.epochs}  train_loss {record['train_loss']:.4f}  {self.news}  "
            f"{record['epoch_seconds']:.1f} s",
            flush=True,
        )


@contextmanager
def ticker(label: str, epochs: int, live: bool = True) -> Iterator[Ticker]:
    """Show progress of one training for as long as the block lasts."""
    if not (live and sys.stdout.isatty()):
        yield Ticker(label, epochs, None)
        return
    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        "epoch {task.completed:.1f}/{task.total}",
    )
    news = TextColumn("{task.fields[news]}", style="cyan")
    with Progress(*columns, news, TimeElapsedColumn(), TimeRemainingColumn(), console=console()) as bar:
        yield Ticker(label, epochs, bar)


def run_table(run_id: str, metrics: Mapping[str, float], look: str) -> Table:
    """The short table that ends a run."""
    table = Table(title="Run", show_header=False, title_justify="left")
    table.add_row("run id", run_id)
    table.add_row("validation accuracy", f"{accuracy_with_interval(metrics)}, n = {metrics['validation_images']:.0f}")
    table.add_row("validation loss", f"{metrics['val_loss']:.4f}")
    table.add_row("parameters", f"{metrics['parameters']:,.0f}")
    table.add_row("training seconds", f"{metrics['training_seconds']:.1f}")
    table.add_row("look at it", look)
    return table


def apart(rows: pd.DataFrame, legend: str) -> tuple[list[str], str]:
    """Names of ranked rows as what tells them apart, and the legend with what they share."""
    names, shared = told_apart([str(name) for name in rows["name"]])
    return names, f"all: {shared}\n{legend}" if shared else legend


def confirmation_table(ranking: pd.DataFrame, title: str) -> Table:
    """Candidates by mean over seeds; ``=`` marks what cannot be told from the best, ``*`` the winner."""
    names, legend = apart(ranking, "= cannot be told from the best, over seeds or over images (p > 0.05); * the winner")
    table = Table(title=title, title_justify="left", caption=legend, caption_justify="left")
    for heading in ("rank", "candidate", "mean [95 %]", "parameters", "seeds", "p seeds", "p images", "", "best run"):
        table.add_column(heading, justify="left" if heading in ("candidate", "best run") else "right", overflow="fold")
    for name, row in zip(names, ranking.to_dict("records"), strict=True):
        mark = ("=" if row["tied"] else "") + ("*" if row["winner"] else "")
        interval = f"{percent(row['mean'])} [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
        table.add_row(
            str(row["rank"]), name, interval, f"{row['parameters']:,.0f}", str(row["seeds"]),
            f"{row['p_seeds']:.3f}", f"{row['p_images']:.3f}", mark, row["run_id"],
        )  # fmt: skip
    return table


def leaderboard_table(board: pd.DataFrame, title: str) -> Table:
    """A ranked comparison; ``=`` marks what cannot be told from the best."""
    names, legend = apart(board, "= cannot be told from the best (McNemar, 5 %)")
    table = Table(title=title, title_justify="left", caption=legend, caption_justify="left")
    for heading in (
        "rank",
        "run",
        "val accuracy [95 %]",
        "val loss",
        "parameters",
        "seconds",
        "p",
        "",
        "run id",
    ):
        table.add_column(heading, justify="left" if heading in ("run", "run id") else "right", overflow="fold")
    for name, row in zip(names, board.to_dict("records"), strict=True):
        table.add_row(
            str(row["rank"]), name, accuracy_with_interval(row), f"{row['val_loss']:.4f}",
            f"{row['parameters']:,.0f}", f"{row['training_seconds']:.1f}", f"{row['p_value']:.3f}",
            "=" if row["tied"] else "", row["run_id"],
        )  # fmt: skip
    return table
