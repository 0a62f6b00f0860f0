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

#: A tensor of TensorFlow, which only the functions import.
Tensor = Any
#: A function of (number, images, targets) to images and targets. The number, int64, differs from
#: batch to batch and from epoch to epoch.
Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
#: Share of a batch that is drawn anew.
DRAWN_SHARE = 0.3
#: Share of a batch that is left as it is.
UNCHANGED_SHARE = 0.25


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
        """Return the seed of the next call, shape (2,), int64."""
        import tensorflow as tf

        self.calls += 1
        # the step is a 64-bit number of its own: seed, purpose and call share the other half
        generator = self.seed * 10 + self.purpose
        call = generator * 100 + self.calls
        first_half = tf.constant(call, tf.int64)
        return tf.stack([first_half, self.step])

    def _shape_of_batch(self, shape: tuple[int, ...]) -> Tensor:
        """Return the shape (count, *shape), int32."""
        import tensorflow as tf

        shape_of_image = tf.constant(shape, tf.int32)
        return tf.concat([self.count[None], shape_of_image], axis=0)

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw from [low, high), shape (count, *shape)."""
        import tensorflow as tf

        return tf.random.stateless_uniform(
            self._shape_of_batch(shape),
            seed=self._key(),
            minval=low,
            maxval=high,
        )

    def normal(self, spread: float, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw from a normal distribution about 0, shape (count, *shape)."""
        import tensorflow as tf

        return tf.random.stateless_normal(
            self._shape_of_batch(shape),
            seed=self._key(),
            stddev=spread,
        )

    def chance(self, share: float) -> Tensor:
        """Draw 1 with a probability of ``share``, else 0, shape (count, 1, 1), float32."""
        import tensorflow as tf

        is_chosen = self.uniform(0.0, 1.0, (1, 1)) < share
        return tf.cast(is_chosen, tf.float32)

    def occasional(self, share: float, largest: float) -> Tensor:
        """Draw from [0, largest) with a probability of ``share``, else 0, shape (count, 1, 1)."""
        chosen = self.chance(share)
        amount = self.uniform(0.0, largest, (1, 1))
        return chosen * amount


