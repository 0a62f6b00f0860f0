"""The templates of this package. Jinja escapes HTML; Markdown is escaped by a filter of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2

from digit_study.report.markdown import escape, run_page
from digit_study.report.tables import Cell


def template(name: str) -> jinja2.Template:
    """Return the template of a file beside this one."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = escape
    environment.filters["linked"] = _linked
    return environment


def _linked(cell: Cell, experiment: str) -> str:
    """Return a cell as Markdown, with a link to its run where it has one."""
    text = escape(cell.text)
    if cell.run_id:
        return f"[{text}]({run_page(experiment, cell.run_id)})"
    return text
