"""Optuna's own pictures of a study, as PNG files and for the study page.

A timeline of several hosts goes host by host.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from optuna.study import Study
from optuna.trial import TrialState

from digit_study.report.figures import charts
from digit_study.report.figures.importances import (
    KeyImportances,
    evaluator,
    key_importances,
)
from digit_study.support.errors import first_line

#: Keys that slices and parallel coordinates show, the most important ones.
MOST_KEYS = 6
#: Characters of a choice, at most.
LONGEST_CHOICE = 14
#: Ticks below a narrow panel.
MOST_TICKS = 5
#: Characters of a line below the importances.
BASIS_WIDTH = 90
#: Pictures that are PNG files too, which MLflow shows among a study's artifacts.
AS_PNG = (
    "optimisation_history",
    "importances",
    "slices",
    "parallel_coordinates",
    "timeline",
    "intermediate_values",
    "pareto",
)
#: Pictures that have a panel for every pair of keys. Only the study page shows them.
PAIRED = ("contour", "rank")


@dataclass(frozen=True)
class PictureRequest:
    """One of Optuna's pictures."""

    #: Stem of its file.
    name: str
    #: Name of the function in ``optuna.visualization`` that draws it.
    function: str
    #: Its keyword arguments.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: What it shows and on what that rests, of the picture of importances.
    importances: KeyImportances | None = None

    @property
    def keys(self) -> list[str]:
        """Return the config keys that it shows, empty where it shows no key or all."""
        if self.importances is not None:
            return []
        return list(self.options.get("params", []))

    def with_most(self, count: int) -> PictureRequest:
        """Return the picture of the first ``count`` keys."""
        if not self.keys:
            return self
        options = {**self.options, "params": self.keys[:count]}
        return PictureRequest(self.name, self.function, options)


def write(
    study: Study,
    objectives: Mapping[str, str],
    keys: Sequence[str],
    hosts: Mapping[int, str],
    folder: Path,
) -> None:
    """Draw Optuna's pictures as PNG files.

    Args:
        study: What is drawn.
        objectives: Direction (``maximize`` or ``minimize``) by metric.
        keys: Config keys that are searched.
        hosts: Host of each trial, by its number.
        folder: Where the files go.
    """
    first_objective = next(iter(objectives))
    with quiet_optuna():
        for request in picture_requests(study, objectives, keys):
            if request.name in AS_PNG:
                path = folder / f"{request.name}.png"
                shown = request.with_most(MOST_KEYS)
                _write_png(shown, study, first_objective, hosts, path)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna draw in silence.

    It calls most of its pictures experimental, and logs what it cannot draw.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def interactive(study: Study, request: PictureRequest, hosts: Mapping[int, str]) -> Any:
    """Return a picture as a Plotly figure.

    Args:
        study: What is drawn.
        request: Which picture.
        hosts: Host of each trial, by its number.

    Raises:
        ValueError: If there are too few trials for it.
        RuntimeError: For the same reason.
    """
    _require_importances(request)
    draw = getattr(optuna.visualization, request.function)
    figure = draw(study, **request.options)
    if request.importances is not None:
        for trace in figure.data:
            trace.y = [request.importances.label(key) for key in trace.y]
    if request.name == "timeline":
        _group_figure(figure, hosts)
    if request.name in PAIRED:
        figure.update_layout(height=900)
    return figure


def picture_requests(
    study: Study, objectives: Mapping[str, str], keys: Sequence[str]
) -> list[PictureRequest]:
    """Return Optuna's pictures that apply to a study, the most important keys first.

    Args:
        study: What is drawn.
        objectives: Direction (``maximize`` or ``minimize``) by metric.
        keys: Config keys that are searched.
    """
    first, direction = next(iter(objectives.items()))
    target: dict[str, Any] = {"target_name": first}
    importance_target: dict[str, Any] = {}
    if len(objectives) > 1:
        target["target"] = lambda trial: trial.values[0]
        # importances of one of several objectives are for low values
        importance_target["target"] = lambda trial: trial.values[0]
        if direction == "maximize":
            importance_target["target"] = lambda trial: -trial.values[0]
    importances = key_importances(study, keys, importance_target.get("target"))
    ordered = [*importances.shares, *importances.left_out]
    of_keys = {**target, "params": ordered}
    requests = [
        PictureRequest("optimisation_history", "plot_optimization_history", target),
        _importances_request(importances, {**target, **importance_target}),
        PictureRequest("slices", "plot_slice", of_keys),
        PictureRequest("parallel_coordinates", "plot_parallel_coordinate", of_keys),
        PictureRequest("edf", "plot_edf", target),
        PictureRequest("timeline", "plot_timeline"),
    ]
    if len(ordered) > 1:
        requests.append(PictureRequest("contour", "plot_contour", of_keys))
        requests.append(PictureRequest("rank", "plot_rank", of_keys))
    if len(objectives) == 1:
        requests.append(PictureRequest("intermediate_values", "plot_intermediate_values"))
    elif len(objectives) <= 3:
        names = {"target_names": list(objectives)}
        requests.append(PictureRequest("pareto", "plot_pareto_front", names))
    return requests


