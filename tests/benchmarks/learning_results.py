"""Which validation images real networks read right, kept to simulate confirmations with; and how that was recorded.

    python tests/benchmarks/learning_results.py data=mnist

writes ``learning_results.npz`` beside this file anew: six small networks, twelve seeds each, trained for four epochs on
6,000 MNIST images and validated on 4,000 others; a few minutes on two cores. Overrides of ``src/run.py`` go before.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2] / "src"))

FILE = HERE.with_suffix(".npz")
NETWORKS = [
    f"model.filters={filters} model.kernel_size={size}"
    for filters in (8, 12, 16)
    for size in (3, 5)
]
SEEDS = 12
RECIPE = (
    "model=tiny",
    "data.limit=6000",
    "data.validation=4000",
    "training.epochs=4",
    "training.threads=1",
)


def load() -> npt.NDArray[np.bool_]:
    """What was recorded, (networks, seeds, images): whether a network of that seed reads that image right."""
    with np.load(FILE) as kept:
        bits = np.unpackbits(kept["correct"], axis=-1, count=int(kept["images"]))
    return np.asarray(bits, dtype=np.bool_)


def train(overrides: list[str]) -> npt.NDArray[np.bool_]:
    """Train one network without tracking; returns which validation images it reads right, in their order."""
    import keras

    from digit_study.config import compose
    from digit_study.config.run_config import resolve_config
    from digit_study.data.digits import load_digits
    from digit_study.model import fit
    from digit_study.model.networks import build_model
    from digit_study.stats.metrics import evaluate

    compose.register()
    config, _ = resolve_config(compose.compose_config(overrides))
    digits = load_digits(config.data)
    fit.use_threads(1)
    keras.utils.set_random_seed(config.training.seed)
    model = build_model(config.model)
    nothing: dict[str, float] = {"val_loss": 0.0, "val_accuracy": 0.0}
    given = digits.train_images, digits.train_labels, config.training
    fit.fit(model, *given, validate=lambda: nothing, on_epoch=lambda record: None)
    return evaluate(
        model, digits.validation_images, digits.validation_labels, digits.validation_index
    ).correct


def record(overrides: list[str]) -> None:
    """Train all, a process a network, and write :data:`FILE`."""
    jobs = [
        [*overrides, *RECIPE, *one.split(), f"training.seed={seed}"]
        for one in NETWORKS
        for seed in range(SEEDS)
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        correct = np.array(list(pool.map(train, jobs))).reshape(len(NETWORKS), SEEDS, -1)
    np.savez_compressed(FILE, correct=np.packbits(correct, axis=-1), images=correct.shape[-1])
    for name, accuracies in zip(NETWORKS, correct.mean(axis=2), strict=True):
        print(
            f"{name}: {accuracies.mean():.4f}, standard deviation over seeds {accuracies.std(ddof=1):.4f}"
        )


if __name__ == "__main__":
    record(sys.argv[1:])
