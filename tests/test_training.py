"""Fitting: every recipe runs, ends where it should, repeats itself, and says when it diverges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from augmented import changed_batches
from conftest import sample
from hypothesis import given
from hypothesis import strategies as st

from digit_study.model import fit as training
from digit_study.model.fit import STEPS_PER_EXECUTION, Diverged, fit, steps_of_epoch, weights_sha256
from digit_study.model.networks import ModelConfig, build_model
from digit_study.model.recipe import (
    OPTIMIZERS,
    SCHEDULES,
    EarlyStoppingConfig,
    TrainingConfig,
    build_optimizer,
    shift_rotate,
)
from digit_study.model.training_state import TrainingState
from digit_study.support import hardware

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, Array]
#: Few weights and sgd, for most of the time goes into tracing.
SMALL = ModelConfig(filters=2, blocks=1, dense_units=0, dropout=0.0, batch_norm=False)
RECIPE = TrainingConfig(
    epochs=1, batch_size=20, precision="float32", optimizer="sgd", learning_rate=0.01
)


@pytest.fixture(scope="module")
def digits() -> Arrays:
    """120 digits, twelve a class."""
    images, labels = sample()
    some = np.arange(5000) % 500 < 12
    return images[some][..., np.newaxis], labels[some]


@pytest.fixture(scope="module")
def plain(digits: Arrays) -> str:
    """What two epochs without any extra end with."""
    return weights_sha256(trained(digits, replace(RECIPE, epochs=2))[0])


def validation(losses: list[float] | None = None) -> Callable[[], dict[str, float]]:
    values = iter(losses or [])
    return lambda: {"val_loss": next(values, 1.0), "val_accuracy": 0.5}


def trained(
    digits: Arrays, recipe: TrainingConfig, config: ModelConfig = SMALL, **more: Any
) -> tuple[keras.Model, list[dict[str, float]]]:
    keras.utils.set_random_seed(recipe.seed)
    model = build_model(config, recipe.precision)
    handed = {"validate": validation(), "on_epoch": lambda record: None} | more
    return model, fit(model, *digits, recipe, **handed)


@pytest.mark.slow
def test_steps_are_those_of_keras_itself(
    plain: str, digits: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training, "train_function", lambda model: None
    )  # so that Keras makes its own
    assert weights_sha256(trained(digits, replace(RECIPE, epochs=2))[0]) == plain


@pytest.mark.slow
def test_one_short_training_after_another_is_no_retracing(
    digits: Arrays, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorFlow warns of the fifth tracing in so few calls, as if a function were traced anew."""
    for _ in range(6):
        model, _ = trained(digits, RECIPE)
        predictor = training.Predictor(model)
        assert predictor(digits[0][:50]).shape == (50, 10)
    assert [record.message for record in caplog.records if record.name == "tensorflow"] == []


# ---------------------------------------------------------------------------------- recipes


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "schedule"), list(product(OPTIMIZERS, SCHEDULES)))
def test_every_optimizer_and_schedule_trains(optimizer: str, schedule: str, digits: Arrays) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, schedule=schedule, weight_decay=0.01)
    keras.utils.set_random_seed(0)
    before = weights_sha256(build_model(SMALL))
    model, (record,) = trained(digits, recipe)
    assert weights_sha256(model) != before and math.isfinite(record["train_loss"])
    assert (
        type(model.optimizer).__name__.lower() == optimizer and model.optimizer.weight_decay == 0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"ema": True},
        {"label_smoothing": 0.1},
        {"augmentation": "shift_rotate"},
        {"precision": "mixed_bfloat16"},
        {"ema": True, "label_smoothing": 0.1, "augmentation": "shift_rotate", "optimizer": "adamw"},
    ],
)
def test_every_extra_trains_and_repeats_itself(
    values: dict[str, Any], digits: Arrays, plain: str
) -> None:
    recipe = replace(RECIPE, epochs=2, **values)
    model, epochs = trained(digits, recipe)
    again, epochs_again = trained(digits, recipe)
    assert weights_sha256(model) == weights_sha256(again) != plain
    measured = ("train_loss", "train_accuracy", "learning_rate")
    assert [[one[name] for name in measured] for one in epochs] == [
        [one[name] for name in measured] for one in epochs_again
    ]


