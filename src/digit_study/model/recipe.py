"""How a network is fitted: its optimizer, learning rate and augmentation.

A further one of these is a function and an entry in :data:`OPTIMIZERS`, :data:`SCHEDULES` or
:data:`AUGMENTATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from digit_study.data.sources import IMAGE_SIDE
from digit_study.model.augmentation import Change, Tensor, handwriting, unchanged
from digit_study.support.rules import at_least, between, choice

#: Values of ``training.precision``.
PRECISIONS = ("auto", "float32", "mixed_bfloat16")
#: Optimizer of Keras, which only :func:`build_optimizer` imports: configs are checked without it.
Optimizer = Any
#: The module ``keras``, handed to the functions below by :func:`build_optimizer`.
Keras = Any
#: Learning rate, or a schedule of Keras.
Rate = Any
#: Share of the steps in which ``onecycle`` warms up.
WARM_UP = 0.3
#: Factor on the learning rate after an epoch of ``exponential``, when there are as many as below.
DECAY_PER_EPOCH = 0.98
#: Epochs for which :data:`DECAY_PER_EPOCH` was chosen (An et al. 2020, arXiv 2008.10400).
DECAY_EPOCHS = 150


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Say when training ends before its last epoch.

    Attributes:
        patience: Epochs without a better ``val_loss``, after which training ends with the best
            weights; None: train to the end.
    """

    patience: Annotated[int | None, at_least(1)] = None


@dataclass(frozen=True)
class TrainingConfig:
    """Say how a network is fitted.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        optimizer: A name in :data:`OPTIMIZERS`.
        learning_rate: Largest learning rate of the schedule.
        weight_decay: Decoupled weight decay.
        schedule: A name in :data:`SCHEDULES`.
        early_stopping: When training ends before its last epoch.
        augmentation: A name in :data:`AUGMENTATIONS`.
        shift: Pixels, at most, by which an image is moved each way.
        rotation: Degrees, at most, by which an image is turned each way.
        ema: Whether weights are averaged over steps.
        ema_momentum: Share of the average that stays at each step.
        label_smoothing: Probability that is spread over all digits.
        precision: A name in :data:`PRECISIONS`; ``auto``: the fastest that the processor has.
        threads: Cores that a step uses; None: all that this process may use.
        seed: Seed of weights, order of images, augmentation and dropout.
    """

    epochs: Annotated[int, at_least(1)] = 5
    batch_size: Annotated[int, at_least(1)] = 128
    optimizer: Annotated[str, choice(OPTIMIZERS)] = "adam"
    learning_rate: Annotated[float, between(0, 10, "(]")] = 0.001
    weight_decay: Annotated[float, between(0, 1, "[)")] = 0.0
    schedule: Annotated[str, choice(SCHEDULES)] = "cosine"
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    augmentation: Annotated[str, choice(AUGMENTATIONS)] = "none"
    shift: Annotated[float, between(0, IMAGE_SIDE / 2)] = 2.0
    rotation: Annotated[float, between(0, 180)] = 10.0
    ema: bool = False
    ema_momentum: Annotated[float, between(0, 1, "[)")] = 0.99
    label_smoothing: Annotated[float, between(0, 1, "[)")] = 0.0
    precision: Annotated[str, choice(PRECISIONS)] = "auto"
    threads: Annotated[int | None, between(1, 1024)] = None
    seed: Annotated[int, between(0, 2**32 - 1)] = 0


def _constant(keras: Keras, rate: float, total_steps: int) -> Rate:
    """Keep the learning rate."""
    return rate


def _cosine(keras: Keras, rate: float, total_steps: int) -> Rate:
    """Lower the learning rate to 0 along half a cosine."""
    return keras.optimizers.schedules.CosineDecay(rate, total_steps)


def _one_cycle(keras: Keras, peak: float, total_steps: int) -> Rate:
    """Warm up from a 25th of the peak, then cool down along a cosine to a 10,000th of it.

    The source is L. Smith, N. Topin 2018, arXiv 1708.07120.
    """
    up = max(1, int(WARM_UP * total_steps))
    down = max(1, total_steps - up)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 25,
        decay_steps=down,
        alpha=1e-4,
        warmup_target=peak,
        warmup_steps=up,
    )


def _exponential(keras: Keras, rate: float, total_steps: int) -> Rate:
    """Lower the learning rate to a twentieth, however many epochs there are."""
    last = DECAY_PER_EPOCH**DECAY_EPOCHS
    return keras.optimizers.schedules.ExponentialDecay(rate, total_steps, last)