def _importances_request(importances: KeyImportances, target: Mapping[str, Any]) -> PictureRequest:
    """Return the picture of the importances of the keys that enough trials have."""
    options = {**target, "params": list(importances.shares)}
    if importances.finished:
        options["evaluator"] = evaluator(importances.finished)
    return PictureRequest("importances", "plot_param_importances", options, importances)


def _require_importances(request: PictureRequest) -> None:
    """Raise ValueError if a picture of importances has nothing to show."""
    if request.importances is not None and request.importances.problem:
        raise ValueError(request.importances.problem)


def _write_png(
    request: PictureRequest, study: Study, objective: str, hosts: Mapping[int, str], path: Path
) -> None:
    """Draw a picture by Optuna, or say in words why there is none."""
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as optuna_plots

    with plt.rc_context({"backend": "agg"}):  # Optuna sets a style for all figures that follow
        try:
            # of a study without anything to draw Optuna draws empty axes
            if not _has_content(request.name, study):
                raise ValueError("No trial has finished yet.")
            _require_importances(request)
            draw = getattr(optuna_plots, request.function)
            axes = np.ravel(draw(study, **request.options))
        except (ValueError, RuntimeError) as error:  # too few trials for this picture
            plt.close("all")
            title = request.name.replace("_", " ").capitalize()
            message = charts.message_figure(title, first_line(error))
            charts.save(message, path)
            return
        _fit(request.name, axes, objective, hosts)
        if request.importances is not None:
            _show_basis(axes[0], request.importances, objective)
        plt.gcf().savefig(path, dpi=charts.DPI, bbox_inches="tight", pad_inches=0.2)
        plt.close("all")


def _has_content(name: str, study: Study) -> bool:
    """Return whether some trial has what a picture shows."""
    trials = study.get_trials(deepcopy=False)
    if name == "timeline":
        return bool(trials)
    if name == "intermediate_values":
        # Optuna draws no line of a trial that failed
        return any(trial.intermediate_values for trial in trials if trial.state != TrialState.FAIL)
    return any(trial.state == TrialState.COMPLETE for trial in trials)


def _fit(name: str, axes: Any, objective: str, hosts: Mapping[int, str]) -> None:
    """Give a picture by Optuna a size that fits its content, and labels that do not overlap."""
    first = axes[0]
    figure = first.figure
    figure.set_size_inches(_width(name, panels=len(axes)), 5.0)
    match name:
        case "intermediate_values":
            first.set(xlabel="epoch", ylabel=objective)
            charts.integer_ticks(first.xaxis)
            _mute_lines(first.lines)
            _drop_legend(first)
        case "importances":
            _drop_legend(first)
        case "optimisation_history":
            charts.integer_ticks(first.xaxis)
        case "timeline":
            charts.integer_ticks(first.yaxis)
            _group_axes(first, hosts)
        case "slices":
            _space_ticks(axes)
        case "parallel_coordinates":
            for panel in figure.axes:
                _shorten_choices(panel.yaxis)
    shows_objective = name not in ("importances", "timeline", "pareto")
    if "accuracy" in objective and shows_objective:
        first.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _width(name: str, panels: int) -> float:
    """Return the width of a picture by Optuna, in inches."""
    match name:
        case "slices":
            return max(9.0, 2.6 * panels)
        case "parallel_coordinates":
            return 11.0
        case _:
            return 9.0


