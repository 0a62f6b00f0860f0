"""A race over seeds: who is out and when, at which error rate, and what the noise is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from benchmarks.bench_confirmation import simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from digit_study.stats import race as races
from digit_study.stats.race import Gap, components, noise_of, race
from digit_study.stats.ranking import adjusted_p_values, t_test, tukey

Correct = npt.NDArray[np.bool_]


def networks(
    random: np.random.Generator, accuracies: list[float], seeds: int = 8, images: int = 400
) -> list[Correct]:
    """Candidates whose seeds and images both scatter; the images are equally hard for all."""
    hard = random.normal(size=images)
    found = []
    for accuracy in accuracies:
        ease = 1.5 * norm.ppf(accuracy) + 0.1 * random.normal(size=(seeds, 1))
        found.append(ease + hard + 0.5 * random.normal(size=(seeds, images)) > 0)
    return found


def stand(
    correct: list[Correct], first: int = 3, most: int = 8, **more: Any
) -> races.InterimAnalysis:
    return race(correct, [1.0] * len(correct), first, most, **more)


fields = st.tuples(
    st.integers(0, 10_000),
    st.lists(st.sampled_from([0.8, 0.9, 0.93, 0.95]), min_size=1, max_size=5),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(fields, st.integers(2, 6))
def test_a_fixed_number_of_seeds_has_one_look_at_all_of_them(drawn: Any, seeds: int) -> None:
    """Tukey's test over seeds and the adjusted paired test over images, as without a race."""
    correct = networks(np.random.default_rng(drawn[0]), drawn[1], seeds)
    found = stand(correct, seeds, seeds)
    order = sorted(range(len(correct)), key=lambda network: -correct[network].mean())
    means = np.array([correct[network].mean(axis=1) for network in order])
    by_seeds = tukey(means) if len(order) > 1 else np.ones(1)
    shares = [correct[network].mean(axis=0) for network in order]
    by_images = [
        1.0,
        *adjusted_p_values([t_test(shares[0] - share).p_value for share in shares[1:]]),
    ]
    assert [found.p_seeds[network] for network in order] == pytest.approx(by_seeds.tolist())
    assert [found.p_images[network] for network in order] == pytest.approx(by_images)
    assert found.wanted == 0 and found.seeds == [seeds] * len(order)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(fields, st.integers(3, 8))
def test_a_race_is_of_one_opinion_however_it_is_run(drawn: Any, most: int) -> None:
    random = np.random.default_rng(drawn[0])
    everything = networks(random, drawn[1], most)
    end = stand(everything, most=most)
    assert end.wanted == 0 and all(3 <= count <= most for count in end.seeds)
    for state, by_seeds, by_images in zip(end.states, end.p_seeds, end.p_images, strict=True):
        assert state == ("out" if by_seeds <= 0.05 and by_images <= 0.05 else "in")
    assert "in" in end.states
    # seed by seed, and with candidates in another order
    have = [0] * len(everything)
    while (
        now := stand([rows[:n] for rows, n in zip(everything, have, strict=True)], most=most)
    ).wanted:
        assert now.wanted <= most
        have = [now.wanted if goes_on else n for goes_on, n in zip(now.goes_on, have, strict=True)]
    assert (now, have) == (end, end.seeds)
    other = random.permutation(len(everything))
    turned = stand([everything[network] for network in other], most=most)
    assert [end.states[network] for network in other] == turned.states
    assert [end.seeds[network] for network in other] == turned.seeds


@pytest.mark.parametrize(("first", "most"), [(3, 3), (3, 4), (3, 8), (3, 100), (5, 5), (2, 2)])
def test_the_looks_share_five_per_cent(first: int, most: int) -> None:
    levels = [races.level_of_analysis(look, first, most) for look in range(first, most + 1)]
    assert min(levels) > 0 and sum(levels) == pytest.approx(0.05)


RIGHT, WRONG = np.ones((8, 50), bool), np.zeros((8, 50), bool)
HALF = np.tile(np.arange(50) % 2 == 0, (8, 1))


@pytest.mark.parametrize(
    ("correct", "states", "seeds"),
    [
        ([HALF], ["in"], [3]),
        ([HALF, HALF], ["in", "in"], [3, 3]),
        ([RIGHT, RIGHT, RIGHT], ["in"] * 3, [3] * 3),
        ([WRONG, WRONG], ["in", "in"], [3, 3]),
        ([HALF, RIGHT], ["out", "in"], [3, 3]),
        ([RIGHT, HALF, RIGHT], ["in", "out", "in"], [3, 3, 3]),
    ],
)
def test_extremes_are_decided_at_the_first_look(
    correct: list[Correct], states: list[str], seeds: list[int]
) -> None:
    found = stand(correct)
    assert (found.states, found.seeds, found.wanted) == (states, seeds, 0)


@pytest.mark.parametrize(
    ("have", "lost", "states", "wanted"),
    [
        ([2, 3, 3], [], ["in", "in", "in"], 3),
        ([2, 3, 3], [0], ["lost", "in", "in"], 0),
        ([3, 3, 3], [0, 1, 2], ["in", "in", "in"], 0),  # what failed was needed no more
        ([0, 1, 2], [0, 1, 2], ["lost", "lost", "lost"], 0),
        ([0, 0, 0], [], ["in", "in", "in"], 3),
    ],
)
def test_a_candidate_whose_seed_failed_leaves(
    have: list[int], lost: list[int], states: list[str], wanted: int
) -> None:
    found = stand([HALF[:count] for count in have], lost=lost)
    assert (found.states, found.wanted) == (states, wanted)


