"""How long something that does not work is waited for, and what a person is told of it."""

from __future__ import annotations

from digit_study.support.outage import Outage


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_a_fault_there_is_no_outage() -> None:
    outage = Outage(timeout=0)
    outage.note_success()
    assert outage.reason is None and outage.seconds == 0.0 and not outage.is_too_long


def test_an_outage_is_announced_once_and_its_end_once() -> None:
    messages: list[str] = []
    outage = Outage(1, on_begin=messages.append, on_end=lambda: messages.append("it works"))
    for _ in range(2):
        outage.note_fault("disk full")
        outage.note_fault("disk still full")
        assert outage.reason == "disk still full"
        outage.note_success()
        outage.note_success()
    assert messages == ["disk full", "it works"] * 2


def test_an_outage_is_too_long_after_its_minutes() -> None:
    clock = Clock()
    outage = Outage(2, clock=clock)
    outage.note_fault("gone")
    clock.now += 119
    outage.note_fault("gone")
    assert outage.seconds == 119 and not outage.is_too_long
    clock.now += 1
    assert outage.is_too_long
    outage.note_success()
    assert not outage.is_too_long
    outage.note_fault("gone")
    assert outage.seconds == 0.0


def test_a_fault_soon_after_the_last_one_continues_the_outage() -> None:
    clock = Clock()
    outage = Outage(1, relapse_s=10, clock=clock)
    for _ in range(6):
        outage.note_fault("full")
        outage.note_success()
        clock.now += 10
    outage.note_fault("full")
    assert outage.is_too_long
    outage.note_success()
    clock.now += 11
    outage.note_fault("full")
    assert outage.seconds == 0.0
