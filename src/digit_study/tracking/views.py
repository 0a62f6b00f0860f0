"""Descriptions of parent runs in Markdown, and, until the merge, the former names of what `pages` holds."""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from mlflow import MlflowClient

from digit_study.support.console import ranked_rows
from digit_study.tracking import models, pages
from digit_study.tracking.pages import ANSWER as ANSWER
from digit_study.tracking.pages import INITIAL as INITIAL
from digit_study.tracking.pages import escape as escape
from digit_study.tracking.pages import model_page as model_page
from digit_study.tracking.pages import run_page as run_page
from digit_study.tracking.store import as_store

MOST_ROWS, MOST_COMPARED = 10, 10


@dataclass(frozen=True)
class RunDescription:
    """The description of a parent run: the answer first, for MLflow shows three lines until it is asked for more."""

    answer: str  # one sentence, with its numbers and their interval
    asked: str  # one sentence
    ranking: pd.DataFrame = field(
        default_factory=pd.DataFrame
    )  # rows with name, run_id and what ``columns`` names
    columns: Mapping[str, str] = field(
        default_factory=dict
    )  # see :data:`digit_study.support.console.RUNS`
    trouble: Sequence[str] = ()  # what failed or was refused, one sentence each
    figures: Sequence[str] = ()  # paths of artifacts
    command: str = ""  # what to do next

    def markdown(self, experiment: str, run_id: str) -> str:
        """The whole description of the run ``run_id``."""
        links = [
            f"[{path.split('/')[-1]}]({run_page(experiment, run_id)}/artifacts/{path})"
            for path in self.figures
        ]
        best = list(self.ranking["run_id"][:MOST_COMPARED]) if len(self.ranking) > 1 else []
        named = {"runs": json.dumps(best), "experiments": json.dumps([experiment])}
        compared = urllib.parse.urlencode(named, quote_via=urllib.parse.quote)
        parts = [
            f"**{escape(self.answer)}**",
            escape(self.asked),
            self._table(experiment),
            f"[Compare these {len(best)} runs side by side](#/compare-runs?{compared})"
            if best
            else "",
            "\n".join(f"- {escape(one)}" for one in self.trouble),
            f"Figures: {' · '.join(links)}" if links else "",
            f"Next: `{self.command}`" if self.command else "",
        ]
        return "\n\n".join(part for part in parts if part)

    def _table(self, experiment: str) -> str:
        if self.ranking.empty:
            return ""
        shown = self.ranking.head(MOST_ROWS)
        rows, shared = ranked_rows(shown, self.columns)
        kept = [at for at, cell in enumerate(self.columns.values()) if cell != "{run_id}"]
        names = list(self.columns.values()).index("{name}")
        lines = [
            list(self.columns),
            [":--" if at == names else "--:" for at in range(len(self.columns))],
        ]
        for cells, run_id in zip(rows, shown["run_id"], strict=True):
            texts = [escape(cell) for cell in cells]
            texts[names] = f"[{texts[names]}]({run_page(experiment, run_id)})"
            lines.append(texts)
        table = "\n".join(f"| {' | '.join(line[at] for at in kept)} |" for line in lines)
        more = len(self.ranking) - len(shown)
        notes = [
            f"all: {escape(shared)}" if shared else "",
            f"and {more} more, see the tables" if more > 0 else "",
        ]
        return "\n\n".join([table, *filter(None, notes)])


# ------------------------------------------------------------------- deprecated: until the merge


def address(client: MlflowClient, uri: str, run_id: str, children: bool) -> str:
    """Return what shows a run; see `pages.address`."""
    return pages.address(as_store(uri), run_id, children=children)


def open_at(uri: str, page: str) -> str:
    """Return the address of a page with a new result; see `pages.newest_address`."""
    return pages.newest_address(as_store(uri), page)


def place(uri: str, page: str) -> str:
    """Return the address of a page; see `pages.page_address`."""
    return pages.page_address(as_store(uri), page)


def model_place(uri: str, named: str) -> str:
    """Return the address of a model; see `models.model_address`."""
    return models.model_address(as_store(uri), named)
