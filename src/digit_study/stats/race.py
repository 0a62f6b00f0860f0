"""A race of candidates over seeds: who is out, who needs another seed, and how much is noise of seeds and of images.

Plain arrays, (seeds, images) a candidate: whether its network of that seed reads that validation image right. All
candidates have the same seeds and images, in the same order.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.stats.ranking import SIGNIFICANCE, Group, adjusted_p_values, t_test, tukey

#: Seeds that all have at the first look: with two, chance alone makes a spread of seeds small.
FIRST = 3
#: A race goes on while a survivor has this chance of being told from the leader with all seeds there may be.
LEAST_CHANCE = 0.2
POWER = 0.8
#: More seeds than this nobody trains to tell two candidates apart.
MOST_SEEDS = 1_000
#: Columns of a confirmed ranking as tables of accuracies name them.
ACCURACY_COLUMNS = {"mean": "val_accuracy", "low": "val_accuracy_low", "high": "val_accuracy_high"}

Correct = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class InterimAnalysis:
    """What a look at a race, a group sequential test, has found; lists have an entry a candidate, in their order."""

    seeds: list[int]  # how many of its seeds count
    states: list[
        str
    ]  # in: it can still be the best; out: it cannot; lost: a seed that it needed has failed
    goes_on: list[bool]  # whether it gets more seeds
    p_seeds: list[
        float
    ]  # of its last look, for all looks and comparisons together: at most 0.05 in both is out
    p_images: list[float]
    wanted: (
        int  # seeds that each one that goes on must have for the next look; 0 when the race is over
    )


@dataclass(frozen=True)
class Noise:
    """Standard deviations of an accuracy, in [0, 1]."""

    seeds: float  # from seed to seed, on these images
    images: float  # from one sample of as many images to another, of the mean over all seeds

    @property
    def both(self) -> float:
        """Of one network on one sample of images."""
        return math.hypot(self.seeds, self.images)


def race(
    correct: Sequence[Correct],
    parameters: Sequence[float],
    first: int,
    most: int,
    lost: Collection[int] = (),
) -> InterimAnalysis:
    """Replay a race from its first look, with ``first`` seeds each, to what has been trained; at most ``most`` seeds.

    Those at the places ``lost`` have no more seeds, for their next one has failed, and leave at the look that wants it.

    A look compares those that go on, all on equally many seeds, with the best mean among them (the smallest network of
    equals). Out is who is worse by both noises: of the seeds (:func:`tukey`) and of the images (the paired t-test of
    the shares of seeds that read each image right, :func:`adjusted_p_values`). The looks share the 5 % of the seeds'
    test, see :func:`level`; the images are the same at every look, and with a single look, ``first == most``, this is
    the test of a fixed number of seeds. Who has no chance of :data:`LEAST_CHANCE` to be told from the best with
    ``most`` seeds stays in and rests (stopping for futility by conditional power; Lan, Simon, Halperin 1982,
    Communications in Statistics C 1, 207-219): it can no longer be called out, and counts among those that are
    compared, so that errors only become fewer. The race is over when only the best would go on, or with ``most`` seeds.
    Seeds beyond a candidate's last look do not count, so that the order in which they end decides nothing.
    """
    going, resting = list(range(len(correct))), list[int]()
    seeds, p_values = [0] * len(correct), np.ones((len(correct), 2))
    for look in range(first, most + 1):
        going = [one for one in going if one not in lost or len(correct[one]) >= look]
        if any(len(correct[one]) < look for one in going):
            return _interim_analysis(seeds, p_values, going, resting, look)
        if not going:
            break
        going.sort(key=lambda one: (-float(np.mean(correct[one][:look])), parameters[one]))
        for one in going:
            seeds[one] = look
        factor = SIGNIFICANCE / level(look, first, most)
        p_values[going] = _compare(
            [correct[one][: seeds[one]] for one in [*going, *resting]], factor
        )[: len(going)]
        going = [one for one in going if p_values[one].max() > SIGNIFICANCE]
        if look == most:
            break
        left = SIGNIFICANCE - spent(look, first, most)
        # who may be told from the best with ``most`` seeds goes on, and then the best too
        hopeful, k = [], len(going) + len(resting)
        for rank, one in enumerate(going[1:], start=2 + len(resting)):
            # by Holm's steps those with a lower mean are out by then
            levels = left, SIGNIFICANCE * 2 / (rank * (rank - 1))
            if (
                Gap.of(correct[going[0]][:look], correct[one][:look]).chance(most, k, *levels)
                >= LEAST_CHANCE
            ):
                hopeful.append(one)
        hopeful = [*going[: bool(hopeful)], *hopeful]
        resting += [one for one in going if one not in hopeful]
        going = hopeful
        if not going:
            break
    return _interim_analysis(seeds, p_values, going, resting, 0)


def _interim_analysis(
    seeds: list[int],
    p_values: npt.NDArray[np.float64],
    going: list[int],
    resting: list[int],
    wanted: int,
) -> InterimAnalysis:
    everyone, out = range(len(seeds)), p_values.max(axis=1) <= SIGNIFICANCE
    states = [
        "in" if one in {*going, *resting} else "out" if out[one] else "lost" for one in everyone
    ]
    goes_on = [wanted > 0 and one in going for one in everyone]
    return InterimAnalysis(
        seeds, states, goes_on, p_values[:, 0].tolist(), p_values[:, 1].tolist(), wanted
    )


def spent(look: int, first: int, most: int) -> float:
    """How much of the 5 % the looks up to the one with ``look`` seeds may use; all of it at the last.

    K. K. G. Lan and D. L. DeMets 1983 (Biometrika 70, 659-663), their function in the manner of Pocock, of the share
    of seeds seen: 0.025 at three of eight.
    """
    return 0.0 if look < first else SIGNIFICANCE * math.log1p((math.e - 1) * look / most)


def level(look: int, first: int, most: int) -> float:
    """The level of one look. That levels add up to 5 % holds however looks depend on each other (Bonferroni)."""
    return spent(look, first, most) - spent(look - 1, first, most)


def _compare(seen: Sequence[Correct], factor: float) -> npt.NDArray[np.float64]:
    """P-values (k, 2), by seeds, times ``factor``, and by images, of k candidates (seeds, images).

    The best mean comes first, those that rest, with fewer seeds, last; theirs mean nothing.
    """
    most = len(seen[0])
    accuracies = np.full((len(seen), most), np.nan)
    for row, one in zip(accuracies, seen, strict=True):
        row[: len(one)] = one.mean(axis=1)
    best = seen[0].mean(axis=0)
    by_images = [
        t_test(best - one.mean(axis=0))[0] if len(one) == most else 1.0 for one in seen[1:]
    ]
    p_images = [1.0, *adjusted_p_values(by_images)]
    p_seeds = np.minimum(tukey(accuracies) * factor, 1.0) if len(seen) > 1 else np.ones(1)
    return np.column_stack([p_seeds, p_images])


@dataclass(frozen=True)
class Gap:
    """How far two candidates are apart, and the noise of that."""

    difference: float  # of the mean accuracies, in [0, 1]
    seeds: int
    images: int
    spread: float  # standard deviation of the difference from seed to seed, on these images
    of_images: float  # from image to image, of the expected difference
    rest: float  # what neither seed nor image explains

    @classmethod
    def of(cls, first: Correct, second: Correct) -> "Gap":
        """From two arrays (seeds, images) of at least two seeds."""
        between = first.astype(np.float64) - second
        return cls(abs(float(between.mean())), len(between), between.shape[1], *components(between))

    def chance(self, seeds: int, k: int, by_seeds: float, by_images: float) -> float:
        """The chance that ``seeds`` seeds each, those seen among them, tell the two of ``k`` candidates apart.

        If what was seen is the truth; two-sided, at the levels ``by_seeds`` and ``by_images``.
        """
        limit = _critical(k, seeds, by_seeds) * self.spread / math.sqrt(2 * seeds)
        limit = max(
            limit, _critical(2, self.images, by_images) / math.sqrt(2) * self.image_error(seeds)
        )
        new = self.spread * math.sqrt(max(seeds - self.seeds, 0)) / seeds
        if new < 1e-12:
            return float(self.difference > limit)
        return 0.5 * math.erfc((limit - self.difference) / new / math.sqrt(2))

    def image_error(self, seeds: float) -> float:
        """Standard error, by the images, of the difference of means over ``seeds`` seeds."""
        return math.sqrt((self.of_images**2 + self.rest**2 / seeds) / self.images)

    def more_seeds(self) -> int | None:
        """How many more seeds would tell the two apart with a power of 80 %; None if the images are too few for any.

        In a test of these two alone, at 5 %. Above :data:`MOST_SEEDS`, only that it is more.
        """
        if self.difference <= _critical(2, self.images, SIGNIFICANCE) / math.sqrt(
            2
        ) * self.image_error(math.inf):
            return None
        low, high = self.seeds, MOST_SEEDS + 1
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.chance(middle, 2, SIGNIFICANCE, SIGNIFICANCE) >= POWER
            low, high = (low, middle) if enough else (middle, high)
        return high - self.seeds


def components(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Standard deviations in ``values`` (seeds, images): of their means a seed, of the images, and of the rest.

    The two-way random analysis of variance, a value a cell (Searle, Casella, McCulloch 1992, Variance Components, ch.
    4): the first holds its share of the rest, as it is observed; the second is that of the images' expected values.
    """
    seeds, images = values.shape
    by_seed, by_image = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_image + values.mean()
    rest_mean_square = float((rest**2).sum()) / max(1, (seeds - 1) * (images - 1))
    own = max(0.0, float(by_image.var(ddof=1)) - rest_mean_square / seeds)
    return float(by_seed.std(ddof=1)), math.sqrt(own), math.sqrt(rest_mean_square)