def test_the_leader_among_equals_is_the_smallest() -> None:
    shifted = np.roll(HALF, 1, axis=1)
    found = [
        race([HALF, shifted, WRONG], sizes, 3, 8) for sizes in ([2.0, 1.0, 1.0], [1.0, 2.0, 1.0])
    ]
    assert [interim.p_images[:2] for interim in found] == [[1.0, 1.0]] * 2
    assert all(interim.states == ["in", "in", "out"] for interim in found)


# --------------------------------------------------------------------------- error rate and power


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equally good", "same network"])
def test_of_recorded_networks_that_are_equally_good_none_is_out_in_19_of_20_races(
    kind: str,
) -> None:
    found = simulate(kind, 120, seed=1, with_fixed=False)["race"]
    assert (
        found.errors <= 0.05 * found.studies + 3
    )  # a standard deviation and a quarter of what 5 % would give


@pytest.mark.slow
def test_a_race_trains_fewer_recorded_networks_and_tells_more_of_the_worse_apart() -> None:
    found = simulate("as recorded", 80, seed=2)
    race_, fixed = found["race"], found["fixed"]
    assert race_.networks < 0.95 * fixed.networks
    assert race_.distinguished > fixed.distinguished and race_.distinguished > 0.95 * race_.clear
    assert race_.errors <= 1


# ------------------------------------------------------- the noise, and how many more seeds


def test_components_are_those_that_made_the_values() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        by_seed, by_image = random.normal(size=(8, 1)) * 0.3, random.normal(size=(1, 60)) * 0.5
        parts = components(by_seed + by_image + random.normal(size=(8, 60)))
        found.append(np.square([parts.seeds, parts.images, parts.rest]))
    assert np.mean(found, axis=0) == pytest.approx([0.3**2 + 1 / 60, 0.5**2, 1.0], rel=0.05)


@pytest.mark.slow
def test_noise_is_that_of_new_seeds_and_new_images() -> None:
    """Both together are the spread of an accuracy, seed and images drawn anew each time."""
    random = np.random.default_rng(1)
    fresh = [networks(random, [0.9], seeds=1)[0].mean() for _ in range(4_000)]
    found = [noise_of(networks(random, [0.9])[0]) for _ in range(100)]
    assert np.sqrt(np.mean([noise.both**2 for noise in found])) == pytest.approx(
        np.std(fresh), rel=0.08
    )
    assert np.sqrt(np.mean([noise.seeds**2 + noise.images**2 for noise in found])) == pytest.approx(
        np.std(fresh), rel=0.08
    )


@settings(deadline=None)
@given(st.integers(0, 1_000))
def test_the_parts_of_the_noise_are_no_more_than_both(number: int) -> None:
    random = np.random.default_rng(number)
    correct = random.random((random.integers(2, 9), random.integers(2, 300))) < random.random()
    found = noise_of(correct)
    assert 0 <= max(found.seeds, found.images) <= found.both <= found.seeds + found.images + 1e-12
    assert found.seeds == pytest.approx(correct.mean(axis=1).std(ddof=1))


#: seeds, images, spread, of_images, rest
PLAIN = (3, 5_000, 0.004, 0.02, 0.1)


@pytest.mark.parametrize("difference", [0.002, 0.004, 0.008])
@pytest.mark.parametrize("seeds", [5, 8, 20])
def test_the_chance_is_what_simulation_finds(difference: float, seeds: int) -> None:
    """Further seeds are normal around what was seen; the limits are those of t-tests with all."""
    gap, random = Gap(difference, *PLAIN), np.random.default_rng(seeds)
    further = random.normal(difference, gap.spread, (20_000, seeds - gap.seeds)).sum(axis=1)
    means = (gap.seeds * difference + further) / seeds
    by_seeds = races._critical(2, seeds, 0.05) / np.sqrt(2) * gap.spread / np.sqrt(seeds)
    by_images = 1.96 * np.sqrt((gap.of_images**2 + gap.rest**2 / seeds) / gap.images)
    simulated = float(np.mean(means > max(by_seeds, by_images)))
    assert gap.chance(seeds, 2, 0.05, 0.05) == pytest.approx(simulated, abs=0.015)


@pytest.mark.parametrize(
    ("gap", "more"),
    [
        (Gap(0.0, 3, 5_000, 0.004, 0.0, 0.1), None),
        (Gap(0.0, 3, 50, 0.0, 0.0, 0.0), None),  # perfect both
        (Gap(0.0005, *PLAIN), None),  # 0.02 / sqrt(5,000) x 1.96 = 0.00055
        (Gap(0.00001, 3, 5_000, 0.004, 0.0, 0.1), 998),  # more than 1,000
    ],
)
def test_no_number_of_seeds_helps_where_the_images_are_too_few(gap: Gap, more: int | None) -> None:
    assert gap.more_seeds() == more


@pytest.mark.parametrize("difference", [0.001, 0.002, 0.004, 0.006])
def test_more_seeds_are_the_fewest_with_a_power_of_80_per_cent(difference: float) -> None:
    gap = Gap(difference, *PLAIN)
    more = gap.more_seeds()
    assert more is not None and 0 < more < 998
    chances = [gap.chance(gap.seeds + count, 2, 0.05, 0.05) for count in (more - 1, more)]
    assert chances[0] < 0.8 <= chances[1]
