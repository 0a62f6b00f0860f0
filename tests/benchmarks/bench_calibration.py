"""How often the mark "cannot be told from the best" is right, and how often it tells a worse configuration apart.

    python tests/benchmarks/bench_calibration.py [--studies 400]

Simulates studies of k configurations on n images, 3 % of which are hard, at accuracies near 98.2 %. ``coverage`` is the
share of studies in which every truly best configuration is marked, with k equally good ones; it must be 95 % or more.
``power`` is the share in which one that is 1.5 points worse than the others is told apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digit_study.stats.ranking import Candidate, Group, pooled_leaderboard

HARD, ERROR, WORSE = 0.03, 0.018, 0.015
Seed = np.random.Generator


def study(
    random: Seed, k: int, n: int, shared: float = 0.5, seeds: int = 1, worse: float = 0.0
) -> list[Group]:
    """Configurations on the same ``n`` images; the last is ``worse`` by that accuracy, the others are equally good.

    A hard image is misread with a probability of its own, which all have in common to a share of ``shared``; seeds of
    one configuration differ as two configurations do, but for what a configuration has of its own.
    """
    is_hard = random.random(n) < HARD
    common = random.normal(size=n)
    groups = []
    for number in range(k):
        error = ERROR + (worse if number == k - 1 else 0.0)
        own = random.normal(size=n)
        runs = []
        for seed in range(seeds):
            latent = np.sqrt(shared) * common + np.sqrt((1 - shared) / 2) * (
                own + random.normal(size=n)
            )
            # the share of hard images that is misread, as a threshold of the latent difficulty
            share = min(error / HARD, 0.98)
            cut = -np.sqrt(2) * _erfinv(2 * share - 1)
            spread = max(0.0, error - 0.98 * HARD) / (1 - HARD)
            wrong = (is_hard & (latent > cut)) | (~is_hard & (random.random(n) < spread))
            metrics = {"val_accuracy": 1 - float(wrong.mean()), "val_loss": 0.1, "parameters": 1.0}
            runs.append(
                Candidate(
                    f"{number}",
                    f"{number}-{seed}",
                    {**metrics, "training_seconds": 1.0},
                    ~wrong,
                    "d",
                )
            )
        groups.append(Group(str(number), runs))
    return groups


def _erfinv(value: float) -> float:
    from scipy.special import erfinv

    return float(erfinv(value))


def covered(random: Seed, k: int, **options: Any) -> bool:
    """Whether all of ``k`` equally good configurations are marked."""
    return bool(pooled_leaderboard(study(random, k, **options))["tied"].all())


def told_apart(random: Seed, k: int, **options: Any) -> bool:
    """Whether the one configuration that is worse is not marked."""
    board = pooled_leaderboard(study(random, k, worse=WORSE, **options))
    return not bool(board.set_index("name")["tied"][str(k - 1)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=400)
    studies = parser.parse_args().studies
    print("   k  images  shared  seeds  coverage  power")
    for k, n, shared, seeds in [
        *((k, 5_000, 0.5, 1) for k in (2, 5, 20, 40, 100, 200)),
        *((20, n, 0.5, 1) for n in (1_000, 10_000)),
        *((20, 5_000, shared, 1) for shared in (0.0, 0.9)),
        *((20, 5_000, 0.5, seeds) for seeds in (2, 5)),
    ]:
        random = np.random.default_rng([k, n, int(100 * shared), seeds])
        times = max(50, studies * 20 // max(20, k * seeds))
        options = {"n": n, "shared": shared, "seeds": seeds}
        right = np.mean([covered(random, k, **options) for _ in range(times)])
        power = np.mean([told_apart(random, k, **options) for _ in range(times)])
        print(
            f"{k:4}  {n:6}  {shared:6.1f}  {seeds:5}  {right:8.1%}  {power:5.1%}  ({times} studies)",
            flush=True,
        )


if __name__ == "__main__":
    main()
