"""Studies in real processes, with real kills and signals at several moments."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import Command
from optuna.trial import FrozenTrial
from typed_study import (
    TypedStudy,
    assert_no_process_is_left,
    assert_whole,
    at_once,
    has_run,
    in_an_epoch,
    is_starting,
    one_ended,
    typed_study,
    wait_until,
    workers_of,
)

from digit_study.study.trial_attributes import counted

__all__ = ["typed_study"]
pytestmark = pytest.mark.reliability


def test_a_study_that_is_killed_again_and_again_goes_on_with_the_same_command(
    typed_study: TypedStudy, tmp_path: Path
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    moments = [
        (at_once, False),
        (is_starting, True),
        (has_run, True),
        (in_an_epoch, False),
        (one_ended, True),
    ]
    # another study goes on beside the kills
    beside = TypedStudy(typed_study.project, typed_study.uri, "beside", typed_study.small)
    undisturbed = beside.start("search.trials=1")
    reported: dict[int, list[float]] = {}
    for moment, whole_group in moments:
        is_early = moment in (at_once, is_starting)
        command = typed_study.start(
            "training.epochs=6", from_nothing=is_early, TMPDIR=str(temporary)
        )
        wait_until(lambda: moment(typed_study, command), 60, moment.__name__)  # noqa: B023
        reported |= {
            trial.number: trial.values
            for trial in typed_study.trials()
            if trial.state.name == "COMPLETE"
        }
        if moment is in_an_epoch:  # a trial that is stopped besides must not outlive its supervisor
            stopped = wait_until(lambda: workers_of(command), 60, "a trial")[0]  # noqa: B023
            stopped.suspend()
        (os.killpg if whole_group else os.kill)(command.process.pid, signal.SIGKILL)
        command.process.wait()
    done = typed_study.run("training.epochs=6", TMPDIR=str(temporary))
    assert (done.code, done.err) == (0, "")
    assert_whole(typed_study)
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
    assert undisturbed.finish().code == 0
    assert [trial.state.name for trial in beside.trials()] == ["COMPLETE"]
    assert (
        reported
        and reported.items()
        <= {trial.number: trial.values for trial in typed_study.trials()}.items()
    )
    # what was killed leaves nothing: not in the system's folder, nor in the project's once the next command has ended
    assert list(temporary.iterdir()) == []
    assert [
        path
        for path in (typed_study.project.root / "mlruns" / ".scratch").iterdir()
        if path.is_dir()
    ] == []


@pytest.mark.parametrize(
    "moment", [at_once, is_starting, has_run, in_an_epoch], ids=lambda moment: moment.__name__
)
def test_a_signal_ends_everything_cleanly_and_says_how_to_go_on(
    moment: Callable[[TypedStudy, Command], bool], typed_study: TypedStudy
) -> None:
    command = typed_study.start(from_nothing=moment in (at_once, is_starting))
    wait_until(lambda: moment(typed_study, command), 60, moment.__name__)
    if moment is at_once:
        time.sleep(2.0)  # before it has read its command line it can say nothing
    is_group = moment in (is_starting, in_an_epoch)
    (os.killpg if is_group else os.kill)(
        command.process.pid, signal.SIGINT if is_group else signal.SIGTERM
    )
    done = command.finish(timeout=60)
    assert done.code == (130 if is_group else 143)
    assert "Traceback" not in done.err
    assert "RUNNING" not in {trial.state.name for trial in typed_study.trials()}
    assert "RUNNING" not in {run.info.status for run in typed_study.runs()}
    if has_run(typed_study, command):
        assert "the same command goes on" in done.err
    assert_no_process_is_left(typed_study, 5)


def is_running(trial: FrozenTrial) -> bool:
    return trial.state.name == "RUNNING"


def test_a_killed_trial_is_known_at_once_and_runs_again(typed_study: TypedStudy) -> None:
    """In the middle of an epoch of one trial, and in the last epoch of another."""
    command = typed_study.start("training.epochs=12")
    killed: set[int] = set()

    def caught(least: int) -> tuple[int, psutil.Process] | None:
        """A worker that is stopped in a trial of so many epochs, whose result the command does not have."""
        workers = {process.pid: process for process in workers_of(command)}
        for trial in typed_study.trials():
            pid = int(trial.user_attrs.get("worker", "::").split(":")[1] or 0)
            is_wanted = trial.number not in killed and "retry_of" not in trial.user_attrs
            if (
                is_wanted
                and is_running(trial)
                and len(trial.intermediate_values) >= least
                and pid in workers
            ):
                workers[pid].suspend()
                time.sleep(0.5)  # what it has said is heard
                if is_running(typed_study.trials()[trial.number]):
                    return trial.number, workers[pid]
                workers[pid].resume()
        return None

    for least in (1, 11):
        number, process = wait_until(lambda: caught(least), 60, f"a trial in epoch {least}")  # noqa: B023
        process.kill()
        killed.add(number)
        wait_until(
            lambda: sum("SIGKILL" in line for line in command.lines) == len(killed),
            15,
            "the death is known",
        )
    done = command.finish()
    assert done.code == 0, done.err
    assert_whole(typed_study)
    assert {
        t.number for t in typed_study.trials() if "SIGKILL" in t.user_attrs.get("reason", "")
    } == killed
    assert "FAILED" in typed_study.statuses()


def test_a_trial_outlives_its_server_but_not_its_time_limit(typed_study: TypedStudy) -> None:
    words = "training.epochs=5", "search.workers=1", "search.trials=2", "search.trial_timeout=10"
    command = typed_study.start(*words)
    wait_until(lambda: in_an_epoch(typed_study, command) and workers_of(command), 60, "an epoch")
    trial = workers_of(command)[0]
    trial.parent().kill()
    epochs = len(typed_study.new_trials()[-1].intermediate_values)
    wait_until(
        lambda: len(typed_study.new_trials()[-1].intermediate_values) > epochs, 60, "one more epoch"
    )
    trial.suspend()
    done = command.finish()
    assert done.code == 0, done.err
    assert Counter(trial.state.name for trial in counted(typed_study.trials())) == {
        "FAIL": 1,
        "COMPLETE": 1,
    }
    assert "search.trial_timeout=10" in done.out


def test_a_trial_that_takes_too_much_memory_costs_only_itself(typed_study: TypedStudy) -> None:
    done = typed_study.run("search.trial_memory=0.05", "search.trials=1")
    assert done.code == 1 and "more than search.trial_memory=0.05" in done.out
    assert typed_study.statuses() != ["RUNNING"] and "RUNNING" not in {
        trial.state.name for trial in typed_study.trials()
    }
