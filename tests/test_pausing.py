"""Trials that are paused and resumed: the rule, and whole studies with it."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import mlflow
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as some
from optuna.trial import FrozenTrial, TrialState
from stub_worker import Stubs, draw_no_studies, plan, runs, states

from digit_study.config.run_config import Config
from digit_study.study._optuna import TPE, with_paused
from digit_study.study.halving import LEAST_RESULTS, Halving, reductions
from digit_study.study.search import run_study
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import paused_limit
from digit_study.study.trial_attributes import PAUSED_AFTER, counted
from digit_study.support.signals import Interrupted, interruptible
from digit_study.trial.events import Decision
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.protocol import EngineContext


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures of studies: they take a second each."""
    draw_no_studies(monkeypatch)


class WatchedEngine(LocalEngine):
    """The local engine, which counts the trials that are paused at a time."""

    most_paused = 0
    resumed = 0

    def answer(self, key: int, decision: Decision) -> None:
        """Answer, and count."""
        if key in self.paused and decision is Decision.CONTINUE:
            self.resumed += 1
        super().answer(key, decision)
        self.most_paused = max(self.most_paused, len(self.paused))


class WatchedStubs(Stubs):
    """Stubs whose engine is kept."""

    watched: WatchedEngine

    def engine(self, context: EngineContext) -> LocalEngine:
        """Return the local engine with stubs, and keep it."""
        self.watched = WatchedEngine(context, self)  # type: ignore[arg-type]
        return self.watched


def trials_with(values: Sequence[Sequence[float]]) -> list[FrozenTrial]:
    """Return trials whose intermediate values are given, from the first epoch on."""
    found = []
    for number, curve in enumerate(values):
        trial = optuna.trial.create_trial(
            state=TrialState.PRUNED,
            intermediate_values={epoch + 1: value for epoch, value in enumerate(curve)},
        )
        trial.number = number
        found.append(trial)
    return found


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, {}),
        (2, {1: 4}),
        (3, {1: 4}),
        (5, {1: 4, 2: 2}),
        (6, {1: 4, 2: 2}),
        (9, {1: 4, 3: 2}),
        (30, {4: 4, 10: 2}),
    ],
)
def test_trials_are_compared_after_a_ninth_and_a_third(
    epochs: int, expected: dict[int, int]
) -> None:
    assert reductions(epochs) == expected


@given(some.integers(1, 500))
def test_rungs_ascend_and_leave_epochs_to_train(epochs: int) -> None:
    found = list(reductions(epochs))
    assert found == sorted(set(found))
    assert all(1 <= epoch < epochs for epoch in found)


@pytest.mark.parametrize(
    ("values", "at_least", "expected"),
    [
        ([[0.9]], 0, []),
        ([[0.9]], 1, [0]),
        ([[0.9], [0.8], [0.7]], 0, []),
        ([[0.7], [0.9], [0.8], [0.1]], 0, [1]),
        ([[0.9], [0.9], [0.8], [0.7]], 0, [0]),
        ([[math.nan], [0.1], [math.nan], [math.nan]], 0, [1]),
        ([[0.1], [0.2], [0.3], [0.4], [0.5], [0.6], [0.7], [0.8]], 0, [7, 6]),
    ],
)
def test_a_quarter_goes_on_from_the_first_rung(
    values: list[list[float]], at_least: int, expected: list[int]
) -> None:
    halving = Halving(6, maximizes=True)
    assert halving.best(trials_with(values), 1, at_least=at_least) == expected


def test_a_loss_is_better_where_it_is_smaller() -> None:
    trials = trials_with([[0.7], [0.9], [0.8], [0.9]])
    assert Halving(6, maximizes=False).best(trials, 1, at_least=0) == [0]


def test_the_trial_with_the_most_epochs_is_resumed_first() -> None:
    trials = trials_with([[0.5, 0.6], [0.7, 0.7], [0.8, 0.8], [0.9], [0.1], [0.2], [0.3], [0.4]])
    paused = {2: 2, 3: 1, 4: 1, 5: 1}
    halving = Halving(6, maximizes=True)
    assert halving.promotable(trials, paused, at_least=0) == [2, 3]
    assert halving.worst(trials, paused) == 4


def test_a_trial_may_go_on_until_too_many_are_better() -> None:
    trials = trials_with([[0.9], [0.8], [0.7], [0.6], [0.5]])
    halving = Halving(6, maximizes=True)
    chances = [halving.may_go_on(trials, n, 1, total=16) for n in range(5)]
    assert chances == [True, True, True, True, False]


def test_a_trial_that_an_earlier_version_paused_at_another_epoch_comes_again() -> None:
    trials = trials_with([[0.9, 0.9], [0.1, 0.1]])
    assert Halving(30, maximizes=True).rungs == (4, 10)
    assert Halving(30, maximizes=True).may_go_on(trials, 1, 2, total=99)


def test_a_trial_that_failed_takes_no_place_of_the_one_that_runs_again() -> None:
    trials = trials_with([[0.9], [0.8], [0.9], [0.8]])
    for failed in trials[:2]:
        failed.state = TrialState.FAIL
    halving = Halving(6, maximizes=True)
    assert halving.best(trials, 1, at_least=2) == [2, 3]
    assert halving.may_go_on(trials, 3, 1, total=4)