def batch_numbers(seed: int) -> Any:
    """Return a dataset of numbers without end, others in every epoch.

    Args:
        seed: Seed of the numbers.
    """
    import tensorflow as tf

    # the counter would restart every epoch inside enumerate(); a dataset of random numbers goes on
    return tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)


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

    forms = tf.constant(pen.variants())

    def vary(step: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        labels = targets
        if targets.shape.rank == 2:
            labels = tf.argmax(targets, axis=1)
        levels = tf.cast(images[..., 0], tf.float32)
        ink = levels / 255.0
        count = tf.shape(ink)[0]
        exact_count = tf.cast(count, tf.float32)
        drawn = tf.cast(DRAWN_SHARE * exact_count, tf.int32)
        kept = tf.cast(UNCHANGED_SHARE * exact_count, tf.int32)
        changed = count - kept
        # batches are shuffled: the first images of a batch are any
        pen_draws = Draws(seed, 0, step, drawn)
        written = pen_ink(forms, labels[:drawn], pen_draws)
        bend_draws = Draws(seed, 1, step, changed - drawn)
        bent = bent_ink(ink[drawn:changed], bend_draws)
        rewritten = other_pen(bent, bend_draws)
        develop_draws = Draws(seed, 2, step, changed)
        varied = developed(tf.concat([written, rewritten], axis=0), develop_draws)
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
    # coordinates about the centre of the image
    centre = (IMAGE_SIDE - 1) / 2
    side = tf.range(IMAGE_SIDE, dtype=tf.float32) - centre
    x = side[None, None, :]
    y = side[None, :, None]

    def per_image(numbers: Tensor) -> Tensor:
        return numbers[:, None, None]

    # a coarse field of shifts, made smooth, after P. Simard, D. Steinkraus, J. Platt 2003
    unscaled = draws.normal(1.0, (5, 5, 2))
    strength = draws.uniform(0.0, 1.3, (1, 1, 1))
    coarse = unscaled * strength
    shifts = tf.image.resize(coarse, (IMAGE_SIDE, IMAGE_SIDE), "bicubic")
    turned_x = per_image(cos) * x + per_image(slant - sin) * y
    turned_y = per_image(sin) * x + per_image(cos) * y
    stretched_x = turned_x * per_image(stretch[:, 0])
    stretched_y = turned_y * per_image(stretch[:, 1])
    offset_x = draws.normal(0.7, (1, 1))
    offset_y = draws.normal(0.7, (1, 1))
    across = stretched_x + shifts[..., 0] + offset_x
    down = stretched_y + shifts[..., 1] + offset_y
    return _sampled(ink, across + centre, down + centre)


def _framed(ink: Tensor) -> Tensor:
    """Add a pixel of paper on all sides of images (n, h, w)."""
    import tensorflow as tf

    return tf.pad(ink, [[0, 0], [1, 1], [1, 1]])


def _sampled(ink: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate images (n, h, w) at coordinates (n, h, w); outside them is paper."""
    import tensorflow as tf

    width = IMAGE_SIDE + 2
    # all pixels of all images in a row: a single gather takes a neighbour of each coordinate
    flat = tf.reshape(_framed(ink), (-1,))
    count = tf.shape(ink)[0]
    numbers = tf.range(count)
    first = numbers[:, None, None] * width * width
    # short of the last pixel, so that each coordinate has a neighbour on its right and below it
    largest = width - 1.001
    x = tf.clip_by_value(x + 1, 0.0, largest)
    y = tf.clip_by_value(y + 1, 0.0, largest)
    left = tf.floor(x)
    top = tf.floor(y)
    corner_in_image = tf.cast(top * width + left, tf.int32)
    corner = corner_in_image + first
    right_share = x - left
    low_share = y - top
    left_share = 1 - right_share
    high_share = 1 - low_share

    def pixels(offset: int) -> Tensor:
        return tf.gather(flat, corner + offset)

    upper = pixels(0) * left_share + pixels(1) * right_share
    lower = pixels(width) * left_share + pixels(width + 1) * right_share
    return upper * high_share + lower * low_share


def other_pen(ink: Tensor, draws: Draws) -> Tensor:
    """Make the strokes of images (n, 28, 28) thicker or thinner, by up to a pixel."""
    import tensorflow as tf

    def row_below(plane: Tensor) -> Tensor:
        return tf.pad(plane[:, 1:], [[0, 0], [0, 1], [0, 0]])

    def column_beside(plane: Tensor) -> Tensor:
        return tf.pad(plane[:, :, 1:], [[0, 0], [0, 0], [0, 1]])

    # of slices: TensorFlow's pooling of a single channel takes four times as long
    below = row_below(ink)
    darker = tf.maximum(ink, below)
    thick = tf.maximum(darker, column_beside(darker))
    lighter = tf.minimum(ink, below)
    thin = tf.minimum(lighter, column_beside(lighter))
    amount = draws.uniform(-0.9, 0.9, (1, 1))
    thickening = tf.maximum(amount, 0.0)
    thinning = tf.maximum(-amount, 0.0)
    thickened = ink + thickening * (thick - ink)
    return thickened + thinning * (thin - ink)


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

    position = draws.uniform(0.0, float(pen.VARIANTS))
    variant = tf.cast(position, tf.int32)
    digit = tf.cast(labels, tf.int32)
    index = tf.stack([digit, variant], axis=1)
    pieces = tf.gather_nd(forms, index)
    points = tf.reshape(pieces, (-1, 2 * pen.PIECES, 2))
    x = points[..., 0]
    y = points[..., 1]
    # the hand trembles: two long waves across the digit
    for _ in range(2):
        waves_across = draws.uniform(2.0, 7.0, (1,))
        waves_down = draws.uniform(-7.0, 7.0, (1,))
        phase = draws.uniform(0.0, 6.28, (1,))
        wave = waves_across * x + waves_down * y
        amplitude_x = draws.normal(0.02, (1,))
        amplitude_y = draws.normal(0.02, (1,))
        x = x + amplitude_x * tf.sin(wave + phase)
        y = y + amplitude_y * tf.cos(wave + phase)
    slant = draws.normal(0.12, (1,))
    angle = draws.normal(math.radians(6.0), (1,))
    wide = tf.exp(draws.normal(0.15, (1,)))
    cos = tf.cos(angle)
    sin = tf.sin(angle)
    x = wide * x - slant * y
    turned_x = x * cos - y * sin
    turned_y = x * sin + y * cos
    turned = tf.stack([turned_x, turned_y], axis=-1)
    width = draws.uniform(1.5, 3.6, (1, 1))
    fitted = _in_box(turned, pen.BOX - width)
    stepped = _blocky(fitted, draws)
    return _strokes(stepped, width, draws)


def _in_box(points: Tensor, side: Tensor) -> Tensor:
    """Scale points (n, k, 2) to the longer side ``side``, about the centre of the image."""
    import tensorflow as tf

    low = tf.reduce_min(points, axis=1, keepdims=True)
    high = tf.reduce_max(points, axis=1, keepdims=True)
    longer = tf.reduce_max(high - low, axis=2, keepdims=True)
    mean = tf.reduce_mean(points, axis=1, keepdims=True)
    centred = points - mean
    scaled = centred / longer * side
    return scaled + (IMAGE_SIDE - 1) / 2


def _blocky(points: Tensor, draws: Draws) -> Tensor:
    """Move the points of some images onto a grid, as in drawings of a few pixels."""
    import tensorflow as tf

    grid = draws.uniform(0.8, 1.8, (1, 1))
    chosen = draws.chance(0.3)
    on_grid = tf.round(points / grid) * grid
    return points + chosen * (on_grid - points)


def _pixel_centres() -> Tensor:
    """Return x and y of each pixel, counted from the 14th, (28 * 28, 2).

    Small numbers lose less.
    """
    import tensorflow as tf

    numbers = tf.range(IMAGE_SIDE, dtype=tf.float32)
    side = numbers - IMAGE_SIDE / 2
    x, y = tf.meshgrid(side, side)
    grid = tf.stack([x, y], axis=-1)
    return tf.reshape(grid, (IMAGE_SIDE * IMAGE_SIDE, 2))


def _per_piece(products: Tensor) -> Tensor:
    """Sum products of coordinates (n, k, 2) to dot products, (n, 1, k), for all pixels."""
    import tensorflow as tf

    return tf.reduce_sum(products, axis=-1)[:, None]


def _strokes(points: Tensor, width: Tensor, draws: Draws) -> Tensor:
    """Draw the line between each pair of points (n, 2 k, 2) with a round pen.

    Returns:
        Images (n, 28, 28), float32, 0 to 1.
    """
    import tensorflow as tf

    from_middle = points - IMAGE_SIDE / 2
    ends = tf.reshape(from_middle, (-1, pen.PIECES, 2, 2))
    start = ends[:, :, 0]
    stop = ends[:, :, 1]
    along = stop - start
    squared_length = _per_piece(along**2) + 1e-6
    pixels = _pixel_centres()
    # for a pixel p and a piece from s along a, (n, p, k): the dot product (p - s) a
    pixel_along = tf.einsum("pc,nkc->npk", pixels, along)
    reach = pixel_along - _per_piece(start * along)
    # and the square of p - s without that of p, which is the same for all pieces
    pixel_start = tf.einsum("pc,nkc->npk", pixels, -2.0 * start)
    offset = pixel_start + _per_piece(start**2)
    # the nearest point of the piece, as a share of its length
    share = tf.clip_by_value(reach / squared_length, 0.0, 1.0)
    # the square of the distance to it, again without the square of p
    nearer_than_start = share * (2.0 * reach - share * squared_length)
    away = offset - nearer_than_start
    # some pens skip: a piece that is left out is put far away
    skipping_pens = draws.chance(0.15)
    chances = draws.uniform(0.0, 1.0, (1, pen.PIECES))
    skipped_pieces = tf.cast(chances < 0.06, tf.float32)
    skips = skipping_pens * skipped_pieces
    put_away = away + 1_000.0 * skips
    nearest = tf.reduce_min(put_away, axis=-1)
    pixel_squares = tf.reduce_sum(pixels**2, axis=-1)
    squared_distance = pixel_squares[None, :] + nearest
    # rounding may leave it a little below 0
    distance = tf.sqrt(tf.maximum(squared_distance, 0.0))
    # ink fades over a pixel at the edge of the pen
    radius = width[..., 0] / 2
    ink = tf.clip_by_value(radius + 0.5 - distance, 0.0, 1.0)
    return tf.reshape(ink, (-1, IMAGE_SIDE, IMAGE_SIDE))


def _blurred(ink: Tensor) -> Tensor:
    """Average each pixel of images (n, h, w) with its eight neighbours."""
    framed = _framed(ink)
    above = framed[:, :-2]
    level = framed[:, 1:-1]
    below = framed[:, 2:]
    rows = above + level + below
    left = rows[..., :-2]
    middle = rows[..., 1:-1]
    right = rows[..., 2:]
    blocks = left + middle + right
    return blocks / 9.0


def developed(ink: Tensor, draws: Draws) -> Tensor:
    """Blur, sharpen and roughen images (n, 28, 28), each with a chance that is drawn for it."""
    import tensorflow as tf

    blur = draws.occasional(0.3, 0.9)
    ink = ink + blur * (_blurred(ink) - ink)
    # contrast about the middle grey
    gain = 1.0 + draws.occasional(0.4, 4.0)
    sharpened = (ink - 0.5) * gain + 0.5
    ink = tf.clip_by_value(sharpened, 0.0, 1.0)
    coarse_side = IMAGE_SIDE // 4
    coarse = draws.normal(1.0, (coarse_side, coarse_side, 1))
    smooth = tf.image.resize(coarse, (IMAGE_SIDE, IMAGE_SIDE))
    grain = smooth[..., 0]
    pencil = draws.occasional(0.3, 0.35)
    roughened = ink * (1.0 + pencil * grain)
    return tf.clip_by_value(roughened, 0.0, 1.0)
