"""What a network claims holds: temperatures, prediction sets, and the shipped detector of what is no digit."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import sample
from hypothesis import given, settings
from hypothesis import strategies as st
from non_digits import LATIN, PRINTED, Glyph, made, printed

from digit_study.inference import detector
from digit_study.model import calibration
from digit_study.registry import contest
from digit_study.stats.metrics import calibration_error
from digit_study.stats.ranking import SIGNIFICANCE
from digit_study.support.errors import StudyError

Drawn = tuple[np.ndarray, np.ndarray]


def honest(seed: int, images: int, sharp: float = 4.0) -> Drawn:
    """Labels (n,) that are drawn from probabilities (n, 10): these are calibrated by the way they are made."""
    random = np.random.default_rng(seed)
    logits = sharp * random.normal(size=(images, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([random.choice(10, p=row) for row in probabilities])
    return labels, probabilities.astype(np.float32)


@pytest.mark.parametrize("by", [0.5, 1.0, 2.0, 3.0])
def test_the_temperature_undoes_what_a_network_is_too_sure_or_unsure_by(by: float) -> None:
    labels, probabilities = honest(0, 4_000)
    t, metrics = calibration.calibrated(labels, calibration.tempered(probabilities, 1 / by))
    assert t == pytest.approx(by, rel=0.1) and metrics["temperature"] == t
    if by != 1.0:
        assert metrics["calibration_error_after"] < 0.6 * metrics["calibration_error_before"]


def test_the_halves_are_kept_apart() -> None:
    labels, probabilities = honest(1, 400)
    other = labels.copy()
    other[1::2] = (other[1::2] + 1) % 10
    assert (
        calibration.calibrated(other, probabilities)[0]
        == calibration.calibrated(labels, probabilities)[0]
    )
    other = labels.copy()
    other[::2] = (other[::2] + 1) % 10
    least = [calibration.least_probability(one, probabilities, 0.9) for one in (labels, other)]
    assert least[0] == least[1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.floats(0.2, 5))
def test_a_temperature_changes_no_reading_and_keeps_sums(seed: int, t: float) -> None:
    _, probabilities = honest(seed, 50)
    hot = calibration.tempered(probabilities, t)
    assert (hot.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert np.allclose(hot.sum(axis=1), 1, atol=1e-5) and np.isfinite(hot).all()


def test_probabilities_of_nought_do_no_harm() -> None:
    certain = np.eye(10, dtype=np.float32)
    t, metrics = calibration.calibrated(np.arange(10), certain)
    assert (
        calibration.COLDEST <= t <= calibration.HOTTEST
        and np.isfinite(list(metrics.values())).all()
    )


@pytest.mark.slow
@pytest.mark.parametrize("coverage", [0.8, 0.95, 0.99])
def test_sets_hold_the_true_digit_as_often_as_they_say(coverage: float) -> None:
    held = []
    for seed in range(40):
        labels, probabilities = honest(seed, 1_000, sharp=2.0)
        least = calibration.least_probability(labels[:500], probabilities[:500], coverage)
        sets = calibration.prediction_sets(probabilities[500:], least)
        held.append(sets[np.arange(500), labels[500:]].mean())
    error = np.std(held) / np.sqrt(len(held))
    assert np.mean(held) >= coverage - 3 * error
    assert np.mean(held) <= coverage + 0.02


def test_a_set_holds_what_is_read_and_grows_with_the_coverage() -> None:
    labels, probabilities = honest(3, 600)
    sizes = []
    for coverage in (0.5, 0.9, 0.99):
        least = calibration.least_probability(labels, probabilities, coverage)
        sets = calibration.prediction_sets(probabilities, least)
        assert sets[np.arange(600), probabilities.argmax(axis=1)].all()
        sizes.append(sets.sum())
    assert sizes == sorted(sizes)


def test_more_than_the_images_can_tell_is_refused() -> None:
    labels, probabilities = honest(4, 200)
    with pytest.raises(StudyError, match=r"at most 0\.9901 .* 100 images, got 0\.995"):
        calibration.least_probability(labels, probabilities, 0.995)


def test_the_evidence_of_a_version_says_how_its_claims_hold() -> None:
    labels, probabilities = honest(6, 2_000, sharp=2.0)
    least = calibration.least_probability(labels[:1000], probabilities[:1000], contest.COVERAGE)
    refused = np.arange(1000) < 4
    found = contest.measure_uncertainty(labels[1000:], probabilities[1000:], refused, least)
    assert (
        found["test_refused"] == 0.004
        and found["test_refused_low"] < 0.004 < found["test_refused_high"]
    )
    assert (
        found["test_coverage_low"] < found["test_coverage"]
        and found["test_coverage_high"] > contest.COVERAGE
    )
    assert 1 < found["test_set_size"] < 10 and found["claimed_coverage"] == contest.COVERAGE
    assert "test_coverage" not in contest.measure_uncertainty(
        labels[1000:], probabilities[1000:], refused, None
    )


@pytest.mark.slow
def test_an_honest_network_is_found_honest() -> None:
    assert calibration_error(*honest(5, 20_000)) < SIGNIFICANCE / 3


@pytest.mark.slow
def test_the_model_with_a_temperature_gives_what_was_logged(tmp_path: object) -> None:
    import keras

    from digit_study.model.fit import Predictor, weights_sha256
    from digit_study.model.networks import ModelConfig, build_model, mean_of

    images = sample()[0][::50, ..., np.newaxis]
    members = [build_model(ModelConfig(filters=4)) for _ in range(3)]
    single = [Predictor(one)(images) for one in members]
    ensemble = mean_of(members)
    assert np.allclose(Predictor(ensemble)(images), np.mean(single, axis=0), atol=1e-6)
    hot = calibration.with_temperature(ensemble, 1.7)
    hot.save(f"{tmp_path}/hot.keras")
    again = keras.models.load_model(f"{tmp_path}/hot.keras")  # in safe mode
    assert weights_sha256(again) == weights_sha256(ensemble)
    expected = calibration.tempered(np.mean(single, axis=0), 1.7)
    assert np.allclose(Predictor(again)(images), expected, atol=1e-5)


@pytest.mark.slow
def test_the_shipped_detector_takes_digits_and_refuses_letters() -> None:
    from digit_study.pictures.images import size_normalised

    accepts = detector.load()
    images, labels = (one[::5] for one in sample())
    digits = images[..., np.newaxis]
    assert accepts(digits).mean() > 0.985
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    letters = [
        Glyph(fonts / name, one)
        for name in ("DejaVuSans.ttf", "STIXGeneral.ttf")
        for one in set(LATIN)
    ]
    assert (
        accepts(np.stack([size_normalised(printed(one)) for one in letters])[..., None]).mean()
        <= 0.05
    )
    assert accepts(made(300, digits, labels, seed=7, shares=PRINTED)).mean() <= 0.05
