"""Progress while trials run: live on a terminal, a line now and then elsewhere."""

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

from digit_study.support.console import console
from digit_study.support.formatting import percent

#: Colours of the states of trials, as Optuna names them.
STATE_COLOURS = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


class EpochProgress:
    """Follows a training: a bar on a terminal, a line an epoch where the bar is disabled."""

    def __init__(self, label: str, epochs: int, bar: Progress) -> None:
        self._label = label
        self._epochs = epochs
        self._bar = bar
        self._status = "starting"
        self._task = bar.add_task(label, total=epochs, status=self._status)

    def steps(self, epoch: int, step: int, steps: int) -> None:
        """Show how far an epoch is.

        Args:
            epoch: Number of the epoch, from 1.
            step: Steps of it that are done.
            steps: Steps that it has.
        """
        self._bar.update(self._task, completed=epoch - 1 + step / steps, status=self._status)

    def epoch(self, number: int, record: Mapping[str, float]) -> None:
        """Show a finished epoch.

        Args:
            number: Number of the epoch, from 1.
            record: Its values, by the names that :func:`digit_study.model.fit.fit` gives them.
        """
        accuracy = percent(record["val_accuracy"])
        self._status = f"val_accuracy {accuracy}  val_loss {record['val_loss']:.4f}"
        self._bar.update(self._task, completed=number, status=self._status)
        if not self._bar.disable:
            return
        words = [
            self._label,
            f"epoch {number}/{self._epochs}",
            f"train_loss {record['train_loss']:.4f}",
            self._status,
            f"{record['epoch_seconds']:.1f} s",
        ]
        print("  ".join(words), flush=True)


@contextmanager
def epoch_progress(label: str, epochs: int, live: bool = True) -> Iterator[EpochProgress]:
    """Show the progress of a training for as long as the block lasts.

    Args:
        label: What is trained.
        epochs: How many epochs it has at most.
        live: Draw a bar, if standard output is a terminal.
    """
    bar = Progress(
        "[progress.description]{task.description}",
        BarColumn(),
        "epoch {task.completed:.1f}/{task.total}",
        TextColumn("{task.fields[status]}", style="cyan"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
        disable=not (live and sys.stdout.isatty()),
    )
    with bar:
        yield EpochProgress(label, epochs, bar)


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

    def ended(self, number: int, state: str, text: str) -> None:
        """Show how a trial ended.

        Args:
            number: Number of the trial.
            state: Its state, as Optuna names it.
            text: Its result, or why it has none.
        """
        self._best_so_far = self._best()  # another machine may have found a better trial
        line = Text.assemble(
            f"trial {number:<4} ",
            (f"{state:<9}", STATE_COLOURS.get(state, "")),
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
        self, objective: str, rows: Iterable[Sequence[str]], left: int, seconds: float | None
    ) -> None:
        """Redraw the table of running trials.

        Args:
            objective: Name of the objective, which heads its column.
            rows: Trial, host, epoch, value of the objective and configuration of each trial.
            left: How many more trials are to run.
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
            f"time left: about {time_left}",
        ]
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


class RunProgress:
    """Follows several runs: bars on a terminal, and a line for every run that ends."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._all_runs = bars.add_task("all runs", total=None)
        self._tasks: dict[int, TaskID] = {}

    def count(self, done: int, total: int) -> None:
        """Show how many runs have ended, of how many that are wanted by now."""
        self._bars.update(self._all_runs, completed=done, total=total)

    def begin(self, number: int, name: str, epochs: int) -> None:
        """Show a run from its start.

        Args:
            number: Key of the run in later calls.
            name: What is trained.
            epochs: How many epochs it has at most.
        """
        self._tasks[number] = self._bars.add_task(name, total=epochs)

    def follow(self, number: int, kind: str, content: Any) -> None:
        """Show how far a run is.

        Args:
            number: Key of the run.
            kind: ``epoch`` for a finished epoch, else steps were done.
            content: (epoch, record) of an epoch, (epoch, step, steps) of steps.
        """
        if kind == "epoch":
            completed = content[0]
        else:
            epoch, step, steps = content
            completed = epoch - 1 + step / steps
        self._bars.update(self._tasks[number], completed=completed)

    def end(self, number: int) -> None:
        """Remove the bar of a run."""
        self._bars.remove_task(self._tasks.pop(number))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, soft_wrap=True)


@contextmanager
def confirmation_progress() -> Iterator[RunProgress]:
    """Show the progress of several runs for as long as the block lasts."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total}"),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
    with bars:
        yield RunProgress(bars)
