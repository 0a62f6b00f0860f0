"""Optuna's pictures for the study page: small, and in colours for the colour-blind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from digit_study.report.figures import charts
from digit_study.report.figures.optuna_figures import (
    MOST_KEYS,
    PAIRED,
    PictureRequest,
    interactive,
    picture_requests,
    quiet_optuna,
)
from digit_study.support.errors import first_line
from digit_study.support.trial_status import TrialStatus

#: Keys in pictures of pairs.
MOST_PAIRED = 3
#: From so many trials on, each pair is a megabyte of grid.
MANY_TRIALS = 60
#: Keys in pictures of pairs of so many trials.
MOST_PAIRED_OF_MANY = 2
#: Entries of a legend; a longer one is left out.
MOST_LEGEND = 12
#: With so many epochs each has a tick.
MOST_EPOCH_TICKS = 12
#: Colour of a trial in the timeline, by its status.
STATUS_COLOURS = {
    TrialStatus.RUNNING: charts.GREEN,
    TrialStatus.PAUSED: charts.GREY,
    TrialStatus.COMPLETE: charts.BLUE,
    TrialStatus.PRUNED: charts.ORANGE,
    TrialStatus.FAIL: charts.VERMILION,
}


@dataclass(frozen=True)
class Picture:
    """One of Optuna's pictures, or the reason why it cannot be drawn."""

    name: str
    title: str
    caption: str
    #: Data and layout, as plotly.js takes them; None where it cannot be drawn.
    figure: dict[str, Any] | None = None
    problem: str = ""


#: Title and caption of every picture.
CAPTIONS = [
    Picture("optimisation_history", "History", "Every trial in order, and the best so far."),
    Picture(
        "importances",
        "Importances",
        "How much of the differences between trials each key explains (PED-ANOVA).",
    ),
    Picture("slices", "Slices", "Every trial by one key at a time; the colour says when it ran."),
    Picture(
        "parallel_coordinates",
        "Parallel coordinates",
        "A line a trial, through its value of every key; the colour is the objective.",
    ),
    Picture("edf", "Distribution", "The share of trials that reach at most a value."),
    Picture("timeline", "Timeline", "When each trial ran, and how it ended."),
    Picture("contour", "Contour", "The objective over two keys at a time; dots are trials."),
    Picture("rank", "Rank", "Trials over two keys at a time, coloured by their rank."),
    Picture(
        "intermediate_values",
        "Intermediate values",
        "The objective after every epoch; a line that stops was pruned.",
    ),
    Picture("pareto", "Pareto front", "Trials that no other trial beats in every objective."),
]


def pictures(
    study: Study,
    objectives: Mapping[str, str],
    keys: Sequence[str],
    hosts: Mapping[int, str],
    epochs: int,
) -> list[Picture]:
    """Return all of Optuna's pictures that apply to a study, in the order in which they are read.

    Args:
        study: What is drawn.
        objectives: Direction (``maximize`` or ``minimize``) by metric.
        keys: Config keys that are searched.
        hosts: Host of each trial, by its number.
        epochs: Most epochs of a trial.
    """
    with quiet_optuna():
        return list(_pictures(study, objectives, keys, hosts, epochs))


def _pictures(
    study: Study,
    objectives: Mapping[str, str],
    keys: Sequence[str],
    hosts: Mapping[int, str],
    epochs: int,
) -> Iterator[Picture]:
    captions = {picture.name: picture for picture in CAPTIONS}
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    for request in picture_requests(study, objectives, keys):
        limit = _most_keys(request.name, complete)
        shown = request.with_most(limit)
        captioned = captions[request.name]
        if len(request.keys) > limit:
            caption = f"{captioned.caption} Shown are the {limit} most important keys."
            captioned = replace(captioned, caption=caption)
        if request.importances is not None and not request.importances.problem:
            caption = f"{captioned.caption} {request.importances.basis}"
            captioned = replace(captioned, caption=caption)
        picture = _drawn(captioned, study, shown, hosts)
        if picture.figure is not None:
            _shorten(picture.figure, shown.keys)
            if request.name == "intermediate_values" and epochs <= MOST_EPOCH_TICKS:
                picture.figure["layout"].setdefault("xaxis", {})["dtick"] = 1
        yield picture


def _most_keys(name: str, trials: int) -> int:
    """Return how many keys a picture of so many trials shows."""
    if name not in PAIRED:
        return MOST_KEYS
    if trials <= MANY_TRIALS:
        return MOST_PAIRED
    return MOST_PAIRED_OF_MANY


def _drawn(
    captioned: Picture, study: Study, request: PictureRequest, hosts: Mapping[int, str]
) -> Picture:
    """Return a picture with its figure, or with its problem."""
    try:
        figure = interactive(study, request, hosts)
    except (ValueError, RuntimeError) as error:  # too few trials for this picture
        return replace(captioned, problem=first_line(error))
    if not figure.data:  # Optuna draws empty axes where no trial has a result
        return replace(captioned, problem="no trial has the result that it shows")
    return replace(captioned, figure=_plain(figure))


def _plain(figure: Any) -> dict[str, Any]:
    """Return a figure without Plotly's template and without an endless legend.

    The page has colours of its own, in light and dark.
    """
    found: dict[str, Any] = json.loads(figure.to_json())
    layout = found["layout"]
    traces = found["data"]
    for unwanted in ("template", "title", "width", "plot_bgcolor"):
        layout.pop(unwanted, None)
    for annotation in layout.get("annotations", []):
        font = annotation.get("font", {})
        font.pop("color", None)
    in_legend = [trace for trace in traces if trace.get("showlegend", True)]
    is_legend_too_long = len(in_legend) > MOST_LEGEND
    statuses = set(TrialStatus)
    for trace in traces:
        name = trace.get("name")
        is_bar = trace.get("type") == "bar"
        if is_bar and name in statuses:
            marker = trace.setdefault("marker", {})
            marker["color"] = STATUS_COLOURS[TrialStatus(name)]
        if is_legend_too_long:
            trace["showlegend"] = False
    return found


def _shorten(figure: dict[str, Any], keys: Sequence[str]) -> None:
    """Call keys by their last parts where those differ: half a dozen stand side by side."""
    short = {key: key.rsplit(".", 1)[-1] for key in keys}
    if len(set(short.values())) < len(keys):
        return
    for name, axis in figure["layout"].items():
        if not name.startswith(("xaxis", "yaxis")):
            continue
        title = axis.get("title", {})
        text = title.get("text")
        if text in short:
            title["text"] = short[text]
        ticks = axis.get("ticktext")
        if ticks:
            axis["ticktext"] = [short.get(_whole(tick, keys), tick) for tick in ticks]


def _whole(text: str, keys: Sequence[str]) -> str:
    """Return the key that Optuna cut off, which it ends with dots."""
    if not text.endswith("..."):
        return text
    start = text.removesuffix("...")
    for key in keys:
        if key.startswith(start):
            return key
    return text