@given(some.lists(some.floats(0, 1), min_size=1, max_size=40))
def test_no_more_than_a_quarter_goes_on(values: list[float]) -> None:
    trials = trials_with([[value] for value in values])
    halving = Halving(6, maximizes=True)
    paused = {trial.number: 1 for trial in trials}
    chosen = halving.promotable(trials, paused, at_least=0)
    assert len(chosen) == len(values) // 4
    rest = [values[number] for number in range(len(values)) if number not in chosen]
    assert all(values[number] >= max(rest) for number in chosen)


def test_the_sampler_sees_what_paused_trials_have_reached() -> None:
    study = optuna.create_study(sampler=TPE(seed=0))
    paused = study.ask()
    paused.suggest_float("x", 0, 1)
    paused.report(0.5, 1)
    paused.set_user_attr(PAUSED_AFTER, 1)
    study.ask().suggest_float("x", 0, 1)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    seen = with_paused(study).get_trials(states=ended)
    assert [(trial.number, trial.intermediate_values) for trial in seen] == [(0, {1: 0.5})]
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING"]


def test_a_paused_trial_decides_what_the_sampler_draws() -> None:
    def drawn(attribute: int | None) -> list[float]:
        study = optuna.create_study(sampler=TPE(seed=0))
        for _ in range(30):
            trial = study.ask()
            value = trial.suggest_float("x", 0, 1)
            trial.report(value, 1)
            trial.set_user_attr(PAUSED_AFTER, attribute)
        return [study.ask().suggest_float("x", 0, 1) for _ in range(5)]

    assert max(drawn(1)) < 0.3
    assert max(drawn(None)) > 0.3


def search(store: str, *words: str, **how: object) -> tuple[StoredStudy, WatchedStubs]:
    stubs = WatchedStubs(store, **how)  # type: ignore[arg-type]
    wanted = ("search.pruner=asha", "training.epochs=6", *words)
    return run_study(plan(*wanted), stubs.engine), stubs


def epochs_of(view: StoredStudy) -> int:
    return sum(len(trial.intermediate_values) for trial in view.trials())


@pytest.mark.slow
def test_a_study_pauses_resumes_and_ends_every_trial(store: str) -> None:
    view, stubs = search(store, "search.trials=20", "search.workers=2")
    found = Counter(states(view))
    assert set(found) == {"COMPLETE", "PRUNED"} and found.total() == 20
    assert stubs.watched.resumed > 0 and stubs.watched.most_paused > 2
    # every trial has an epoch, and most have no more
    assert 20 < epochs_of(view) < 60
    best = max(trial.intermediate_values[1] for trial in view.trials())
    complete = [trial for trial in view.trials() if trial.state is TrialState.COMPLETE]
    assert best in {trial.intermediate_values[1] for trial in complete}
    tags = {run.data.tags.get("trial.state") for run in runs(store).values()} - {None}
    assert tags == {"COMPLETE", "PRUNED"}
    assert not mlflow.MlflowClient(store).search_runs(["0", "1"], "status = 'RUNNING'")


@pytest.mark.slow
@pytest.mark.parametrize(("total", "complete"), [(1, 1), (2, 2), (5, 3)])
def test_the_best_of_few_trials_get_to_their_end(store: str, total: int, complete: int) -> None:
    view, _ = search(store, f"search.trials={total}")
    assert Counter(states(view))["COMPLETE"] == complete
    assert len(view.trials()) == total


@pytest.mark.slow
def test_no_more_trials_wait_than_may(store: str) -> None:
    view, stubs = search(store, "search.trials=20", "search.paused=3")
    assert stubs.watched.most_paused <= 4 and len(view.trials()) == 20
    assert Counter(states(view))["COMPLETE"] >= 1


@pytest.mark.slow
def test_where_none_may_wait_the_worst_are_pruned_at_once(store: str) -> None:
    view, stubs = search(store, "search.trials=10", "search.paused=0")
    assert stubs.watched.most_paused == 0
    found = Counter(states(view))
    assert found["COMPLETE"] >= 1 and found["PRUNED"] >= 5


def test_none_waits_where_trials_use_a_gpu() -> None:
    planned = plan("search.pruner=asha")
    (node,) = planned.nodes
    with_gpu = replace(planned, nodes=[replace(node, gpus=1)])
    assert paused_limit(planned) > 0
    assert paused_limit(with_gpu) == 0


@pytest.mark.slow
def test_a_study_with_paused_trials_that_is_interrupted_again_and_again_has_results(
    store: str,
) -> None:
    interrupted_at = {8, 15, 20}

    def behaviour(config: Config, number: int) -> str:
        return "signal" if number in interrupted_at else "done"

    words = ("search.pruner=asha", "training.epochs=6", "search.trials=12")
    for _ in interrupted_at:
        stubs = WatchedStubs(store, behaviour, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted), interruptible():
            run_study(plan(*words), stubs.engine)
    view, rest = search(store, "search.trials=12")
    assert "RUNNING" not in states(view)
    assert len(counted(view.trials())) == 12
    # what was paused and hopeless counts; what was good, or ran, was trained again
    assert len(rest.started) < 12
    assert Counter(states(view))["COMPLETE"] >= LEAST_RESULTS
    found = {
        run.info.status
        for run in runs(store).values()
        if run.data.tags.get("trial.state") == "PRUNED"
    }
    assert found == {"FINISHED"}
