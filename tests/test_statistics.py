"""The statistics agree with scipy's and statsmodels' own; their page says what they are."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from digit_study.model import calibration
from digit_study.stats import gate, metrics, race, ranking
from digit_study.stats.metrics import accuracy_interval
from digit_study.stats.ranking import paired_test

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "statistics.md"

Correct = ranking.Correct

#: both right, only the first, only the second, neither
TABLES = [
    (990, 5, 5, 0),
    (990, 10, 0, 0),
    (0, 0, 10, 0),
    (9_850, 30, 60, 60),
    (500, 1, 0, 0),
    (500, 0, 1, 3),
    (1, 200, 100, 1),
    (0, 50, 50, 0),
]


def answers(both: int, first: int, second: int, neither: int) -> tuple[Correct, Correct]:
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


@pytest.mark.parametrize("table", TABLES)
def test_mcnemar_is_the_exact_one(table: tuple[int, int, int, int]) -> None:
    both, b, c, neither = table
    found = paired_test(*answers(*table))
    assert (found.only_first, found.only_second, found.images) == (b, c, sum(table))
    assert found.p_value == pytest.approx(
        min(1, mcnemar([[both, b], [c, neither]], exact=True).pvalue), rel=1e-12
    )
    assert found.p_value == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-9)


@pytest.mark.parametrize("table", TABLES)
def test_the_paired_interval_is_scipys(table: tuple[int, int, int, int]) -> None:
    first, second = answers(*table)
    found = paired_test(first, second)
    assert found.difference == pytest.approx(second.mean() - first.mean(), abs=1e-15)
    if found.low == found.high:
        assert len(set(second.astype(int) - first)) == 1
        return
    with_scipy = ttest_rel(second.astype(float), first.astype(float)).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(with_scipy), rel=1e-12)
    with_statsmodels = DescrStatsW(second.astype(float) - first).tconfint_mean()
    assert (found.low, found.high) == pytest.approx(with_statsmodels, rel=1e-9)


@pytest.mark.parametrize(
    ("right", "n"), [(0, 10), (10, 10), (1, 10), (994, 1_000), (9_987, 10_000)]
)
def test_wilson_is_statsmodels_and_scipys(right: int, n: int) -> None:
    assert accuracy_interval(right, n) == pytest.approx(
        proportion_confint(right, n, 0.05, "wilson"), abs=1e-15
    )
    scipys = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert accuracy_interval(right, n) == pytest.approx((scipys.low, scipys.high), abs=1e-9)


@pytest.mark.parametrize("both", [True, False])
def test_models_that_never_differ_are_equal(both: bool) -> None:
    same = np.full(100, both)
    found = paired_test(same, same)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_one_right_everywhere_and_one_nowhere() -> None:
    found = paired_test(np.zeros(50, bool), np.ones(50, bool))
    assert (found.difference, found.low, found.high) == (1, 1, 1)
    assert found.p_value == pytest.approx(2 * 0.5**50)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_test(np.ones(3, bool), np.ones(4, bool))


@given(*[st.integers(0, 300)] * 4)
def test_swapping_the_two_mirrors_the_answer(both: int, b: int, c: int, neither: int) -> None:
    if both + b + c + neither == 0:
        return
    there, back = (
        paired_test(*answers(both, b, c, neither)),
        paired_test(*answers(both, c, b, neither)),
    )
    assert there.p_value == back.p_value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert there.low <= there.difference <= there.high


# ------------------------------------------------------------------- the page about the statistics


def public_functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield every public function of a module, and every public method of its classes."""
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(found):
            yield found
        elif inspect.isclass(found):
            for key, method in vars(found).items():
                method = getattr(method, "__func__", method)
                if inspect.isfunction(method) and not key.startswith("_"):
                    yield method


#: Methods that hold no statistics.
PLAIN = {"Evaluation.in_order", "Group.mean"}


@pytest.mark.parametrize("module", [metrics, ranking, race, gate, calibration])
def test_every_function_links_its_section(module: ModuleType) -> None:
    headings = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    functions = [
        function for function in public_functions(module) if function.__qualname__ not in PLAIN
    ]
    assert functions
    for function in functions:
        last = (inspect.getdoc(function) or "").splitlines()[-1]
        found = re.fullmatch(r"See docs/statistics\.md#([a-z-]+)", last)
        assert found and found[1] in anchors, f"{function.__qualname__}: {last}"


def test_links_within_the_page_resolve() -> None:
    text = PAGE.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([a-z-]+)\)", text)) <= anchors
    for path in re.findall(r"tests/[a-z_/]+\.py", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.slow
def test_the_example_runs_on_plain_arrays_without_anything_heavy() -> None:
    (example,) = re.findall(r"```python\n(.+?)```", PAGE.read_text(), re.DOTALL)
    heavy = {"tensorflow", "keras", "mlflow", "optuna", "hydra", "rich", "digit_study.config"}
    code = f"{example}\nimport sys\nfound = {heavy} & sys.modules.keys()\nassert not found, found"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "first" in done.stdout and "False" in done.stdout
