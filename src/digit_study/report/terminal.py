"""What a command prints at its end: tables and a few lines, by rich."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import JustifyMethod
from rich.table import Table

from digit_study.report.ranking import Medium, RankedTable
from digit_study.report.tables import TableView
from digit_study.support.console import console
from digit_study.support.formatting import accuracy_with_interval


def print_lines(*lines: str) -> None:
    """Print lines that a terminal may wrap and a pipe gets whole; empty ones are left out."""
    console().print("\n".join(filter(None, lines)), soft_wrap=True)


def print_ranking(title: str, ranking: RankedTable, most_rows: int | None = None) -> None:
    """Print a ranking.

    Args:
        title: What stands above it.
        ranking: What is ranked.
        most_rows: How many rows are printed; None prints all.
    """
    print_table(ranking.view(Medium.TERMINAL, title=title, most_rows=most_rows))


def print_table(view: TableView) -> None:
    """Print any table."""
    console().print(rich_table(view))


def rich_table(view: TableView) -> Table:
    """Return a table as rich prints it: numbers on the right, and never wrapped."""
    caption = "\n".join(filter(None, [view.note, view.legend]))
    table = Table(
        title=view.title,
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
    )
    for column, heading in enumerate(view.headings):
        is_name = any(row[column].run_id for row in view.rows)
        if is_name:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify=_side(view, column), no_wrap=True)
    for position, row in enumerate(view.rows):
        if position in view.sections:
            table.add_section()
        table.add_row(*[cell.text for cell in row])
    return table


def _side(view: TableView, column: int) -> JustifyMethod:
    cells = [row[column] for row in view.rows]
    if any(cell.number is not None for cell in cells):
        return "right"
    return "left"


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """Print a table of two columns without headings.

    Args:
        title: What stands above it.
        facts: What is known, by its name.
    """
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console().print(table)


def print_run(run_id: str, metrics: Mapping[str, float], view: str) -> None:
    """Print the short table that ends a run.

    Args:
        run_id: Id of the run.
        metrics: Its final metrics.
        view: The command, or the address, that shows the run in a browser.
    """
    images = f"{metrics['validation_images']:,.0f} images"
    facts = {
        "run id": run_id,
        "validation accuracy": f"{accuracy_with_interval(metrics)}, 95 % interval, {images}",
        "validation loss": f"{metrics['val_loss']:.4f}",
        "parameters": f"{metrics['parameters']:,.0f}",
        "training seconds": f"{metrics['training_seconds']:.1f}",
        "see it": view,
    }
    print_facts("Run", facts)


def print_next(*steps: str) -> None:
    """Print what to do next, a command or an address a line."""
    print_lines("next:", *[f"  {step}" for step in steps])
