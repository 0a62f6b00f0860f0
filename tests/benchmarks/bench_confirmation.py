"""What a confirmation costs and how often it is right: a race against a fixed number of seeds.

    python tests/benchmarks/bench_confirmation.py [--studies 300]

Every study draws candidates from the networks of ``learning_results.py``, their seeds and the
images, each with replacement: what is recorded is the whole population, so that the truth is known.

- ``as recorded`` takes five of the six networks as they are.
- ``equally good`` weights the images so that all have the same mean, by the weights nearest to
  equal weights (exponential tilting): networks differ from image to image as before, and none may
  be out.
- ``same network`` is a single network five times.

``error`` is the share of studies in which a truly best candidate is out, and must be at most 5 %.
``power`` is the share of candidates worse by CLEAR or more that are out, ``networks`` how many were
trained.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import learning_results
from scipy.optimize import minimize

from digit_study.stats.race import FIRST, CorrectBySeed, Standing, race

#: Candidates of a study.
K = 5
#: Seeds of a race, at most.
MOST = 8
#: Seeds of each candidate where their number is fixed.
FIXED = 5
#: Accuracy by which a candidate is clearly worse.
CLEAR = 0.005

Numbers = npt.NDArray[np.float64]


@dataclass
class Tally:
    """Counts over studies."""

    studies: int = 0
    networks: int = 0
    errors: int = 0  # studies in which a truly best one is out
    clear: int = 0  # candidates that are clearly worse
    distinguished: int = 0  # of these out

    def add(self, correct: list[CorrectBySeed], truth: Numbers, first: int, most: int) -> None:
        """Run one confirmation of candidates whose true accuracies are ``truth``."""
        interim = race(correct, [0.0] * len(correct), first, most)
        is_out = np.array(interim.states) == Standing.OUT
        behind = truth.max() - truth
        self.studies += 1
        self.networks += sum(interim.seeds)
        self.errors += bool(is_out[behind < 1e-6].any())
        self.clear += int((behind >= CLEAR).sum())
        self.distinguished += int(is_out[behind >= CLEAR].sum())

    def line(self, name: str) -> str:
        power = "     –"
        if self.clear:
            power = f"{self.distinguished / self.clear:6.1%}"
        networks = self.networks / self.studies
        errors = self.errors / self.studies
        return f"{name:28}  {networks:8.1f}  {errors:6.1%}  {power}"


def draw(
    random: np.random.Generator, networks: CorrectBySeed, weights: Numbers | None, most: int
) -> list[CorrectBySeed]:
    """Draw candidates (most, images) of ``networks`` (k, seeds, images).

    The seeds are drawn for each candidate, the images for all.
    """
    _, seeds, images = networks.shape
    seen = random.choice(images, size=images, p=weights)
    return [network[random.integers(seeds, size=most)][:, seen] for network in networks]


def equalising(networks: CorrectBySeed) -> Numbers:
    """Weights of the images, nearest to equal ones, under which all networks have the same mean."""
    shares = networks.mean(axis=1)
    gaps = shares[1:] - shares[0]

    def weights(tilt: Numbers) -> Numbers:
        grown = np.exp(tilt @ gaps)
        return np.asarray(grown / grown.sum())

    found = minimize(
        lambda tilt: np.log(np.exp(tilt @ gaps).mean()),
        np.zeros(len(gaps)),
        jac=lambda t: gaps @ weights(t),
    )
    return weights(found.x)


def simulate(kind: str, studies: int, seed: int = 0, with_fixed: bool = True) -> dict[str, Tally]:
    """Confirm ``studies`` times, by a race and with a fixed number of seeds, on the same draws."""
    random = np.random.default_rng([seed, len(kind)])
    population = learning_results.load()
    tallies = {"race": Tally(), "fixed": Tally()}
    for _ in range(studies):
        chosen = random.permutation(len(population))[:K]
        networks = population[np.full(K, chosen[0]) if kind == "same network" else chosen]
        weights = equalising(networks) if kind == "equally good" else None
        truth = np.average(networks.mean(axis=1), axis=1, weights=weights)
        correct = draw(random, networks, weights, MOST)
        tallies["race"].add(correct, truth.round(6), FIRST, MOST)
        if with_fixed:
            tallies["fixed"].add([seen[:FIXED] for seen in correct], truth.round(6), FIXED, FIXED)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=300)
    studies = parser.parse_args().studies
    print(f"{'':28}  networks   error   power")
    for kind in ("as recorded", "equally good", "same network"):
        for name, tally in simulate(kind, studies).items():
            print(tally.line(f"{kind}, {name}"), flush=True)


if __name__ == "__main__":
    main()
