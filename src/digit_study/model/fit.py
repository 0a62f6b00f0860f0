"""Compile and fit: threads, batches, fused batch norm. Knows neither MLflow nor Optuna."""

import hashlib
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from digit_study.data.arrays import CLASSES, Labels, Pixels
from digit_study.model.augmentation import batch_numbers
from digit_study.model.keras_settings import use_keras_settings
from digit_study.model.recipe import AUGMENTATIONS, TrainingConfig, build_optimizer
from digit_study.model.training_state import Epoch, TrainingState, assign_values, values_of
from digit_study.support.errors import StudyError
from digit_study.support.signals import deferred_signals, native_stderr, raise_if_interrupted

use_keras_settings()

#: Called with epoch, steps done and steps of the epoch.
OnSteps = Callable[[int, int, int], None]
#: Called before every epoch with a function that returns the state of the training then.
OnState = Callable[[Callable[[], TrainingState]], None]
#: Steps that run between two callbacks in Python; 15 % faster than single steps, and a signal waits
#: for them.
STEPS_PER_EXECUTION = 50
#: Images in a forward pass: as many fit into a core's cache.
IMAGES_AT_ONCE = 256
#: TensorFlow's fused batch norm is twice as fast as Keras's on multiples of as many channels, and
#: slower on others.
FUSED_CHANNELS = 16


class Diverged(StudyError):
    """Training produced a number that is not finite."""


def use_threads(threads: int) -> None:
    """Pin TensorFlow to a number of cores, which decides the bits of the weights.

    Must come before its first operation.

    Args:
        threads: Cores that an operation may use, at least 1.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    devices = gpus()
    if devices:
        tf.config.experimental.enable_op_determinism()
    # else the first of several trials takes all of a device's memory
    for device in devices:
        tf.config.experimental.set_memory_growth(device, True)


def gpus() -> list[Any]:
    """Return the GPUs that TensorFlow finds."""
    with native_stderr():  # it complains of CUDA where there is none
        return list(tf.config.list_physical_devices("GPU"))


def ignore_steps(epoch: int, step: int, steps: int) -> None:
    """Listen to no steps."""


def ignore_state(state: Callable[[], TrainingState]) -> None:
    """Keep no state."""


def fit(
    model: keras.Model,
    images: Pixels,
    labels: Labels,
    config: TrainingConfig,
    *,
    validate: Callable[[], dict[str, float]],
    on_epoch: Callable[[Epoch], None],
    on_steps: OnSteps = ignore_steps,
    start: TrainingState | None = None,
    on_state: OnState = ignore_state,
) -> list[Epoch]:
    """Train a model in place.

    It ends with its best weights under early stopping, else with its last. Training that goes on
    from a state ends with the same bits as training that was not interrupted.

    Args:
        model: From raw pixels to probabilities.
        images: Images, (n, 28, 28, 1), uint8.
        labels: Their digits, (n,), 0 to 9.
        config: The recipe; its batch size is at most n.
        validate: Returns the val_* metrics of the current weights; called after every epoch.
        on_epoch: Takes the record of every epoch; what it raises ends the training.
        on_steps: Takes epoch, steps done and steps of the epoch, now and then.
        start: Where to go on; None: from the start. It has fewer epochs than the recipe.
        on_state: Takes a function that returns the state, before every epoch.

    Returns:
        A record an epoch, those of ``start`` too: train_loss, train_accuracy, val_*, learning_rate,
        epoch_seconds, images_per_second, and step_seconds, the time of its training steps alone.
        That holds no validation, and no tracing where an epoch has more steps than the first
        execution.

    Raises:
        Diverged: If a loss is not finite; it names quantity, epoch and step.
    """
    whole_batches = len(images) // config.batch_size
    steps, per_execution = steps_of_epoch(whole_batches)
    _compile(model, config, steps, per_execution)
    model.train_function = train_function(model)
    recorder = _Recorder(config, steps, validate, on_epoch, on_steps, on_state)
    if start is not None:
        recorder.go_on(start)
        assign_values(model, start.model)
        assign_values(model.optimizer, start.optimizer)
    done = len(recorder.epochs)
    callbacks: list[keras.callbacks.Callback] = []
    if config.ema:
        callbacks.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    callbacks.append(recorder)
    batches = make_batches(images, labels, config, steps, skipped=done * steps)
    model.fit(
        batches,
        initial_epoch=done,
        epochs=config.epochs,
        # without it Keras makes two iterators an epoch, each with a first batch, one for nothing
        steps_per_epoch=steps,
        # the batches shuffle themselves
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    model.set_weights(recorder.chosen_weights)
    return recorder.epochs


def _compile(model: keras.Model, config: TrainingConfig, steps: int, per_execution: int) -> None:
    """Compile a model with the loss, the optimizer and the metric of a recipe."""
    loss = keras.losses.SparseCategoricalCrossentropy()
    accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
    if config.label_smoothing:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)
        accuracy = keras.metrics.CategoricalAccuracy("accuracy")
    total_steps = steps * config.epochs
    optimizer = build_optimizer(config, total_steps)
    # a training step that finds all its variables made is traced once, else twice, which takes half
    # a second
    optimizer.build(model.trainable_variables)
    # XLA is several times slower on a CPU
    xla: bool | str = False
    if gpus():
        xla = "auto"
    model.compile(
        optimizer,
        loss,
        metrics=[accuracy],
        steps_per_execution=per_execution,
        jit_compile=xla,
    )


def train_function(model: keras.Model) -> Any:
    """Return the function that ``fit`` calls with an iterator of batches.

    Keras's own asks before every step whether there is a further batch, for which it traces a step
    more. These steps know that there is, and training starts a sixth of a second earlier.

    Args:
        model: A compiled model.

    Returns:
        A function that runs as many steps as the model takes per execution, and returns the metrics
        of the epoch so far.
    """
    step = model.train_step
    if model.jit_compile:
        step = tf.function(step, autograph=False, jit_compile=True)

    def execute(iterator: Any) -> dict[str, tf.Tensor]:
        def has_next(done: tf.Tensor) -> tf.Tensor:
            return done < model.steps_per_execution

        def body(done: tf.Tensor) -> tuple[tf.Tensor]:
            batch = next(iterator)
            step(batch)
            return (done + 1,)

        tf.while_loop(has_next, body, [0])
        return dict(model.get_metrics_result())

    return _TracedOnce(tf.function(execute, autograph=False))


class _TracedOnce:
    """A function of TensorFlow that is traced by its first call, for the inputs of that call.

    Every trial traces its own train function and its own two forward passes, once each: it has
    another network, and there is nothing to save. TensorFlow counts by the Python code, in which
    they are the same function, and warns of frequent retracing from the fifth short trial on. It
    does not count what is traced by hand, as here.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._traced: Any = None

    def __call__(self, inputs: Any) -> Any:
        """Call the function with inputs that have the type of the first ones."""
        if self._traced is None:
            self._traced = self._function.get_concrete_function(inputs)
        return self._traced(inputs)


