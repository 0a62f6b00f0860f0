"""Every picture, on ordinary and on awkward input: drawn, named, and nothing cut off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from digit_study.evaluation import charts as figures
from digit_study.evaluation.metrics import Evaluation, score
from digit_study.search import study_figures
from digit_study.verify import comparison_figures

LONG = "model.filters=128 training.learning_rate=0.0001234567 " * 4
N = 300
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 28, 28, 1), dtype=np.uint8)
LABELS = np.arange(N) % 10
DIMENSIONS = ["training.learning_rate", "model.filters", "model.activation", "training.momentum"]
LOG = {"training.learning_rate"}


def evaluation(wrong: int, labels: np.ndarray = LABELS) -> Evaluation:
    """A model that takes the first ``wrong`` images for the next digit."""
    read = labels.copy()
    read[:wrong] = (read[:wrong] + 1) % 10
    return score(labels, np.full((len(labels), 10), 0.01, np.float32) + 0.9 * np.eye(10, dtype=np.float32)[read])


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


def trials(count: int) -> pd.DataFrame:
    number = np.arange(count)
    started = pd.Timestamp("2025-01-01") + pd.to_timedelta(number * 20, unit="s")
    table = pd.DataFrame(
        {
            "number": number,
            "state": np.array(["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "FAIL"])[number % 5],
            "value": 0.99 - 0.01 * RNG.random(count),
            "started": started,
            "finished": started + pd.Timedelta(seconds=35),
            "training.learning_rate": 10 ** RNG.uniform(-4, -2, count),
            "model.filters": RNG.choice([16, 32, 64], count),
            "model.activation": RNG.choice(["relu", "gelu", LONG], count),
            "training.momentum": np.where(number % 2, RNG.random(count), np.nan),
        }
    )
    table.loc[table["state"] == "FAIL", ["value", "finished"]] = [np.nan, pd.NaT]
    return table


def curves_of(count: int) -> dict[int, dict[int, float]]:
    return {t: {e: 0.99 - 0.1 / e for e in range(1, 2 + t % 9)} for t in range(count)}


def front(count: int) -> pd.DataFrame:
    accuracy, parameters = RNG.random(count), 10 ** RNG.uniform(3, 6, count)
    beaten = (accuracy[None] > accuracy[:, None]) & (parameters[None] < parameters[:, None])
    table = {
        "number": range(count),
        "val_accuracy": accuracy,
        "parameters": parameters,
        "front": ~beaten.any(axis=1),
    }
    return pd.DataFrame(table)


def seeds(candidates: int, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [(f"{LONG}{c}", s, 0.99 - 0.001 * c + 0.0003 * s) for c in range(candidates) for s in range(count)]
    table = pd.DataFrame(rows, columns=["candidate", "seed", "val_accuracy"])
    summary = table.groupby("candidate", as_index=False).agg(mean=("val_accuracy", "mean"))
    blank = np.nan if count == 1 else 0.001
    summary = summary.assign(low=summary["mean"] - blank, high=summary["mean"] + blank, parameters=123456)
    return table, summary.assign(winner=summary.index == 0)


OBJECTIVES = {"parameters": "minimize", "val_accuracy": "maximize"}
NAMES = (LONG, "second")
NO_SEVENS = LABELS[LABELS != 7]

DRAWN: dict[str, Callable[[], Figure]] = {
    "class_counts": lambda: figures.class_counts(LABELS, LABELS[:50], "the sample"),
    "class_counts, no sevens": lambda: figures.class_counts(NO_SEVENS, NO_SEVENS[:0], LONG),
    "sample_grid": lambda: figures.sample_grid(IMAGES, LABELS, "the sample"),
    "sample_grid, few and no sevens": lambda: figures.sample_grid(IMAGES[:15], NO_SEVENS[:15], "the sample"),
    "curves": lambda: figures.curves(epochs(12), "a run"),
    "curves, one epoch": lambda: figures.curves(epochs(1), LONG),
    "curves, 60 epochs": lambda: figures.curves(epochs(60), "a run"),
    "curves, NaN": lambda: figures.curves([*epochs(2), dict.fromkeys(epochs(1)[0], np.nan)], "a run"),
    "curves, partial": lambda: figures.curves([{"train_loss": 1.0}, {"train_loss": 0.5}], "a run"),
    "confusion_matrix": lambda: figures.confusion_matrix(evaluation(40), "a run"),
    "confusion_matrix, perfect": lambda: figures.confusion_matrix(evaluation(0), LONG),
    "confusion_matrix, no sevens": lambda: figures.confusion_matrix(evaluation(9, NO_SEVENS), "a run"),
    "mistakes": lambda: figures.mistakes(IMAGES, evaluation(80)),
    "mistakes, one": lambda: figures.mistakes(IMAGES, evaluation(1)),
    "comparison": lambda: figures.comparison(runs(12), "widths"),
    "comparison, one run": lambda: figures.comparison(runs(1, LONG), LONG),
    "comparison, 60 runs": lambda: figures.comparison(runs(60, LONG), "widths"),
    "comparison, NaN": lambda: figures.comparison(runs(4).assign(val_accuracy=[0.9, np.nan, 0.8, 0.7]), "widths"),
    "history": lambda: study_figures.optimisation_history(trials(40), "val_accuracy", True),
    "history, one trial": lambda: study_figures.optimisation_history(trials(1), "val_loss", False),
    "history, NaN": lambda: study_figures.optimisation_history(trials(6).assign(value=np.nan), "val_loss", False),
    "intermediate": lambda: study_figures.intermediate_values(curves_of(60), {0: "PRUNED"}, "val_accuracy"),
    "importances": lambda: study_figures.importances({"a": 0.7, LONG: 0.2, "nan": np.nan}, "val_accuracy"),
    "slices": lambda: study_figures.slices(trials(40), DIMENSIONS, LOG, "val_accuracy"),
    "slices, one trial": lambda: study_figures.slices(trials(1), DIMENSIONS, LOG, "val_loss"),
    "slices, twelve": lambda: study_figures.slices(trials(20), DIMENSIONS * 4, LOG, "val_accuracy"),
    "parallel": lambda: study_figures.parallel_coordinates(trials(40), DIMENSIONS, LOG, "val_accuracy"),
    "parallel, one trial": lambda: study_figures.parallel_coordinates(trials(1), DIMENSIONS, LOG, "val_loss"),
    "timeline": lambda: study_figures.timeline(trials(60), 2),
    "timeline, one trial": lambda: study_figures.timeline(trials(1), 1),
    "pareto": lambda: comparison_figures.pareto(front(40), OBJECTIVES),
    "pareto, one trial": lambda: comparison_figures.pareto(front(1), dict(reversed(OBJECTIVES.items()))),
    "confirmation": lambda: comparison_figures.confirmation(*seeds(4, 5)),
    "confirmation, one seed": lambda: comparison_figures.confirmation(*seeds(1, 1)),
    "confusion_difference": lambda: comparison_figures.confusion_difference(evaluation(50), evaluation(9), NAMES),
    "confusion_difference, none": lambda: comparison_figures.confusion_difference(evaluation(5), evaluation(5), NAMES),
    "flipped": lambda: comparison_figures.flipped(IMAGES, evaluation(50), evaluation(9), NAMES),
}
NOTHING: dict[str, Callable[[], Figure]] = {
    "curves": lambda: figures.curves([], "a run"),
    "mistakes": lambda: figures.mistakes(IMAGES, evaluation(0)),
    "comparison": lambda: figures.comparison(runs(2).assign(val_accuracy=np.nan), "widths"),
    "history": lambda: study_figures.optimisation_history(trials(0), "val_loss", False),
    "intermediate": lambda: study_figures.intermediate_values({0: {}}, {}, "val_loss"),
    "importances": lambda: study_figures.importances({}, "val_loss"),
    "slices": lambda: study_figures.slices(trials(5).assign(state="FAIL"), DIMENSIONS, LOG, "val_loss"),
    "parallel": lambda: study_figures.parallel_coordinates(trials(0), DIMENSIONS, LOG, "val_loss"),
    "timeline": lambda: study_figures.timeline(trials(3).assign(started=pd.NaT), 2),
    "pareto": lambda: comparison_figures.pareto(front(3).assign(parameters=np.nan), OBJECTIVES),
    "confirmation": lambda: comparison_figures.confirmation(*(table[:0] for table in seeds(1, 1))),
    "flipped": lambda: comparison_figures.flipped(IMAGES, evaluation(9), evaluation(9), NAMES),
}


def cut_off(figure: Figure) -> list[str]:
    """The texts that reach beyond the edge of the figure, by more than a pixel."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    page, found = figure.bbox, []
    shown = {id(text) for axes in figure.axes for text in visible_texts(axes)} | {id(t) for t in figure.texts}
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


