"""Output to a terminal: the console, messages, warnings, and streams that outlast it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from digit_study.support.formatting import accuracy_with_interval as accuracy_with_interval
from digit_study.support.formatting import percent as percent
from digit_study.support.formatting import with_interval as with_interval
from digit_study.support.suggestions import short_names

if TYPE_CHECKING:  # half a second that --help can do without
    import pandas as pd

#: Width of output that is piped: a table of so many characters is not wrapped.
PIPED_WIDTH = 160
#: Descriptors of standard input, output and error.
STANDARD_DESCRIPTORS = (0, 1, 2)


class _LastingFile(io.FileIO):
    """A file descriptor that drops what nobody can read any more, instead of raising."""

    def write(self, data: Any, /) -> int:
        """Write bytes; once that fails, this and all that follows goes nowhere.

        Args:
            data: The bytes.

        Returns:
            How many bytes were written, or dropped.
        """
        try:
            return super().write(data)
        except OSError:  # a closed pipe, a terminal that is gone, a full disk
            redirect_to_nowhere(self.fileno())
            return memoryview(data).nbytes


class _LastingBuffer(io.BufferedWriter):
    """The buffer of a stream that is protected, by which it is recognised."""


def console() -> Console:
    """Return the console of standard output; plain and never wrapped where it is piped."""
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else PIPED_WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=not is_terminal)


def print_error(message: str, style: str = "red") -> None:
    """Print a message to standard error, in one piece.

    Args:
        message: The message; rich's markup has no meaning in it.
        style: Colour on a terminal, as rich names it.
    """
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message, style=style)


def warn(message: str) -> None:
    """Print a prominent warning to standard error."""
    print_error(f"WARNING: {message}", "bold yellow")


def protect_standard_streams() -> None:
    """Let no output stop the work: drop what cannot be written, replace what cannot be shown.

    A pipe whose reader has ended, a terminal that was closed, a stream that was closed by ``>&-``
    or lies on a full disk ends the output and nothing else. Characters that the encoding of a
    stream does not have are shown as ``?``.

    Call it before other files are opened: a descriptor that is closed would be given to the next
    file, a database perhaps, and native code would write its messages there.
    """
    for descriptor in STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            redirect_to_nowhere(descriptor)
    sys.stdout = _protected(sys.stdout, STANDARD_DESCRIPTORS[1])
    sys.stderr = _protected(sys.stderr, STANDARD_DESCRIPTORS[2])


def redirect_to_nowhere(descriptor: int) -> None:
    """Let a file descriptor, open or not, write to ``/dev/null``."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:  # it was the lowest that was free
        os.set_inheritable(nowhere, True)
        return
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _protected(stream: Any, descriptor: int) -> Any:
    """Return a stream that writes to the same descriptor as a standard stream and never fails.

    A stream that is not the process's own (a test's) is returned as it is.
    """
    if stream is None:  # Python found the descriptor closed when it started
        return _lasting_stream(descriptor, "utf-8", is_line_buffered=True, writes_through=False)
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, _LastingBuffer):
        return stream
    if stream.fileno() != descriptor:
        return stream
    with suppress(OSError):
        stream.flush()
    return _lasting_stream(
        descriptor,
        stream.encoding,
        is_line_buffered=stream.line_buffering,
        writes_through=stream.write_through,
    )


def _lasting_stream(
    descriptor: int, encoding: str, *, is_line_buffered: bool, writes_through: bool
) -> io.TextIOWrapper:
    buffer = _LastingBuffer(_LastingFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding=encoding,
        errors="replace",
        line_buffering=is_line_buffered,
        write_through=writes_through,
    )


