"""Record which validation images real networks predict correctly, to simulate confirmations with.

    python tools/record_results.py data=mnist

writes ``tests/benchmarks/learning_results.npz`` anew: six small networks, twelve seeds each,
trained for four epochs on 6,000 MNIST images and validated on 4,000 others. It takes a few minutes
on two cores. Overrides of ``src/run.py`` may be given.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

#: What is written; ``tests/benchmarks/learning_results.py`` reads it.
FILE = ROOT / "tests" / "benchmarks" / "learning_results.npz"
#: Overrides of each network.
NETWORKS = [
    [f"model.filters={filters}", f"model.kernel_size={size}"]
    for filters in (8, 12, 16)
    for size in (3, 5)
]
#: Seeds per network.
SEEDS = 12
#: Overrides that all share.
RECIPE = [
    "model=tiny",
    "training=plain",
    "data.limit=6000",
    "data.validation=4000",
    "training.epochs=4",
    "training.threads=1",
]


def train(overrides: list[str]) -> npt.NDArray[np.bool_]:
    """Train a network without tracking.

    Args:
        overrides: Of its config.

    Returns:
        Which validation images it predicts correctly, shape (n,), in their order.
    """
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
    fit.fit(
        model,
        digits.train_images,
        digits.train_labels,
        config.training,
        validate=lambda: {"val_loss": 0.0, "val_accuracy": 0.0},
        on_epoch=lambda record: None,
    )
    probabilities = fit.Predictor(model)(digits.validation_images)
    evaluation = evaluate(digits.validation_labels, probabilities, digits.validation_index)
    return evaluation.correct


def main(overrides: list[str]) -> None:
    """Train all networks, each in a process of its own, and write :data:`FILE`."""
    jobs = [
        [*overrides, *RECIPE, *network, f"training.seed={seed}"]
        for network in NETWORKS
        for seed in range(SEEDS)
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        correct = np.array(list(pool.map(train, jobs))).reshape(len(NETWORKS), SEEDS, -1)
    np.savez_compressed(FILE, correct=np.packbits(correct, axis=-1), images=correct.shape[-1])
    for network, accuracies in zip(NETWORKS, correct.mean(axis=2), strict=True):
        spread = accuracies.std(ddof=1)
        print(
            f"{' '.join(network)}: {accuracies.mean():.4f}, standard deviation over seeds "
            f"{spread:.4f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
