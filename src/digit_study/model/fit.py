"""Compile and fit: precision, threads, batches, fused batch norm. Knows neither MLflow nor Optuna."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from digit_study.data.sources import CLASSES, Labels, Pixels
from digit_study.model.recipe import AUGMENTATIONS, TrainingConfig, build_optimizer
from digit_study.support.messages import StudyError
from digit_study.support.signals import deferred_signals, native_stderr, raise_if_interrupted

Epoch = dict[str, float]
#: Steps that run between two callbacks in Python; 15 % faster than one by one, and a signal waits for them.
STEPS_PER_EXECUTION = 50
#: Images in one forward pass: as many fit into a core's cache.
READ_AT_ONCE = 256
#: TensorFlow's fused batch norm is twice as fast as Keras's on multiples of as many channels, and slower on others.
FUSED_CHANNELS = 16


class Diverged(StudyError):
    """Training produced a number that is not finite."""


def use_threads(threads: int) -> None:
    """Pin TensorFlow to ``threads`` cores; must come before its first operation, for the number decides the bits."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if devices := gpus():
        tf.config.experimental.enable_op_determinism()
    for device in devices:  # else the first of several trials takes all of its memory
        tf.config.experimental.set_memory_growth(device, True)


def gpus() -> list[Any]:
    """The GPUs that TensorFlow finds."""
    with native_stderr():  # it complains of CUDA where there is none
        return list(tf.config.list_physical_devices("GPU"))