@pytest.mark.slow
def test_another_seed_is_another_training(digits: Arrays) -> None:
    first, _ = trained(digits, RECIPE)
    second, _ = trained(digits, replace(RECIPE, seed=1))
    assert weights_sha256(first) != weights_sha256(second)


@pytest.mark.slow
def test_it_learns(digits: Arrays) -> None:
    _, epochs = trained(
        digits, replace(RECIPE, epochs=20), replace(SMALL, filters=4, batch_norm=True)
    )
    assert (
        epochs[-1]["train_accuracy"] > 0.9
        and epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2
    )


@pytest.mark.slow
def test_a_record_an_epoch_told_as_it_ends(digits: Arrays) -> None:
    told: list[dict[str, float]] = []
    steps: list[tuple[int, int, int]] = []
    _, epochs = trained(
        digits,
        replace(RECIPE, epochs=3),
        on_epoch=told.append,
        on_steps=lambda *where: steps.append(where),
        validate=validation([3.0, 2.0, 1.0]),
    )
    assert told == epochs and [one["val_loss"] for one in epochs] == [3.0, 2.0, 1.0]
    assert steps == [(1, 6, 6), (2, 6, 6), (3, 6, 6)]
    for one in epochs:
        assert set(one) == {
            "train_loss",
            "train_accuracy",
            "val_loss",
            "val_accuracy",
            "learning_rate",
            "epoch_seconds",
            "step_seconds",
            "images_per_second",
        }
        assert 0 <= one["train_accuracy"] <= 1 and one["epoch_seconds"] > 0
        assert one["images_per_second"] > 120 / one["epoch_seconds"] - 1e-6


@pytest.mark.slow
def test_what_a_listener_raises_ends_training(digits: Arrays) -> None:
    def stop(record: dict[str, float]) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        trained(digits, RECIPE, on_epoch=stop)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "done"),
    [
        ({"augmentation": "shift_rotate", "ema": True, "precision": "mixed_bfloat16"}, 2),
        ({"augmentation": "handwriting", "label_smoothing": 0.1, "optimizer": "adamw"}, 1),
        ({"early_stopping": EarlyStoppingConfig(2), "schedule": "constant"}, 3),
    ],
)
def test_training_that_goes_on_ends_with_the_same_bits(
    values: dict[str, Any], done: int, digits: Arrays
) -> None:
    recipe = replace(RECIPE, epochs=5, **values)
    network = replace(SMALL, dropout=0.3, batch_norm=True)
    losses = [3.0, 1.0, 2.0, 2.0, 2.0]
    states: list[TrainingState] = []
    handed = {"on_state": lambda state: states.append(state())}
    whole, epochs = trained(digits, recipe, network, validate=validation(losses), **handed)
    handed = {"start": states[done]}
    again, later = trained(digits, recipe, network, validate=validation(losses[done:]), **handed)
    assert weights_sha256(again) == weights_sha256(whole)
    assert [one["train_loss"] for one in later] == [one["train_loss"] for one in epochs]
    assert later[:done] == epochs[:done]


# ---------------------------------------------------------------------------------- early stopping


def weights_after(
    digits: Arrays, losses: list[float], patience: int | None
) -> tuple[keras.Model, list[Array], int]:
    """The trained model, its weights after every epoch, and how many epochs there were."""
    seen: list[Array] = []
    keras.utils.set_random_seed(0)
    model = build_model(SMALL)
    recipe = replace(RECIPE, epochs=6, early_stopping=EarlyStoppingConfig(patience))
    handed = {
        "validate": validation(losses),
        "on_epoch": lambda record: seen.append(weights_sha256(model)),
    }
    epochs = fit(model, *digits, recipe, **handed)  # type: ignore[arg-type]
    return model, seen, len(epochs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "patience", "ran", "kept"),
    [
        ([3, 1, 2, 2, 0, 0], 2, 4, 2),  # stops before the better one
        ([3, 1, 2, 0, 1, 1], 2, 6, 4),  # a better one starts the count anew
        ([1, 1, 1, 1, 1, 1], 1, 2, 1),  # equal is not better
        ([6, 5, 4, 3, 2, 1], 1, 6, 6),
        ([1, 2, 3, 4, 5, 6], 5, 6, 1),  # the best ones also when the epochs run out first
        ([1, 2, 3, 4, 5, 6], None, 6, 6),  # no early stopping: the last ones
    ],
)
def test_early_stopping_ends_with_the_best_weights(
    losses: list[float], patience: int | None, ran: int, kept: int, digits: Arrays
) -> None:
    model, seen, epochs = weights_after(digits, losses, patience)
    assert epochs == ran and weights_sha256(model) == seen[kept - 1]
    assert len(set(seen)) == ran


