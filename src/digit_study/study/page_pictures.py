"""Optuna's own pictures as what plotly.js draws, in colours that the colour-blind tell apart, and small enough."""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from optuna.trial import TrialState

from digit_study.report.figures import charts
from digit_study.report.figures import optuna_figures as study_pictures
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import StudyPlan

#: Keys in slices and parallel coordinates, and in pictures of pairs; of many trials each pair is a megabyte of grid.
MOST_KEYS, MOST_PAIRED, MANY_TRIALS, PAIRED_OF_MANY = 6, 3, 60, 2
MOST_LEGEND = 12
STATES = {
    "COMPLETE": charts.BLUE,
    "PRUNED": charts.ORANGE,
    "FAIL": charts.RED,
    "RUNNING": charts.GREEN,
}
CAPTIONS = {
    "optimisation_history": (
        "History",
        "Every trial in the order of their starts, and the best so far.",
    ),
    "importances": (
        "Importances",
        "How much of the differences between trials each key explains (PED-ANOVA).",
    ),
    "slices": ("Slices", "Every trial by one key at a time; the colour says when it ran."),
    "parallel_coordinates": (
        "Parallel coordinates",
        "A line a trial, through its value of every key; the colour is the objective.",
    ),
    "edf": ("Distribution", "The share of trials that reach at most a value."),
    "timeline": ("Timeline", "When each trial ran, and how it ended."),
    "contour": ("Contour", "The objective over two keys at a time; dots are trials."),
    "rank": ("Rank", "Trials over two keys at a time, coloured by their rank."),
    "intermediate_values": (
        "Intermediate values",
        "The objective after every epoch; a line that stops was pruned.",
    ),
    "pareto": ("Pareto front", "What no other trial beats in every objective."),
}


@dataclass(frozen=True)
class Picture:
    """One of Optuna's pictures, or the reason why it cannot be drawn."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any] | None  # data and layout, as plotly.js takes them
    problem: str = ""


def pictures(plan: StudyPlan, stored: StoredStudy) -> list[Picture]:
    """All of Optuna's pictures that apply to the study, in the order in which they are read."""
    with study_pictures.quiet_optuna():
        return list(_pictures(plan, stored))


def _pictures(plan: StudyPlan, stored: StoredStudy) -> Iterator[Picture]:
    complete = len(stored.trials(TrialState.COMPLETE))
    paired = MOST_PAIRED if complete <= MANY_TRIALS else PAIRED_OF_MANY
    study, hosts = stored.study, stored.hosts()
    for name, (function, options) in study_pictures.picture_options(
        study, plan.objectives, plan.keys
    ).items():
        title, caption = CAPTIONS[name]
        keys, limit = (
            options.get("params", []),
            paired if name in ("contour", "rank") else MOST_KEYS,
        )
        if len(keys) > limit or name in ("contour", "rank") and len(plan.keys) > limit:
            caption += f" Shown are the {limit} most important keys."
        chosen = {
            key: value[:limit] if key == "params" else value for key, value in options.items()
        }
        drawn = study_pictures.interactive(study, name, function, chosen, hosts)
        if isinstance(drawn, str):
            yield Picture(name, title, caption, None, drawn)
        elif not drawn.data:  # Optuna draws empty axes where no trial has a result
            yield Picture(name, title, caption, None, "no trial has the result that it shows")
        else:
            figure = _plain(drawn, keys)
            if name == "intermediate_values" and plan.run.training.epochs <= 12:
                figure["layout"].setdefault("xaxis", {})["dtick"] = 1  # there is no epoch 1.5
            yield Picture(name, title, caption, figure)


def _plain(figure: Any, keys: Sequence[str]) -> dict[str, Any]:
    """A figure without Plotly's template, which the page brings in light and dark, and without endless legends."""
    found: dict[str, Any] = json.loads(figure.to_json())
    for unwanted in (
        "template",
        "title",
        "width",
        "plot_bgcolor",
    ):  # the page has its own, in light and dark
        found["layout"].pop(unwanted, None)
    for one in found["layout"].get("annotations", []):
        one.get("font", {}).pop("color", None)
    named = [trace for trace in found["data"] if trace.get("showlegend", True)]
    for trace in found["data"]:
        if trace.get("name") in STATES and trace.get("type") == "bar":
            trace.setdefault("marker", {})["color"] = STATES[trace["name"]]
        if len(named) > MOST_LEGEND:
            trace["showlegend"] = False
    _shorten(found, keys)
    return found


def _shorten(figure: dict[str, Any], keys: Sequence[str]) -> None:
    """Call keys by their last parts where those tell them apart: half a dozen stand side by side."""
    short = {key: key.rsplit(".", 1)[-1] for key in keys}
    if len(set(short.values())) < len(keys):
        return
    axes = [axis for name, axis in figure["layout"].items() if name.startswith(("xaxis", "yaxis"))]
    for axis in axes:
        if (text := axis.get("title", {}).get("text")) in short:
            axis["title"]["text"] = short[text]
        if texts := axis.get("ticktext"):
            # Optuna cuts off long keys, and puts dots there
            cut = [text for text in texts if text.endswith("...")]
            whole = {
                text: key
                for text in cut
                for key in reversed(keys)
                if key.startswith(text.removesuffix("..."))
            }
            axis["ticktext"] = [short.get(whole.get(text, text), text) for text in texts]


def packed(text: str) -> str:
    """A text as gzip in base64, which the page unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """plotly.js, which alone is nearly five megabytes, packed."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())