def test_mistakes_show_the_most_confident_first() -> None:
    probabilities = np.full((3, 10), 0.01)
    probabilities[[0, 1, 2], [5, 5, 2]] = [0.6, 0.9, 0.9]
    figure = figures.mistakes(IMAGES[:3], score(np.array([3, 4, 2]), probabilities))
    assert [text.get_text() for text in figure.axes[0].texts] == ["4 → 5, 90 %", "3 → 5, 60 %"]


def test_comparison_ranks_and_keeps_forty() -> None:
    figure = figures.comparison(runs(60).sample(frac=1, random_state=0), "widths")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"run {i}" for i in range(40)]
    assert "best 40 of 60 runs" in figure.axes[0].get_title()


def test_a_long_name_is_told_whole() -> None:
    board = runs(4)
    board["name"] = [
        f"{i}: filters=48 blocks={i} kernel_size=5 pooling=average{i} dense_units={i} dropout=0.{i} "
        f"learning_rate=0.0028{i} schedule=cosine{i} augmentation=shift_rotate{i} shift=1.2{i}"
        for i in range(4)
    ]
    figure = figures.comparison(board, "widths")
    names = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    assert "[...]" not in "".join(names) and "…" not in "".join(names) and cut_off(figure) == []
    assert all(f"shift=1.2{i}" in name for i, name in zip((3, 2, 1, 0), sorted(names, reverse=True), strict=True))