@pytest.mark.slow
def test_averaged_weights_are_the_ones_that_are_validated_and_kept(
    digits: Arrays, plain: str
) -> None:
    judged: list[str] = []
    keras.utils.set_random_seed(0)
    model = build_model(SMALL)

    def validate() -> dict[str, float]:
        judged.append(weights_sha256(model))
        return {"val_loss": 1.0, "val_accuracy": 0.5}

    fit(
        model,
        *digits,
        replace(RECIPE, epochs=2, ema=True),
        validate=validate,
        on_epoch=lambda record: None,
    )
    assert weights_sha256(model) == judged[-1] != plain


# ---------------------------------------------------------------------------------- learning rates


def rates(schedule: str, total: int, peak: float = 0.1) -> list[float]:
    rate = build_optimizer(
        replace(RECIPE, schedule=schedule, learning_rate=peak), total
    )._learning_rate
    return [float(rate(step)) if callable(rate) else float(rate) for step in range(total + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_the_ends_of_every_schedule(total: int) -> None:
    assert rates("constant", total) == pytest.approx([0.1] * (total + 1))
    cosine = rates("cosine", total)
    assert cosine[0] == pytest.approx(0.1) and cosine[-1] == pytest.approx(0, abs=1e-7)
    assert cosine == sorted(cosine, reverse=True)


@pytest.mark.slow
def test_one_cycle_warms_up_and_cools_down() -> None:
    cycle = rates("onecycle", 1000)
    assert cycle[0] == pytest.approx(0.1 / 25) and cycle[-1] == pytest.approx(
        0.1 / 10_000, rel=1e-2
    )
    assert max(cycle) == cycle[300] == pytest.approx(0.1)
    assert cycle[:301] == sorted(cycle[:301]) and cycle[300:] == sorted(cycle[300:], reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 0.01), ("cosine", 0.0), ("onecycle", 1e-6)]
)
def test_the_recorded_rate_ends_where_the_schedule_ends(
    schedule: str, last: float, digits: Arrays
) -> None:
    _, epochs = trained(digits, replace(RECIPE, epochs=2, schedule=schedule))
    assert epochs[-1]["learning_rate"] == pytest.approx(last, abs=1e-8)


# ---------------------------------------------------------------------------------- divergence


@pytest.mark.slow
def test_divergence_names_quantity_epoch_and_steps(digits: Arrays) -> None:
    wild = replace(RECIPE, optimizer="sgd", learning_rate=10.0, epochs=9, schedule="constant")
    with pytest.raises(
        Diverged, match=r"`train_loss` is nan in epoch \d, in steps 1 to 6 of 6; a lower"
    ) as caught:
        trained(
            digits,
            wild,
            ModelConfig(batch_norm=False, filters=16, pooling="none", activation="elu"),
        )
    assert "training.learning_rate" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_divergence(loss: float, digits: Arrays) -> None:
    with pytest.raises(Diverged, match=rf"`val_loss` is {loss} in epoch 2, after step 6"):
        trained(digits, replace(RECIPE, epochs=3), validate=validation([1.0, loss]))


# ---------------------------------------------------------------------------------- steps


@given(st.integers(1, 100_000))
def test_looks_divide_the_steps_and_little_is_left_out(whole: int) -> None:
    steps, look = steps_of_epoch(whole)
    assert steps % look == 0 and 1 <= look <= STEPS_PER_EXECUTION and look <= steps <= whole
    assert whole - steps < 25 and (whole > STEPS_PER_EXECUTION or steps == look == whole)
    assert whole <= STEPS_PER_EXECUTION or look > STEPS_PER_EXECUTION // 2