def _adam(keras: Keras, common: dict[str, Any]) -> Optimizer:
    """Build Adam."""
    return _fused(keras.optimizers.Adam, common)


def _adamw(keras: Keras, common: dict[str, Any]) -> Optimizer:
    """Build AdamW, which takes no None for its weight decay."""
    weight_decay = common["weight_decay"] or 0.0
    arguments = {**common, "weight_decay": weight_decay}
    return _fused(keras.optimizers.AdamW, arguments)


def _sgd(keras: Keras, common: dict[str, Any]) -> Optimizer:
    """Build SGD with Nesterov momentum."""
    return keras.optimizers.SGD(momentum=0.9, nesterov=True, **common)


def _fused(base: Any, arguments: dict[str, Any]) -> Optimizer:
    """Build Adam or AdamW with TensorFlow's fused kernel, a single operation per variable.

    Keras computes the formula in a dozen operations. With the kernel a step of a small network is
    2 to 8 % faster, and is traced in two thirds of the time.
    """
    import tensorflow as tf

    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        momentum = self._momentums[index]
        velocity = self._velocities[index]
        # iterations count from 0, the powers of Adam from 1
        step = tf.cast(self.iterations.value + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.value.handle,
            v=velocity.value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )

    fused = type(base.__name__, (base,), {"update_step": update_step})
    return fused(**arguments)


#: A function of (keras, largest learning rate, steps in all).
ScheduleBuilder = Callable[[Keras, float, int], Rate]
#: A function of (keras, the arguments that all optimizers take).
OptimizerBuilder = Callable[[Keras, dict[str, Any]], Optimizer]
#: Builders of learning rates by name.
SCHEDULES: dict[str, ScheduleBuilder] = {
    "constant": _constant,
    "cosine": _cosine,
    "onecycle": _one_cycle,
    "exponential": _exponential,
}
#: Builders of optimizers by name.
OPTIMIZERS: dict[str, OptimizerBuilder] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def build_optimizer(config: TrainingConfig, total_steps: int) -> Optimizer:
    """Build the optimizer of a recipe, with its schedule.

    Args:
        config: The recipe.
        total_steps: Steps of the whole training, over which the schedule goes.
    """
    import keras

    build_schedule = SCHEDULES[config.schedule]
    common = {
        "learning_rate": build_schedule(keras, config.learning_rate, total_steps),
        "weight_decay": config.weight_decay or None,
        "use_ema": config.ema,
        "ema_momentum": config.ema_momentum,
    }
    build = OPTIMIZERS[config.optimizer]
    return build(keras, common)


def shift_rotate(shift: float, rotation: float, seed: int) -> Change:
    """Shift and turn every image by a random amount.

    Args:
        shift: Largest shift along each axis, either way, in pixels.
        rotation: Largest angle, either way, in degrees.
        seed: Seed of the amounts.

    Returns:
        A change of images (n, h, w, 1), uint8 or float32, to images (n, h, w, 1), float32, 0 to
        255, with the same targets.
    """
    import tensorflow as tf

    largest_angle = math.radians(rotation)

    def move(number: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = tf.shape(images)[0]
        height = images.shape[1]
        width = images.shape[2]
        drawn = tf.random.stateless_uniform(
            (3, count),
            seed=tf.stack([seed, number]),
            minval=-1.0,
            maxval=1.0,
        )
        angle = drawn[0] * largest_angle
        cos = tf.cos(angle)
        sin = tf.sin(angle)
        shift_x = drawn[1] * shift
        shift_y = drawn[2] * shift
        # the rotation is about the centre of the image
        x = (width - 1) / 2
        y = (height - 1) / 2
        offset_x = x - cos * x + sin * y + shift_x
        offset_y = y - sin * x - cos * y + shift_y
        no_perspective = tf.zeros_like(cos)
        # output to input coordinates: [a0 a1 a2; b0 b1 b2], then [c0 c1]
        transforms = [
            cos,
            -sin,
            offset_x,
            sin,
            cos,
            offset_y,
            no_perspective,
            no_perspective,
        ]
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),
            transforms=tf.stack(transforms, axis=1),
            output_shape=[height, width],
            # paper
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
        return moved, targets

    return move


#: By name: a function of the recipe.
AUGMENTATIONS: dict[str, Callable[[TrainingConfig], Change]] = {
    "none": lambda recipe: unchanged,
    "shift_rotate": lambda recipe: shift_rotate(recipe.shift, recipe.rotation, recipe.seed),
    "handwriting": lambda recipe: handwriting(recipe.seed),
}
