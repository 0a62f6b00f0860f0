"""How often the mark "not significantly different from the best" is right.

    python tests/benchmarks/bench_calibration.py [--studies 400]

Simulates studies of k configurations on n images, 3 % of which are hard, at accuracies near 98.2 %.
``coverage`` is the share of studies in which every truly best configuration is marked, with k
equally good configurations; it must be 95 % or more. ``power`` is the share in which a
configuration that is 1.5 points worse than the others is distinguished from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digit_study.stats.ranking import Candidate, Group, pooled_leaderboard

#: Share of images that are hard.
HARD = 0.03
#: Share of images that a configuration misclassifies.
ERROR = 0.018
#: Accuracy by which the last configuration is worse, where power is measured.
WORSE = 0.015


def study(
    random: np.random.Generator,
    k: int,
    n: int,
    shared: float = 0.5,
    seeds: int = 1,
    worse: float = 0.0,
) -> list[Group]:
    """Simulate configurations on the same images.

    A hard image is misclassified with a probability of its own. Seeds of a configuration differ as
    two configurations do, but for what a configuration has of its own.

    Args:
        random: Source of chance.
        k: Configurations.
        n: Images.
        shared: Share of an image's difficulty that all configurations have in common, in [0, 1].
        seeds: Runs of each configuration.
        worse: Accuracy by which the last is worse; the others are equally good.
    """
    is_hard = random.random(n) < HARD
    common = random.normal(size=n)
    groups = []
    for number in range(k):
        error = ERROR
        if number == k - 1:
            error += worse
        own = random.normal(size=n)
        runs = []
        for seed in range(seeds):
            rest = own + random.normal(size=n)
            latent = np.sqrt(shared) * common + np.sqrt((1 - shared) / 2) * rest
            # the share of hard images that is misclassified, as a threshold of the difficulty
            share = min(error / HARD, 0.98)
            cut = -np.sqrt(2) * _erfinv(2 * share - 1)
            spread = max(0.0, error - 0.98 * HARD) / (1 - HARD)
            wrong = (is_hard & (latent > cut)) | (~is_hard & (random.random(n) < spread))
            metrics = {
                "val_accuracy": 1 - float(wrong.mean()),
                "val_loss": 0.1,
                "parameters": 1.0,
                "training_seconds": 1.0,
            }
            runs.append(Candidate(f"{number}", f"{number}-{seed}", metrics, ~wrong, "d"))
        groups.append(Group(str(number), runs))
    return groups


def _erfinv(value: float) -> float:
    from scipy.special import erfinv

    return float(erfinv(value))


def is_covered(random: np.random.Generator, k: int, **options: Any) -> bool:
    """Return whether all of ``k`` equally good configurations are marked."""
    return bool(pooled_leaderboard(study(random, k, **options))["tied"].all())


def is_distinguished(random: np.random.Generator, k: int, **options: Any) -> bool:
    """Return whether the only configuration that is worse is not marked."""
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
        coverage = np.mean([is_covered(random, k, **options) for _ in range(times)])
        power = np.mean([is_distinguished(random, k, **options) for _ in range(times)])
        numbers = f"{k:4}  {n:6}  {shared:6.1f}  {seeds:5}  {coverage:8.1%}  {power:5.1%}"
        print(f"{numbers}  ({times} studies)", flush=True)


if __name__ == "__main__":
    main()
