"""Optuna's own pictures of a study, as PNG and as one HTML page; the timeline goes host by host."""

import html
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from optuna.study import Study
from optuna.trial import TrialState

from digit_study.report.figures import charts
from digit_study.support.messages import first_line

MOST_DIMENSIONS, MOST_CONTOURS, LONGEST_CHOICE, MOST_TICKS = 6, 4, 14, 5
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body style="font-family: sans-serif; max-width: 1100px; margin: auto"><h1>{title}</h1>{figures}</body></html>"""
#: Of these there is a PNG, with the most important dimensions; the page has all.
AS_PNG = (
    "optimisation_history", "importances", "slices", "parallel_coordinates", "timeline", "intermediate_values",
    "pareto",
)  # fmt: skip


def write(
    study: Study,
    objectives: Mapping[str, str],
    keys: Sequence[str],
    hosts: Mapping[int, str],
    folder: Path,
) -> None:
    """Draw Optuna's pictures: PNGs, and all as interactive figures in ``study.html``, which needs no network.

    ``objectives`` are metric to direction, ``keys`` what is searched, ``hosts`` where each trial ran, by its number.
    """
    from plotly.offline import get_plotlyjs

    title = html.escape(f"Study {study.study_name}: {', '.join(objectives)}")
    figures = [f"<script>{get_plotlyjs()}</script>"]  # once: it is nearly five megabytes
    with quiet_optuna():
        for name, (function, options) in picture_options(study, objectives, keys).items():
            figure = interactive(study, name, function, options, hosts)
            if isinstance(figure, str):
                figures.append(f"<p>{name.replace('_', ' ')}: {html.escape(figure)}</p>")
            else:
                drawn = figure.to_html(
                    full_html=False, include_plotlyjs=False, config={"displaylogo": False}
                )
                figures.append(f'<div style="overflow-x: auto">{drawn}</div>')
            if name in AS_PNG:
                _write_png(
                    name,
                    function,
                    options,
                    study,
                    next(iter(objectives)),
                    hosts,
                    folder / f"{name}.png",
                )
    (folder / "study.html").write_text(PAGE.format(title=title, figures="\n".join(figures)))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna draw in silence: it calls most of its pictures experimental, and logs what it cannot draw."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def interactive(
    study: Study, name: str, function: str, options: Mapping[str, Any], hosts: Mapping[int, str]
) -> Any:
    """One of :func:`picture_options` as a Plotly figure; a text that says why where there are too few trials for it."""
    try:
        figure = getattr(optuna.visualization, function)(study, **options)
    except (ValueError, RuntimeError) as error:
        return first_line(error)
    if name == "timeline":
        _group_page(figure, hosts)
    if name in ("contour", "rank"):  # a grid of panels
        figure.update_layout(height=900)
    return figure


def picture_options(
    study: Study, objectives: Mapping[str, str], keys: Sequence[str]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Optuna's pictures that apply to this study: by file name, the name of the function and its options."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    first, direction = next(iter(objectives.items()))
    target: dict[str, Any] = {"target_name": first}
    low_is_good: dict[str, Any] = {}  # importances of one of several objectives are for low values
    if len(objectives) > 1:
        sign = -1 if direction == "maximize" else 1
        target["target"], low_is_good["target"] = (
            lambda trial: trial.values[0],
            lambda trial: sign * trial.values[0],
        )
    try:
        shares = optuna.importance.get_param_importances(study, **low_is_good)
    except (ValueError, RuntimeError):  # too few trials, or all values are equal
        shares = {}
    used = [key for key in keys if any(key in trial.params for trial in complete)]
    keys = sorted(used, key=lambda key: -shares.get(key, 0.0))
    pictures = {
        "optimisation_history": ("plot_optimization_history", target),
        "importances": ("plot_param_importances", {**target, **low_is_good}),
        "slices": ("plot_slice", {**target, "params": keys}),
        "parallel_coordinates": ("plot_parallel_coordinate", {**target, "params": keys}),
        "edf": ("plot_edf", target),
        "timeline": ("plot_timeline", {}),
    }
    if len(keys) > 1:
        pictures["contour"] = ("plot_contour", {**target, "params": keys[:MOST_CONTOURS]})
        pictures["rank"] = ("plot_rank", {**target, "params": keys[:MOST_CONTOURS]})
    if len(objectives) == 1:
        pictures["intermediate_values"] = ("plot_intermediate_values", {})
    elif len(objectives) <= 3:
        pictures["pareto"] = ("plot_pareto_front", {"target_names": list(objectives)})
    return pictures


def _write_png(
    name: str, function: str, options: Mapping[str, Any], study: Study, objective: str, hosts: Mapping[int, str],
    path: Path,
) -> None:  # fmt: skip
    """Draw a picture by Optuna, or say in words why there is none."""
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as optuna_plots

    chosen = {
        key: value[:MOST_DIMENSIONS] if key == "params" else value for key, value in options.items()
    }
    # of a study without anything to draw Optuna draws empty axes
    drawn = study.get_trials(deepcopy=False)
    if name == "intermediate_values":
        drawn = [trial for trial in drawn if trial.intermediate_values]
    elif name != "timeline":
        drawn = [trial for trial in drawn if trial.state == TrialState.COMPLETE]
    with plt.rc_context({"backend": "agg"}):  # Optuna sets a style for all figures that follow
        try:
            if not drawn:
                raise ValueError("No trial has finished yet.")
            axes = np.ravel(getattr(optuna_plots, function)(study, **chosen))
        except (ValueError, RuntimeError) as error:  # too few trials for this picture
            plt.close("all")
            charts.save(
                charts.message_figure(name.replace("_", " ").capitalize(), first_line(error)), path
            )
            return
        _fit(name, axes, objective, hosts)
        plt.gcf().savefig(path, dpi=charts.DPI, bbox_inches="tight", pad_inches=0.2)
        plt.close("all")


def _fit(name: str, axes: Any, objective: str, hosts: Mapping[int, str]) -> None:
    """Give a picture by Optuna a size that fits its content, and labels that do not lie on each other."""
    figure, width = (
        axes[0].figure,
        {"slices": 2.6 * len(axes), "parallel_coordinates": 11.0}.get(name, 9.0),
    )
    figure.set_size_inches(max(width, 9.0), 5.0)
    if name == "intermediate_values":
        axes[0].set(xlabel="epoch", ylabel=objective)
        charts.integer_ticks(axes[0].xaxis)
        for line in axes[
            0
        ].lines:  # Optuna has ten colours; of hundreds only where many lie is to be seen
            line.set(color=charts.BLUE, alpha=max(0.06, min(1.0, 12 / len(axes[0].lines))))
    if name in ("intermediate_values", "importances") and (legend := axes[0].get_legend()):
        legend.remove()  # a line a trial; or one colour for all bars, on which it lies
    if name == "importances":
        axes[0].set_xlabel(f"importance for {objective} (share of 1)")
    if name in ("optimisation_history", "timeline"):
        charts.integer_ticks(axes[0].xaxis if name == "optimisation_history" else axes[0].yaxis)
    if name == "timeline":
        _group_axes(axes[0], hosts)
    if name == "slices":
        _space_ticks(axes)
    for panel in figure.axes if name == "parallel_coordinates" else []:
        _shorten_choices(panel.yaxis)
    if "accuracy" in objective and name not in ("importances", "timeline", "pareto"):
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _space_ticks(panels: Any) -> None:
    """Turn what stands below narrow panels, and leave out of it what has no room."""
    for panel in panels:
        _shorten_choices(panel.xaxis)
        if panel.get_xscale() == "log":
            panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            low, high = panel.get_xlim()
            ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
            panel.set_xticks(ticks[:: -(-len(ticks) // MOST_TICKS) or 1])
        for label in panel.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")


def _shorten_choices(axis: Any) -> None:
    """Cut what a categorical dimension's choices are called: whole, long ones lie on the panels beside theirs."""
    labels = [label.get_text() for label in axis.get_ticklabels()]
    if any(len(label) > LONGEST_CHOICE and not label.startswith("$") for label in labels):
        axis.set_ticks(
            axis.get_ticklocs(), [charts.shorten(label, LONGEST_CHOICE) for label in labels]
        )


