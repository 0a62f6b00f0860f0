"""Training images varied as people vary what they write: ``training.augmentation=handwriting``.

A part of each batch stays as it is. A part is bent and gets another pen. The rest is drawn anew, as
another form of the same digit (:mod:`digit_study.model.pen`). All of this is done by operations of
TensorFlow on whole batches. All random numbers come from the seed and the number of the step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from digit_study.data.sources import IMAGE_SIDE
from digit_study.model import pen

#: A tf.data.Dataset of (images (n, h, w, 1) uint8, targets).
Batches = Any
#: A tensor of TensorFlow, which only the functions import.
Tensor = Any
#: A function of (number, images, targets) to images and targets. The number, int64, differs from
#: batch to batch and from epoch to epoch.
Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
#: Side of the box that holds a digit, as in MNIST.
BOX = 20
#: Share of a batch that is drawn anew.
DRAWN = 0.3
#: Share of a batch that is left as it is.
UNCHANGED = 0.25


@dataclass
class Draws:
    """Random numbers of a batch.

    Every call gives others. The same seed, purpose and step give the same in the same order.

    Attributes:
        seed: Seed of the training.
        purpose: Tells apart the generators of a step, 0 to 9.
        step: A number of the step, scalar, int64.
        count: Images to draw for, scalar, int32.
        calls: Calls so far.
    """

    seed: int
    purpose: int
    step: Tensor
    count: Tensor
    calls: int = 0

    def _key(self) -> Tensor:
        import tensorflow as tf

        self.calls += 1
        # the step is a 64-bit number of its own: seed, purpose and call share the other half
        first = (self.seed * 10 + self.purpose) * 100 + self.calls
        return tf.stack([tf.constant(first, tf.int64), self.step])

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw from [low, high), shape (count, *shape)."""
        import tensorflow as tf

        whole = tf.concat([self.count[None], tf.constant(shape, tf.int32)], axis=0)
        return tf.random.stateless_uniform(whole, seed=self._key(), minval=low, maxval=high)

    def normal(self, spread: float, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw from a normal distribution about 0, shape (count, *shape)."""
        import tensorflow as tf

        whole = tf.concat([self.count[None], tf.constant(shape, tf.int32)], axis=0)
        return tf.random.stateless_normal(whole, seed=self._key(), stddev=spread)

    def chance(self, share: float) -> Tensor:
        """Draw 1 with a probability of ``share``, else 0, shape (count, 1, 1), float32."""
        import tensorflow as tf

        return tf.cast(self.uniform(0.0, 1.0, (1, 1)) < share, tf.float32)


def batch_numbers(seed: int) -> Any:
    """Return a dataset of numbers without end, others in every epoch.

    Args:
        seed: Seed of the numbers.
    """
    import tensorflow as tf

    # the counter would restart every epoch inside enumerate(); a dataset of random numbers goes on
    return tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)


def map_numbered(batches: Batches, seed: int, change: Change) -> Batches:
    """Change every batch at random.

    Args:
        batches: The batches.
        seed: Seed of the numbers.
        change: What is done to a batch.
    """
    import tensorflow as tf

    def change_batch(number: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, targets = batch
        return change(number, images, targets)

    unconverted = tf.autograph.experimental.do_not_convert(change_batch)
    return tf.data.Dataset.zip(batch_numbers(seed), batches).map(unconverted)


def unchanged(number: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Leave a batch as it is."""
    return images, targets


def handwriting(seed: int) -> Change:
    """Vary images as people vary what they write.

    Args:
        seed: Seed of all variation.

    Returns:
        A change of images (n, 28, 28, 1), uint8, with labels (n,) or one-hot targets (n, 10), to
        images (n, 28, 28, 1), float32, 0 to 255, with the same targets.
    """
    import tensorflow as tf

    forms = tf.constant(pen.variants(seed))

    def vary(step: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        labels = targets
        if targets.shape.rank == 2:
            labels = tf.argmax(targets, axis=1)
        ink = tf.cast(images[..., 0], tf.float32) / 255.0
        count = tf.shape(ink)[0]
        drawn = tf.cast(DRAWN * tf.cast(count, tf.float32), tf.int32)
        kept = tf.cast(UNCHANGED * tf.cast(count, tf.float32), tf.int32)
        changed = count - kept
        # batches are shuffled: the first images of a batch are any
        written = pen_ink(forms, labels[:drawn], Draws(seed, 0, step, drawn))
        draws = Draws(seed, 1, step, changed - drawn)
        bent = other_pen(bent_ink(ink[drawn:changed], draws), draws)
        varied = developed(tf.concat([written, bent], 0), Draws(seed, 2, step, changed))
        mixed = tf.concat([varied, ink[changed:]], axis=0)
        mixed = tf.ensure_shape(mixed, (None, IMAGE_SIDE, IMAGE_SIDE))
        return 255.0 * mixed[..., None], targets

    return vary


def bent_ink(ink: Tensor, draws: Draws) -> Tensor:
    """Turn, slant, stretch and bend images (n, 28, 28) like rubber, each by a random amount."""
    import tensorflow as tf

    angle = draws.normal(math.radians(7.0))
    slant = draws.normal(0.15)
    stretch = tf.exp(draws.normal(0.10, (2,)))
    cos = tf.cos(angle)
    sin = tf.sin(angle)
    centre = (IMAGE_SIDE - 1) / 2
    side = tf.range(IMAGE_SIDE, dtype=tf.float32) - centre
    x = side[None, None, :]
    y = side[None, :, None]

    def per_image(numbers: Tensor) -> Tensor:
        return numbers[:, None, None]

    # a coarse field of shifts, made smooth, after P. Simard, D. Steinkraus, J. Platt 2003
    coarse = draws.normal(1.0, (5, 5, 2)) * draws.uniform(0.0, 1.3, (1, 1, 1))
    shifts = tf.image.resize(coarse, (IMAGE_SIDE, IMAGE_SIDE), "bicubic")
    across = per_image(cos) * x + per_image(slant - sin) * y
    down = per_image(sin) * x + per_image(cos) * y
    across = across * stretch[:, 0, None, None] + shifts[..., 0] + draws.normal(0.7, (1, 1))
    down = down * stretch[:, 1, None, None] + shifts[..., 1] + draws.normal(0.7, (1, 1))
    return _sampled(ink, across + centre, down + centre)


def _sampled(ink: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate images (n, h, w) at coordinates (n, h, w); outside them is paper."""
    import tensorflow as tf

    framed = tf.pad(ink, [[0, 0], [1, 1], [1, 1]])
    width = IMAGE_SIDE + 2
    flat = tf.reshape(framed, (-1,))
    first = tf.range(tf.shape(ink)[0])[:, None, None] * width * width
    x = tf.clip_by_value(x + 1, 0.0, width - 1.001)
    y = tf.clip_by_value(y + 1, 0.0, width - 1.001)
    left = tf.floor(x)
    top = tf.floor(y)
    corner = tf.cast(top * width + left, tf.int32) + first
    right_share = x - left
    low_share = y - top

    def pixels(offset: int) -> Tensor:
        return tf.gather(flat, corner + offset)

    upper = pixels(0) * (1 - right_share) + pixels(1) * right_share
    lower = pixels(width) * (1 - right_share) + pixels(width + 1) * right_share
    return upper * (1 - low_share) + lower * low_share


def other_pen(ink: Tensor, draws: Draws) -> Tensor:
    """Make the strokes of images (n, 28, 28) thicker or thinner, by up to a pixel."""
    import tensorflow as tf

    # of slices: TensorFlow's pooling of a single channel takes four times as long
    low = tf.pad(ink[:, 1:], [[0, 0], [0, 1], [0, 0]])
    high = tf.maximum(ink, low)
    thick = tf.maximum(high, tf.pad(high[:, :, 1:], [[0, 0], [0, 0], [0, 1]]))
    high = tf.minimum(ink, low)
    thin = tf.minimum(high, tf.pad(high[:, :, 1:], [[0, 0], [0, 0], [0, 1]]))
    amount = draws.uniform(-0.9, 0.9, (1, 1))
    thicker = ink + tf.maximum(amount, 0.0) * (thick - ink)
    return thicker + tf.maximum(-amount, 0.0) * (thin - ink)


def pen_ink(forms: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Draw a digit for each label, in a form chosen at random.

    Args:
        forms: Variants of every digit, as :func:`digit_study.model.pen.variants` returns them.
        labels: Digits (n,), of any integer type.
        draws: Random numbers for n images.

    Returns:
        Images (n, 28, 28), float32, 0 to 1.
    """
    import tensorflow as tf

    variant = tf.cast(draws.uniform(0.0, float(pen.VARIANTS)), tf.int32)
    index = tf.stack([tf.cast(labels, tf.int32), variant], axis=1)
    points = tf.reshape(tf.gather_nd(forms, index), (-1, 2 * pen.PIECES, 2))
    x = points[..., 0]
    y = points[..., 1]
    # the hand trembles: two long waves across the digit
    for _ in range(2):
        wave = draws.uniform(2.0, 7.0, (1,)) * x + draws.uniform(-7.0, 7.0, (1,)) * y
        phase = draws.uniform(0.0, 6.28, (1,))
        x = x + draws.normal(0.02, (1,)) * tf.sin(wave + phase)
        y = y + draws.normal(0.02, (1,)) * tf.cos(wave + phase)
    slant = draws.normal(0.12, (1,))
    angle = draws.normal(math.radians(6.0), (1,))
    wide = tf.exp(draws.normal(0.15, (1,)))
    x = wide * x - slant * y
    turned_x = x * tf.cos(angle) - y * tf.sin(angle)
    turned_y = x * tf.sin(angle) + y * tf.cos(angle)
    turned = tf.stack([turned_x, turned_y], -1)
    width = draws.uniform(1.5, 3.6, (1, 1))
    fitted = _in_box(turned, BOX - width)
    return _strokes(_blocky(fitted, draws), width, draws)


def _in_box(points: Tensor, side: Tensor) -> Tensor:
    """Scale points (n, k, 2) to the longer side ``side``, about the centre of the image."""
    import tensorflow as tf

    low = tf.reduce_min(points, axis=1, keepdims=True)
    high = tf.reduce_max(points, axis=1, keepdims=True)
    longer = tf.reduce_max(high - low, axis=2, keepdims=True)
    centred = points - tf.reduce_mean(points, axis=1, keepdims=True)
    return centred / longer * side + (IMAGE_SIDE - 1) / 2


def _blocky(points: Tensor, draws: Draws) -> Tensor:
    """Move the points of some images onto a grid, as in drawings of a few pixels."""
    import tensorflow as tf

    grid = draws.uniform(0.8, 1.8, (1, 1))
    chosen = draws.chance(0.3)
    return points + chosen * (tf.round(points / grid) * grid - points)


def _strokes(points: Tensor, width: Tensor, draws: Draws) -> Tensor:
    """Draw the line between each pair of points (n, 2 k, 2) with a round pen.

    Returns:
        Images (n, 28, 28), float32, 0 to 1.
    """
    import tensorflow as tf

    ends = tf.reshape(points - IMAGE_SIDE / 2, (-1, pen.PIECES, 2, 2))
    start = ends[:, :, 0]
    along = ends[:, :, 1] - start
    length = tf.reduce_sum(along**2, -1)[:, None] + 1e-6
    side = tf.range(IMAGE_SIDE, dtype=tf.float32) - IMAGE_SIDE / 2
    x, y = tf.meshgrid(side, side)
    pixels = tf.reshape(tf.stack([x, y], axis=-1), (IMAGE_SIDE * IMAGE_SIDE, 2))
    squares = tf.reduce_sum(pixels**2, -1)[:, None]
    # for a pixel p and a piece from s along a: (p - s) a, and the square of p - s without that of p
    reach = tf.einsum("pc,nkc->npk", pixels, along) - tf.reduce_sum(start * along, -1)[:, None]
    offset = tf.einsum("pc,nkc->npk", pixels, -2.0 * start) + tf.reduce_sum(start**2, -1)[:, None]
    share = tf.clip_by_value(reach / length, 0.0, 1.0)
    away = offset - share * (2.0 * reach - share * length)
    # some pens skip: a piece that is left out is put far away
    skipping_pens = draws.chance(0.15)
    skipped_pieces = draws.uniform(0.0, 1.0, (1, pen.PIECES)) < 0.06
    skips = skipping_pens * tf.cast(skipped_pieces, tf.float32)
    nearest = squares[None, :, 0] + tf.reduce_min(away + 1_000.0 * skips, axis=-1)
    nearest = tf.sqrt(tf.maximum(nearest, 0.0))
    ink = tf.clip_by_value(width[..., 0] / 2 + 0.5 - nearest, 0.0, 1.0)
    return tf.reshape(ink, (-1, IMAGE_SIDE, IMAGE_SIDE))


def developed(ink: Tensor, draws: Draws) -> Tensor:
    """Blur, sharpen and roughen images (n, 28, 28), each with a chance that is drawn for it."""
    import tensorflow as tf

    framed = tf.pad(ink, [[0, 0], [1, 1], [1, 1]])
    rows = framed[:, :-2] + framed[:, 1:-1] + framed[:, 2:]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9.0
    ink = ink + draws.chance(0.3) * draws.uniform(0.0, 0.9, (1, 1)) * (blurred - ink)
    gain = 1.0 + draws.chance(0.4) * draws.uniform(0.0, 4.0, (1, 1))
    ink = tf.clip_by_value((ink - 0.5) * gain + 0.5, 0.0, 1.0)
    grain = draws.normal(1.0, (IMAGE_SIDE // 4, IMAGE_SIDE // 4, 1))
    grain = tf.image.resize(grain, (IMAGE_SIDE, IMAGE_SIDE))[..., 0]
    pencil = draws.chance(0.3) * draws.uniform(0.0, 0.35, (1, 1))
    return tf.clip_by_value(ink * (1.0 + pencil * grain), 0.0, 1.0)