def test_confusion_counts_stand_in_their_cells() -> None:
    texts = [text.get_text() for text in figures.confusion_matrix(evaluation(1), "a run").axes[0].texts]
    assert sorted(filter(None, texts)) == sorted(["29", "1", *["30"] * 9])


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("up", [True, False])
def test_staircase_is_the_front_of_two_objectives(right: bool, up: bool) -> None:
    points = pd.DataFrame({"x": [1.0, 2.0, 3.0, 2.5], "y": [1.0, 2.0, 3.0, 0.5]})
    stairs = comparison_figures.staircase(points, "x", "y", right, up)
    expected = {
        (True, True): [3],
        (False, False): [1, 2.5],
        (True, False): [3, 2.5],
        (False, True): [1, 2, 3],
    }
    assert list(stairs["x"]) == expected[right, up]


def test_flipped_refuses_different_images() -> None:
    with pytest.raises(ValueError, match="same images"):
        comparison_figures.flipped(IMAGES, evaluation(5), evaluation(5, LABELS[:50]), NAMES)


def test_save_makes_folders_and_a_png(tmp_path) -> None:
    path = tmp_path / "new" / "curves.png"
    figures.save(figures.curves(epochs(3), "a run"), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_importing_the_figures_leaves_pyplot_and_seaborn_alone() -> None:
    heavy = "{'matplotlib.pyplot', 'seaborn'} & set(sys.modules)"
    code = f"import sys, digit_study.search.study_figures; sys.exit(len({heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"})
