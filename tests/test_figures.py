"""Every figure, on ordinary and on awkward input: drawn, named, and nothing cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from digit_study.report.figures import charts, paired_figures, ranking_figures, run_figures
from digit_study.stats.metrics import Evaluation, evaluate

LONG = "model.filters=128 training.learning_rate=0.0001234567 " * 4
N = 300
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 28, 28, 1), dtype=np.uint8)
LABELS = np.arange(N) % 10


def evaluation(wrong: int, labels: np.ndarray = LABELS) -> Evaluation:
    """A model that takes the first ``wrong`` images for the next digit."""
    read = labels.copy()
    read[:wrong] = (read[:wrong] + 1) % 10
    return evaluate(
        labels,
        np.full((len(labels), 10), 0.01, np.float32) + 0.9 * np.eye(10, dtype=np.float32)[read],
    )


def epochs(count: int) -> list[dict[str, float]]:
    return [
        {
            "train_loss": 1 / e,
            "train_accuracy": 1 - 0.5 / e**2,
            "val_loss": 1.1 / e,
            "val_accuracy": 1 - 0.4 / e**2,
        }
        for e in range(1, count + 1)
    ]


def runs(count: int, name: str = "run") -> pd.DataFrame:
    accuracy = 0.99 - 0.001 * np.arange(count)
    return pd.DataFrame(
        {
            "name": [f"{name} {i}" for i in range(count)],
            "val_accuracy": accuracy,
            "val_accuracy_low": accuracy - 0.005,
            "val_accuracy_high": accuracy + 0.004,
            "tied": np.arange(count) < 5,
            "n": 1000,
        }
    )


def seeds(candidates: int, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        (f"{LONG}{c}", s, 0.99 - 0.001 * c + 0.0003 * s)
        for c in range(candidates)
        for s in range(count)
    ]
    table = pd.DataFrame(rows, columns=["candidate", "seed", "val_accuracy"])
    summary = table.groupby("candidate", as_index=False).agg(mean=("val_accuracy", "mean"))
    summary = summary.assign(
        low=summary["mean"] - 0.001, high=summary["mean"] + 0.001, parameters=123456
    )
    noise = {"sd_seeds": 0.0008, "sd_images": 0.0012, "sd_both": 0.00144}
    summary = summary.assign(
        **noise, sweep_val_accuracy=summary["mean"] + 0.001, tied=summary.index < 2
    )
    return table, summary.assign(winner=summary.index == 0)


LESSONS = [f"selection bias: +0.10 points: {LONG}", "no number of seeds can separate 1 and 2"]
NAMES = (LONG, "second")
NO_SEVENS = LABELS[LABELS != 7]

DRAWN: dict[str, Callable[[], Figure]] = {
    "class_counts": lambda: run_figures.class_counts(LABELS, LABELS[:50], "the sample"),
    "class_counts, no sevens": lambda: run_figures.class_counts(NO_SEVENS, NO_SEVENS[:0], LONG),
    "sample_grid": lambda: run_figures.sample_grid(IMAGES, LABELS, "the sample"),
    "sample_grid, few and no sevens": lambda: run_figures.sample_grid(
        IMAGES[:15], NO_SEVENS[:15], "the sample"
    ),
    "curves": lambda: run_figures.curves(epochs(12), "a run"),
    "curves, one epoch": lambda: run_figures.curves(epochs(1), LONG),
    "curves, 60 epochs": lambda: run_figures.curves(epochs(60), "a run"),
    "confusion_matrix": lambda: run_figures.confusion_matrix(evaluation(40), "a run"),
    "confusion_matrix, perfect": lambda: run_figures.confusion_matrix(evaluation(0), LONG),
    "confusion_matrix, no sevens": lambda: run_figures.confusion_matrix(
        evaluation(9, NO_SEVENS), "a run"
    ),
    "mistakes": lambda: run_figures.mistakes(IMAGES, evaluation(80)),
    "mistakes, one": lambda: run_figures.mistakes(IMAGES, evaluation(1)),
    "comparison": lambda: ranking_figures.leaderboard_figure(runs(12), "widths"),
    "comparison, one run": lambda: ranking_figures.leaderboard_figure(runs(1, LONG), LONG),
    "comparison, 60 runs": lambda: ranking_figures.leaderboard_figure(runs(60, LONG), "widths"),
    "confirmation": lambda: ranking_figures.confirmation_figure(*seeds(4, 5), LESSONS),
    "confirmation, one candidate": lambda: ranking_figures.confirmation_figure(*seeds(1, 2)),
    "confusion_difference": lambda: paired_figures.confusion_difference(
        evaluation(50), evaluation(9), NAMES
    ),
    "confusion_difference, none": lambda: paired_figures.confusion_difference(
        evaluation(5), evaluation(5), NAMES
    ),
    "flipped": lambda: paired_figures.flipped(IMAGES, evaluation(50), evaluation(9), NAMES),
}
NOTHING: dict[str, Callable[[], Figure]] = {
    "mistakes": lambda: run_figures.mistakes(IMAGES, evaluation(0)),
    "flipped": lambda: paired_figures.flipped(IMAGES, evaluation(9), evaluation(9), NAMES),
}


def cut_off(figure: Figure) -> list[str]:
    """The texts that reach beyond the edge of the figure, by more than a pixel."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    page, found = figure.bbox, []
    shown = {id(text) for axes in figure.axes for text in visible_texts(axes)} | {
        id(t) for t in figure.texts
    }
    shown |= {id(text) for legend in figure.legends for text in legend.get_texts()}
    for text in figure.findobj(Text):
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        if id(text) in shown and text.get_visible() and text.get_text().strip() and not inside:
            found.append(text.get_text())
    return found


