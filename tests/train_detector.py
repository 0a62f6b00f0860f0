"""Train the detector that is shipped: digits against pictures of all else. ``make detector ARGS=<mnist.npz>``.

It sees MNIST's training digits only, less the validation digits of ``data.seed=0``, which set its threshold. Of its two
networks one learns letters as they are printed, and one as they are written too: together they refuse more than either.
Minutes on a GPU, 50 on two cores.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from non_digits import made

from digit_study.data import sources
from digit_study.data.digits import Digits, load_digits
from digit_study.data.sources import CLASSES, DataConfig
from digit_study.inference import detector
from digit_study.model import fit
from digit_study.model.recipe import TrainingConfig
from digit_study.support import hardware

#: Of the validation digits so many are refused; of those by writers that it has not seen, twice as many.
REFUSED = 0.0025
#: Which share of the letters of each network's non-digits is printed and Latin, written, and of other alphabets.
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


def main(path: str | None, into: Path = detector.WEIGHTS) -> None:
    """Train, set the threshold, keep."""
    source = sources.resolve(DataConfig("mnist", path))
    digits = load_digits(source.config)
    fit.use_threads(hardware.cores())
    networks = [trained(digits, shares) for shares in SHARES]
    found = np.sort(detector.scorer(networks)(digits.validation_images))
    threshold = float(found[int(REFUSED * len(found))])
    detector.save([one.get_weights() for one in networks], threshold, into)
    print(f"{into}: {into.stat().st_size / 1000:.0f} kB, threshold {threshold:.4f}")


def trained(digits: Digits, shares: tuple[float, float, float]) -> keras.Model:
    """One network, with its weights as they are kept: the threshold is of these."""
    others = made(NON_DIGITS, digits.train_images, digits.train_labels, 0, shares)
    keras.utils.set_random_seed(0)
    model = detector.build(hardware.resolve_precision("auto"), fit.FUSED_LAYERS)
    images = np.concatenate([digits.train_images, others])
    labels = np.concatenate([digits.train_labels, np.full(len(others), CLASSES)])

    def tell(record: dict[str, float]) -> None:
        print(
            {
                name: round(record[name], 4)
                for name in ("train_loss", "train_accuracy", "epoch_seconds")
            },
            flush=True,
        )

    fit.fit(model, images, labels, RECIPE, validate=lambda: {"val_loss": 0.0}, on_epoch=tell)
    final = detector.build()
    final.set_weights([one.astype(np.float16).astype(np.float32) for one in model.get_weights()])
    return final


if __name__ == "__main__":
    main(*sys.argv[1:2] or [None], *map(Path, sys.argv[2:3]))
