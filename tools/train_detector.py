"""Train the detector that is shipped: digits against pictures of all else.

    make detector ARGS=<mnist.npz>

It sees MNIST's training digits, less the validation digits of ``data.seed=0``, as they are and
varied as people write (``training.augmentation=handwriting``). The validation digits, varied in the
same way, set its threshold. Of its two networks one learns letters as they are printed, and one as
they are written too: together they refuse more than either. Half an hour on two cores.
"""

import sys
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
from digit_study.support import machine

#: Share of the validation digits that are refused: as MNIST has them, and varied.
REFUSED = 0.0025
REFUSED_VARIED = 0.01
#: Which share of the letters of each network's non-digits is printed and Latin, written, and of
#: other alphabets.
SHARES = ((0.67, 0.0, 0.33), (0.3, 0.45, 0.25))
NON_DIGITS = 100_000
RECIPE = TrainingConfig(
    epochs=5,
    learning_rate=0.003,
    schedule="onecycle",
    augmentation="shift_rotate",
    shift=1.0,
    rotation=5.0,
    ema=True,
)


def main(path: str | None, into: Path = detector.WEIGHTS) -> None:
    """Train, set the threshold, keep."""
    source = sources.resolve(DataConfig("mnist", path))
    cores = machine.cores()
    # a network a core: two of them side by side train faster than one on two threads
    jobs = [delayed(trained)(source.config, number, cores) for number in range(detector.NETWORKS)]
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


def trained(config: DataConfig, number: int, cores: int) -> list[np.ndarray]:
    """Return the weights of a network as they are kept: the threshold is of these."""
    fit.use_threads(max(1, cores // detector.NETWORKS))
    digits = load_digits(config)
    others = made(NON_DIGITS, digits.train_images, digits.train_labels, 0, SHARES[number])
    varied, labels = as_people_write(digits.train_images, digits.train_labels, number)
    keras.utils.set_random_seed(number)
    model = detector.build(machine.resolve_precision("auto"), fit.FUSED_LAYERS)
    images = np.concatenate([digits.train_images[::2], varied, others])
    classes = np.full(len(others), CLASSES)
    targets = np.concatenate([digits.train_labels[::2], labels, classes])

    def report(record: dict[str, float]) -> None:
        names = ("train_loss", "train_accuracy", "epoch_seconds")
        print(number, {name: round(record[name], 4) for name in names}, flush=True)

    no_validation = {"val_loss": 0.0}
    fit.fit(model, images, targets, RECIPE, validate=lambda: no_validation, on_epoch=report)
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
    main(*sys.argv[1:2] or [None], *map(Path, sys.argv[2:3]))
