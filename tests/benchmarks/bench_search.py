"""Replay searches on recorded curves: how soon each sampler and pruner finds a good network.

    python tests/benchmarks/bench_search.py [--space default] [--seeds 25] [--trials 60]

Replays curves.npz (see tools/record_curves.py) on a clock that is only counted: two trials at a
time, an epoch takes its recorded seconds, a trial 0.6 s besides. A row has medians over seeds:

- ``end``: seconds until the search ends.
- ``found``: seconds until the best trial so far, by its own validation, is of a configuration whose
  mean over the recorded seeds is within 0.1 points of the best mean.
- ``regret``: points that the mean of the configuration which the search answers with is below the
  best mean, as a mean over seeds.
- ``held``: share of searches whose answer is within 0.1 points of the best.
- ``good pruned``: share of trials of such a configuration that were stopped early.
- ``epochs``: epochs that were trained, of all trials together.

With choices alone cmaes draws at random.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
import sys
import warnings
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import Trial, TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digit_study.config.study_config import ASHA, SearchConfig
from digit_study.study._optuna import PRUNERS, SAMPLERS, make_sampler_and_pruner
from digit_study.study.halving import LEAST_RESULTS, Halving
from digit_study.study.study_plan import SAMPLER_PACKAGES
from digit_study.study.trial_attributes import PAUSED_AFTER

#: Trials at a time.
WORKERS = 2
#: Seconds that a trial takes beside its epochs.
BESIDE_S = 0.6
#: Seconds of validation for each second of training.
VALIDATING = 0.1
#: A configuration is good if its mean accuracy is at most so much below the best.
NEAR = 0.001
#: Images that a recorded network was validated on.
IMAGES = 5_000


@dataclass(frozen=True)
class Recorded:
    """A space as it was recorded."""

    points: list[dict[str, Any]]
    #: Shape (points, seeds, epochs), in [0, 1].
    accuracies: npt.NDArray[np.float64]
    #: Seconds of an epoch's steps, shape (points,).
    seconds: npt.NDArray[np.float64]

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """Return the mean final accuracy of every point over its seeds, shape (points,)."""
        return np.asarray(self.accuracies[:, :, -1].mean(axis=1))


@dataclass
class Outcome:
    """What a search came to."""

    #: Seconds until the best so far was good; infinite if it never was.
    found: float = math.inf
    #: Seconds until the search ended.
    end: float = 0.0
    #: The point that the search answers with.
    answer: int = -1
    #: Trials of good configurations, and those of them that did not get to their end.
    good: int = 0
    good_pruned: int = 0
    epochs: int = 0


@dataclass
class RunningTrial:
    """A trial of a replay."""

    trial: Trial
    point: int
    #: The recorded seed that it replays.
    seed: int
    epoch: int = 0


@dataclass(order=True)
class EpochEnd:
    """An epoch that ends at a time."""

    seconds: float
    number: int
    running: RunningTrial = field(compare=False)


class Replay:
    """A search on recorded curves, on a clock that is only counted."""

    def __init__(self, space: Recorded, config: SearchConfig, trials: int) -> None:
        """Prepare to search a space with so many trials."""
        self._space = space
        self._config = config
        self._left = trials
        self._epochs = space.accuracies.shape[2]
        self._good = space.means >= space.means.max() - NEAR
        self._random = np.random.default_rng(config.seed)
        self._choices = {
            key: sorted({point[key] for point in space.points}, key=str) for key in space.points[0]
        }
        self._index = {
            json.dumps(point, sort_keys=True): number for number, point in enumerate(space.points)
        }
        sampler, pruner = make_sampler_and_pruner(config, self._epochs, 0)
        self._study = optuna.create_study(
            direction="maximize", sampler=sampler, pruner=pruner, study_name="replay"
        )
        if config.sampler == "grid":
            # in their order, as a sweep does
            for point in space.points:
                self._study.enqueue_trial(point)
        self._halving: Halving | None = None
        if config.pruner == ASHA:
            self._halving = Halving(self._epochs, maximizes=True)
        self._paused: dict[int, RunningTrial] = {}
        self._events: list[EpochEnd] = []
        self._best = -math.inf
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Search until nothing is left to train."""
        for _ in range(WORKERS):
            self._fill_slot(0.0)
        while self._events:
            event = heapq.heappop(self._events)
            self._end_epoch(event.seconds, event.running)
            while len(self._events) < WORKERS and self._fill_slot(event.seconds):
                pass
            self._outcome.end = event.seconds
        for running in self._paused.values():
            self._prune(running)
        return self._outcome

    def _fill_slot(self, now: float) -> bool:
        """Resume a paused trial, or begin a trial; return whether there was any."""
        if self._halving is not None and self._resume(self._halving, now):
            return True
        if self._left == 0:
            return False
        self._left -= 1
        trial = self._study.ask()
        params = {key: suggest(trial, key, values) for key, values in self._choices.items()}
        point = self._index[json.dumps(params, sort_keys=True)]
        self._outcome.good += int(self._good[point])
        running = RunningTrial(trial, point, int(self._random.integers(3)))
        self._begin_epoch(now + BESIDE_S, running)
        return True

    def _resume(self, halving: Halving, now: float) -> bool:
        """Let the first of the paused trials go on that should."""
        paused = {number: running.epoch for number, running in self._paused.items()}
        at_least = 0
        if self._left == 0 and not self._events:
            at_least = LEAST_RESULTS
        trials = self._study.get_trials(deepcopy=False)
        chosen = halving.promotable(trials, paused, at_least=at_least)
        if not chosen:
            return False
        running = self._paused.pop(chosen[0])
        running.trial.set_user_attr(PAUSED_AFTER, None)
        self._begin_epoch(now, running)
        return True

    def _begin_epoch(self, now: float, running: RunningTrial) -> None:
        seconds = self._space.seconds[running.point] * (1 + VALIDATING)
        heapq.heappush(self._events, EpochEnd(now + seconds, running.trial.number, running))

    def _end_epoch(self, now: float, running: RunningTrial) -> None:
        """Report an epoch, and let the trial go on, pause or end."""
        trial = running.trial
        accuracy = float(self._space.accuracies[running.point, running.seed, running.epoch])
        running.epoch += 1
        self._outcome.epochs += 1
        trial.report(accuracy, running.epoch)
        if running.epoch == self._epochs:
            self._study.tell(trial, accuracy)
            self._note_result(now, running.point, accuracy)
        elif self._halving is not None and not self._goes_on(self._halving, running):
            trial.set_user_attr(PAUSED_AFTER, running.epoch)
            self._paused[trial.number] = running
        elif self._halving is None and trial.should_prune():
            self._prune(running)
        else:
            self._begin_epoch(now, running)

    def _goes_on(self, halving: Halving, running: RunningTrial) -> bool:
        if running.epoch not in halving.rungs:
            return True
        trials = self._study.get_trials(deepcopy=False)
        return running.trial.number in halving.best(trials, running.epoch, at_least=0)

    def _prune(self, running: RunningTrial) -> None:
        self._outcome.good_pruned += int(self._good[running.point])
        self._study.tell(running.trial, state=TrialState.PRUNED)

    def _note_result(self, now: float, point: int, accuracy: float) -> None:
        """Take a result for the answer if it is the best so far."""
        if accuracy <= self._best:
            return
        self._best = accuracy
        self._outcome.answer = point
        if self._good[point]:
            self._outcome.found = min(self._outcome.found, now)


