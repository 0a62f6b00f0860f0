"""Studies whose trials are paused, in real processes, with real kills."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from lab import Lab, assert_no_process_is_left, lab, wait_until, workers_of
from optuna.trial import FrozenTrial, TrialState

from digit_study.study.trial_attributes import PAUSED_AFTER, counted, paused_after

__all__ = ["lab"]
pytestmark = pytest.mark.slow
#: Trials of the study that is killed.
TOTAL = 8
ASHA = ("search.pruner=asha", "training.epochs=5")


def weights(lab: Lab, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """Return the sha256 of the weights of trials, by the number and the parameters of a trial."""
    by_run = {
        run.info.run_id: run.data.tags["weights.sha256"]
        for run in lab.runs()
        if "weights.sha256" in run.data.tags
    }
    return {
        f"{trial.number} {trial.params}": by_run[trial.user_attrs["run_id"]] for trial in trials
    }


def test_a_resumed_trial_has_the_bits_of_one_that_ran_through(lab: Lab) -> None:
    words = ("search.workers=1", "training.epochs=3", "search.trials=7")
    lab.run(*words, "search.pruner=asha")
    resumed = [
        trial
        for trial in lab.trials()
        if trial.state is TrialState.COMPLETE and PAUSED_AFTER in trial.user_attrs
    ]
    assert resumed
    paused_bits = weights(lab, resumed)
    lab.run(*words, "search.pruner=none", "search.fresh=true")
    assert weights(lab, lab.trials()).items() >= paused_bits.items()


def test_a_study_with_paused_trials_survives_kills(lab: Lab) -> None:
    words = (*ASHA, f"search.trials={TOTAL}")
    moments = random.Random(0)
    for _ in range(2):
        command = lab.start(*words)
        wait_until(lambda: any(map(paused_after, lab.trials())), 60, "a paused trial")
        time.sleep(moments.uniform(0, 1))
        command.process.kill()
        assert_no_process_is_left(lab, within=30)
    finished = lab.run(*words)
    assert finished.code == 0, finished.err
    trials = lab.trials()
    assert len(counted(trials)) == TOTAL
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "COMPLETE" in {trial.state.name for trial in trials}
    assert "RUNNING" not in lab.statuses()
    states = Counter(
        run.data.tags["trial.state"] for run in lab.runs() if "trial.state" in run.data.tags
    )
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}


def test_a_paused_trial_whose_process_is_killed_runs_again(lab: Lab) -> None:
    command = lab.start(*ASHA, "search.trials=4", "search.workers=1")
    paused = wait_until(
        lambda: [trial for trial in lab.trials() if paused_after(trial)], 60, "a paused trial"
    )
    victim = str(paused[0].user_attrs["worker"]).split(":")
    for worker in workers_of(command):
        if str(worker.pid) == victim[1]:
            worker.kill()
    assert command.finish().code == 0
    trials = lab.trials()
    assert trials[paused[0].number].state is TrialState.FAIL
    assert "SIGKILL" in trials[paused[0].number].user_attrs["reason"]
    assert len(counted(trials)) == 4
