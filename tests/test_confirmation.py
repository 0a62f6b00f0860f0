"""Confirmation with stub trials: no process and no TensorFlow, real stores."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import stub_worker
from stub_worker import SPACE, Stubs, plan, results_of, workspace

from digit_study.config.run_config import Config
from digit_study.data import digits as data
from digit_study.report.figures import optuna_figures
from digit_study.report.figures import run_figures as figures
from digit_study.study.confirmation import FIRST_SEED, confirm, plan_confirmation
from digit_study.study.search import run_study
from digit_study.study.storage import open_study
from digit_study.support.errors import StudyError
from digit_study.support.signals import Interrupted, interruptible
from digit_study.trial.protocol import ENGINES

WORDS = ("search.trials=4", "search.pruner=none", "confirm.top=2", "confirm.seeds=3")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_figures, "write", lambda *drawn: None)
    monkeypatch.setattr(figures, "write_data_figures", lambda digits, folder: None)
    for name in ("open_sealed_test_set",):
        monkeypatch.setattr(
            data, name, lambda *arguments, **more: pytest.fail("the test set was opened")
        )


@pytest.fixture
def study(store: str) -> Any:
    return run_study(plan(*WORDS), Stubs(store).engine)


def again(store: str, study: Any, *words: str, **how: Any) -> tuple[str, Stubs]:
    stubs = Stubs(store, **how)
    return confirm(plan(*WORDS, *words), study, results_of(store), stubs.engine), stubs


def runs(store: str, kind: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(store)
    found = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    return [run for run in found if run.data.tags["kind"] == kind]


@pytest.mark.slow
def test_the_best_are_trained_on_the_same_fresh_seeds_and_one_wins(store: str, study: Any) -> None:
    winner, stubs = again(store, study)
    by_filters: dict[int, set[int]] = {}
    for config in stubs.started:
        by_filters.setdefault(config.model.filters, set()).add(config.training.seed)
    assert list(by_filters.values()) == [{FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2}] * 2
    [parent] = runs(store, "confirmation")
    assert (parent.info.status, parent.data.tags["study"]) == ("FINISHED", "s")
    assert parent.data.tags["winner.run_id"] == winner
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(store, "confirmation-run")} == {
        parent.info.run_id
    }
    client = mlflow.MlflowClient(store)
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "figures")] == [
        "figures/confirmation.png"
    ]
    table = Path(
        client.download_artifacts(parent.info.run_id, "tables/confirmation.csv")
    ).read_text()
    assert "low,high" in table and len(table.splitlines()) == 3


@pytest.mark.slow
def test_what_was_finished_is_not_run_again(store: str, study: Any) -> None:
    stubs = Stubs(
        store,
        lambda config, n: "signal" if n == 3 else "done",
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(Interrupted), interruptible():
        confirm(plan(*WORDS), study, results_of(store), stubs.engine)
    [parent] = runs(store, "confirmation")
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in runs(store, "confirmation-run")} == {"FINISHED", "KILLED"}
    _, rest = again(store, study)
    assert len(rest.started) == 4
    _, nothing = again(store, study)
    assert nothing.started == [] and len(runs(store, "confirmation")) == 1


@pytest.mark.slow
def test_a_killed_run_is_repeated_once_and_a_failed_one_told(store: str, study: Any) -> None:
    _, stubs = again(store, study, behaviour=lambda config, n: "died" if n == 1 else "done")
    assert len(stubs.started) == 7
    with pytest.raises(StudyError, match="1 run of the confirmation failed:\n.*training diverged"):
        again(
            store,
            study,
            "confirm.top=3",
            behaviour=lambda config, n: "failed" if n == 2 else "done",
        )
    assert "RUNNING" not in {run.info.status for run in runs(store, "confirmation-run")}


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["smallest", "accuracy"])
def test_the_winner_is_as_preferred(prefer: str, store: str, study: Any) -> None:
    winner, stubs = again(store, study, f"confirm.prefer={prefer}")
    client = mlflow.MlflowClient(store)
    [parent] = runs(store, "confirmation")
    table = (
        Path(client.download_artifacts(parent.info.run_id, "tables/confirmation.csv"))
        .read_text()
        .splitlines()
    )
    rows = [dict(zip(table[0].split(","), line.split(","), strict=True)) for line in table[1:]]
    eligible = [row for row in rows if row["tied"] == "True"] if prefer == "smallest" else rows[:1]
    assert winner == min(eligible, key=lambda row: float(row["parameters"]))["run_id"]


@pytest.mark.slow
def test_a_search_can_confirm_at_its_end(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "local", Stubs(store).engine)
    words = [
        "study=s",
        "data=mnist_sample",
        "model=tiny",
        "training.epochs=3",
        "search.workers=1",
        SPACE,
    ]
    monkeypatch.setattr(sys, "argv", ["optuna_search.py", *words, *WORDS, "search.confirm=true"])
    runpy.run_path(str(Path(__file__).parents[1] / "sweeps" / "optuna_search.py"))["main"](
        workspace()
    )
    [parent] = runs(store, "confirmation")
    assert "winner.run_id" in parent.data.tags


def test_a_study_is_rebuilt_from_its_storage(store: str, study: Any) -> None:
    asked = plan("confirm.top=1")
    rebuilt, found = plan_confirmation(["study=s", "confirm.top=1"], asked.study, workspace())
    assert found.study.study_name == "s" and rebuilt.study.confirm.top == 1
    assert (rebuilt.run.model, rebuilt.run.data) == (asked.run.model, asked.run.data)


@pytest.mark.slow
def test_a_study_with_nothing_finished_is_told_what_to_do(store: str) -> None:
    with pytest.raises(StudyError, match="no finished trial"):
        run_study(plan("search.trials=1"), Stubs(store, lambda config, n: "failed").engine)
    asked = plan("search.trials=1")
    _, found = plan_confirmation(["study=s"], asked.study, workspace())
    with pytest.raises(
        StudyError, match=r"needs finished trials.*python sweeps/optuna_search.py study=s"
    ):
        confirm(asked, found, results_of(store), Stubs(store).engine)
    assert runs(store, "confirmation") == []


@pytest.mark.slow
def test_what_to_do_without_a_result_names_the_stores(store: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/o.db"
    asked = plan("search.trials=1", f"search.storage={uri}")
    address = f"python sweeps/optuna_search.py study=s \"search.storage='{uri}'\""
    stubs = Stubs(store, lambda config, n: "failed")
    begun = open_study(asked.study, asked.run, asked.overrides, workspace())
    with pytest.raises(StudyError, match="are not in") as caught:
        confirm(asked, begun, results_of(store), stubs.engine)
    assert f"`{address} search.fresh=true`" in str(caught.value)
    with pytest.raises(StudyError, match="no finished trial"):
        run_study(asked, stubs.engine)
    with pytest.raises(StudyError, match="needs finished trials") as caught:
        confirm(asked, begun, results_of(store), stubs.engine)
    assert str(caught.value).endswith(f"go on with {address}")


# --------------------------------------------------------------------------- a race

RACE = ("confirm.seeds=auto", "confirm.top=3", "confirm.max_seeds=6")


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that scatter, each candidate's in its own way."""

    def accuracy(config: Config) -> float:
        random = np.random.default_rng(
            [config.model.filters, round(1000 * config.model.dropout), config.training.seed]
        )
        return float(
            np.clip(0.93 - abs(config.model.filters - 40) / 150 + 0.015 * random.normal(), 0, 1)
        )

    monkeypatch.setattr(stub_worker, "accuracy", accuracy)


