"""Optuna's pictures of ordinary and of awkward studies: drawn, and readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import optuna
import pytest
from example_studies import study_of
from PIL import Image

from digit_study.report.figures import interactive, optuna_figures
from digit_study.report.figures.importances import key_importances
from digit_study.study.storage import StoredStudy


def write(plan: Any, stored: StoredStudy, folder: Path) -> None:
    optuna_figures.write(stored.study, plan.objectives, plan.keys, stored.hosts(), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "keys", "objectives"),
    [(0, 2, 1), (1, 2, 1), (2, 2, 1), (40, 12, 1), (12, 1, 1), (0, 4, 2), (12, 4, 2), (12, 4, 3)],
)
def test_every_picture_that_applies_is_drawn(
    count: int, keys: int, objectives: int, tmp_path: Path
) -> None:
    before = dict(matplotlib.rcParams)
    write(*study_of(count, keys, objectives), tmp_path)
    last = "intermediate_values" if objectives == 1 else "pareto"
    names = {
        "optimisation_history",
        "importances",
        "slices",
        "parallel_coordinates",
        "timeline",
        last,
    }
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    for name in names:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert 400 <= picture.width <= 2200 and 200 <= picture.height <= 1400, name
            assert count or picture.size == (880, 275), (
                f"{name} must say that there is nothing to draw"
            )
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_a_study_whose_only_trial_failed_in_the_middle_has_no_curves(tmp_path: Path) -> None:
    """As when a cluster goes away in the first trial of a search."""
    plan, stored = study_of(0, 2, 1)
    trial = stored.study.ask()
    trial.report(0.5, 1)
    stored.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    write(plan, stored, tmp_path)
    with Image.open(tmp_path / "intermediate_values.png") as picture:
        assert picture.size == (880, 275)  # it says that there is nothing to draw


def test_a_timeline_of_several_hosts_has_trials_that_began_after_the_hosts_were_read(
    tmp_path: Path,
) -> None:
    plan, stored = study_of(5)
    hosts = {0: "b", 1: "a", 2: "b"}  # and of two more nothing is known yet
    pictures = interactive.pictures(stored.study, plan.objectives, plan.keys, hosts, epochs=3)
    (timeline,) = [picture for picture in pictures if picture.name == "timeline"]
    assert timeline.figure is not None
    axis = timeline.figure["layout"]["yaxis"]
    assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True)) == {
        "unknown": 0.5,
        "a": 2.0,
        "b": 3.5,
    }
    optuna_figures.write(stored.study, plan.objectives, plan.keys, hosts, tmp_path)
    assert (tmp_path / "timeline.png").is_file()


def study_with_rare_key(finished: int, with_key: int, among_best: int = 99) -> Any:
    """A study whose best trials have a conditional key, as chance may have it."""
    study = optuna.create_study(direction="maximize")
    for number in range(finished):
        trial = study.ask()
        trial.suggest_int("model.filters", 8, 64)
        above = finished - number
        if above <= min(with_key, among_best) or with_key - among_best >= number + 1:
            trial.suggest_float("training.shift", 0.0, 3.0)
        study.tell(trial, number / finished)
    return study


@pytest.mark.parametrize(
    ("finished", "with_key", "among_best", "shown", "left_out"),
    [
        (20, 2, 2, ["model.filters"], {"training.shift": 2}),
        (20, 7, 1, ["model.filters"], {"training.shift": 7}),
        (20, 5, 3, ["model.filters", "training.shift"], {}),
        (80, 20, 3, ["model.filters"], {"training.shift": 20}),
        (80, 20, 4, ["model.filters", "training.shift"], {}),
        (7, 5, 4, ["model.filters", "training.shift"], {}),
        (4, 4, 4, [], {"model.filters": 4, "training.shift": 4}),
        (0, 0, 0, [], {}),
    ],
)
def test_importances_are_of_keys_that_enough_finished_trials_have(
    finished: int, with_key: int, among_best: int, shown: list[str], left_out: dict[str, int]
) -> None:
    study = study_with_rare_key(finished, with_key, among_best)
    found = key_importances(study, ["model.filters", "training.shift"])
    assert sorted(found.shares) == shown and found.left_out == left_out
    assert bool(found.problem) == (not shown)
    if shown:
        assert sum(found.shares.values()) == pytest.approx(1.0)
        assert min(5, finished // 2) <= found.best <= max(5, finished / 9)


@pytest.mark.slow
def test_importances_say_on_how_many_trials_they_rest(tmp_path: Path) -> None:
    study = study_with_rare_key(20, 6)
    keys = ["model.filters", "training.shift", "training.seed"]
    (request,) = (
        request
        for request in optuna_figures.picture_requests(study, {"val_accuracy": "maximize"}, keys)
        if request.name == "importances"
    )
    figure = optuna_figures.interactive(study, request, {})
    assert set(figure.data[0].y) == {"model.filters", "training.shift (6 trials)"}
    rare = study_with_rare_key(20, 2)
    pictures = interactive.pictures(rare, {"val_accuracy": "maximize"}, keys, {}, 3)
    (caption,) = (picture.caption for picture in pictures if picture.name == "importances")
    assert caption.endswith(
        "It compares the best 5 of 20 finished trials with all. "
        "Left out, because too few of the finished or of the best trials have it: "
        "training.shift (2 trials)."
    )
