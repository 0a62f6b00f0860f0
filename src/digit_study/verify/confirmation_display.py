"""What a person sees of a confirmation: bars on a terminal, a line a run elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from digit_study.terminal.console import console


class Shown:
    """Follows the runs of a confirmation.

    Args:
        total: runs in all.
        done: how many an earlier start has finished.
        bars: the live area of a terminal, or None where there is none.
    """

    def __init__(self, total: int, done: int, bars: Progress | None) -> None:
        self.total, self.done, self.bars = total, done, bars
        self.all = bars.add_task("all runs", total=total, completed=done) if bars else None
        self.tasks: dict[int, TaskID] = {}

    def begin(self, number: int, name: str, epochs: int) -> None:
        """Show a run from its start."""
        if self.bars is not None:
            self.tasks[number] = self.bars.add_task(name, total=epochs)

    def follow(self, number: int, kind: str, content: Any) -> None:
        """Show where a run is: (epoch, step, steps) of ``steps``, (epoch, record) of ``epoch``."""
        if self.bars is None:
            return
        at = content[0] if kind == "epoch" else content[0] - 1 + content[1] / content[2]
        self.bars.update(self.tasks[number], completed=at)

    def end(self, number: int, told: str, counts: bool) -> None:
        """Say how a run ended, and whether it is one less to do."""
        self.done += counts
        if self.bars is None or self.all is None:
            print(f"{self.done}/{self.total}  {told}", flush=True)
            return
        self.bars.remove_task(self.tasks.pop(number))
        self.bars.update(self.all, completed=self.done)
        self.bars.console.print(f"{self.done}/{self.total}  {told}", soft_wrap=True)


@contextmanager
def progress(total: int, done: int) -> Iterator[Shown]:
    """Show a confirmation for as long as the block lasts."""
    if not sys.stdout.isatty():
        yield Shown(total, done, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as bars:
        yield Shown(total, done, bars)