class Predictor:
    """A compiled model: from pixels to probabilities, by the weights that it has when called.

    Keras's own ``predict`` takes half as long again, and three times as long the first time.

    Attributes:
        seconds_an_image: Time of the fastest batch so far; the first batch is compiled.
    """

    def __init__(self, model: keras.Model) -> None:
        self.seconds_an_image = math.inf
        shape_of_image = model.input_shape[1:]
        pixels = tf.TensorSpec((None, *shape_of_image), tf.uint8)
        forward = tf.function(
            lambda images: model(images, training=False),
            input_signature=[pixels],
            autograph=False,
        )
        self._forward = _TracedOnce(forward)

    def __call__(self, images: Pixels) -> np.ndarray[Any, Any]:
        """Predict images.

        Args:
            images: At least an image, (n, 28, 28, 1), uint8.

        Returns:
            Probabilities, (n, 10), float32.

        Raises:
            Interrupted: After a batch during which a signal came.
        """
        parts = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            batch = images[start : start + IMAGES_AT_ONCE]
            began = time.perf_counter()
            # a signal waits until TensorFlow has returned: within it, it would leave locks behind
            with deferred_signals():
                probabilities = self._forward(tf.constant(batch))
                parts.append(probabilities.numpy())
            raise_if_interrupted()
            seconds = (time.perf_counter() - began) / len(batch)
            self.seconds_an_image = min(self.seconds_an_image, seconds)
        return np.concatenate(parts)