def visible_texts(axes: object) -> list[Text]:
    """Titles, labels and notes of ``axes``, and those tick labels that lie within its limits."""
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return texts if axes.axison else list(axes.texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_figures_have_a_title_named_axes_and_nothing_cut_off(name: str) -> None:
    figure = DRAWN[name]()
    assert isinstance(figure, Figure)
    assert figure.get_suptitle()
    first = figure.axes[0]
    assert first.get_xlabel()
    assert first.get_ylabel() or figure.get_supylabel() or not len(first.get_yticks())
    assert cut_off(figure) == []


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_draw_is_said_in_words(name: str) -> None:
    figure = NOTHING[name]()
    assert figure.get_suptitle()
    assert figure.axes[0].texts[0].get_text()
    assert cut_off(figure) == []


DOLLARS = "a$^$b"
OF_DOLLARS: dict[str, Callable[[], Figure]] = {
    "class_counts": lambda: run_figures.class_counts(LABELS, LABELS[:50], DOLLARS),
    "curves": lambda: run_figures.curves(epochs(3), DOLLARS),
    "confusion_matrix": lambda: run_figures.confusion_matrix(evaluation(9), DOLLARS),
    "comparison": lambda: ranking_figures.leaderboard_figure(runs(3, DOLLARS), DOLLARS),
    "comparison, one run": lambda: ranking_figures.leaderboard_figure(runs(1, DOLLARS), DOLLARS),
    "confirmation": lambda: ranking_figures.confirmation_figure(
        *seeds(2, 3), [f"trial 1: {DOLLARS}"]
    ),
    "flipped": lambda: paired_figures.flipped(
        IMAGES, evaluation(9), evaluation(5), (DOLLARS, "second")
    ),
    "flipped, none": lambda: charts.message_figure(DOLLARS, DOLLARS),
}


@pytest.mark.parametrize("name", OF_DOLLARS)
def test_a_dollar_in_a_name_begins_no_formula(name: str, tmp_path: Path) -> None:
    figure = OF_DOLLARS[name]()
    charts.save(figure, tmp_path / "dollars.png")
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert any(DOLLARS in text for text in shown)


def test_mistakes_show_the_most_confident_first() -> None:
    probabilities = np.full((3, 10), 0.01)
    probabilities[[0, 1, 2], [5, 5, 2]] = [0.6, 0.9, 0.9]
    figure = run_figures.mistakes(IMAGES[:3], evaluate(np.array([3, 4, 2]), probabilities))
    assert [text.get_text() for text in figure.axes[0].texts] == ["4 → 5, 90 %", "3 → 5, 60 %"]


def test_comparison_keeps_the_first_forty() -> None:
    figure = ranking_figures.leaderboard_figure(runs(60), "widths")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"run {i}" for i in range(40)]
    assert "best 40 of 60 runs" in figure.axes[0].get_title()


def test_one_run_that_did_not_learn_leaves_room_for_the_others() -> None:
    board = runs(12)
    board.loc[11, ["val_accuracy", "val_accuracy_low", "val_accuracy_high"]] = [0.1, 0.09, 0.11]
    axes = ranking_figures.leaderboard_figure(board, "widths").axes[0]
    low, high = axes.get_xlim()
    assert 95 < low < high < 101
    (beyond,) = [line for line in axes.lines if line.get_label() == "off the axis"]
    assert beyond.get_ydata().tolist() == [11] and "10.00" in [
        text.get_text() for text in axes.texts
    ]


