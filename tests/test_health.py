"""Whether trials may start: faults of the infrastructure, pauses, and the outage time-out."""

from __future__ import annotations

from pathlib import Path

import pytest

from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.trial.health import Health


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def health_of(store: str, root: Path, clock: Clock, memory: int = 0) -> Health:
    """Return the health of a study that waits for a minute."""
    workspace = Workspace(root)
    return Health(store, workspace, 1.0, "search.outage_timeout", memory=memory, clock=clock)


@pytest.fixture
def health(store: str, tmp_path: Path, clock: Clock) -> Health:
    (tmp_path / "mlruns").mkdir(exist_ok=True)
    return health_of(store, tmp_path, clock)


def test_trials_wait_with_growing_pauses_and_go_on(
    health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[float] = []

    def problem() -> str | None:
        probes.append(clock.seconds - 1000)
        return "full" if clock.seconds < 1020 else None

    monkeypatch.setattr(health, "problem", problem)
    assert health.is_ok() and not health.had_fault
    health.report_fault("full")
    while not health.is_ok():
        clock.seconds += 0.5
    assert probes == [1.0, 3.0, 7.0, 15.0, 31.0]
    assert health.had_fault


def test_an_outage_that_lasts_ends_the_study(
    health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a probe finds nothing, and every trial fails all the same
    monkeypatch.setattr(health, "problem", lambda: None)
    message = r"for 1 min \(search.outage_timeout\) there was none: full.*same command goes on"
    with pytest.raises(StudyError, match=message):
        for _ in range(1000):
            if health.is_ok():
                health.report_fault("full")
            clock.seconds += 0.5
    assert 60 < clock.seconds - 1000 < 130


def test_a_fault_after_a_long_time_is_an_outage_of_its_own(
    health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "problem", lambda: None)
    for _ in range(10):
        health.report_fault("full")
        clock.seconds += 1000.0
        assert health.is_ok()


def test_disk_memory_and_store_are_probed_by_using_them(
    health: Health, store: str, tmp_path: Path, clock: Clock
) -> None:
    assert health.problem() is None
    starved = health_of(store, tmp_path, clock, memory=2**60)
    assert "of memory are left" in str(starved.problem())
    full = Health(store, Workspace(Path("/proc")), 1.0, "search.outage_timeout", clock=clock)
    assert "there is no room for 8 MB in /proc/mlruns" in str(full.problem())
