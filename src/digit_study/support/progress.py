"""Progress while something goes on: live on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from digit_study.support.console import console, percent


class EpochProgress:
    """Follows one training: a bar on a terminal, a line an epoch where the bar is disabled."""

    def __init__(self, label: str, epochs: int, bar: Progress) -> None:
        self.label, self.epochs, self.bar, self.status = label, epochs, bar, "starting"
        self.task = bar.add_task(label, total=epochs, status=self.status)

    def steps(self, epoch: int, step: int, steps: int) -> None:
        """Show ``step`` of ``steps`` in ``epoch``."""
        self.bar.update(self.task, completed=epoch - 1 + step / steps, status=self.status)

    def epoch(self, number: int, record: Mapping[str, float]) -> None:
        """Show a finished epoch."""
        self.status = (
            f"val_accuracy {percent(record['val_accuracy'])}  val_loss {record['val_loss']:.4f}"
        )
        self.bar.update(self.task, completed=number, status=self.status)
        if self.bar.disable:
            line = f"{self.label}  epoch {number}/{self.epochs}  train_loss {record['train_loss']:.4f}  {self.status}"
            print(f"{line}  {record['epoch_seconds']:.1f} s", flush=True)


@contextmanager
def epoch_progress(label: str, epochs: int, live: bool = True) -> Iterator[EpochProgress]:
    """Show progress of one training for as long as the block lasts."""
    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        "epoch {task.completed:.1f}/{task.total}",
    )
    ends = (
        TextColumn("{task.fields[status]}", style="cyan"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, *ends, console=console(), disable=not (live and sys.stdout.isatty())
    ) as bar:
        yield EpochProgress(label, epochs, bar)


class SweepProgress:
    """Follows a sweep; ``best`` is asked for the best trial so far when one has ended, ``live`` is of a terminal."""

    def __init__(self, best: Callable[[], str], live: Live | None) -> None:
        self.best, self.live, self.best_so_far = best, live, "none yet"
        self.waited_for: list[int] = []
        self.terminal = live.console if live else console()

    def ended(self, number: int, state: str, text: str) -> None:
        """Show how a trial ended."""
        self.best_so_far = self.best()  # another machine may have found a better one
        colour = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}.get(state, "")
        words = (
            f"trial {number:<4} ",
            (f"{state:<9}", colour),
            f"{text}   best so far: {self.best_so_far}",
        )
        self.terminal.print(Text.assemble(*words))

    def waiting(self, numbers: list[int]) -> None:
        """Show once which trials of other processes are waited for."""
        if numbers and numbers != self.waited_for:
            self.terminal.print(
                f"waiting for what other processes run: trial {', '.join(map(str, numbers))}"
            )
        self.waited_for = numbers

    def update(
        self, objective: str, rows: Iterable[Sequence[str]], left: int, seconds: float | None
    ) -> None:
        """Redraw running trials as (trial, host, epoch, ``objective``, configuration).

        ``left`` more are to run, in about ``seconds``.
        """
        if self.live is None:
            return
        table = Table(
            "trial",
            "host",
            "epoch",
            objective,
            "configuration",
            title="running",
            title_justify="left",
        )
        for row in rows:
            table.add_row(*row)
        eta = "?" if seconds is None else str(timedelta(seconds=round(seconds)))
        foot = f"best so far: {self.best_so_far}   trials left: {left}   time left: about {eta}"
        self.live.update(Group(table, Text(foot)))


@contextmanager
def sweep_progress(best: Callable[[], str]) -> Iterator[SweepProgress]:
    """Show a sweep for as long as the block lasts."""
    live = (
        Live(console=console(), refresh_per_second=4, transient=True)
        if sys.stdout.isatty()
        else None
    )
    with live or nullcontext():
        yield SweepProgress(best, live)


class RunProgress:
    """Follows the runs of a confirmation: bars, and a line a run."""

    def __init__(self, bars: Progress) -> None:
        self.bars, self.all = bars, bars.add_task("all runs", total=None)
        self.tasks: dict[int, TaskID] = {}

    def count(self, done: int, total: int) -> None:
        """Show how many runs have ended, of how many that are wanted by now."""
        self.bars.update(self.all, completed=done, total=total)

    def begin(self, number: int, name: str, epochs: int) -> None:
        """Show a run from its start."""
        self.tasks[number] = self.bars.add_task(name, total=epochs)

    def follow(self, number: int, kind: str, content: Any) -> None:
        """Show where a run is: (epoch, step, steps) of ``steps``, (epoch, record) of ``epoch``."""
        at = content[0] if kind == "epoch" else content[0] - 1 + content[1] / content[2]
        self.bars.update(self.tasks[number], completed=at)

    def end(self, number: int) -> None:
        """Take the bar of a run away."""
        self.bars.remove_task(self.tasks.pop(number))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(text, soft_wrap=True)


@contextmanager
def confirmation_progress() -> Iterator[RunProgress]:
    """Show the progress of a confirmation inside the block."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total}"),
    )
    options: dict[str, Any] = {
        "console": console(),
        "transient": True,
        "disable": not sys.stdout.isatty(),
    }
    with Progress(*columns, TimeRemainingColumn(), **options) as bars:
        yield RunProgress(bars)