def _rows_by_host(hosts: Mapping[int, str]) -> tuple[dict[int, int], dict[str, float]]:
    """A row for every trial, host after host, and the middle of every host's rows; nothing where there is one host."""
    if len({*hosts.values()} - {""}) < 2:
        return {}, {}
    rows, middles = dict[int, int](), dict[str, float]()
    for host in sorted({*hosts.values()}):
        numbers = [number for number, where in hosts.items() if where == host]
        middles[host or "nowhere"] = len(rows) + (len(numbers) - 1) / 2
        rows |= {number: row for row, number in enumerate(numbers, start=len(rows))}
    return rows, middles


def _group_page(figure: Any, hosts: Mapping[int, str]) -> None:
    """Put the bars of Optuna's interactive timeline host after host."""
    rows, middles = _rows_by_host(hosts)
    if rows:
        for trace in figure.data:
            trace.y = [rows[number] for number in trace.y]
        figure.update_yaxes(
            title_text="host",
            tickvals=list(middles.values()),
            ticktext=list(middles),
            tickmode="array",
        )


def _group_axes(axes: Any, hosts: Mapping[int, str]) -> None:
    """Put the bars of Optuna's timeline host after host."""
    rows, middles = _rows_by_host(hosts)
    if rows:
        for bar in axes.patches:
            middle = bar.get_height() / 2
            bar.set_y(rows[round(bar.get_y() + middle)] - middle)
        axes.set_yticks(list(middles.values()), list(middles))
        axes.set_ylabel("host")
