"""Train the detector that is shipped: digits against pictures of all else.

    make detector ARGS=<mnist.npz>                   # from nothing: hours on two cores
    make detector ARGS='<mnist.npz> --tune'          # from the shipped weights: 15 minutes

It is trained on MNIST's training digits, less the validation digits of ``data.seed=0``. They are
used as they are, and varied as people write (``training.augmentation=handwriting``). Half of the
non-digits are bent and get another pen in the same way: else a crude pen would be the mark of a
digit. The validation digits, as they are and varied, set the threshold.

Its first network learns printed letters, its second handwritten letters too. Together they refuse
more than either.

The shipped weights were trained from nothing on digits as they are, and then tuned on varied
digits.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from joblib import Parallel, delayed
from non_digits import Shares, made

from digit_study.data import sources
from digit_study.data.digits import Digits, load_digits
from digit_study.data.sources import CLASSES, DataConfig, Labels, Pixels
from digit_study.inference import detector
from digit_study.model import fit
from digit_study.model.augmentation import (
    Draws,
    batch_numbers,
    bent_ink,
    developed,
    handwriting,
    other_pen,
)
from digit_study.model.recipe import TrainingConfig
from digit_study.support import hardware

#: Share of MNIST's validation digits that may be refused.
REFUSED = 0.003
#: Share of the validation digits that may be refused once they are varied.
REFUSED_VARIED = 0.025
#: Seed of the variation of the validation digits.
VALIDATION_SEED = 9
#: Shares of the glyphs of each network's non-digits, by kind.
SHARES: tuple[Shares, ...] = ((0.67, 0.0, 0.33), (0.3, 0.45, 0.25))
#: Non-digits that a network is trained on.
NON_DIGITS = 160_000
#: Non-digits that the trade-off is printed for.
CHECKED_NON_DIGITS = 5_000
#: Seed of these.
CHECKED_SEED = 10**6
#: How a network is trained from nothing.
RECIPE = TrainingConfig(
    epochs=16,
    learning_rate=0.003,
    schedule="onecycle",
    augmentation="shift_rotate",
    shift=1.0,
    rotation=5.0,
    ema=True,
)
#: How a network is tuned.
TUNING = replace(RECIPE, epochs=2, learning_rate=0.001)
#: Digits, and as many non-digits, that a network is tuned on.
TUNING_IMAGES = 30_000

#: Arrays of a network, in Keras's order.
Weights = Sequence[np.ndarray]


def main(path: str | None, into: Path, *, is_tuned: bool) -> None:
    """Train the networks, set the threshold, and save both.

    Args:
        path: Keras's mnist.npz; None downloads it.
        into: The file to write.
        is_tuned: Start from the shipped weights.
    """
    source = sources.resolve(DataConfig("mnist", path))
    digits = load_digits(source.config)
    cores = hardware.cores()
    starts: Sequence[Weights | None] = [None] * detector.NETWORKS
    if is_tuned:
        starts = detector.weights()
    jobs = [
        delayed(trained)(source.config, number, cores, start) for number, start in enumerate(starts)
    ]
    # a network a core: two of them side by side train faster than one on two threads
    weights = list(Parallel(n_jobs=min(cores, detector.NETWORKS))(jobs))
    networks = []
    for arrays in weights:
        network = detector.build()
        network.set_weights(arrays)
        networks.append(network)
    score = detector.scorer(networks)
    plain = score(digits.validation_images)
    varied_images, _ = as_people_write(
        digits.validation_images, digits.validation_labels, VALIDATION_SEED
    )
    varied = score(varied_images)
    threshold_plain = float(np.quantile(plain, REFUSED))
    threshold_varied = float(np.quantile(varied, REFUSED_VARIED))
    threshold = min(threshold_plain, threshold_varied)
    print_trade_off(score, plain, varied, digits, threshold)
    save(weights, threshold, into)
    print(f"{into}: {into.stat().st_size / 1000:.0f} kB, threshold {threshold:.4f}")


def save(networks: Sequence[Weights], threshold: float, into: Path) -> None:
    """Save the networks, in half precision, as :func:`detector.weights` loads them.

    Args:
        networks: The weights of each network, in Keras's order.
        threshold: The score below which a picture is refused.
        into: The file to be written.
    """
    arrays = {}
    for number, weights in enumerate(networks):
        for position, array in enumerate(weights):
            arrays[f"{number}.{position}"] = array.astype(np.float16)
    np.savez_compressed(into, threshold=threshold, **arrays)


def as_people_write(images: Pixels, labels: Labels, seed: int) -> tuple[Pixels, Labels]:
    """Vary images as people vary what they write.

    Args:
        images: Images (n, 28, 28, 1), uint8.
        labels: Their labels (n,).
        seed: Seed of the variation.

    Returns:
        Varied images (n, 28, 28, 1), uint8, and their labels (n,), in the same order.
    """
    batches = tf.data.Dataset.from_tensors((images, labels)).unbatch().batch(500)
    change = handwriting(seed)

    def change_batch(
        number: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, ...]:
        return change(number, *batch)

    numbered = tf.data.Dataset.zip(batch_numbers(seed), batches)
    varied = numbered.map(tf.autograph.experimental.do_not_convert(change_batch))
    varied_images = []
    varied_labels = []
    for some_images, some_labels in varied:
        varied_images.append(np.round(some_images.numpy()).astype(np.uint8))
        varied_labels.append(some_labels.numpy())
    return np.concatenate(varied_images), np.concatenate(varied_labels)


def bent(images: Pixels, seed: int) -> Pixels:
    """Bend images and draw them with another pen, as training.augmentation=handwriting does.

    Args:
        images: Images (n, 28, 28, 1), uint8.
        seed: Seed of the variation.

    Returns:
        Images (n, 28, 28, 1), uint8.
    """
    changed = []
    for number, start in enumerate(range(0, len(images), 500)):
        some = images[start : start + 500]
        step = tf.constant(number, tf.int64)
        count = tf.constant(len(some))
        ink = tf.cast(some[..., 0], tf.float32) / 255.0
        draws = Draws(seed, 1, step, count)
        ink = other_pen(bent_ink(ink, draws), draws)
        ink = developed(ink, Draws(seed, 2, step, count))
        changed.append(np.round(255.0 * ink.numpy()).astype(np.uint8)[..., None])
    return np.concatenate(changed)


def trained(config: DataConfig, number: int, cores: int, start: Weights | None) -> Weights:
    """Train a network of the detector.

    Args:
        config: The digits.
        number: Position of the network in the detector; also its seed.
        cores: Cores that all networks share.
        start: Weights to tune; None: train from nothing.

    Returns:
        The weights in the precision in which they are saved: the threshold must be theirs.
    """
    fit.use_threads(max(1, cores // detector.NETWORKS))
    digits = load_digits(config)
    images = digits.train_images
    labels = digits.train_labels
    count = NON_DIGITS
    recipe = RECIPE
    if start is not None:
        chosen = np.random.default_rng(number).permutation(len(labels))[:TUNING_IMAGES]
        images = images[chosen]
        labels = labels[chosen]
        count = TUNING_IMAGES
        recipe = TUNING
    non_digits = made(count, images, labels, number, SHARES[number])
    non_digits[::2] = bent(non_digits[::2], number)
    varied, varied_labels = as_people_write(images, labels, number)
    keras.utils.set_random_seed(number)
    model = detector.build(hardware.resolve_precision("auto"), fit.FUSED_LAYERS)
    if start is not None:
        model.set_weights(start)
    all_images = np.concatenate([images[::4], varied, non_digits])
    all_labels = np.concatenate([labels[::4], varied_labels, np.full(len(non_digits), CLASSES)])

    def report(record: dict[str, float]) -> None:
        names = ("train_loss", "train_accuracy", "epoch_seconds")
        print(number, {name: round(record[name], 4) for name in names}, flush=True)

    no_validation = {"val_loss": 0.0}
    fit.fit(model, all_images, all_labels, recipe, validate=lambda: no_validation, on_epoch=report)
    return [array.astype(np.float16).astype(np.float32) for array in model.get_weights()]


def print_trade_off(
    score: detector.Scorer,
    plain: detector.Scores,
    varied: detector.Scores,
    digits: Digits,
    threshold: float,
) -> None:
    """Print, for several thresholds, the digits that are refused and the non-digits that pass."""
    non_digits = made(
        CHECKED_NON_DIGITS, digits.validation_images, digits.validation_labels, CHECKED_SEED
    )
    non_digit_scores = score(non_digits)
    for difference in range(-2, 3):
        level = threshold + difference
        refused = 100 * float((plain < level).mean())
        refused_varied = 100 * float((varied < level).mean())
        passed = 100 * float((non_digit_scores >= level).mean())
        print(
            f"threshold {level:6.2f}: {refused:5.2f} % of MNIST's digits refused, "
            f"{refused_varied:5.2f} % of varied digits, {passed:5.1f} % of non-digits pass"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the detector of what is no digit.")
    parser.add_argument("mnist", nargs="?", help="Keras's mnist.npz")
    parser.add_argument("into", nargs="?", type=Path, default=detector.WEIGHTS)
    parser.add_argument("--tune", action="store_true", help="start from the shipped weights")
    options = parser.parse_args()
    main(options.mnist, options.into, is_tuned=options.tune)