@pytest.fixture
def raced(store: str, noisy: None) -> Any:
    return run_study(plan(*WORDS, *RACE, "search.trials=8"), Stubs(store).engine)


def race(store: str, study: Any, *words: str, **how: Any) -> tuple[str, Stubs]:
    return again(store, study, *RACE, "search.trials=8", *words, **how)


def outcome(store: str) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Metrics and tables of the newest confirmation."""
    parent = max(runs(store, "confirmation"), key=lambda run: run.info.start_time)
    tracker = Stubs(store).tracker
    ranking = tracker.artifact_table(parent.info.run_id, "confirmation")
    seeds = tracker.artifact_table(parent.info.run_id, "seeds")
    return parent.data.metrics, ranking, seeds


@pytest.mark.slow
def test_a_race_trains_three_seeds_of_all_and_more_of_those_that_are_still_in(
    store: str, raced: Any
) -> None:
    winner, stubs = race(store, raced)
    metrics, ranking, seeds = outcome(store)
    counts = {name: len(rows) for name, rows in seeds.groupby("candidate")}
    assert counts == dict(zip(ranking["name"], ranking["seeds"], strict=True))
    assert len(stubs.started) == len(seeds) == 13 and sorted(counts.values()) == [3, 5, 5]
    assert list(ranking["tied"]) == list(ranking[["p_seeds", "p_images"]].max(axis=1) > 0.05)
    own = seeds[seeds["candidate"] == ranking["name"][0]]["val_accuracy"]
    assert ranking["sd_seeds"][0] == pytest.approx(own.std(), rel=1e-5)
    both = np.hypot(ranking["sd_seeds"], ranking["sd_images"])
    assert ranking["sd_both"].tolist() == pytest.approx(both.tolist(), rel=1e-4)
    best = ranking.sort_values("sweep_val_accuracy").iloc[-1]
    assert metrics["selection_bias"] == pytest.approx(
        best["sweep_val_accuracy"] - best["mean"], abs=1e-6
    )
    assert winner in set(seeds["run_id"])


@pytest.mark.slow
def test_the_outcome_of_a_race_does_not_depend_on_who_trains_it(store: str, raced: Any) -> None:
    """With more workers than runs at first, later seeds start before they are known to be needed."""
    race(store, raced)
    _, ranking, seeds = outcome(store)
    for workers in (2, 5, 16):
        for run in runs(store, "confirmation"):
            mlflow.MlflowClient(store).delete_run(run.info.run_id)
        _, stubs = race(store, raced, f"search.workers={workers}")
        _, other, others = outcome(store)
        facts = ["name", "mean", "seeds", "p_seeds", "p_images", "tied", "winner"]
        pd.testing.assert_frame_equal(ranking[facts], other[facts])
        pd.testing.assert_frame_equal(seeds.drop(columns="run_id"), others.drop(columns="run_id"))
        assert {config.training.seed for config in stubs.started} <= set(
            range(FIRST_SEED, FIRST_SEED + 6)
        )
        assert "RUNNING" not in {run.info.status for run in runs(store, "confirmation-run")}


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 9, 11])
def test_an_interrupted_race_goes_on_with_what_was_trained(
    stop: int, store: str, raced: Any
) -> None:
    behaviour = {"behaviour": lambda config, n: "signal" if n == stop else "done"}
    with pytest.raises(Interrupted), interruptible():
        race(store, raced, **behaviour, on_signal=lambda: os.kill(os.getpid(), signal.SIGTERM))
    _, stubs = race(store, raced)
    _, ranking, seeds = outcome(store)
    finished = [run for run in runs(store, "confirmation-run") if run.info.status == "FINISHED"]
    assert len(finished) == len(seeds) and len(stubs.started) == len(seeds) - stop + 1
    assert len(runs(store, "confirmation")) == 1


@pytest.mark.slow
def test_a_candidate_whose_seed_fails_is_not_ranked_and_the_race_goes_on(
    store: str, raced: Any
) -> None:
    with pytest.raises(
        StudyError, match="1 run of the confirmation failed:\n.*seed 1000001: training diverged"
    ):
        race(store, raced, behaviour=lambda config, n: "failed" if n == 5 else "done")
    _, ranking, _ = outcome(store)
    assert len(ranking) == 2 and ranking["winner"].sum() == 1
    _, stubs = race(store, raced)  # the same command tries that seed again
    assert len(outcome(store)[1]) == 3 and FIRST_SEED + 1 in {
        config.training.seed for config in stubs.started
    }


@pytest.mark.slow
@pytest.mark.parametrize(("top", "networks"), [(1, 3), (2, 6)])
def test_a_race_of_one_has_nothing_to_decide(
    top: int, networks: int, store: str, study: Any
) -> None:
    """Nor has one of two that are equally far apart with every seed."""
    _, stubs = again(store, study, "confirm.seeds=auto", f"confirm.top={top}")
    assert len(stubs.started) == networks


@pytest.mark.slow
def test_another_end_of_the_race_is_another_confirmation(store: str, study: Any) -> None:
    for words in (
        ["confirm.seeds=auto"],
        ["confirm.seeds=auto", "confirm.max_seeds=4"],
        ["confirm.seeds=4"],
    ):
        again(store, study, "confirm.top=1", *words)
    assert len(runs(store, "confirmation")) == 3
