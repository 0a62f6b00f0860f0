"""What a person sees in the terminal: messages, warnings, numbers, and the tables at the end of a command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from digit_study.terminal.messages import short_names

if TYPE_CHECKING:  # half a second that --help can do without
    import pandas as pd

TIED = "= cannot be told from the best"


def console() -> Console:
    """Standard output; plain and never wrapped where it is piped."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty())


def print_error(message: str, style: str = "red") -> None:
    """Print a message to standard error, in one piece."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style=style, markup=False)


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
    table.add_row("validation accuracy", f"{accuracy_with_interval(metrics)}, n = {metrics['validation_images']:.0f}")
    table.add_row("validation loss", f"{metrics['val_loss']:.4f}")
    table.add_row("parameters", f"{metrics['parameters']:,.0f}")
    table.add_row("training seconds", f"{metrics['training_seconds']:.1f}")
    table.add_row("look at it", view_command)
    return table


def ranked_table(title: str, ranking: pd.DataFrame, legend: str, columns: Mapping[str, str]) -> Table:
    """Ranked rows, each column by its heading and the format of its cells, which may name the columns of ``ranking``.

    Three more names are known there: ``name`` is what tells a row from the others (what all share stands in the
    caption, above ``legend``), ``accuracy`` the accuracy with its interval, ``mark`` says what is tied and what won.
    """
    names, shared = short_names([str(name) for name in ranking["name"]])
    caption = f"all: {shared}\n{legend}" if shared else legend
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for heading, cell in columns.items():
        is_text = cell in ("{name}", "{run_id}")  # numbers stand on the right and are never wrapped
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for name, row in zip(names, ranking.to_dict("records"), strict=True):
        mark = ("=" if row["tied"] else "") + ("*" if row.get("winner") else "")
        known = {**row, "name": name, "accuracy": accuracy_with_interval(row), "mark": mark}
        table.add_row(*(cell.format_map(known) for cell in columns.values()))
    return table


def confirmation_table(ranking: pd.DataFrame, title: str) -> Table:
    """Candidates by mean over seeds; ``=`` marks what cannot be told from the best, ``*`` the winner."""
    ends = {"mean": "val_accuracy", "low": "val_accuracy_low", "high": "val_accuracy_high"}
    columns = {"rank": "{rank}", "candidate": "{name}", "mean [95 %]": "{accuracy}", "parameters": "{parameters:,.0f}"}
    columns |= {"seeds": "{seeds}", "p seeds": "{p_seeds:.3f}", "p images": "{p_images:.3f}", "": "{mark}"}
    legend = f"{TIED}, over seeds or over images (p > 0.05); * the winner"
    return ranked_table(title, ranking.rename(columns=ends), legend, columns | {"best run": "{run_id}"})


def leaderboard_table(board: pd.DataFrame, title: str) -> Table:
    """Compared runs; ``=`` marks what cannot be told from the best."""
    columns = {"rank": "{rank}", "run": "{name}", "val accuracy [95 %]": "{accuracy}", "val loss": "{val_loss:.4f}"}
    columns |= {"parameters": "{parameters:,.0f}", "seconds": "{training_seconds:.1f}", "p": "{p_value:.3f}"}
    return ranked_table(title, board, f"{TIED} (McNemar, 5 %)", columns | {"": "{mark}", "run id": "{run_id}"})


def study_table(board: pd.DataFrame, title: str) -> Table:
    """Configurations by rank, as a narrow terminal can show them; all of their numbers are on the parent run."""
    columns = {"rank": "{rank}", "val accuracy [95 %]": "{accuracy}", "parameters": "{parameters:,.0f}"}
    columns |= {"seeds": "{seeds}", "": "{mark}", "trial: configuration": "{name}"}
    return ranked_table(title, board, f"{TIED} (5 %)", columns)


def front_table(front: pd.DataFrame, objectives: Mapping[str, str]) -> Table:
    """The Pareto front, one row a trial: number and every objective; the best by the first objective on top."""
    table = Table(title="Pareto front", title_justify="left")
    for heading in ("trial", *(f"{metric} ({direction})" for metric, direction in objectives.items())):
        table.add_column(heading, justify="right")
    first, direction = next(iter(objectives.items()))
    for row in front.sort_values(first, ascending=direction == "minimize").to_dict("records"):
        table.add_row(str(row["number"]), *(f"{row[metric]:.6g}" for metric in objectives))
    return table
