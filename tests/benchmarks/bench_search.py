"""How soon every sampler and pruner finds a network within 0.1 points of the best of a space, on recorded curves.

    python tests/benchmarks/bench_search.py [--space default] [--seeds 25] [--trials 60]

Replays curves.npz (see tools/record_curves.py) on a clock that is only counted: two trials at a time, an epoch takes its
recorded seconds, a trial 0.6 s besides. ``seconds`` is the median over seeds of the time until the best trial so far,
by its own validation, is one whose mean over the recorded seeds is within 0.1 points of the best mean; ``found`` the
share of searches that got there within the trials. ``good pruned`` is the share of trials of such a configuration that
were stopped early, ``held`` of all searches those whose final answer is one. With choices alone cmaes draws at random.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digit_study.config.study_config import SearchConfig
from digit_study.study._optuna import PRUNERS, SAMPLERS, make_sampler_and_pruner
from digit_study.study.study_plan import SAMPLER_PACKAGES

WORKERS, BESIDE_S, VALIDATING = 2, 0.6, 0.1
NEAR, IMAGES = 0.001, 5_000


@dataclass(frozen=True)
class Recorded:
    """One space: its points, their accuracies (points, seeds, epochs) in [0, 1], the seconds of an epoch (points,)."""

    points: list[dict[str, Any]]
    accuracies: Any
    seconds: Any

    @property
    def good(self) -> Any:
        """Which points are within 0.1 points of the best, by their means over seeds."""
        means = self.accuracies[:, :, -1].mean(axis=1)
        return means >= means.max() - NEAR


@dataclass
class Search:
    """What one search came to."""

    seconds: float = float("inf")
    held: bool = False
    good: int = 0
    good_pruned: int = 0
    epochs: int = 0


def load(space: str) -> Recorded:
    """The recorded curves of a space, of the points that were trained."""
    held = np.load(Path(__file__).with_name("curves.npz"))
    points, right = json.loads(str(held[f"{space}.points"])), held[f"{space}.right"]
    done = np.flatnonzero(right.all(axis=(1, 2)))
    return Recorded(
        [points[at] for at in done], right[done] / IMAGES, held[f"{space}.seconds"][done]
    )


def search(space: Recorded, config: SearchConfig, trials: int) -> Search:
    """Replay one search, an event an epoch."""
    choices = {
        key: sorted({point[key] for point in space.points}, key=str) for key in space.points[0]
    }
    where = {json.dumps(point, sort_keys=True): at for at, point in enumerate(space.points)}
    epochs, good, result = space.accuracies.shape[2], space.good, Search()
    sampler, pruner = make_sampler_and_pruner(config, epochs, 0)
    study = optuna.create_study(
        direction="maximize", sampler=sampler, pruner=pruner, study_name="replay"
    )
    for point in (
        space.points if config.sampler == "grid" else []
    ):  # in their order, as a sweep does
        study.enqueue_trial(point)
    random, best, asked = np.random.default_rng(config.seed), (0.0, False), 0
    # when an epoch ends, and of which trial: its place in the table, its recorded seed, the epoch
    events: list[tuple[float, int, Any, int, int, int]] = []

    def begin(now: float) -> None:
        nonlocal asked
        if asked == trials:
            return
        trial, asked = study.ask(), asked + 1
        point = {key: suggest(trial, key, values) for key, values in choices.items()}
        at = where[json.dumps(point, sort_keys=True)]
        result.good += bool(good[at])
        cost = space.seconds[at] * (1 + VALIDATING)
        heapq.heappush(
            events, (now + BESIDE_S + cost, trial.number, trial, at, int(random.integers(3)), 1)
        )

    for _ in range(WORKERS):
        begin(0.0)
    while events:
        now, _, trial, at, seed, epoch = heapq.heappop(events)
        accuracy = float(space.accuracies[at, seed, epoch - 1])
        result.epochs += 1
        trial.report(accuracy, epoch)
        if epoch < epochs and not trial.should_prune():
            step = now + space.seconds[at] * (1 + VALIDATING)
            heapq.heappush(events, (step, trial.number, trial, at, seed, epoch + 1))
            continue
        if epoch < epochs:
            result.good_pruned += bool(good[at])
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, accuracy)
            best = max(best, (accuracy, bool(good[at])), key=lambda one: one[0])
            if best[1]:
                result.seconds = min(result.seconds, now)
        begin(now)
    result.held = best[1]
    return result


def suggest(trial: Any, key: str, values: list[Any]) -> Any:
    """Let Optuna choose, numbers in even steps as whole ones, as the shipped spaces have them."""
    steps = (
        {later - earlier for earlier, later in zip(values, values[1:], strict=False)}
        if key.endswith("filters")
        else ()
    )
    if len(steps) == 1:
        return trial.suggest_int(key, values[0], values[-1], step=steps.pop())
    return trial.suggest_categorical(key, values)


def main() -> None:
    """Print a row for every sampler and pruner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", choices=("small", "default"), default="default")
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--samplers", nargs="*", default=[*SAMPLERS])
    parser.add_argument("--pruners", nargs="*", default=[*PRUNERS])
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    space = load(given.space)
    shown = f"{given.space}: {len(space.points)} points, {int(space.good.sum())} within 0.1 points of the best"
    print(f"{shown}; {given.seeds} searches of {given.trials} trials each")
    print(
        f"{'sampler':10}{'pruner':20}{'seconds':>9}{'found':>8}{'held':>8}{'good pruned':>13}{'epochs':>8}"
    )
    for sampler in given.samplers:
        if find_spec(SAMPLER_PACKAGES.get(sampler, ("optuna", ""))[0]) is None:
            print(f"{sampler:10}left out: {SAMPLER_PACKAGES[sampler][0]} is not installed")
            continue
        for pruner in given.pruners:
            config = SearchConfig(sampler=sampler, pruner=pruner)
            found = [
                search(space, replace(config, seed=seed), given.trials)
                for seed in range(given.seeds)
            ]
            seconds, good = (
                statistics.median(one.seconds for one in found),
                sum(one.good for one in found),
            )
            shares = [
                np.isfinite([one.seconds for one in found]).mean(),
                np.mean([one.held for one in found]),
            ]
            shares.append(sum(one.good_pruned for one in found) / max(1, good))
            row = f"{seconds:9.1f}{shares[0]:8.0%}{shares[1]:8.0%}{shares[2]:13.0%}"
            print(
                f"{sampler:10}{pruner:20}{row}{statistics.mean(one.epochs for one in found):8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
