"""What a person sees in the terminal: messages, warnings, numbers, and the tables at the end of a command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from digit_study.support.messages import short_names

if TYPE_CHECKING:  # half a second that --help can do without
    import pandas as pd

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


def console() -> Console:
    """Standard output; plain and never wrapped where it is piped."""
    is_terminal = sys.stdout.isatty()
    return Console(
        width=None if is_terminal else 160, highlight=False, markup=False, soft_wrap=not is_terminal
    )


def print_error(message: str, style: str = "red") -> None:
    """Print a message to standard error, in one piece."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message, style=style)


def warn(message: str) -> None:
    """Print a prominent warning to standard error."""
    print_error(f"WARNING: {message}", "bold yellow")


def percent(fraction: float) -> str:
    """``0.9912`` as ``99.12 %``."""
    return f"{100 * fraction:.2f} %"


def with_interval(value: float, low: float, high: float) -> str:
    """``99.12 % [98.82, 99.34]``: an accuracy and its 95 % interval, all in [0, 1]."""
    return f"{percent(value)} [{100 * low:.2f}, {100 * high:.2f}]"


def accuracy_with_interval(metrics: Mapping[Any, Any]) -> str:
    """The validation accuracy among ``metrics`` with its 95 % interval."""
    return with_interval(*(metrics[f"val_accuracy{end}"] for end in ("", "_low", "_high")))


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