def _show_basis(axes: Any, importances: KeyImportances, objective: str) -> None:
    """Say in the picture on how many trials the importances rest."""
    keys = [label.get_text() for label in axes.get_yticklabels()]
    labels = [importances.label(key) for key in keys]
    axes.set_yticks(axes.get_yticks(), labels)
    basis = textwrap.fill(importances.basis, BASIS_WIDTH)
    axes.set_xlabel(f"importance for {objective} (share of 1)\n{basis}")


def _mute_lines(lines: Sequence[Any]) -> None:
    """Let hundreds of lines show where many of them lie: Optuna has ten colours."""
    alpha = max(0.06, min(1.0, 12 / len(lines)))
    for line in lines:
        line.set(color=charts.BLUE, alpha=alpha)


def _drop_legend(axes: Any) -> None:
    """Remove a legend with a line a trial, or with a single colour, which covers the data."""
    legend = axes.get_legend()
    if legend:
        legend.remove()


def _space_ticks(panels: Any) -> None:
    """Turn what stands below narrow panels, and leave out what has no room."""
    for panel in panels:
        _shorten_choices(panel.xaxis)
        if panel.get_xscale() == "log":
            panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            low, high = panel.get_xlim()
            ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
            step = math.ceil(len(ticks) / MOST_TICKS)
            panel.set_xticks(ticks[:: max(1, step)])
        for label in panel.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")


def _shorten_choices(axis: Any) -> None:
    """Cut the choices of a categorical key: whole, long ones lie on the panels beside theirs."""
    labels = [label.get_text() for label in axis.get_ticklabels()]
    # what begins with a dollar is a number as matplotlib writes it, as $10^{-3}$
    choices = [label for label in labels if not label.startswith("$")]
    if any(len(choice) > LONGEST_CHOICE for choice in choices):
        short = [charts.shorten(label, LONGEST_CHOICE) for label in labels]
        axis.set_ticks(axis.get_ticklocs(), short)


@dataclass(frozen=True)
class _HostRows:
    """Rows of a timeline that goes host after host; empty where there is one host."""

    #: Row of each trial, by its number.
    rows: dict[int, int] = field(default_factory=dict)
    #: Middle of the rows of each host, by its name.
    middles: dict[str, float] = field(default_factory=dict)


def _rows_by_host(numbers: Iterable[int], hosts: Mapping[int, str]) -> _HostRows:
    """Put trials host after host.

    Args:
        numbers: The trials that are drawn. Some may have begun after the hosts were read.
        hosts: Host of each trial, by its number.
    """
    numbers_of: dict[str, list[int]] = {}
    for number in sorted(numbers):
        host = hosts.get(number, "")
        numbers_of.setdefault(host, []).append(number)
    found = _HostRows()
    if len(numbers_of.keys() - {""}) < 2:
        return found
    for host, own in sorted(numbers_of.items()):
        first = len(found.rows)
        for row, number in enumerate(own, start=first):
            found.rows[number] = row
        found.middles[host or "unknown"] = first + (len(own) - 1) / 2
    return found


def _group_figure(figure: Any, hosts: Mapping[int, str]) -> None:
    """Put the bars of Optuna's interactive timeline host after host."""
    numbers = {number for trace in figure.data for number in trace.y}
    grouped = _rows_by_host(numbers, hosts)
    if not grouped.rows:
        return
    for trace in figure.data:
        trace.y = [grouped.rows[number] for number in trace.y]
    figure.update_yaxes(
        title_text="host",
        tickvals=list(grouped.middles.values()),
        ticktext=list(grouped.middles),
        tickmode="array",
    )


def _group_axes(axes: Any, hosts: Mapping[int, str]) -> None:
    """Put the bars of Optuna's timeline host after host."""
    numbers = [_trial_of_bar(bar) for bar in axes.patches]
    grouped = _rows_by_host(numbers, hosts)
    if not grouped.rows:
        return
    for bar, number in zip(axes.patches, numbers, strict=True):
        bar.set_y(grouped.rows[number] - bar.get_height() / 2)
    middles = list(grouped.middles.values())
    axes.set_yticks(middles, list(grouped.middles))
    axes.set_ylabel("host")


def _trial_of_bar(bar: Any) -> int:
    """Return the number of a trial, in whose row Optuna draws its bar."""
    middle: float = bar.get_y() + bar.get_height() / 2
    return round(middle)
