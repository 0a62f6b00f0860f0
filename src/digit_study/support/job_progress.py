"""Show the progress of jobs: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from digit_study.support.console import console
from digit_study.support.formatting import percent


class JobProgress:
    """Follows the jobs of a command, each by a number."""

    def __init__(self, bars: Progress, *, prints_epochs: bool) -> None:
        """Prepare to follow.

        Args:
            bars: Where jobs are drawn; it is disabled where the output is no terminal.
            prints_epochs: Whether an epoch is a line of its own where bars are disabled.
        """
        self._bars = bars
        self._prints_epochs = prints_epochs
        self._tasks: dict[int, TaskID] = {}
        self._labels: dict[int, str] = {}
        self._epochs: dict[int, int] = {}
        self._total: TaskID | None = None

    def count(self, ended: int, total: int) -> None:
        """Show how many of ``total`` jobs have ended; a single job needs no such bar."""
        if total <= 1:
            return
        if self._total is None:
            self._total = self._bars.add_task("all runs", status="")
        self._bars.update(self._total, completed=ended, total=total)

    def begin(self, key: int, label: str, epochs: int) -> None:
        """Show a job that starts and has at most ``epochs`` epochs."""
        self._labels[key] = label
        self._epochs[key] = epochs
        self._tasks[key] = self._bars.add_task(label, total=epochs, status="starting")

    def steps(self, key: int, epoch: int, step: int, steps: int) -> None:
        """Show that a job has done ``step`` of the ``steps`` of an epoch, counted from 1."""
        self._bars.update(self._tasks[key], completed=epoch - 1 + step / steps)

    def epoch(self, key: int, number: int, record: Mapping[str, float]) -> None:
        """Show an epoch that has ended, with its metrics by name."""
        accuracy = percent(record["val_accuracy"])
        status = f"val_accuracy {accuracy}  val_loss {record['val_loss']:.4f}"
        self._bars.update(self._tasks[key], completed=number, status=status)
        if self._bars.disable and self._prints_epochs:
            position = f"epoch {number}/{self._epochs[key]}"
            train_loss = f"train_loss {record['train_loss']:.4f}"
            seconds = f"{record['epoch_seconds']:.1f} s"
            line = f"{self._labels[key]}  {position}  {train_loss}  {status}  {seconds}"
            self._bars.console.print(line, soft_wrap=True)

    def end(self, key: int) -> None:
        """Take the bar of a job away; a job that never began has none."""
        if key not in self._tasks:
            return
        self._bars.remove_task(self._tasks.pop(key))
        del self._labels[key]
        del self._epochs[key]

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, soft_wrap=True)


@contextmanager
def job_progress(*, prints_epochs: bool) -> Iterator[JobProgress]:
    """Show the progress of jobs while the block lasts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total}"),
        TextColumn("{task.fields[status]}", style="cyan"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=console(), transient=True, disable=not sys.stdout.isatty())
    with bars:
        yield JobProgress(bars, prints_epochs=prints_epochs)
