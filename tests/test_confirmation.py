"""Confirmation with stub trials: no process and no TensorFlow, real stores."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from stub_worker import SPACE, Stubs, plan

from digit_study.data import digits as data
from digit_study.engine.protocol import ENGINES
from digit_study.search import report
from digit_study.search.run import run_study
from digit_study.terminal.messages import StudyError
from digit_study.terminal.signals import Interrupted, interruptible
from digit_study.training import figures
from digit_study.verify.confirmation import FIRST_SEED, confirm, plan_confirmation

WORDS = ("search.trials=4", "search.pruner=none", "confirm.top=2", "confirm.seeds=3")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_pictures", lambda plan, stored, folder: None)
    monkeypatch.setattr(figures, "write_data_figures", lambda digits, folder: None)
    for name in ("open_sealed_test_set",):
        monkeypatch.setattr(data, name, lambda *arguments, **more: pytest.fail("the test set was opened"))


@pytest.fixture
def study(store: str) -> Any:
    return run_study(plan(*WORDS), Stubs(store).engine)


def again(store: str, study: Any, *words: str, **how: Any) -> tuple[str, Stubs]:
    stubs = Stubs(store, **how)
    return confirm(plan(*WORDS, *words), study, stubs.engine), stubs


def runs(store: str, kind: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(store)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return [run for run in found if run.data.tags["kind"] == kind]


def test_the_best_are_trained_on_the_same_fresh_seeds_and_one_wins(store: str, study: Any) -> None:
    winner, stubs = again(store, study)
    by_filters: dict[int, set[int]] = {}
    for config in stubs.started:
        by_filters.setdefault(config.model.filters, set()).add(config.training.seed)
    assert list(by_filters.values()) == [{FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2}] * 2
    [parent] = runs(store, "confirmation")
    assert (parent.info.status, parent.data.tags["study"]) == ("FINISHED", "s")
    assert parent.data.tags["winner.run_id"] == winner
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(store, "confirmation-run")} == {parent.info.run_id}
    client = mlflow.MlflowClient(store)
    assert [one.path for one in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/confirmation.png"]
    table = Path(client.download_artifacts(parent.info.run_id, "tables/confirmation.csv")).read_text()
    assert "low,high" in table and len(table.splitlines()) == 3


@pytest.mark.slow
def test_what_was_finished_is_not_run_again(store: str, study: Any) -> None:
    stubs = Stubs(store, lambda config, n: "signal" if n == 3 else "done", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with interruptible(), pytest.raises(Interrupted):
        confirm(plan(*WORDS), study, stubs.engine)
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
    with pytest.raises(StudyError, match="1 runs of the confirmation failed:\n.*training diverged"):
        again(store, study, "confirm.top=3", behaviour=lambda config, n: "failed" if n == 2 else "done")
    assert "RUNNING" not in {run.info.status for run in runs(store, "confirmation-run")}


@pytest.mark.parametrize("prefer", ["smallest", "accuracy"])
def test_the_winner_is_as_preferred(prefer: str, store: str, study: Any) -> None:
    winner, stubs = again(store, study, f"confirm.prefer={prefer}")
    client = mlflow.MlflowClient(store)
    [parent] = runs(store, "confirmation")
    table = Path(client.download_artifacts(parent.info.run_id, "tables/confirmation.csv")).read_text().splitlines()
    rows = [dict(zip(table[0].split(","), line.split(","), strict=True)) for line in table[1:]]
    eligible = [row for row in rows if row["tied"] == "True"] if prefer == "smallest" else rows[:1]
    assert winner == min(eligible, key=lambda row: float(row["parameters"]))["run_id"]


def test_a_search_can_confirm_at_its_end(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "local", Stubs(store).engine)
    words = ["study=s", "data=mnist_sample", "model=tiny", "training.epochs=3", "search.workers=1", SPACE]
    monkeypatch.setattr(sys, "argv", ["optuna_search.py", *words, *WORDS, "search.confirm=true"])
    runpy.run_path(str(Path(__file__).parents[1] / "sweeps" / "optuna_search.py"))["main"]()
    [parent] = runs(store, "confirmation")
    assert "winner.run_id" in parent.data.tags


def test_a_study_is_rebuilt_from_its_storage(store: str, study: Any) -> None:
    asked = plan("confirm.top=1")
    rebuilt, found = plan_confirmation(["study=s", "confirm.top=1"], asked.study)
    assert found.study.study_name == "s" and rebuilt.study.confirm.top == 1
    assert (rebuilt.run.model, rebuilt.run.data) == (asked.run.model, asked.run.data)


def test_a_study_with_nothing_finished_is_told_what_to_do(store: str) -> None:
    with pytest.raises(StudyError, match="no finished trial"):
        run_study(plan("search.trials=1"), Stubs(store, lambda config, n: "failed").engine)
    asked = plan("search.trials=1")
    _, found = plan_confirmation(["study=s"], asked.study)
    with pytest.raises(StudyError, match=r"needs finished trials.*python sweeps/optuna_search.py study=s"):
        confirm(asked, found, Stubs(store).engine)
    assert runs(store, "confirmation") == []