def noise_of(correct: Correct) -> Noise:
    """The noise of a candidate's accuracy, from two or more seeds on two or more images."""
    seeds, images, _ = components(correct.astype(np.float64))
    return Noise(seeds, images / math.sqrt(correct.shape[1]))


@cache
def _critical(k: int, seeds: int, level_: float) -> float:
    """The range of ``k`` means in their standard errors that chance exceeds at a level, with seeds as blocks."""
    from scipy.stats import studentized_range, t

    if k == 2:  # the same, a thousand times as fast
        return float(t.isf(level_ / 2, seeds - 1)) * math.sqrt(2)
    return float(studentized_range.isf(level_, k, (k - 1) * (seeds - 1)))


def confirmed_ranking(
    groups: Sequence[Group], interim: InterimAnalysis, prefer: str
) -> pd.DataFrame:
    """Rank the candidates of a race that are not lost; ``groups`` are all of them, each with the runs that count.

    With equally many seeds the best mean comes first. Else those that are not out do, ``tied``; of these, and of the
    others, the ones with more seeds, and then with the better mean. The ``winner`` is the first if ``prefer`` is
    ``accuracy``, else the one of the tied with the fewest parameters. ``low`` and ``high`` are the 95 % t-interval of
    the mean over seeds; ``sd_seeds``, ``sd_images`` and ``sd_both`` are those of :class:`Noise`.
    """
    rows = []
    for one, state, p_seeds, p_images in zip(
        groups, interim.states, interim.p_seeds, interim.p_images, strict=True
    ):
        if state == "lost":
            continue
        _, low, high = t_test(np.array([run.metrics["val_accuracy"] for run in one.runs]))
        noise = noise_of(np.array([run.correct for run in one.runs]))
        rows.append({
            "name": one.name, "run_id": one.best.run_id, "mean": one.mean("val_accuracy"), "low": max(0.0, low),
            "high": min(1.0, high), "parameters": round(one.mean("parameters")), "seeds": len(one.runs),
            "p_seeds": p_seeds, "p_images": p_images, "sd_seeds": noise.seeds, "sd_images": noise.images,
            "sd_both": noise.both, "tied": state == "in",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table["first"] = table["tied"] | (table["seeds"].nunique() == 1)
    by = {"first": False, "seeds": False, "mean": False, "parameters": True}
    table = table.sort_values(
        list(by), ascending=list(by.values()), kind="stable", ignore_index=True
    )
    table = table.drop(columns="first")
    table.insert(0, "rank", table.index + 1)
    eligible = table[table["tied"]] if prefer == "smallest" else table.head(1)
    winner = eligible.sort_values(["parameters", "rank"]).index[0]
    return table.assign(winner=table.index == winner)
