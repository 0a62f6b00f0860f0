"""How a network is fitted: a new optimizer, schedule or augmentation of whole batches is a line in its dict.

That is :data:`OPTIMIZERS`, :data:`SCHEDULES` or :data:`AUGMENTATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from digit_study.data.sources import IMAGE_SIDE
from digit_study.model.augmentation import handwriting
from digit_study.support.rules import at_least, between, choice

PRECISIONS = ("auto", "float32", "mixed_bfloat16")
Optimizer = (
    Any  # of Keras, which is imported when one is built: names and rules are known without it
)
Batches = Any  # tf.data.Dataset of (images (n, h, w, 1) uint8, targets)


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
        ema_momentum: Weight of the average in each step of it.
        label_smoothing: Probability that is spread over all digits.
        precision: What steps are computed in; ``auto``: the fastest that the processor has.
        threads: Cores that a step uses; None: every core this process may use.
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


def _one_cycle(keras: Any, peak: float, total_steps: int) -> Any:
    """Warm up from peak/25 over 30 % of the steps, cosine to peak/10,000 (Smith & Topin 2018, arXiv 1708.07120)."""
    up = max(1, int(0.3 * total_steps))
    decay, down = keras.optimizers.schedules.CosineDecay, max(1, total_steps - up)
    return decay(peak / 25, down, alpha=1e-4, warmup_target=peak, warmup_steps=up)


def _fused_adam(keras: Any, base: Any, **arguments: Any) -> Optimizer:
    """Adam or AdamW, its formula in TensorFlow's one kernel a variable instead of a dozen operations.

    A step of a small network is 2 to 8 % faster by it, and is traced in two thirds of the time.
    """
    import tensorflow as tf

    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        at, step = (
            self._get_variable_index(variable),
            tf.cast(self.iterations.value + 1, tf.float32),
        )
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[at].value.handle,
            v=self._velocities[at].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )

    return type(base.__name__, (base,), {"update_step": update_step})(**arguments)


#: By name: (keras, learning rate, steps in all) to a learning rate or a schedule of it.
SCHEDULES: dict[str, Callable[[Any, float, int], Any]] = {
    "constant": lambda keras, rate, steps: rate,
    "cosine": lambda keras, rate, steps: keras.optimizers.schedules.CosineDecay(rate, steps),
    "onecycle": _one_cycle,
    # 0.98 an epoch over 150 of them (An et al. 2020, arXiv 2008.10400), as steeply over fewer
    "exponential": lambda keras, rate, steps: keras.optimizers.schedules.ExponentialDecay(
        rate, steps, 0.98**150
    ),
}
#: By name: (keras, the arguments that all optimizers take) to an optimizer.
OPTIMIZERS: dict[str, Callable[[Any, dict[str, Any]], Optimizer]] = {
    "adam": lambda keras, common: _fused_adam(keras, keras.optimizers.Adam, **common),
    "adamw": lambda keras, common: _fused_adam(
        keras, keras.optimizers.AdamW, **{**common, "weight_decay": common["weight_decay"] or 0.0}
    ),
    "sgd": lambda keras, common: keras.optimizers.SGD(momentum=0.9, nesterov=True, **common),
}


def build_optimizer(config: TrainingConfig, total_steps: int) -> Optimizer:
    """The optimizer of a recipe, with its schedule over ``total_steps``."""
    import keras

    common = {
        "learning_rate": SCHEDULES[config.schedule](keras, config.learning_rate, total_steps),
        "weight_decay": config.weight_decay or None,
        "use_ema": config.ema,
        "ema_momentum": config.ema_momentum,
    }
    return OPTIMIZERS[config.optimizer](keras, common)


def shift_rotate(batches: Batches, shift: float, rotation: float, seed: int) -> Batches:
    """Move every image by its own random amount, up to ``shift`` pixels along each axis and ``rotation`` degrees."""
    import tensorflow as tf

    angle = math.radians(rotation)

    def move(step: Any, batch: Any) -> Any:
        images, targets = batch
        count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
        drawn = tf.random.stateless_uniform(
            (3, count), seed=tf.stack([seed, step]), minval=-1.0, maxval=1.0
        )
        cos, sin = tf.cos(drawn[0] * angle), tf.sin(drawn[0] * angle)
        x, y, none = (width - 1) / 2, (height - 1) / 2, tf.zeros_like(cos)
        # output to input coordinates, about the centre: [a0 a1 a2; b0 b1 b2] and no perspective
        rows = [cos, -sin, x - cos * x + sin * y + drawn[1] * shift]
        rows += [sin, cos, y - sin * x - cos * y + drawn[2] * shift]
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),  # as which they leave
            transforms=tf.stack([*rows, none, none], axis=1),
            output_shape=[height, width],
            fill_value=0.0,  # paper
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
        return moved, targets

    # the counter would restart every epoch inside enumerate(); a random source of the dataset's own goes on
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(numbers, batches).map(tf.autograph.experimental.do_not_convert(move))


#: By name: (batches, recipe) to batches, where ``recipe`` is the training config with its ``shift``, ...
AUGMENTATIONS: dict[str, Callable[[Batches, Any], Batches]] = {
    "none": lambda batches, recipe: batches,
    "shift_rotate": lambda batches, recipe: shift_rotate(
        batches, recipe.shift, recipe.rotation, recipe.seed
    ),
    "handwriting": lambda batches, recipe: handwriting(batches, recipe.seed),
}
