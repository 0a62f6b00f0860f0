"""Whole studies with stub trials: no process and no TensorFlow, real stores."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from stub_worker import SPACE, Stubs, draw_no_studies, plan, runs, states, workspace

from digit_study.config.run_config import Config
from digit_study.config.space import Dimension, suggest
from digit_study.config.study_config import PRUNERS
from digit_study.report.figures import run_figures
from digit_study.study import trial_recorder
from digit_study.study._optuna import SAMPLERS, JournalFile
from digit_study.study.results import best_command, trials_frame
from digit_study.study.search import run_study
from digit_study.study.storage import StoredStudy, open_study
from digit_study.study.study_plan import journal_path
from digit_study.study.trial_attributes import (
    REASON,
    REQUEUED,
    SUPERVISOR,
    counted,
    deaths,
)
from digit_study.study.trial_recorder import TrialRecorder
from digit_study.support import processes
from digit_study.support.errors import StudyError
from digit_study.support.signals import Interrupted, interruptible
from digit_study.support.trial_status import ABANDONED
from digit_study.tracking.queries import HAS_RESULT
from digit_study.tracking.runs import Runs
from digit_study.tracking.session import Tracker
from digit_study.tracking.writer import RunWriter
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.protocol import TrialRequest

SMALL = (
    "search.space={model.filters: {choices: [8, 16]}, training.optimizer: {choices: [adam, sgd]}}"
)


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing but where a test is about pictures: they take a second a study."""
    if "picture" not in request.node.name:
        draw_no_studies(monkeypatch)
        monkeypatch.setattr(run_figures, "write_data_figures", lambda digits, folder: None)


def search(store: str, *words: str, space: str = SPACE, **how: object) -> tuple[StoredStudy, Stubs]:
    stubs = Stubs(store, **how)  # type: ignore[arg-type]
    return run_study(plan(*words, space=space), stubs.engine), stubs


# --------------------------------------------------------------------------- a study from start to end


@pytest.mark.slow
def test_a_study_ends_with_a_board_and_pictures_on_its_parent(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    view, _ = search(store, "search.trials=6", "search.pruner=none")
    assert states(view) == ["COMPLETE"] * 6
    found = runs(store)
    parent = found.pop("study")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.data.tags["trial.state"] for run in found.values()} == {"COMPLETE"}
    artifacts = {one.path for name in ("figures", "tables") for one in
                 mlflow.MlflowClient(store).list_artifacts(parent.info.run_id, name)}  # fmt: skip
    pictures = (
        "optimisation_history",
        "intermediate_values",
        "importances",
        "slices",
        "parallel_coordinates",
    )
    assert {f"figures/{name}.png" for name in (*pictures, "timeline", "leaderboard")} <= artifacts
    assert {"tables/leaderboard.csv", "tables/trials.csv"} <= artifacts
    printed = capsys.readouterr().out
    assert (
        "python src/run.py data=mnist_sample model=tiny training.epochs=3 model.filters=" in printed
    )
    assert "python sweeps/confirm.py study=s" in printed


@pytest.mark.slow
def test_the_baseline_comes_first_and_seeds_differ(store: str) -> None:
    view, stubs = search(store, "search.trials=5", "search.pruner=none")
    first = view.trials()[0]
    assert first.params == {"model.filters": 8, "model.dropout": 0.0, "training.optimizer": "adam"}
    assert [config.training.seed for config in stubs.started] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_what_a_person_wants_first_is_tried_first(store: str) -> None:
    start = "search.start=[{model.filters: 40, model.dropout: 0}, {training.optimizer: sgd}]"
    view, stubs = search(store, "search.trials=4", "search.pruner=none", start)
    first, second, baseline, _ = [trial.params for trial in view.trials()]
    assert (first["model.filters"], first["model.dropout"]) == (40, 0.0)
    assert second["training.optimizer"] == "sgd"
    assert baseline == {"model.filters": 8, "model.dropout": 0.0, "training.optimizer": "adam"}
    assert [config.model.filters for config in stubs.started][0] == 40
    # the same points again are not tried again, another is
    more = f"{start[:-1]}, {{model.filters: 64}}]"
    view, stubs = search(store, "search.trials=5", "search.pruner=none", more)
    assert [config.model.filters for config in stubs.started] == [64]


