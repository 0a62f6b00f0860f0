"""Train the detector that is shipped: digits against pictures of all else.

    make detector ARGS=<mnist.npz>                   # from nothing: hours on two cores
    make detector ARGS='<mnist.npz> --tune'          # from the shipped weights: twenty minutes

It sees MNIST's training digits, less the validation digits of ``data.seed=0``, as they are and
varied as people write (``training.augmentation=handwriting``). The validation digits, varied in the
same way, set its threshold. Of its two networks one learns letters as they are printed, and one as
they are written too: together they refuse more than either.

The shipped weights were trained from nothing on MNIST's digits as they are, and then tuned on the
variety of digits.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from joblib import Parallel, delayed
from non_digits import made

from digit_study.data import sources
from digit_study.data.digits import Digits, load_digits
from digit_study.data.sources import CLASSES, DataConfig, Labels, Pixels
from digit_study.inference import detector
from digit_study.model import fit
from digit_study.model.augmentation import handwriting
from digit_study.model.recipe import TrainingConfig
from digit_study.support import hardware

#: Share of the validation digits that are refused: as MNIST has them, and varied.
REFUSED = 0.0025
REFUSED_VARIED = 0.01
#: Which share of the letters of each network's non-digits is printed and Latin, written, and of
#: other alphabets.
SHARES = ((0.67, 0.0, 0.33), (0.3, 0.45, 0.25))
NON_DIGITS = 160_000
RECIPE = TrainingConfig(
    epochs=16,
    learning_rate=0.003,
    schedule="onecycle",
    augmentation="shift_rotate",
    shift=1.0,
    rotation=5.0,
    ema=True,
)

#: For tuning: images of non-digits, and of digits in all.
TUNING_IMAGES = 25_000
TUNING = replace(RECIPE, epochs=2, learning_rate=0.001)


def main(path: str | None, into: Path, is_tuned: bool) -> None:
    """Train, set the threshold, keep."""
    source = sources.resolve(DataConfig("mnist", path))
    cores = hardware.cores()
    # a network a core: two of them side by side train faster than one on two threads
    earlier = detector.weights() if is_tuned else [None] * detector.NETWORKS
    jobs = [
        delayed(trained)(source.config, number, cores, start)
        for number, start in enumerate(earlier)
    ]
    weights = list(Parallel(n_jobs=min(cores, detector.NETWORKS))(jobs))
    networks = []
    for own in weights:
        network = detector.build()
        network.set_weights(own)
        networks.append(network)
    score = detector.scorer(networks)
    digits = load_digits(source.config)
    plain = score(digits.validation_images)
    varied = score(as_people_write(digits.validation_images, digits.validation_labels, 9)[0])
    threshold = min(float(np.quantile(plain, REFUSED)), float(np.quantile(varied, REFUSED_VARIED)))
    print_trade_off(score, plain, varied, digits, threshold)
    detector.save(weights, threshold, into)
    print(f"{into}: {into.stat().st_size / 1000:.0f} kB, threshold {threshold:.4f}")


def as_people_write(images: Pixels, labels: Labels, seed: int) -> tuple[Pixels, Labels]:
    """Return the images varied as people vary what they write, and their labels."""
    batches = tf.data.Dataset.from_tensors((images, labels)).unbatch().batch(500)
    parts = [
        (np.round(some.numpy()).astype(np.uint8), own.numpy())
        for some, own in handwriting(batches, seed)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def trained(
    config: DataConfig, number: int, cores: int, start: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """Return the weights of a network as they are kept: the threshold is of these."""
    fit.use_threads(max(1, cores // detector.NETWORKS))
    digits = load_digits(config)
    own = digits.train_images
    labels = digits.train_labels
    count = NON_DIGITS
    if start is not None:
        chosen = np.random.default_rng(number).permutation(len(labels))[:TUNING_IMAGES]
        own = own[chosen]
        labels = labels[chosen]
        count = TUNING_IMAGES
    others = made(count, own, labels, number, SHARES[number])
    varied, varied_labels = as_people_write(own, labels, number)
    keras.utils.set_random_seed(number)
    model = detector.build(hardware.resolve_precision("auto"), fit.FUSED_LAYERS)
    if start is not None:
        model.set_weights(start)
    images = np.concatenate([own[::4], varied, others])
    targets = np.concatenate([labels[::4], varied_labels, np.full(len(others), CLASSES)])

    def report(record: dict[str, float]) -> None:
        names = ("train_loss", "train_accuracy", "epoch_seconds")
        print(number, {name: round(record[name], 4) for name in names}, flush=True)

    no_validation = {"val_loss": 0.0}
    recipe = RECIPE if start is None else TUNING
    fit.fit(model, images, targets, recipe, validate=lambda: no_validation, on_epoch=report)
    return [own.astype(np.float16).astype(np.float32) for own in model.get_weights()]


def print_trade_off(
    score: detector.Scorer,
    plain: detector.Scores,
    varied: detector.Scores,
    digits: Digits,
    threshold: float,
) -> None:
    """Print, for several thresholds, the digits that are refused and the non-digits that pass."""
    others = score(made(5_000, digits.validation_images, digits.validation_labels, 10**6))
    for level in (threshold - 2, threshold - 1, threshold, threshold + 1, threshold + 2):
        refused = 100 * float((plain < level).mean())
        refused_varied = 100 * float((varied < level).mean())
        passed = 100 * float((others >= level).mean())
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
    main(options.mnist, options.into, options.tune)