def test_curves_say_what_is_beyond_their_axes_and_ring_the_last_epoch_whole() -> None:
    loss, accuracy = run_figures.curves(epochs(100), "a run").axes
    assert "highest 1.1)" in loss.get_xlabel() and "lowest 50)" in accuracy.get_xlabel()
    rings = [line for axes in (loss, accuracy) for line in axes.lines if line.get_mew() == 2.5]
    assert [ring.get_clip_on() for ring in rings] == [False, False]
    spike = [
        *epochs(30),
        dict(epochs(1)[0], val_accuracy=1.0, val_loss=50.0),
    ]  # its ring would lie outside the figure
    rings = [
        line
        for axes in run_figures.curves(spike, "a run").axes
        for line in axes.lines
        if line.get_mew() == 2.5
    ]
    assert [ring.get_clip_on() for ring in rings] == [True, False]


def test_numbers_on_a_heatmap_stand_out_from_their_cells() -> None:
    axes = run_figures.confusion_matrix(evaluation(40), "a run").axes[0]
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        if text.get_text() and row != column:
            *colour, _ = axes.collections[0].to_rgba(np.array(float(text.get_text())))
            assert (text.get_color() == "white") == (np.dot(colour, (0.299, 0.587, 0.114)) < 0.5)


@pytest.mark.parametrize(
    ("candidates", "count", "title"),
    [
        (1, 2, "1 candidate on 2 fresh seeds, 2 networks"),
        (2, 3, "2 candidates on 3 fresh seeds each, 6 networks"),
    ],
)
def test_a_confirmation_counts_in_words(candidates: int, count: int, title: str) -> None:
    assert ranking_figures.confirmation_figure(*seeds(candidates, count)).get_suptitle() == title


def test_a_long_name_is_shown_whole() -> None:
    board = runs(4)
    board["name"] = [
        f"{i}: filters=48 blocks={i} kernel_size=5 pooling=average{i} dense_units={i} dropout=0.{i} "
        f"learning_rate=0.0028{i} schedule=cosine{i} augmentation=shift_rotate{i} shift=1.2{i}"
        for i in range(4)
    ]
    figure = ranking_figures.leaderboard_figure(board, "widths")
    names = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    assert "[...]" not in "".join(names) and "…" not in "".join(names) and cut_off(figure) == []
    assert all(
        f"shift=1.2{i}" in name
        for i, name in zip((3, 2, 1, 0), sorted(names, reverse=True), strict=True)
    )


def test_confusion_counts_stand_in_their_cells() -> None:
    texts = [
        text.get_text()
        for text in run_figures.confusion_matrix(evaluation(1), "a run").axes[0].texts
    ]
    assert sorted(filter(None, texts)) == sorted(["29", "1", *["30"] * 9])


def test_save_makes_folders_and_a_png(tmp_path) -> None:
    path = tmp_path / "new" / "curves.png"
    charts.save(run_figures.curves(epochs(3), "a run"), path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_importing_the_figures_leaves_pyplot_and_seaborn_alone() -> None:
    heavy = "{'matplotlib.pyplot', 'seaborn'} & set(sys.modules)"
    code = f"import sys, digit_study.report.figures.run_figures; sys.exit(len({heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"})


# ---------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("rows", [0, 1, 50])
@pytest.mark.parametrize("more", [{}, {"text": 'a, "b"'}, {"gaps": np.nan}, {"infinite": np.inf}])
def test_a_table_is_written_as_pandas_does(rows: int, more: dict[str, Any], tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random(rows) * 10.0 ** (np.arange(rows) - 25)
    table = pd.DataFrame(
        {"row": np.arange(rows), "even": np.arange(rows) % 2 == 0, "value": numbers}
    )
    table = table.assign(single=numbers.astype(np.float32), **more)
    charts.write_table(table, tmp_path, "some")
    written = (tmp_path / "tables" / "some.csv").read_text()
    assert written == table.to_csv(index=False, float_format="%.7g")


def test_two_processes_may_draw_the_same_picture_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, draw, processes = tmp_path / "same.png", charts.FigureCanvasAgg.print_png, iter([1, 2])

    def draw_while_another_does(canvas: Any, place: Path) -> None:
        draw(canvas, place)
        monkeypatch.setattr(charts.FigureCanvasAgg, "print_png", draw)
        charts.save(charts.message_figure("second", "whole"), path)

    monkeypatch.setattr(os, "getpid", lambda: next(processes))
    monkeypatch.setattr(charts.FigureCanvasAgg, "print_png", draw_while_another_does)
    charts.save(charts.message_figure("first", "whole"), path)
    assert [path.name for path in tmp_path.iterdir()] == ["same.png"]