@pytest.mark.slow
def test_when_the_time_is_over_what_runs_ends_and_the_same_command_goes_on(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    minutes = 0.05

    def lasts_longer(config: Config, number: int) -> str:
        if number == 4:
            time.sleep(60 * minutes)
        return "done"

    timeout = f"search.timeout={minutes}"
    view, _ = search(store, "search.trials=10", timeout, behaviour=lasts_longer)
    ended = states(view)
    assert 0 < len(ended) < 10 and set(ended) <= {"COMPLETE", "PRUNED"} and "COMPLETE" in ended
    assert f"{10 - len(ended)} of 10 trials are left" in capsys.readouterr().out
    view, _ = search(store, "search.trials=10")
    assert len(view.trials()) == 10


@pytest.mark.slow
def test_the_best_config_names_the_seed_and_the_threads_that_were_trained_with(store: str) -> None:
    """Whatever today's command would give a trial."""
    view, _ = search(store, "search.trials=1", "training.threads=1")
    assert "training.seed=1 training.threads=1 " in best_command(plan("training.threads=2"), view)
    seeds = "search.space={training.seed: {choices: [11, 12]}, training.threads: {choices: [2]}}"
    view, stubs = search(store, "study=seeds", "search.trials=1", space=seeds)
    assert f"training.seed={stubs.started[0].training.seed} training.threads=2 " in best_command(
        plan(), view
    )
    assert stubs.started[0].training.seed in (11, 12)


def test_a_batch_of_more_than_all_digits_is_refused_before_a_trial_draws_it() -> None:
    with pytest.raises(
        StudyError, match="`training.batch_size` is at most the 3000 digits .* got 5000"
    ):
        plan(space="search.space={training.batch_size: {choices: [32, 5000]}}")


def test_a_batch_of_more_than_all_digits_is_refused_in_a_searched_group_too() -> None:
    with pytest.raises(StudyError, match="at most the 100 digits there are .* got 128"):
        space = "search.space={training: {choices: [smoke, plain]}}"
        plan("data.limit=100", "training=smoke", space=space)


@pytest.mark.slow
def test_the_same_command_continues_to_the_total(store: str) -> None:
    search(store, "search.trials=3", "search.pruner=none")
    view, stubs = search(store, "search.trials=5", "search.pruner=none")
    assert (len(view.trials()), len(stubs.started)) == (5, 2)
    _, again = search(store, "search.trials=5", "search.pruner=none")
    assert again.started == []
    assert len([1 for run in runs(store).values() if run.data.tags["kind"] == "study"]) == 1


@pytest.mark.slow
def test_a_trial_that_waits_does_not_count_among_those_of_which_one_is_the_best(store: str) -> None:
    view, _ = search(store, "search.trials=1", "search.pruner=none")
    best = {"model.filters": 40, "model.dropout": 0.0, "training.optimizer": "adam"}
    view.study.enqueue_trial(best)
    search(store, "search.trials=1", "search.pruner=none")
    search(store, "search.trials=2", "search.pruner=none")
    params = runs(store)["study"].data.params
    found = {key: name.split(" ")[0] for key, name in params.items() if key.startswith("best_of")}
    assert found == {"best_of_1_trials": "0:", "best_of_2_trials": "1:"}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_every_sampler_reaches_the_total(sampler: str, store: str) -> None:
    view, _ = search(
        store, f"search.sampler={sampler}", "search.trials=4", "search.pruner=none", space=SMALL
    )
    assert states(view) == ["COMPLETE"] * 4


@pytest.mark.slow
def test_the_tpe_sampler_draws_what_optunas_own_draws() -> None:
    def drawn(sampler: optuna.samplers.BaseSampler) -> list[dict[str, Any]]:
        study, chance, params = optuna.create_study(sampler=sampler), random.Random(0), []
        dimensions = plan(space="search/space=default").dimensions
        for number in range(60):
            params.append(suggest(study.ask(), dimensions))
            if number % 7 != 5:  # the others stay RUNNING
                study.tell(
                    number,
                    chance.random() if number % 3 else None,
                    None if number % 3 else TrialState.PRUNED,
                )
        return params

    assert drawn(SAMPLERS["tpe"](seed=3)) == drawn(optuna.samplers.TPESampler(seed=3))


@pytest.mark.slow
@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_reaches_the_total(pruner: str, store: str) -> None:
    view, _ = search(store, f"search.pruner={pruner}", "search.sampler=random", "search.trials=8")
    assert set(states(view)) <= {"COMPLETE", "PRUNED"} and len(view.trials()) == 8


@pytest.mark.slow
def test_a_pruned_trial_has_ended_well_and_has_no_result(store: str) -> None:
    view, stubs = search(store, "search.pruner=median", "search.sampler=random", "search.trials=14")
    pruned = [str(trial.number) for trial in view.trials(TrialState.PRUNED)]
    assert pruned
    parent = runs(store)["study"].info.run_id
    for number in pruned:
        run = runs(store)[number]
        tags = run.data.tags
        assert (tags["trial.state"], run.info.status) == ("PRUNED", "FINISHED")
        assert tags["stopped"] == "others promise more" and "failure" not in tags
        # everything that needs a result refuses it, in words
        tracker = stubs.tracker
        assert tracker.finished_metrics(run.info.run_id) is None
        with pytest.raises(StudyError, match="which is a pruned trial, stopped before its last"):
            tracker.finished_run(run.info.run_id, "run_id")
    with_result = {run_id for run_id, _ in stubs.tracker.children(parent, HAS_RESULT)}
    complete = view.trials(TrialState.COMPLETE)
    assert with_result == {trial.user_attrs["run_id"] for trial in complete}


@pytest.mark.slow
def test_one_worker_and_one_seed_give_the_same_trials_under_another_name(store: str) -> None:
    words = ("search.trials=12", "search.pruner=hyperband")
    one, two = (search(store, *words, f"study={name}")[0] for name in ("one", "two"))
    assert [(t.params, t.values, t.state) for t in one.trials()] == [
        (t.params, t.values, t.state) for t in two.trials()
    ]


@pytest.mark.slow
def test_a_grid_is_walked_once_and_is_then_full(store: str) -> None:
    view, _ = search(
        store, "search.sampler=grid", "search.trials=50", "search.pruner=none", space=SMALL
    )
    assert sorted(tuple(t.params.values()) for t in view.trials()) == [
        (8, "adam"), (8, "sgd"), (16, "adam"), (16, "sgd")]  # fmt: skip


class CountedDimensions(list[Dimension]):
    """Dimensions that count how often somebody goes through them."""

    times = 0

    def __iter__(self) -> Iterator[Dimension]:
        self.times += 1
        return super().__iter__()


def test_the_points_of_a_grid_are_listed_once_and_not_for_every_trial() -> None:
    planned = plan("search.sampler=grid", "search.trials=50", space=SMALL)
    dimensions = CountedDimensions(planned.dimensions)
    planned = replace(planned, dimensions=dimensions)
    assert planned.total == 4
    once = dimensions.times
    assert planned.total == 4 and dimensions.times == once > 0


@pytest.mark.slow
def test_a_configuration_met_again_is_a_further_seed_of_it(store: str) -> None:
    one_point = "search.space={model.filters: {choices: [8]}}"
    view, stubs = search(store, "search.trials=3", "search.pruner=none", space=one_point)
    assert [trial.user_attrs.get("replicate_of") for trial in view.trials()] == [None, 0, 0]
    assert len({config.training.seed for config in stubs.started}) == 3
    client = mlflow.MlflowClient(store)
    path = client.download_artifacts(runs(store)["study"].info.run_id, "tables/leaderboard.csv")
    assert list(pd.read_csv(path)["seeds"]) == [3]  # one row, three seeds
    assert runs(store)["2"].data.tags["trial.replicate_of"] == "0"


@pytest.mark.slow
def test_a_group_and_what_depends_on_it_are_searched_together(store: str) -> None:
    space = "search.space={model: {choices: [lenet, cnn]}, model.blocks: {low: 2, high: 3, when: {model: [cnn]}}}"
    view, stubs = search(
        store, "search.sampler=grid", "search.trials=9", "search.pruner=none", space=space
    )
    assert {(config.model.name, config.model.blocks) for config in stubs.started} == {
        ("lenet", 2),
        ("cnn", 2),
        ("cnn", 3),
    }
    assert states(view) == ["COMPLETE"] * 3


# --------------------------------------------------------------------------- several objectives, constraints


@pytest.mark.slow
def test_several_objectives_give_a_front_in_pictures_tables_and_on_the_terminal(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = "search.objectives=[{val_accuracy: maximize}, {parameters: minimize}]"
    view, _ = search(store, objectives, "search.trials=6", "search.sampler=nsga2")
    assert "Pareto front" in capsys.readouterr().out
    client, parent = mlflow.MlflowClient(store), runs(store)["study"].info.run_id
    assert "figures/pareto.png" in {one.path for one in client.list_artifacts(parent, "figures")}
    rows = Path(client.download_artifacts(parent, "tables/pareto.csv")).read_text().splitlines()[1:]
    assert {int(row.split(",")[0]) for row in rows} == {
        trial.number for trial in view.study.best_trials
    }


@pytest.mark.slow
def test_what_breaks_a_constraint_is_not_ranked(store: str) -> None:
    view, _ = search(store, "search.constraints=['parameters <= 2000']", "search.trials=8", "search.sampler=random",
                     "search.pruner=none")  # fmt: skip
    broken = {t.number for t in view.trials() if t.params["model.filters"] > 20}
    assert broken
    best = runs(store)["study"].data.tags["best.name"]
    assert int(best.split(":")[0]) not in broken
    assert all((max(t.constraints.values()) > 0) == (t.number in broken) for t in view.trials())


# --------------------------------------------------------------------------- what goes wrong costs one trial


@pytest.mark.slow
def test_a_trial_that_raises_costs_itself_alone(store: str) -> None:
    view, _ = search(
        store, "search.trials=4", behaviour=lambda config, n: "failed" if n == 2 else "done"
    )
    assert states(view).count("FAIL") == 1 and len(view.trials()) == 4
    assert view.trials()[1].user_attrs["reason"] == "training diverged"
    run = runs(store)["1"]
    assert (run.info.status, run.data.tags["trial.state"], run.data.tags["failure"]) == (
        "FAILED", "FAIL", "training diverged")  # fmt: skip


@pytest.mark.slow
def test_a_killed_trial_runs_once_more_with_its_params_and_seed(store: str) -> None:
    view, stubs = search(store, "search.trials=3", "search.pruner=none",
                         behaviour=lambda config, n: "died" if n == 1 else "done")  # fmt: skip
    assert states(view) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "SIGKILL" in view.trials()[0].user_attrs["reason"]
    assert view.trials()[1].user_attrs["retry_of"] == 0
    assert (stubs.started[0].model, stubs.started[0].training) == (
        stubs.started[1].model,
        stubs.started[1].training,
    )
    assert runs(store)["0"].info.status == "FAILED"


@pytest.mark.slow
def test_a_configuration_that_kills_every_process_is_given_up(store: str) -> None:
    view, _ = search(store, "search.trials=2", "search.pruner=none",
                     behaviour=lambda config, n: "died" if n < 3 else "done")  # fmt: skip
    assert states(view) == ["FAIL", "FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_trial_that_hangs_is_ended_by_the_time_limit(store: str) -> None:
    view, _ = search(store, "search.trials=2", "search.trial_timeout=0.2",
                     behaviour=lambda config, n: "hangs" if n == 1 else "done")  # fmt: skip
    assert states(view) == ["FAIL", "COMPLETE"]
    assert "search.trial_timeout=0.2" in view.trials()[0].user_attrs["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "ran"), [("search.fail_fast=true", 1), ("search.max_failures=2", 2)]
)
def test_failures_stop_a_study_that_asks_for_it(word: str, ran: int, store: str) -> None:
    stubs = Stubs(store, lambda config, n: "failed")
    with pytest.raises(StudyError, match=f"stopped by {word}.*training diverged"):
        run_study(plan("search.trials=5", word), stubs.engine)
    assert len(stubs.started) == ran
    assert runs(store)["study"].info.status == "FAILED"


@pytest.mark.slow
def test_a_study_without_a_result_says_so(store: str) -> None:
    with pytest.raises(StudyError, match="has no finished trial"):
        run_study(plan("search.trials=2"), Stubs(store, lambda config, n: "failed").engine)
    assert runs(store)["study"].info.status == "FAILED"


def test_a_combination_that_breaks_a_rule_costs_one_trial_and_is_told(store: str) -> None:
    space = "search.space={model.kernel_size: {choices: [3, 25]}, model.blocks: {choices: [2, 1]}}"
    words = (
        "model=lenet",
        "model.blocks=2",
        "search.sampler=grid",
        "search.trials=4",
        "search.pruner=none",
    )
    with pytest.raises(StudyError, match=r"reaches 25|reaches 1"):
        plan(*words, space=space)


# --------------------------------------------------------------------------- interrupted and gone on


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_running_and_loses_nothing(
    number: signal.Signals, store: str
) -> None:
    stubs = Stubs(
        store,
        lambda config, n: "signal" if n == 3 else "done",
        lambda: os.kill(os.getpid(), number),
    )
    with pytest.raises(Interrupted), interruptible():
        run_study(plan("search.trials=4", "search.pruner=none"), stubs.engine)
    assert {run.info.status for run in runs(store).values()} == {"FINISHED", "KILLED"}
    view, again = search(store, "search.trials=4", "search.pruner=none")
    assert [t.state.name for t in counted(view.trials())] == ["COMPLETE"] * 4
    assert (
        again.started[0].model == stubs.started[2].model
        and again.started[0].training == stubs.started[2].training
    )


@pytest.mark.slow
def test_the_last_trial_of_a_supervisor_that_then_dies_is_run_here(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A total is met when all has ended: whoever is done first waits for what others still run, and takes it over."""
    other = subprocess.Popen(["sleep", "60"])
    dies = threading.Timer(1.0, lambda: (other.kill(), other.wait()))

    def begins(config: Config, number: int) -> str:
        if number == 1:
            trial = optuna.load_study(
                study_name="s",
                storage=optuna.storages.JournalStorage(JournalFile(journal_path(workspace(), "s"))),
            ).ask()
            trial.set_user_attr(SUPERVISOR, processes.process_name(other.pid))
            dies.start()
        return "done"

    view, stubs = search(store, "search.trials=3", "search.pruner=none", behaviour=begins)
    dies.join()
    assert states(view) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"] and len(stubs.started) == 3
    assert capsys.readouterr().out.count("waiting for what other processes run: trial 1\n") == 1


@pytest.mark.slow
def test_a_trial_that_another_machine_took_over_stays_failed(store: str) -> None:
    """Its process is told to stop, and would have its run count as pruned."""

    def take_over() -> None:
        storage = optuna.storages.JournalStorage(JournalFile(journal_path(workspace(), "s")))
        study = optuna.load_study(study_name="s", storage=storage)
        trial = optuna.Trial(study, study.trials[0]._trial_id)
        trial.set_user_attr(REASON, ABANDONED)
        trial.set_user_attr(REQUEUED, value=True)
        study.tell(0, state=TrialState.FAIL)

    view, _ = search(
        store,
        "search.trials=2",
        "search.pruner=none",
        behaviour=lambda config, number: "signal" if number == 1 else "done",
        on_signal=take_over,
    )
    assert states(view) == ["FAIL", "COMPLETE", "COMPLETE"]
    tags = runs(store)["0"].data.tags
    assert (tags["trial.state"], tags["failure"]) == ("FAIL", ABANDONED)


@pytest.mark.slow
def test_a_trial_that_two_machines_take_over_at_once_is_left_to_the_faster(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("search.trials=1", "search.max_failures=1")
    stubs = Stubs(store, behaviour=lambda config, number: "failed")
    with pytest.raises(StudyError, match="max_failures=1"):
        run_study(plan(*words), stubs.engine)
    plan_again = plan(*words)
    stored = open_study(
        plan_again.study, plan_again.run, plan_again.overrides, plan_again.workspace
    )
    (failed,) = stored.trials()
    seen_before = copy.copy(failed)
    seen_before.state = TrialState.RUNNING
    monkeypatch.setattr(trial_recorder, "orphans", lambda stored: [seen_before])
    ends: list[object] = []
    parent = runs(store)["study"].info.run_id
    recorder = TrialRecorder(
        plan_again, stored, stubs.tracker, parent, lambda *end: ends.append(end)
    )
    recorder.adopt_orphans()
    assert states(stored) == ["FAIL"] and ends == []


@pytest.mark.slow
def test_a_run_that_was_tagged_as_failed_and_not_ended_is_ended(store: str) -> None:
    """As where a machine died between the two, while it took a trial over."""
    words = ("search.pruner=none", "search.max_failures=null")
    search(
        store,
        "search.trials=2",
        *words,
        behaviour=lambda config, number: "failed" if number == 1 else "done",
    )
    failed = runs(store)["0"]
    assert failed.data.tags["trial.state"] == "FAIL"
    mlflow.MlflowClient(store).update_run(failed.info.run_id, status="RUNNING")
    search(store, "search.trials=3", *words)
    ended = runs(store)["0"]
    assert (ended.info.status, ended.data.tags["trial.state"]) == ("KILLED", "FAIL")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["ask", "create_run", "submit", "tell", "tag"])
def test_a_supervisor_that_dies_leaves_what_the_next_one_mends(
    moment: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kill -9 at that moment: nothing after it runs, not even what stands in a `finally`."""
    gone = DiesAt(moment, 2)
    with pytest.raises(Gone):
        run_study(plan("search.trials=4", "search.pruner=none"), Stubs(store).engine)
    gone.monkeypatch.undo()
    monkeypatch.setattr(processes, "find_process", lambda name: None)
    view, _ = search(store, "search.trials=4", "search.pruner=none")
    assert [t.state.name for t in counted(view.trials())] == ["COMPLETE"] * 4
    by_state = {
        run.data.tags.get("trial.state") for key, run in runs(store).items() if key != "study"
    }
    assert by_state <= {"COMPLETE", "FAIL"} and "RUNNING" not in {
        run.info.status for run in runs(store).values()
    }


@pytest.mark.slow
def test_a_trial_whose_stop_was_not_recorded_any_more_is_pruned_and_does_not_run_again(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("search.trials=14", "search.pruner=median", "search.sampler=random")
    gone = DiesAt("prune", 1)
    before = Stubs(store)
    with pytest.raises(Gone):
        run_study(plan(*words), before.engine)
    gone.monkeypatch.undo()
    monkeypatch.setattr(processes, "find_process", lambda name: None)
    view, after = search(store, *words)
    assert set(states(view)) == {"COMPLETE", "PRUNED"} and len(view.trials()) == 14
    assert len(before.started) + len(after.started) == 14


class Gone(BaseException):
    """Stands for a SIGKILL."""


class DiesAt:
    def __init__(self, moment: str, nth: int) -> None:
        self.monkeypatch = pytest.MonkeyPatch()
        place, name, after = {
            "ask": (Study, "ask", True),
            "create_run": (Runs, "create_run", True),
            "submit": (Stubs, "__call__", False),
            "tell": (Study, "tell", False),
            "tag": (Runs, "tag_run", False),
            "prune": (TrialRecorder, "prune", False),
        }[moment]
        original, calls = getattr(place, name), count(1)
        nth += moment == "create_run"  # the first is the parent

        def dying(*arguments: object, **more: object) -> object:
            number = next(calls)
            if number == nth and after:
                original(*arguments, **more)
            if number >= nth:
                self._end_everything()
                raise Gone
            return original(*arguments, **more)

        self.monkeypatch.setattr(place, name, dying)

    def _end_everything(self) -> None:
        nothing = lambda *arguments, **more: None  # noqa: E731
        for name in ("interrupt", "reconcile_runs"):
            self.monkeypatch.setattr(TrialRecorder, name, nothing)
        self.monkeypatch.setattr(RunWriter, "end", nothing)
        self.monkeypatch.setattr("digit_study.study.search._report", nothing)


# --------------------------------------------------------------------------- small parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metrics", "end"),
    [
        ({"val_loss": math.nan}, TrialState.FAIL),
        ({"val_loss": math.inf}, TrialState.FAIL),
        ({}, TrialState.COMPLETE),
    ],
)
def test_a_result_that_is_no_number_is_no_result(
    metrics: dict[str, float], end: TrialState, store: str
) -> None:
    def broken(request: TrialRequest) -> object:
        stub = Stubs(store)(request)
        finish = stub._finish
        stub._finish = lambda: replace(result := finish(), metrics={**result.metrics, **metrics})  # type: ignore[method-assign]
        return stub

    words = ("search.objectives=[{val_loss: minimize}]", "search.trials=1", "search.pruner=none")
    if end is TrialState.FAIL:
        with pytest.raises(StudyError, match="no finished trial"):
            run_study(plan(*words), lambda limits: LocalEngine(limits, broken))  # type: ignore[arg-type]
    else:
        assert (
            run_study(plan(*words), lambda limits: LocalEngine(limits, broken)).trials()[0].state
            is end
        )  # type: ignore[arg-type]


@pytest.mark.slow
def test_only_the_best_models_are_kept(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(Tracker, "drop_models", lambda self, run_id: dropped.append(run_id))
    view, _ = search(store, "search.trials=6", "search.keep_models=2", "search.pruner=none")
    best = sorted(view.trials(), key=lambda trial: (-trial.values[0], trial.number))
    assert sorted(dropped) == sorted(trial.user_attrs["run_id"] for trial in best[2:])


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([], 0),
        (["killed"], 1),
        (["interrupted"], 0),
        (["killed", "interrupted"], 1),
        (["killed", "killed"], 2),
    ],
)
def test_interruptions_use_up_no_retry(reasons: list[str], expected: int) -> None:
    trials: list[FrozenTrial] = []
    for number, reason in enumerate([*reasons, ""]):
        attributes = {"reason": reason} | ({"retry_of": number - 1} if number else {})
        trials.append(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes))
        trials[-1].number = number
    assert deaths(trials[-1], trials) == expected


@pytest.mark.slow
def test_the_frame_of_a_study_has_a_row_for_every_trial(store: str) -> None:
    view, _ = search(
        store,
        "search.trials=3",
        "search.pruner=none",
        behaviour=lambda config, n: "failed" if n == 2 else "done",
    )
    frame = trials_frame(plan(), view)
    assert list(frame["state"]) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert frame["val_accuracy"].isna().tolist() == [False, True, False]


@pytest.mark.slow
def test_no_tensorflow_is_needed_to_supervise() -> None:
    modules = "digit_study.study.search, digit_study.study.confirmation"
    line = f"import sys; sys.path.insert(0, 'src'); import {modules}; sys.exit('tensorflow' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", line], cwd=Path(__file__).parents[1], check=False
        ).returncode
        == 0
    )