def load(space: str) -> Recorded:
    """Return the recorded curves of a space, of the points that were trained."""
    with np.load(Path(__file__).with_name("curves.npz")) as saved:
        points = json.loads(str(saved[f"{space}.points"]))
        right = saved[f"{space}.right"]
        seconds = saved[f"{space}.seconds"]
    done = np.flatnonzero(right.all(axis=(1, 2)))
    return Recorded([points[number] for number in done], right[done] / IMAGES, seconds[done])


def suggest(trial: Trial, key: str, values: list[Any]) -> Any:
    """Let Optuna choose: numbers of filters as whole numbers in even steps, as spaces have them."""
    steps = set()
    if key.endswith("filters"):
        steps = {later - earlier for earlier, later in zip(values, values[1:], strict=False)}
    if len(steps) == 1:
        return trial.suggest_int(key, values[0], values[-1], step=steps.pop())
    return trial.suggest_categorical(key, values)


def row(space: Recorded, outcomes: list[Outcome]) -> str:
    """Return a row of the table."""
    regrets = [100 * (space.means.max() - space.means[outcome.answer]) for outcome in outcomes]
    held = np.mean(np.array(regrets) <= 100 * NEAR + 1e-9)
    good = sum(outcome.good for outcome in outcomes)
    good_pruned = sum(outcome.good_pruned for outcome in outcomes) / max(1, good)
    cells = (
        f"{statistics.median(outcome.end for outcome in outcomes):8.1f}",
        f"{statistics.median(outcome.found for outcome in outcomes):8.1f}",
        f"{statistics.mean(regrets):8.3f}",
        f"{held:8.0%}",
        f"{good_pruned:13.0%}",
        f"{statistics.mean(outcome.epochs for outcome in outcomes):8.0f}",
    )
    return "".join(cells)


def main() -> None:
    """Print a row for every sampler and pruner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", choices=("small", "default"), default="default")
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--samplers", nargs="*", default=[*SAMPLERS])
    parser.add_argument("--pruners", nargs="*", default=[*PRUNERS])
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    space = load(options.space)
    good = int((space.means >= space.means.max() - NEAR).sum())
    print(f"{options.space}: {len(space.points)} points, {good} within 0.1 points of the best")
    print(f"{options.seeds} searches of {options.trials} trials each")
    headings = f"{'end':>8}{'found':>8}{'regret':>8}{'held':>8}{'good pruned':>13}{'epochs':>8}"
    print(f"{'sampler':10}{'pruner':20}{headings}")
    for sampler in options.samplers:
        package, _ = SAMPLER_PACKAGES.get(sampler, ("optuna", ""))
        if find_spec(package) is None:
            print(f"{sampler:10}left out: {package} is not installed")
            continue
        for pruner in options.pruners:
            config = SearchConfig(sampler=sampler, pruner=pruner)
            outcomes = [
                Replay(space, replace(config, seed=seed), options.trials).run()
                for seed in range(options.seeds)
            ]
            print(f"{sampler:10}{pruner:20}{row(space, outcomes)}", flush=True)


if __name__ == "__main__":
    main()
