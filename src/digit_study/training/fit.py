"""Compile and fit: precision, threads, optimizers, schedules, augmentation. Knows neither MLflow nor Optuna."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from digit_study.config.run import TrainingConfig
from digit_study.data.augmentation import shift_rotate
from digit_study.terminal.errors import StudyError
from digit_study.terminal.quiet import native_stderr

Epoch = dict[str, float]
Weights = list[npt.NDArray[np.float32]]
#: Steps that run between two looks from Python; 15 % faster than one by one, and a signal waits for them.
STEPS_PER_LOOK = 50


class Diverged(StudyError):
    """Training produced a number that is not finite."""


def use_threads(threads: int) -> None:
    """Pin TensorFlow to ``threads`` cores; must come before its first operation, for the number decides the bits."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if has_gpu():
        tf.config.experimental.enable_op_determinism()


def has_gpu() -> bool:
    """Whether TensorFlow finds a GPU."""
    with native_stderr():  # it complains of CUDA where there is none
        return bool(tf.config.list_physical_devices("GPU"))


def fit(
    model: keras.Model,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    config: TrainingConfig,
    *,
    validate: Callable[[], dict[str, float]],
    on_epoch: Callable[[Epoch], None],
    on_steps: Callable[[int, int, int], None] | None = None,
) -> list[Epoch]:
    """Train ``model`` in place; it ends with its best weights under early stopping, else with its last.

    Args:
        model: a network from raw pixels to probabilities.
        images: shape (n, 28, 28, 1), uint8.
        labels: shape (n,), 0 to 9.
        config: a validated recipe; batch_size is at most n.
        validate: ``val_*`` metrics of the weights as they stand, asked at the end of every epoch.
        on_epoch: told of every finished epoch; what it raises ends training.
        on_steps: told (epoch, steps done, steps in all) as an epoch goes on.

    Returns:
        One record an epoch: train_loss, train_accuracy, val_*, learning_rate, epoch_seconds, images_per_second.

    Raises:
        Diverged: a loss is not finite; names quantity, epoch and step.
    """
    steps, look = _steps(len(images) // config.batch_size)
    _compile(model, config, steps, look)
    watch = _Watch(config, steps, look, validate, on_epoch, on_steps)
    batches = _batches(images, labels, config, steps)
    ema = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if config.ema else []
    # the batches shuffle themselves
    model.fit(batches, epochs=config.epochs, shuffle=False, verbose=0, callbacks=[*ema, watch])
    model.set_weights(watch.chosen_weights)
    return watch.epochs


def weights_sha256(model: keras.Model) -> str:
    """sha256 of all weights, float32 in the model's order: equal when two networks are bit-identical."""
    content = hashlib.sha256()
    for weight in model.get_weights():
        content.update(np.ascontiguousarray(weight, dtype=np.float32).data)
    return content.hexdigest()


def _steps(whole: int) -> tuple[int, int]:
    """Steps an epoch and steps a look, the second a divisor of the first.

    Where no divisor near the wanted size exists (431 is prime), the fewest last batches are left out of each epoch;
    every epoch is shuffled anew, so that each image keeps its turn.
    """
    if whole <= STEPS_PER_LOOK:
        return whole, whole
    look = min(range(STEPS_PER_LOOK, STEPS_PER_LOOK // 2, -1), key=lambda size: whole % size)
    return whole - whole % look, look


def _compile(model: keras.Model, config: TrainingConfig, steps: int, look: int) -> None:
    smooth = config.label_smoothing > 0
    loss = (
        keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)
        if smooth
        else keras.losses.SparseCategoricalCrossentropy()
    )
    metric = keras.metrics.CategoricalAccuracy if smooth else keras.metrics.SparseCategoricalAccuracy
    model.compile(
        optimizer=_optimizer(config, steps * config.epochs),
        loss=loss,
        metrics=[metric(name="accuracy")],
        steps_per_execution=look,
        # XLA on a CPU is several times slower
        jit_compile="auto" if has_gpu() else False,
    )


def _optimizer(config: TrainingConfig, total_steps: int) -> keras.optimizers.Optimizer:
    common: dict[str, Any] = {
        "learning_rate": SCHEDULES[config.schedule](config.learning_rate, total_steps),
        "weight_decay": config.weight_decay or None,
        "use_ema": config.ema,
        "ema_momentum": config.ema_momentum,
    }
    return OPTIMIZERS[config.optimizer](common)


OPTIMIZERS: dict[str, Callable[[dict[str, Any]], keras.optimizers.Optimizer]] = {
    "adam": lambda common: keras.optimizers.Adam(**common),
    "adamw": lambda common: keras.optimizers.AdamW(**{**common, "weight_decay": common["weight_decay"] or 0.0}),
    "sgd": lambda common: keras.optimizers.SGD(momentum=0.9, nesterov=True, **common),
}


def _one_cycle(peak: float, total_steps: int) -> Any:
    """Warm up from peak/25 over 30 % of the steps, cosine to peak/10,000 (Smith & Topin 2018, arXiv 1708.07120)."""
    warm_up = max(1, int(0.3 * total_steps))
    return keras.optimizers.schedules.CosineDecay(
        peak / 25, max(1, total_steps - warm_up), alpha=1e-4, warmup_target=peak, warmup_steps=warm_up
    )


SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda rate, _: rate,
    "cosine": lambda rate, total_steps: keras.optimizers.schedules.CosineDecay(rate, total_steps),
    "onecycle": _one_cycle,
}


def _batches(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], config: TrainingConfig, steps: int
) -> tf.data.Dataset:
    # shuffling positions instead of images moves 8 bytes an image, and gathers whole batches at once
    targets = np.eye(10, dtype=np.float32)[labels] if config.label_smoothing else labels
    pixels, targets = tf.constant(images), tf.constant(targets)
    order = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=config.seed, reshuffle_each_iteration=True)
    batches = order.batch(config.batch_size, drop_remainder=True).take(steps)
    batches = batches.map(lambda at: (tf.gather(pixels, at), tf.gather(targets, at)))
    if config.augmentation == "shift_rotate":
        batches = shift_rotate(batches, config.shift, config.rotation, config.seed)
    return batches.prefetch(2)


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Validates, times, records and stops; holds the weights that training ends with."""

    def __init__(
        self,
        config: TrainingConfig,
        steps: int,
        look: int,
        validate: Callable[[], dict[str, float]],
        on_epoch: Callable[[Epoch], None],
        on_steps: Callable[[int, int, int], None] | None,
    ) -> None:
        super().__init__()
        self.config, self.steps, self.look = config, steps, look
        self.validate, self.report, self.on_steps = validate, on_epoch, on_steps
        self.epochs: list[Epoch] = []
        self.chosen_weights: Weights = []
        self.best = (math.inf, 0)
        self.started = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step, epoch = batch + 1, len(self.epochs) + 1
        where = f"in steps {max(1, step - self.look + 1)} to {step} of {self.steps}"
        self._check("train_loss", (logs or {})["loss"], epoch, where)
        if self.on_steps is not None:
            self.on_steps(epoch, step, self.steps)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained = time.perf_counter() - self.started
        validation = self.validate()
        record = {
            "train_loss": float(logs["loss"]),
            "train_accuracy": float(logs["accuracy"]),
            **validation,
            "learning_rate": float(self.model.optimizer.learning_rate),
            "epoch_seconds": time.perf_counter() - self.started,
            "images_per_second": self.steps * self.config.batch_size / trained,
        }
        self._check("val_loss", record["val_loss"], epoch + 1, f"after step {self.steps}")
        self.epochs.append(record)
        self._choose(record["val_loss"])
        self.report(record)

    def _choose(self, val_loss: float) -> None:
        patience = self.config.early_stopping.patience
        best_loss, waited = self.best
        if patience is None or val_loss < best_loss:
            self.chosen_weights = self.model.get_weights()
            self.best = (val_loss, 0)
            return
        self.best = (best_loss, waited + 1)
        self.model.stop_training = waited + 1 >= patience

    @staticmethod
    def _check(quantity: str, value: Any, epoch: int, where: str) -> None:
        if not math.isfinite(float(value)):
            raise Diverged(
                f"training diverged: `{quantity}` is {float(value)} in epoch {epoch}, {where}; "
                "a lower training.learning_rate usually mends it"
            )
