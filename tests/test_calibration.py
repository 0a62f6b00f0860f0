"""The mark "not significantly different from the best" is right in 95 of 100 studies.

Configurations that are worse are distinguished.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.bench_calibration import is_covered, is_distinguished
from statsmodels.stats.multitest import multipletests

from digit_study.stats.ranking import adjusted_p_values


@pytest.mark.slow
@pytest.mark.parametrize(("k", "studies"), [(2, 200), (5, 100), (20, 40), (40, 20), (200, 4)])
def test_equally_good_configurations_are_all_marked(k: int, studies: int) -> None:
    random = np.random.default_rng(k)
    assert sum(not is_covered(random, k, n=5_000) for _ in range(studies)) <= 0.05 * studies


@pytest.mark.slow
def test_a_configuration_worse_by_a_point_and_a_half_is_distinguished_among_twenty() -> None:
    random = np.random.default_rng(0)
    assert sum(is_distinguished(random, 20, n=5_000) for _ in range(30)) > 27


@pytest.mark.slow
def test_replicates_are_covered_too() -> None:
    random = np.random.default_rng(1)
    assert sum(not is_covered(random, 10, n=5_000, seeds=3) for _ in range(20)) <= 1


@pytest.mark.parametrize("number", [0, 1, 2, 3, 20, pytest.param(199, marks=pytest.mark.slow)])
def test_adjusted_p_values_lie_between_holms_and_bonferronis(number: int) -> None:
    """Above those for k - 1 comparisons chosen beforehand, never above those for all pairs."""
    random = np.random.default_rng(number)
    for p_values in (
        random.random(number),
        random.random(number) ** 9,
        np.round(random.random(number), 1),
    ):
        adjusted = adjusted_p_values(p_values)
        holm = multipletests(p_values, method="holm")[1] if number else p_values
        assert (adjusted >= holm - 1e-9).all()
        assert (adjusted <= np.minimum(1, p_values * number * (number + 1) / 2) + 1e-9).all()
        assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),  # of two nobody is chosen
        ([0.01, 0.02], [0.03, 0.03]),  # three pairs, and when the first is out, one
        ([0.5, 1e-6, 0.04], [0.5, 6e-6, 0.12]),
    ],
)
def test_adjusted_p_values_by_hand(p_values: list[float], expected: list[float]) -> None:
    assert list(adjusted_p_values(p_values)) == pytest.approx(expected)