def fit(
    model: keras.Model,  # raw pixels to probabilities
    images: Pixels,  # (n, 28, 28, 1)
    labels: Labels,  # (n,), 0 to 9
    config: TrainingConfig,  # batch_size is at most n
    *,
    validate: Callable[
        [], dict[str, float]
    ],  # val_* metrics of the current weights, called after every epoch
    on_epoch: Callable[
        [Epoch], None
    ],  # takes the record of every epoch; what it raises ends training
    on_steps: Callable[[int, int, int], None] = lambda *where: (
        None
    ),  # takes epoch, steps done, steps in all
) -> list[Epoch]:
    """Train ``model`` in place; it ends with its best weights under early stopping, else with its last.

    Returns one record an epoch: train_loss, train_accuracy, val_*, learning_rate, epoch_seconds, images_per_second, and
    step_seconds, the time of its training steps alone: no validation, and no tracing where an epoch has more than the
    STEPS_PER_EXECUTION that come with it.
    Raises Diverged, which names quantity, epoch and step, if a loss is not finite.
    """
    steps, per_execution = steps_of_epoch(len(images) // config.batch_size)
    loss, accuracy = (
        keras.losses.SparseCategoricalCrossentropy(),
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
    )
    if smoothing := config.label_smoothing:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        accuracy = keras.metrics.CategoricalAccuracy("accuracy")
    optimizer = build_optimizer(config, steps * config.epochs)
    # a training step that finds all its variables made is traced once, else twice, which takes half a second
    optimizer.build(model.trainable_variables)
    xla = "auto" if gpus() else False  # several times slower on a CPU
    model.compile(
        optimizer, loss, metrics=[accuracy], steps_per_execution=per_execution, jit_compile=xla
    )
    model.train_function = train_function(model)
    recorder = _Recorder(config, steps, validate, on_epoch, on_steps)
    ema = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if config.ema else []
    batches = make_batches(images, labels, config, steps)  # they shuffle themselves
    # without steps_per_epoch Keras makes two iterators an epoch, each with a first batch, and one of them for nothing
    callbacks = [*ema, recorder]
    model.fit(
        batches,
        epochs=config.epochs,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    model.set_weights(recorder.chosen_weights)
    return recorder.epochs


def train_function(model: keras.Model) -> Any:
    """What ``fit`` calls with an iterator of batches: as many steps as the compiled ``model`` takes per execution.

    Keras's own asks before every step whether there is a further batch, for which one step more is traced than these,
    that know it: training starts a sixth of a second later. Returns the metrics of the epoch so far.
    """
    step = model.train_step
    if model.jit_compile:
        step = tf.function(step, autograph=False, jit_compile=True)

    def execute(iterator: Any) -> dict[str, tf.Tensor]:
        def body(done: tf.Tensor) -> tuple[tf.Tensor]:
            step(next(iterator))
            return (done + 1,)

        tf.while_loop(lambda done: done < model.steps_per_execution, body, [0])
        return dict(model.get_metrics_result())

    return tf.function(execute, autograph=False)


class Predictor:
    """A compiled ``model``: pixels (n, 28, 28, 1), 0 to 255, to probabilities (n, 10), by its weights of then.

    Keras's own ``predict`` takes half as long again, and three times as long the first time.
    """

    def __init__(self, model: keras.Model) -> None:
        pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
        self.forward = tf.function(
            lambda images: model(images, training=False), input_signature=[pixels], autograph=False
        )
        self.seconds_an_image = math.inf  # in the fastest batch so far; the first one is compiled

    def __call__(self, images: Pixels) -> np.ndarray[Any, Any]:
        """Read n ≥ 1 images, READ_AT_ONCE at a time."""
        parts = []
        for start in range(0, len(images), READ_AT_ONCE):
            batch, began = images[start : start + READ_AT_ONCE], time.perf_counter()
            with deferred_signals():  # out of TensorFlow, where it would leave locks behind
                parts.append(self.forward(batch).numpy())
            raise_if_interrupted()
            self.seconds_an_image = min(
                self.seconds_an_image, (time.perf_counter() - began) / len(batch)
            )
        return np.concatenate(parts)


def weights_sha256(model: keras.Model) -> str:
    """sha256 of all weights, float32 in the model's order: equal when two networks are bit-identical."""
    return hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()


def steps_of_epoch(whole: int) -> tuple[int, int]:
    """Steps an epoch, less the fewest that leave a divisor near the wanted size (431 is prime), and that divisor."""
    if whole <= STEPS_PER_EXECUTION:
        return whole, whole
    size = min(
        range(STEPS_PER_EXECUTION, STEPS_PER_EXECUTION // 2, -1), key=lambda size: whole % size
    )
    return whole - whole % size, size


def make_batches(
    images: Pixels, labels: Labels, config: TrainingConfig, steps: int
) -> tf.data.Dataset:
    """Epoch after epoch of ``steps`` shuffled and augmented batches, one-hot labels (n, 10) where they are smoothed."""
    pixels = tf.constant(images)
    targets = tf.constant(
        np.eye(CLASSES, dtype=np.float32)[labels] if config.label_smoothing else labels
    )
    # shuffling positions instead of images moves 8 bytes an image, and gathers whole batches at once
    order = tf.data.Dataset.range(len(images)).shuffle(
        len(images), seed=config.seed, reshuffle_each_iteration=True
    )
    batches = order.batch(config.batch_size, drop_remainder=True).take(steps)
    gather = tf.autograph.experimental.do_not_convert(
        lambda at: (tf.gather(pixels, at), tf.gather(targets, at))
    )
    batches = batches.map(gather)  # without AutoGraph, which would write and import a file
    # nothing here is tuned, and to stop the thread that would tune it takes a second in one of six trainings
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        AUGMENTATIONS[config.augmentation](batches, config)
        .repeat()
        .prefetch(2)
        .with_options(options)
    )


@dataclass(eq=False)
class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Validates, times and records every epoch, stops early, and keeps the weights that training ends with."""

    config: TrainingConfig
    steps: int
    validate: Callable[[], dict[str, float]]
    on_record: Callable[[Epoch], None]
    on_steps: Callable[[int, int, int], None]
    epochs: list[Epoch] = field(default_factory=list)
    chosen_weights: list[np.ndarray[Any, Any]] = field(default_factory=list)
    started: float = 0.0
    traced: tuple[float, int] | None = (
        None  # when the first steps of all had run, and how many they were
    )

    def __post_init__(self) -> None:
        super().__init__()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step, epoch = batch + 1, len(self.epochs) + 1
        self.traced = self.traced or (time.perf_counter(), step)
        where = f"in steps {max(1, step - self.model.steps_per_execution + 1)} to {step} of {self.steps}"
        self._require_finite("train_loss", logs["loss"], epoch, where)
        self.on_steps(epoch, step, self.steps)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        trained = now - self.started
        since, steps = (
            self.traced
            if epoch == 0 and self.traced and self.traced[1] < self.steps
            else (self.started, 0)
        )
        record = {
            "train_loss": float(logs["loss"]),
            "train_accuracy": float(logs["accuracy"]),
            **self.validate(),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "epoch_seconds": time.perf_counter() - self.started,
            "images_per_second": self.steps * self.config.batch_size / trained,
            "step_seconds": (now - since) * self.steps / (self.steps - steps),
        }
        self._require_finite("val_loss", record["val_loss"], epoch + 1, f"after step {self.steps}")
        self.epochs.append(record)
        losses, patience = (
            [one["val_loss"] for one in self.epochs],
            self.config.early_stopping.patience,
        )
        waited = epoch - losses.index(min(losses))
        if patience is None or waited == 0:
            self.chosen_weights = self.model.get_weights()
        else:
            self.model.stop_training = waited >= patience
        self.on_record(record)

    @staticmethod
    def _require_finite(quantity: str, value: Any, epoch: int, where: str) -> None:
        if not math.isfinite(float(value)):
            wrong = f"training diverged: `{quantity}` is {float(value)} in epoch {epoch}, {where}"
            raise Diverged(f"{wrong}; a lower training.learning_rate usually mends it")


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Keras's layer over (n, h, w, c), computed by one kernel of TensorFlow's instead of a dozen where it pays."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise each channel, by the batch in training, by the moving moments else."""
        if len(inputs.shape) != 4 or inputs.shape[-1] % FUSED_CHANNELS:
            return super().call(inputs, training=training, mask=mask)
        held = (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        scale, offset, mean, variance = map(tf.convert_to_tensor, held)
        pixels = tf.cast(inputs, self.compute_dtype)
        kernel = tf.compat.v1.nn.fused_batch_norm  # takes bfloat16 pixels with float32 moments
        if not (training and self.trainable):
            return kernel(
                pixels, scale, offset, mean, variance, epsilon=self.epsilon, is_training=False
            )[0]
        normalised, *moments = kernel(pixels, scale, offset, epsilon=self.epsilon, is_training=True)
        # the variance of a batch is taken in unbiased, as in TensorFlow 1; else only rounding differs from Keras
        for kept, old, new in zip(
            (self.moving_mean, self.moving_variance), (mean, variance), moments, strict=True
        ):
            kept.assign(old * self.momentum + new * (1.0 - self.momentum))
        return normalised


#: Keras's layers, with batch norm fused: a network of them trains up to 1.6 times as fast, its weights are the same.
FUSED_LAYERS = SimpleNamespace(
    **vars(keras.layers) | {"BatchNormalization": FusedBatchNormalization}
)
