"""Studies whose trials are paused, in real processes, with real kills."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from optuna.trial import FrozenTrial, TrialState
from typed_study import TypedStudy, assert_no_process_is_left, typed_study, wait_until, workers_of

from digit_study.study.trial_attributes import PAUSED_AFTER, counted, paused_after

__all__ = ["typed_study"]
pytestmark = pytest.mark.reliability
#: Trials of the study that is killed.
TOTAL = 8
ASHA = ("search.pruner=asha", "training.epochs=5")


def weights(typed_study: TypedStudy, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """Return the sha256 of the weights of trials, by the number and the parameters of a trial."""
    by_run = {
        run.info.run_id: run.data.tags["weights.sha256"]
        for run in typed_study.runs()
        if "weights.sha256" in run.data.tags
    }
    return {
        f"{trial.number} {trial.params}": by_run[trial.user_attrs["run_id"]] for trial in trials
    }


def test_a_resumed_trial_has_the_bits_of_one_that_ran_through(typed_study: TypedStudy) -> None:
    words = ("search.workers=1", "training.epochs=3", "search.trials=7")
    typed_study.run(*words, "search.pruner=asha")
    resumed = [
        trial
        for trial in typed_study.trials()
        if trial.state is TrialState.COMPLETE and PAUSED_AFTER in trial.user_attrs
    ]
    assert resumed
    paused_bits = weights(typed_study, resumed)
    typed_study.run(*words, "search.pruner=none", "search.fresh=true")
    assert weights(typed_study, typed_study.trials()).items() >= paused_bits.items()


def test_a_study_with_paused_trials_survives_kills(typed_study: TypedStudy) -> None:
    words = (*ASHA, f"search.trials={TOTAL}")
    moments = random.Random(0)
    for _ in range(2):
        command = typed_study.start(*words)
        wait_until(lambda: any(map(paused_after, typed_study.trials())), 60, "a paused trial")
        time.sleep(moments.uniform(0, 1))
        command.process.kill()
        assert_no_process_is_left(typed_study, within=30)
    finished = typed_study.run(*words)
    assert finished.code == 0, finished.err
    trials = typed_study.trials()
    assert len(counted(trials)) == TOTAL
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "COMPLETE" in {trial.state.name for trial in trials}
    assert "RUNNING" not in typed_study.statuses()
    states = Counter(
        run.data.tags["trial.state"] for run in typed_study.runs() if "trial.state" in run.data.tags
    )
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}


def test_a_paused_trial_whose_process_is_killed_runs_again(typed_study: TypedStudy) -> None:
    command = typed_study.start(*ASHA, "search.trials=4", "search.workers=1")
    paused = wait_until(
        lambda: [trial for trial in typed_study.trials() if paused_after(trial)],
        60,
        "a paused trial",
    )
    victim = str(paused[0].user_attrs["worker"]).split(":")
    for worker in workers_of(command):
        if str(worker.pid) == victim[1]:
            worker.kill()
    assert command.finish().code == 0
    trials = typed_study.trials()
    assert trials[paused[0].number].state is TrialState.FAIL
    assert "SIGKILL" in trials[paused[0].number].user_attrs["reason"]
    assert len(counted(trials)) == 4