TIED = "= cannot be told from the best, with 95 % confidence for all together"
#: Columns of ranked tables by heading, each with the format of its cells: of runs, of a study's configurations, of what
#: is confirmed. A narrow terminal has room for these; all numbers are on the parent run.
RUNS = {
    "rank": "{rank}", "run": "{name}", "val accuracy [95 %]": "{accuracy}", "val loss": "{val_loss:.4f}",
    "parameters": "{parameters:,.0f}", "seconds": "{training_seconds:.1f}", "p": "{p_adjusted:.3f}", "": "{mark}",
    "run id": "{run_id}",
}  # fmt: skip
CONFIGURATIONS = {
    "rank": "{rank}", "val accuracy [95 %]": "{accuracy}", "parameters": "{parameters:,.0f}", "seeds": "{seeds}",
    "": "{mark}", "trial: configuration": "{name}",
}  # fmt: skip
CANDIDATES = {
    "rank": "{rank}", "candidate": "{name}", "mean [95 %]": "{accuracy}", "parameters": "{parameters:,.0f}",
    "seeds": "{seeds}", "± seeds, images, both": "{noise}", "p seeds": "{p_seeds:.3f}", "p images": "{p_images:.3f}",
    "": "{mark}",
}  # fmt: skip


def run_table(run_id: str, metrics: Mapping[str, float], view_command: str) -> Table:
    """The short table that ends a run; ``view_command`` shows the run in a browser."""
    table = Table(title="Run", show_header=False, title_justify="left")
    table.add_row("run id", run_id)
    table.add_row(
        "validation accuracy",
        f"{accuracy_with_interval(metrics)}, n = {metrics['validation_images']:.0f}",
    )
    table.add_row("validation loss", f"{metrics['val_loss']:.4f}")
    table.add_row("parameters", f"{metrics['parameters']:,.0f}")
    table.add_row("training seconds", f"{metrics['training_seconds']:.1f}")
    table.add_row("look at it", view_command)
    return table


def ranked_rows(ranking: pd.DataFrame, columns: Mapping[str, str]) -> tuple[list[list[str]], str]:
    """Cells of ranked rows by the formats of ``columns``, which may name the columns of ``ranking``.

    Four more names are known there: ``name`` is what tells a row from the others (what all share is returned too),
    ``accuracy`` the accuracy with its interval, ``mark`` says what is tied and what won, ``noise`` is the standard
    deviations of an accuracy by seeds, by images and by both, in percentage points, where the row has them.
    """
    names, shared = short_names([str(name) for name in ranking["name"]])
    rows = []
    for name, row in zip(names, ranking.to_dict("records"), strict=True):
        mark = ("=" if row["tied"] else "") + ("*" if row.get("winner") else "")
        noise = " ".join(
            f"{100 * row[f'sd_{by}']:.2f}"
            for by in ("seeds", "images", "both")
            if f"sd_{by}" in row
        )
        known = {
            **row,
            "name": name,
            "accuracy": accuracy_with_interval(row),
            "mark": mark,
            "noise": noise,
        }
        rows.append([cell.format_map(known) for cell in columns.values()])
    return rows, shared


def ranked_table(
    title: str, ranking: pd.DataFrame, columns: Mapping[str, str], note: str = ""
) -> Table:
    """Ranked rows, see :func:`ranked_rows`; what all names share stands above the legend, which ends with ``note``."""
    rows, shared = ranked_rows(ranking, columns)
    caption = (f"all: {shared}\n" if shared else "") + TIED + note
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for heading, cell in columns.items():
        is_text = cell in ("{name}", "{run_id}")  # numbers stand on the right and are never wrapped
        table.add_column(
            heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in rows:
        table.add_row(*row)
    return table


def front_table(front: pd.DataFrame, objectives: Mapping[str, str]) -> Table:
    """The Pareto front, one row a trial: number and every objective; the best by the first objective on top."""
    table = Table(title="Pareto front", title_justify="left")
    for heading in (
        "trial",
        *(f"{metric} ({direction})" for metric, direction in objectives.items()),
    ):
        table.add_column(heading, justify="right")
    first, direction = next(iter(objectives.items()))
    for row in front.sort_values(first, ascending=direction == "minimize").to_dict("records"):
        table.add_row(str(row["number"]), *(f"{row[metric]:.6g}" for metric in objectives))
    return table
