"""The description of a parent run in MLflow, as Markdown."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from digit_study.report.markdown import run_page
from digit_study.report.ranking import Medium, RankedTable
from digit_study.report.templates import template

#: Rows of a ranking in a description.
MOST_RANKED = 10
#: Runs that a link compares side by side.
MOST_COMPARED = 10


@dataclass(frozen=True)
class RunDescription:
    """What a parent run found: the answer first, since MLflow shows three lines until asked."""

    #: One sentence, with its numbers and their interval.
    answer: str
    #: One sentence.
    question: str
    ranking: RankedTable | None = None
    #: What failed or was refused, one sentence each.
    problems: Sequence[str] = ()
    #: Paths of artifacts.
    files: Sequence[str] = ()
    #: What to type next.
    command: str = ""
    #: What the person who started it noted, in Markdown.
    note: str = ""

    def markdown(self, experiment: str, run_id: str) -> str:
        """Return the whole description.

        Args:
            experiment: Id of the experiment that the run is in.
            run_id: Id of the run.
        """
        text = template("description.md").render(
            description=self,
            table=self._table(),
            experiment=experiment,
            run=run_page(experiment, run_id),
            comparison=self._comparison(experiment),
        )
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def _table(self) -> object:
        if self.ranking is None or not self.ranking.rows:
            return None
        return self.ranking.view(Medium.DESCRIPTION, most_rows=MOST_RANKED)

    def _comparison(self, experiment: str) -> str:
        """Return the link to the first runs side by side, empty for a single run."""
        if self.ranking is None or len(self.ranking.rows) < 2:
            return ""
        best = [row.run_id for row in self.ranking.rows[:MOST_COMPARED]]
        named = {"runs": json.dumps(best), "experiments": json.dumps([experiment])}
        query = urllib.parse.urlencode(named, quote_via=urllib.parse.quote)
        return f"[Compare these {len(best)} runs side by side](#/compare-runs?{query})"
