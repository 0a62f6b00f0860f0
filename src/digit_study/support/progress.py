"""Progress while trials run: live on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from digit_study.support.console import console
from digit_study.support.formatting import percent
from digit_study.support.trial_status import TrialStatus

#: Colours in which the status of a trial is printed.
STATUS_COLOURS = {
    TrialStatus.RUNNING: "",
    TrialStatus.PAUSED: "",
    TrialStatus.COMPLETE: "green",
    TrialStatus.PRUNED: "yellow",
    TrialStatus.FAIL: "red",
}
#: Characters of a bar.
BAR_WIDTH = 20


class SweepProgress:
    """Follows a search: a line for every trial that ends, and on a terminal a table of the others.

    Attributes:
        live: The table that is redrawn; None where standard output is no terminal.
    """

    def __init__(self, best: Callable[[], str], live: Live | None) -> None:
        self.live = live
        self._best = best
        self._best_so_far = "none yet"
        self._awaited: list[int] = []
        if live is None:
            self._terminal = console()
        else:
            self._terminal = live.console

    def ended(self, number: int, status: TrialStatus, text: str) -> None:
        """Show how a trial ended.

        Args:
            number: Number of the trial.
            status: How it stands now.
            text: Its result, or why it has none.
        """
        self._best_so_far = self._best()  # another machine may have found a better trial
        line = Text.assemble(
            f"trial {number:<4} ",
            (f"{status:<9}", STATUS_COLOURS[status]),
            f"{text}   best so far: {self._best_so_far}",
        )
        self._terminal.print(line)

    def waiting(self, numbers: list[int]) -> None:
        """Show once which trials of other processes the search waits for."""
        if numbers and numbers != self._awaited:
            trials = ", ".join(str(number) for number in numbers)
            self._terminal.print(f"waiting for what other processes run: trial {trials}")
        self._awaited = numbers

    def update(
        self,
        objective: str,
        rows: Iterable[Sequence[str]],
        left: int,
        paused: int,
        seconds: float | None,
    ) -> None:
        """Redraw the table of running trials.

        Args:
            objective: Name of the objective, which heads its column.
            rows: Trial, host, epoch, value of the objective and configuration of each trial.
            left: How many more trials are to run.
            paused: How many trials wait whether they go on.
            seconds: About how long they will take, if that is known.
        """
        if self.live is None:
            return
        table = Table(title="running", title_justify="left")
        for heading in ("trial", "host", "epoch", objective, "configuration"):
            table.add_column(heading)
        for row in rows:
            table.add_row(*row)
        time_left = "?"
        if seconds is not None:
            time_left = str(timedelta(seconds=round(seconds)))
        words = [
            f"best so far: {self._best_so_far}",
            f"trials left: {left}",
        ]
        if paused > 0:
            words.append(f"paused: {paused}")
        words.append(f"time left: about {time_left}")
        self.live.update(Group(table, Text("   ".join(words))))


@contextmanager
def sweep_progress(best: Callable[[], str]) -> Iterator[SweepProgress]:
    """Show the progress of a search for as long as the block lasts.

    Args:
        best: Describes the best trial so far; called whenever a trial has ended.
    """
    live = None
    if sys.stdout.isatty():
        live = Live(console=console(), refresh_per_second=4, transient=True)
    with live or nullcontext():
        yield SweepProgress(best, live)


class _LabelColumn(TextColumn):
    """Shows the names of jobs, each in one line.

    On a narrow terminal the bars get shorter and the names are cut; all other columns stay whole.
    """

    def __init__(self) -> None:
        super().__init__(
            "{task.description}", markup=False, table_column=Column(overflow="ellipsis")
        )

    def render(self, task: Task) -> Text:
        """Return the name of a job."""
        # rich narrows the columns that may wrap first; this one may, and does not
        label = super().render(task)
        label.no_wrap = True
        return label


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


def job_bars(terminal: Console, *, is_shown: bool) -> Progress:
    """Return the bars of jobs.

    Args:
        terminal: Where they are drawn.
        is_shown: Whether they are drawn at all.
    """
    columns = (
        _LabelColumn(),
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.completed:.1f}/{task.total}"),
        TextColumn("{task.fields[status]}", style="cyan"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=terminal, transient=True, disable=not is_shown)


@contextmanager
def job_progress(*, prints_epochs: bool) -> Iterator[JobProgress]:
    """Show the progress of jobs while the block lasts."""
    with job_bars(console(), is_shown=sys.stdout.isatty()) as bars:
        yield JobProgress(bars, prints_epochs=prints_epochs)
