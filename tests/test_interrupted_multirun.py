"""Which parent run a ``-m`` opens: that of the same command that was interrupted, or a new one."""

from __future__ import annotations

import pytest
from stub_worker import Stubs, workspace

from digit_study.study.interrupted_multirun import ENDED_TAG, open_parent
from digit_study.study.run_plan import RunPlan, plan_runs
from digit_study.tracking.session import Tracker

SMALL = ("-m", "data=mnist_sample", "model=tiny", "training.threads=1", "training.seed=0,1")


def plan(*words: str) -> RunPlan:
    return plan_runs([*SMALL, *words], workspace())


@pytest.fixture
def tracker(store: str) -> Tracker:
    return Stubs(store).tracker


@pytest.fixture
def parent(tracker: Tracker) -> str:
    """The parent run of a command that was interrupted."""
    run_id = open_parent(plan(), tracker, "2 runs").run_id
    tracker.client.set_terminated(run_id, "KILLED")
    return run_id


def test_the_same_command_goes_on_with_the_parent_that_was_interrupted(
    tracker: Tracker, parent: str
) -> None:
    opened = open_parent(plan(), tracker, "2 runs")
    assert opened.run_id == parent and opened.finished == {}
    assert tracker.client.get_run(parent).info.status == "RUNNING"


@pytest.mark.parametrize("words", ["fresh=true", "training.epochs=3", "training.seed=1,0"])
def test_another_command_begins_its_own(words: str, tracker: Tracker, parent: str) -> None:
    assert open_parent(plan(words), tracker, "2 runs").run_id != parent


def test_what_came_to_its_end_or_still_runs_is_not_opened_again(
    tracker: Tracker, parent: str
) -> None:
    tracker.client.update_run(parent, status="RUNNING")
    second = open_parent(plan(), tracker, "2 runs").run_id
    assert second != parent
    tracker.client.set_tag(second, ENDED_TAG, "true")
    tracker.client.set_terminated(second, "FAILED")
    assert open_parent(plan(), tracker, "2 runs").run_id not in (parent, second)