def weights_sha256(model: keras.Model) -> str:
    """Return the sha256 of all weights: equal if two networks are bit-identical.

    Args:
        model: The network; its weights count as float32, in its order.
    """
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def steps_of_epoch(whole: int) -> tuple[int, int]:
    """Return the steps of an epoch, and how many of them run per execution.

    The latter has to divide the former, and 431 is prime: the fewest steps are left out that leave
    a divisor near the wanted size.

    Args:
        whole: Whole batches that there are.
    """
    if whole <= STEPS_PER_EXECUTION:
        return whole, whole
    sizes = range(STEPS_PER_EXECUTION, STEPS_PER_EXECUTION // 2, -1)
    best = min(sizes, key=lambda size: whole % size)
    left_out = whole % best
    return whole - left_out, best


def make_batches(
    images: Pixels, labels: Labels, config: TrainingConfig, steps: int, skipped: int = 0
) -> tf.data.Dataset:
    """Return shuffled and augmented batches without end.

    Args:
        images: Images, (n, 28, 28, 1), uint8.
        labels: Their digits, (n,).
        config: The recipe.
        steps: Batches of an epoch, after which the images are shuffled anew.
        skipped: Batches that are left out at the start, of epochs that are done.

    Returns:
        Pairs of images and labels; the labels are one-hot, (batch, 10), where they are smoothed.
    """
    pixels = tf.constant(images)
    if config.label_smoothing:
        one_hot = np.eye(CLASSES, dtype=np.float32)
        targets = tf.constant(one_hot[labels])
    else:
        targets = tf.constant(labels)

    build_change = AUGMENTATIONS[config.augmentation]
    change = build_change(config)

    def gather(number: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images_of_batch = tf.gather(pixels, positions)
        targets_of_batch = tf.gather(targets, positions)
        return change(number, images_of_batch, targets_of_batch)

    # shuffling positions instead of images moves 8 bytes an image, and gathers whole batches
    order = tf.data.Dataset.range(len(images))
    order = order.shuffle(len(images), seed=config.seed, reshuffle_each_iteration=True)
    order = order.batch(config.batch_size, drop_remainder=True)
    order = order.take(steps)
    numbered = tf.data.Dataset.zip(batch_numbers(config.seed), order)
    # what is skipped is only numbers here: an epoch of MNIST takes milliseconds
    endless = numbered.repeat().skip(skipped)
    # without AutoGraph, which would write and import a file
    unconverted = tf.autograph.experimental.do_not_convert(gather)
    batches = endless.map(unconverted)
    # nothing here is tuned, and to stop the thread that would tune it takes a second in a sixth of
    # all trainings
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Validates, times and records every epoch, and stops early.

    It keeps the weights that training ends with. It has many attributes, because Keras calls it
    back, and all that it needs then must be kept here.
    """

    def __init__(
        self,
        config: TrainingConfig,
        steps: int,
        validate: Callable[[], dict[str, float]],
        on_record: Callable[[Epoch], None],
        on_steps: OnSteps,
        on_state: OnState,
    ) -> None:
        super().__init__()
        self.epochs: list[Epoch] = []
        self.chosen_weights: list[np.ndarray[Any, Any]] = []
        self._config = config
        self._steps = steps
        self._validate = validate
        self._on_record = on_record
        self._on_steps = on_steps
        self._on_state = on_state
        self._started = 0.0
        self._first_epoch = 0
        #: When the first execution of all had ended, with the tracing.
        self._traced_at: float | None = None

    def go_on(self, start: TrainingState) -> None:
        """Start after the epochs of a state."""
        self.epochs = [dict(record) for record in start.epochs]
        self.chosen_weights = list(start.best_weights)
        self._first_epoch = len(self.epochs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # averaged weights have been swapped back by now
        self._on_state(self._state)
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = batch + 1
        epoch = len(self.epochs) + 1
        if self._traced_at is None:
            self._traced_at = time.perf_counter()
        first = step - self.model.steps_per_execution + 1
        where = f"in steps {first} to {step} of {self._steps}"
        _require_finite("train_loss", logs["loss"], epoch, where)
        self._on_steps(epoch, step, self._steps)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained_at = time.perf_counter()
        images = self._steps * self._config.batch_size
        record = {
            "train_loss": float(logs["loss"]),
            "train_accuracy": float(logs["accuracy"]),
            **self._validate(),
            "learning_rate": float(self.model.optimizer.learning_rate),
            # with validation, unlike the two below
            "epoch_seconds": time.perf_counter() - self._started,
            "images_per_second": images / (trained_at - self._started),
            "step_seconds": self._step_seconds(epoch, trained_at),
        }
        where = f"after step {self._steps}"
        _require_finite("val_loss", record["val_loss"], epoch + 1, where)
        self.epochs.append(record)
        self._choose_weights(epoch)
        self._on_record(record)

    def _state(self) -> TrainingState:
        """Return where training stands between two epochs."""
        best_weights: list[np.ndarray[Any, Any]] = []
        if self._config.early_stopping.patience is not None:
            best_weights = self.chosen_weights
        return TrainingState(
            epochs=list(self.epochs),
            model=values_of(self.model),
            optimizer=values_of(self.model.optimizer),
            best_weights=best_weights,
        )

    def _step_seconds(self, epoch: int, now: float) -> float:
        """Return the time of an epoch's steps, without the tracing that came with the first."""
        since = self._started
        counted = self._steps
        first_steps = self.model.steps_per_execution
        is_first = epoch == self._first_epoch
        if is_first and self._traced_at is not None and first_steps < self._steps:
            since = self._traced_at
            counted -= first_steps
        return (now - since) * self._steps / counted

    def _choose_weights(self, epoch: int) -> None:
        """Keep the weights if they are the best so far; stop when none were better for long."""
        losses = [record["val_loss"] for record in self.epochs]
        patience = self._config.early_stopping.patience
        waited = epoch - losses.index(min(losses))
        if patience is None or waited == 0:
            self.chosen_weights = self.model.get_weights()
        else:
            self.model.stop_training = waited >= patience


def _require_finite(quantity: str, value: Any, epoch: int, where: str) -> None:
    """Raise Diverged unless a value is finite."""
    number = float(value)
    if not math.isfinite(number):
        wrong = f"training diverged: `{quantity}` is {number} in epoch {epoch}, {where}"
        raise Diverged(f"{wrong}; a lower training.learning_rate usually mends it")


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Keras's layer over (n, h, w, c), computed by a single kernel of TensorFlow where it pays.

    Keras's own is a dozen operations.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise each channel.

        Args:
            inputs: Feature maps, (n, h, w, c).
            training: Normalise by the moments of the batch; else by the moving moments.
            mask: As Keras has it.
        """
        is_image = len(inputs.shape) == 4
        if not is_image or inputs.shape[-1] % FUSED_CHANNELS:
            return super().call(inputs, training=training, mask=mask)
        scale = tf.convert_to_tensor(self.gamma)
        offset = tf.convert_to_tensor(self.beta)
        mean = tf.convert_to_tensor(self.moving_mean)
        variance = tf.convert_to_tensor(self.moving_variance)
        pixels = tf.cast(inputs, self.compute_dtype)
        # takes bfloat16 pixels with float32 moments
        kernel = tf.compat.v1.nn.fused_batch_norm
        if not (training and self.trainable):
            normalised, _, _ = kernel(
                pixels,
                scale,
                offset,
                mean,
                variance,
                epsilon=self.epsilon,
                is_training=False,
            )
            return normalised
        normalised, new_mean, new_variance = kernel(
            pixels,
            scale,
            offset,
            epsilon=self.epsilon,
            is_training=True,
        )
        # the variance of a batch is taken in unbiased, as in TensorFlow 1; else only rounding
        # differs from Keras
        self._move(self.moving_mean, mean, new_mean)
        self._move(self.moving_variance, variance, new_variance)
        return normalised

    def _move(self, moving: Any, old: Any, new: Any) -> None:
        """Move a moving moment towards that of the batch."""
        kept = old * self.momentum
        added = new * (1.0 - self.momentum)
        moving.assign(kept + added)


#: Keras's layers, with batch norm fused: a network of them trains up to 1.6 times as fast, and its
#: weights are the same.
FUSED_LAYERS = SimpleNamespace(
    **vars(keras.layers) | {"BatchNormalization": FusedBatchNormalization}
)
