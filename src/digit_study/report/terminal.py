"""What a command prints at its end: tables and a few lines, by rich."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.cells import cell_len
from rich.console import JustifyMethod
from rich.table import Table

from digit_study.report.ranking import Medium, RankedTable
from digit_study.report.tables import TableView
from digit_study.support.console import console
from digit_study.support.formatting import accuracy_with_interval

#: Characters that a name has at least before it is wrapped.
NAME_WIDTH = 30
#: Characters between two columns.
BORDER_WIDTH = 3


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
    """Print any table, without the optional columns that the terminal is too narrow for."""
    target = console()
    target.print(rich_table(fitted(view, target.width)))


def fitted(view: TableView, width: int) -> TableView:
    """Return a table without the optional columns that are too many.

    Args:
        view: The table.
        width: Characters that a line has.

    Returns:
        The table; its legend names what is left out.
    """
    left_out: list[str] = []
    for heading in view.optional:
        if _least_width(view) <= width:
            break
        view = view.without(heading)
        left_out.append(heading)
    if not left_out:
        return view
    hint = f"a wider terminal also shows: {', '.join(left_out)}"
    legend = "\n".join(filter(None, [view.legend, hint]))
    return replace(view, legend=legend)


def _least_width(view: TableView) -> int:
    """Return how many characters a table needs, names wrapped."""
    widths = []
    for column, heading in enumerate(view.headings):
        texts = [heading]
        texts += [row[column].text for row in view.rows]
        longest = max(cell_len(text) for text in texts)
        if _is_wrapped(view, column):
            longest = min(longest, NAME_WIDTH)
        widths.append(longest)
    borders = BORDER_WIDTH * len(widths) + 1
    return sum(widths) + borders


def _is_wrapped(view: TableView, column: int) -> bool:
    """Return whether a column holds names of runs, which may be long."""
    cells = [row[column] for row in view.rows]
    return any(cell.run_id not in ("", cell.text) for cell in cells)


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
        if _is_wrapped(view, column):
            table.add_column(heading, overflow="fold")
        else:
            side = _side(view, column)
            table.add_column(heading, justify=side, no_wrap=True)
    for position, row in enumerate(view.rows):
        if position in view.sections:
            table.add_section()
        texts = [cell.text for cell in row]
        table.add_row(*texts)
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
    accuracy = accuracy_with_interval(metrics)
    images = f"{metrics['validation_images']:,.0f} images"
    facts = {
        "run id": run_id,
        "validation accuracy": f"{accuracy}, 95 % interval, {images}",
        "validation loss": f"{metrics['val_loss']:.4f}",
        "parameters": f"{metrics['parameters']:,.0f}",
        "training seconds": f"{metrics['training_seconds']:.1f}",
    }
    print_facts("Run", facts)
    # in the table, a narrow terminal would cut the address
    print_lines(f"see it: {view}")


def print_next(*steps: str) -> None:
    """Print what to do next, a command or an address a line."""
    indented = [f"  {step}" for step in steps]
    print_lines("next:", *indented)