@pytest.mark.parametrize(
    ("whole", "expected"), [(1, (1, 1)), (50, (50, 50)), (429, (429, 39)), (431, (430, 43))]
)
def test_known_steps(whole: int, expected: tuple[int, int]) -> None:
    assert steps_of_epoch(whole) == expected


def test_every_epoch_is_shuffled_anew_and_takes_no_image_twice() -> None:
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    batches = training.make_batches(
        images, np.arange(50) % 10, replace(RECIPE, batch_size=10), steps=4
    )
    pixels = [int(pixel) for batch, _ in batches.take(8) for pixel in np.ravel(batch)]
    first, second = pixels[:40], pixels[40:]
    assert len(set(first)) == len(set(second)) == len(second) == 40 and first != second


def test_labels_follow_their_images_through_the_shuffle() -> None:
    images = (np.arange(50, dtype=np.uint8) % 10).reshape(50, 1, 1, 1)
    for smoothing in (0.0, 0.1):
        recipe = replace(RECIPE, batch_size=10, label_smoothing=smoothing)
        for batch, targets in training.make_batches(
            images, np.arange(50) % 10, recipe, steps=5
        ).take(10):
            labels = np.argmax(targets, axis=1) if smoothing else targets.numpy()
            assert np.array_equal(np.ravel(batch), labels)


# ---------------------------------------------------------------------------------- augmentation


def moved(shift: float, rotation: float, seed: int = 0, rounds: int = 1) -> list[Array]:
    images = np.zeros((8, 28, 28, 1), np.uint8)
    images[:, 10:18, 12:16] = 255
    batches = tf.data.Dataset.from_tensors((images, np.arange(8)))
    moving = changed_batches(batches, seed, shift_rotate(shift, rotation, seed))
    return [np.asarray(batch) for _ in range(rounds) for batch, _ in moving]


def test_no_movement_leaves_images_as_they_are() -> None:
    (still,) = moved(0, 0)
    assert still.dtype == np.float32 and set(np.unique(still)) == {0.0, 255.0}
    assert np.all(still[:, 10:18, 12:16] == 255) and still.sum() == 8 * 32 * 255


@pytest.mark.slow
def test_movements_are_of_the_seed_and_new_in_every_epoch() -> None:
    first, second = moved(2, 10, seed=3, rounds=2)
    again, again_second = moved(2, 10, seed=3, rounds=2)
    assert np.array_equal(first, again) and np.array_equal(second, again_second)
    assert not np.array_equal(first, second) and not np.array_equal(first, moved(2, 10, seed=4)[0])
    assert len({image.tobytes() for image in first}) == 8  # every image its own


@pytest.mark.parametrize(("shift", "rotation"), [(3, 0), (0, 30), (3, 30)])
def test_movements_keep_their_bounds(shift: float, rotation: float) -> None:
    rows, columns = np.mgrid[0:28, 0:28]
    for image in np.concatenate(moved(shift, rotation, rounds=5))[..., 0]:
        assert image.sum() == pytest.approx(32 * 255, rel=0.02)  # nothing is lost over the edge
        centre = (rows * image).sum() / image.sum(), (columns * image).sum() / image.sum()
        assert np.hypot(*np.subtract(centre, 13.5)) <= shift * np.sqrt(2) + 0.1


# ---------------------------------------------------------------------------------- hardware


def test_precision_follows_the_processor(tmp_path: Path) -> None:
    cases = [
        ("avx2", "float32"),
        ("fpu amx_bf16 avx2", "mixed_bfloat16"),
        ("avx512_bf16", "mixed_bfloat16"),
    ]
    for number, (flags, precision) in enumerate(cases):
        listing = tmp_path / str(number)
        listing.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
        assert hardware.resolve_precision("auto", listing) == precision
        assert hardware.resolve_precision("float32", listing) == "float32"
    assert hardware.resolve_precision("auto", tmp_path / "no such file") == "float32"
