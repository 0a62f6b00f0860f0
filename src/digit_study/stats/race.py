"""A race of candidates over seeds: who is out, who needs another seed, and how large the noise is.

Candidates are plain arrays (seeds, images): whether the network of that seed predicts that
validation image correctly. All candidates have the same seeds and images, in the same order. A
race is a group sequential test: an interim analysis after every seed decides who goes on.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.stats.ranking import (
    ROUNDING,
    SIGNIFICANCE,
    Group,
    Numbers,
    adjusted_p_values,
    t_test,
    tukey,
)

#: Seeds that all candidates have at the first interim analysis: with two, chance alone makes a
#: spread of seeds small.
FIRST = 3
#: A candidate goes on while it has this chance of being distinguished from the leader with the
#: largest number of seeds.
LEAST_CHANCE = 0.2
#: Power of the test that :meth:`Gap.more_seeds` plans.
POWER = 0.8
#: More seeds than this nobody trains to distinguish two candidates.
MOST_SEEDS = 1_000
#: Columns of a confirmed ranking, and how tables of accuracies name them.
ACCURACY_COLUMNS = {
    "mean": "val_accuracy",
    "low": "val_accuracy_low",
    "high": "val_accuracy_high",
}

#: Whether each seed's network predicts each image correctly, (seeds, images).
CorrectBySeed = npt.NDArray[np.bool_]


class Standing(StrEnum):
    """What an interim analysis says of a candidate."""

    #: It can still be the best.
    IN = "in"
    #: It is significantly worse than the best.
    OUT = "out"
    #: A seed that it needed has failed.
    LOST = "lost"


@dataclass(frozen=True)
class InterimAnalysis:
    """What a race has found so far; the lists have an entry for each candidate, in their order.

    Attributes:
        seeds: How many of a candidate's seeds count.
        states: Where a candidate stands.
        goes_on: Whether a candidate gets more seeds.
        p_seeds: P-value by seeds at a candidate's last analysis, adjusted for all analyses and
            comparisons. A candidate is out if this and the next are at most 0.05.
        p_images: P-value by images at its last analysis, adjusted for all comparisons.
        wanted: Seeds that each candidate that goes on must have for the next analysis; 0 when the
            race is over.
    """

    seeds: list[int]
    states: list[Standing]
    goes_on: list[bool]
    p_seeds: list[float]
    p_images: list[float]
    wanted: int


@dataclass(frozen=True)
class Noise:
    """Standard deviations of an accuracy, in [0, 1].

    Attributes:
        seeds: From seed to seed, on these images.
        images: From a sample of as many images to another, of the mean over all seeds.
    """

    seeds: float
    images: float

    @property
    def both(self) -> float:
        """Return the standard deviation of a single network on a single sample of images."""
        return math.hypot(self.seeds, self.images)


@dataclass(frozen=True)
class Components:
    """Standard deviations that values (seeds, images) are made of.

    Attributes:
        seeds: Of the means of the seeds, as they are observed: it holds its share of the rest.
        images: Of the expected values of the images.
        rest: Of what neither the seed nor the image explains.
    """

    seeds: float
    images: float
    rest: float


def race(
    correct: Sequence[CorrectBySeed],
    parameters: Sequence[float],
    first: int,
    most: int,
    lost: Collection[int] = (),
) -> InterimAnalysis:
    """Replay a race from its first interim analysis to what has been trained.

    Seeds beyond a candidate's last analysis do not count, so that the order in which trainings end
    decides nothing. The race is over when nobody but the best would go on, or with ``most`` seeds.

    Args:
        correct: Candidates, each (seeds, images), with the seeds that are trained.
        parameters: Size of each candidate's network: among equal means, the smallest leads.
        first: Seeds that all have at the first analysis, at least 2. With ``first == most`` this is
            the test of a fixed number of seeds.
        most: Largest number of seeds.
        lost: Positions of candidates whose next seed has failed: they have no more seeds, and leave
            at the analysis that needs it.

    Returns:
        Where each candidate stands, and which seeds are needed next.

    See docs/statistics.md#race
    """
    trained = [len(rows) for rows in correct]
    # candidates by their position in `correct`
    going = list(range(len(correct)))
    resting: list[int] = []
    seeds = [0] * len(correct)
    p_values = np.ones((len(correct), 2))
    for count in range(first, most + 1):
        going = [
            candidate for candidate in going if candidate not in lost or trained[candidate] >= count
        ]
        if any(trained[candidate] < count for candidate in going):
            return _interim_analysis(seeds, p_values, going, resting, count)
        if not going:
            break
        going.sort(key=lambda candidate: (-_mean(correct[candidate], count), parameters[candidate]))
        for candidate in going:
            seeds[candidate] = count
        in_race = [correct[candidate][: seeds[candidate]] for candidate in [*going, *resting]]
        factor = SIGNIFICANCE / level_of_analysis(count, first, most)
        compared = _compare(in_race, factor)
        # those that rest keep the p-values of their last analysis
        p_values[going] = compared[: len(going)]
        going = [candidate for candidate in going if p_values[candidate].max() > SIGNIFICANCE]
        if count == most:
            break
        not_out = [correct[candidate][:count] for candidate in going]
        hopeful = [going[position] for position in _hopeful(not_out, len(resting), first, most)]
        resting += [candidate for candidate in going if candidate not in hopeful]
        going = hopeful
        if not going:
            break
    return _interim_analysis(seeds, p_values, going, resting, 0)


def _mean(correct: CorrectBySeed, seeds: int) -> float:
    """Return the mean accuracy over the first seeds."""
    return float(np.mean(correct[:seeds]))


def _hopeful(seen: Sequence[CorrectBySeed], resting: int, first: int, most: int) -> list[int]:
    """Return the positions in ``seen`` of the candidates that go on, the leader first.

    If none goes on, the list is empty.

    Args:
        seen: Candidates that are not out, the leader first, each (seeds, images).
        resting: How many candidates rest, which count among those that are compared.
        first: Seeds at the first analysis.
        most: Largest number of seeds.
    """
    if len(seen) < 2:
        return []
    leader = seen[0]
    compared = len(seen) + resting
    by_seeds = SIGNIFICANCE - spent(len(leader), first, most)
    hopeful = []
    for position, candidate in enumerate(seen[1:], start=1):
        # by Holm's steps the candidates with a lower mean are out by then
        rank = position + 1 + resting
        by_images = SIGNIFICANCE * 2 / (rank * (rank - 1))
        gap = Gap.of(leader, candidate)
        if gap.chance(most, compared, by_seeds, by_images) >= LEAST_CHANCE:
            hopeful.append(position)
    if not hopeful:
        return []
    return [0, *hopeful]


def _interim_analysis(
    seeds: list[int],
    p_values: Numbers,
    going: list[int],
    resting: list[int],
    wanted: int,
) -> InterimAnalysis:
    is_out = p_values.max(axis=1) <= SIGNIFICANCE
    states = []
    goes_on = []
    for candidate in range(len(seeds)):
        is_going = candidate in going
        goes_on.append(is_going and wanted > 0)
        if is_going or candidate in resting:
            states.append(Standing.IN)
        elif is_out[candidate]:
            states.append(Standing.OUT)
        else:
            states.append(Standing.LOST)
    return InterimAnalysis(
        seeds=seeds,
        states=states,
        goes_on=goes_on,
        p_seeds=p_values[:, 0].tolist(),
        p_images=p_values[:, 1].tolist(),
        wanted=wanted,
    )


def spent(seeds: int, first: int, most: int) -> float:
    """Return how much of the 5 % all analyses up to the one with ``seeds`` seeds may use.

    Args:
        seeds: Seeds of the analysis; before ``first`` nothing is spent.
        first: Seeds at the first analysis.
        most: Seeds at the last analysis, which may use all that is left.

    See docs/statistics.md#race
    """
    if seeds < first:
        return 0.0
    # 0 without seeds, e - 1 at the last analysis
    progress = (math.e - 1) * seeds / most
    return SIGNIFICANCE * math.log1p(progress)


def level_of_analysis(seeds: int, first: int, most: int) -> float:
    """Return the significance level of a single interim analysis.

    Args:
        seeds: Seeds of the analysis.
        first: Seeds at the first analysis.
        most: Seeds at the last analysis.

    See docs/statistics.md#race
    """
    with_this = spent(seeds, first, most)
    before = spent(seeds - 1, first, most)
    return with_this - before


def _compare(seen: Sequence[CorrectBySeed], factor: float) -> Numbers:
    """Return p-values (k, 2) of "as good as the first", by seeds and by images.

    Args:
        seen: Candidates, each (seeds, images): the best mean first, those that rest last. The
            latter have fewer seeds, and their p-values mean nothing.
        factor: What the p-values by seeds are multiplied with, for all analyses together.
    """
    most = len(seen[0])
    accuracies = np.full((len(seen), most), np.nan)
    for row, correct in zip(accuracies, seen, strict=True):
        row[: len(correct)] = correct.mean(axis=1)
    best = seen[0].mean(axis=0)
    by_images = []
    for correct in seen[1:]:
        p_value = 1.0
        if len(correct) == most:
            differences = best - correct.mean(axis=0)
            p_value = t_test(differences).p_value
        by_images.append(p_value)
    p_images = [1.0, *adjusted_p_values(by_images)]
    p_seeds = np.ones(1)
    if len(seen) > 1:
        p_seeds = np.minimum(tukey(accuracies) * factor, 1.0)
    return np.column_stack([p_seeds, p_images])


@dataclass(frozen=True)
class Gap:
    """How far two candidates are apart, and the noise of that.

    Attributes:
        difference: Of the mean accuracies, in [0, 1].
        seeds: Seeds that were seen.
        images: Images that were seen.
        spread: Standard deviation of the difference from seed to seed, on these images.
        of_images: Standard deviation from image to image, of the expected difference.
        rest: Standard deviation of what neither seed nor image explains.
    """

    difference: float
    seeds: int
    images: int
    spread: float
    of_images: float
    rest: float

    @classmethod
    def of(cls, first: CorrectBySeed, second: CorrectBySeed) -> "Gap":
        """Return the gap between two candidates.

        Args:
            first: A candidate, (seeds, images), with at least two seeds.
            second: Another candidate, of the same shape.

        See docs/statistics.md#how-many-more-seeds
        """
        between = first.astype(np.float64) - second
        parts = components(between)
        return cls(
            difference=abs(float(between.mean())),
            seeds=len(between),
            images=between.shape[1],
            spread=parts.seeds,
            of_images=parts.images,
            rest=parts.rest,
        )

    def chance(self, seeds: int, k: int, by_seeds: float, by_images: float) -> float:
        """Return the chance that more seeds distinguish the two candidates.

        What was seen is taken for the truth, and the seeds that were seen are among ``seeds``.

        Args:
            seeds: Seeds of each candidate in all.
            k: How many candidates are compared.
            by_seeds: Two-sided level of the test by seeds.
            by_images: Two-sided level of the test by images.

        Returns:
            The conditional power, in [0, 1].

        See docs/statistics.md#how-many-more-seeds
        """
        # the difference above which both tests are significant
        critical = _critical(k, seeds, by_seeds)
        limit_by_seeds = critical * self.spread / math.sqrt(2 * seeds)
        limit = max(limit_by_seeds, self._limit_by_images(seeds, by_images))
        # what the seeds to come may still change of the mean
        seeds_to_come = max(seeds - self.seeds, 0)
        new = self.spread * math.sqrt(seeds_to_come) / seeds
        if new < ROUNDING:
            return float(self.difference > limit)
        missing = (limit - self.difference) / new
        return 0.5 * math.erfc(missing / math.sqrt(2))

    def more_seeds(self) -> int | None:
        """Return how many more seeds would distinguish the two candidates.

        The test is of these two alone, at 5 %, with a power of 80 %.

        Returns:
            The number; one above :data:`MOST_SEEDS` in all stands for any larger number. None if no
            number of seeds helps, since the images are too few.

        See docs/statistics.md#how-many-more-seeds
        """
        if self.difference <= self._limit_by_images(math.inf, SIGNIFICANCE):
            return None
        low = self.seeds
        high = MOST_SEEDS + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.chance(middle, 2, SIGNIFICANCE, SIGNIFICANCE) >= POWER:
                high = middle
            else:
                low = middle
        return high - self.seeds

    def _limit_by_images(self, seeds: float, by_images: float) -> float:
        """Return the difference above which the test by images is significant.

        Args:
            seeds: Seeds that the means are taken over; infinity is allowed.
            by_images: Two-sided level of the test.
        """
        critical = _critical(2, self.images, by_images) / math.sqrt(2)
        # the standard error of the difference of means, by the images
        variance = self.of_images**2 + self.rest**2 / seeds
        return critical * math.sqrt(variance / self.images)


def components(values: Numbers) -> Components:
    """Split the variance of values into that of seeds, of images and of the rest.

    Args:
        values: The values, (seeds, images), with at least two seeds and two images.

    See docs/statistics.md#noise
    """
    seeds, images = values.shape
    by_seed = values.mean(axis=1)
    by_image = values.mean(axis=0)
    # what is left without the effects of the seed and of the image
    rest = values - by_seed[:, None] - by_image + values.mean()
    freedom = max(1, (seeds - 1) * (images - 1))
    rest_mean_square = float((rest**2).sum()) / freedom
    # the observed variance of the images holds a share of the rest
    observed = float(by_image.var(ddof=1))
    image_variance = max(0.0, observed - rest_mean_square / seeds)
    return Components(
        seeds=float(by_seed.std(ddof=1)),
        images=math.sqrt(image_variance),
        rest=math.sqrt(rest_mean_square),
    )


def noise_of(correct: CorrectBySeed) -> Noise:
    """Return the noise of a candidate's accuracy.

    Args:
        correct: The candidate, (seeds, images), with at least two seeds and two images.

    See docs/statistics.md#noise
    """
    parts = components(correct.astype(np.float64))
    images = correct.shape[1]
    return Noise(seeds=parts.seeds, images=parts.images / math.sqrt(images))


@cache
def _critical(k: int, seeds: int, significance: float) -> float:
    """Return the range of k means that chance exceeds at a level, in standard errors of a mean.

    The seeds are the blocks.
    """
    from scipy.stats import studentized_range, t

    if k == 2:
        # the same, a thousand times as fast
        quantile = float(t.isf(significance / 2, seeds - 1))
        return quantile * math.sqrt(2)
    freedom = (k - 1) * (seeds - 1)
    return float(studentized_range.isf(significance, k, freedom))


def confirmed_ranking(
    groups: Sequence[Group], interim: InterimAnalysis, prefer: str
) -> pd.DataFrame:
    """Rank the candidates of a race that are not lost.

    Args:
        groups: All candidates of the race, in its order, each with the runs that count.
        interim: The race.
        prefer: ``accuracy`` makes the first the winner, ``smallest`` the tied candidate with the
            fewest parameters, ``robust`` the tied candidate with the highest accuracy on corrupted
            images.

    Returns:
        A row for each candidate: first those that the race carried to its end, which have the most
        seeds, then those that left it earlier, and in both groups the best mean first. ``tied``
        marks those that are not out, ``winner`` a single row.
        ``low`` and ``high`` are the 95 % t-interval of the mean over seeds; ``sd_seeds``,
        ``sd_images`` and ``sd_both`` are those of :class:`Noise`.

    See docs/statistics.md#race
    """
    rows = []
    for group, state, p_seeds, p_images in zip(
        groups, interim.states, interim.p_seeds, interim.p_images, strict=True
    ):
        if state == Standing.LOST:
            continue
        accuracies = [run.metrics["val_accuracy"] for run in group.runs]
        by_seed = t_test(np.array(accuracies))
        correct = [run.correct for run in group.runs]
        noise = noise_of(np.array(correct))
        row = {
            "name": group.name,
            "run_id": group.best.run_id,
            "mean": group.mean("val_accuracy"),
            "low": max(0.0, by_seed.low),
            "high": min(1.0, by_seed.high),
            "robust_accuracy": group.robust_accuracy,
            "parameters": round(group.mean("parameters")),
            "seeds": len(group.runs),
            "p_seeds": p_seeds,
            "p_images": p_images,
            "sd_seeds": noise.seeds,
            "sd_images": noise.images,
            "sd_both": noise.both,
            "tied": state == Standing.IN,
        }
        rows.append(row)
    table = rank_most_seeds_first(pd.DataFrame(rows))
    eligible = table.head(1)
    if prefer in ("smallest", "robust"):
        eligible = table[table["tied"]]
    if prefer == "robust":
        eligible = eligible.sort_values(
            ["robust_accuracy", "parameters", "rank"], ascending=[False, True, True]
        )
    else:
        eligible = eligible.sort_values(["parameters", "rank"])
    winner = eligible.index[0]
    return table.assign(winner=table.index == winner)


def rank_most_seeds_first(table: pd.DataFrame) -> pd.DataFrame:
    """Rank candidates: those with the most seeds first, then the others, both by their means.

    Args:
        table: Rows with seeds, mean and parameters, in any order.

    Returns:
        The rows in their order, with their ``rank`` from 1.

    See docs/statistics.md#race
    """
    has_most_seeds = table["seeds"] == table["seeds"].max()
    ordered = table.assign(first=has_most_seeds).sort_values(
        ["first", "mean", "parameters"],
        ascending=[False, False, True],
        kind="stable",
        ignore_index=True,
    )
    ordered = ordered.drop(columns=["first", "rank"], errors="ignore")
    ordered.insert(0, "rank", ordered.index + 1)
    return ordered
