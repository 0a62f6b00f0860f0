"""Record learning curves of whole search spaces, for ``bench_search.py`` to replay in seconds.

    python tools/record_curves.py [--data mnist.npz] [--only small]

Every point of two spaces is trained with three seeds on the same 5,000 images, and validated on the
same 5,000 after every epoch: ``small`` as it is shipped, and a grid of the five dimensions of
``default`` that matter most. It goes on where it was stopped, and takes about half an hour of a
core. It writes ``tests/benchmarks/curves.npz``: per space its points as JSON, the images predicted
correctly after each epoch (points, seeds, epochs), and the seconds of an epoch's steps (points,).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

#: What is written.
FILE = ROOT / "tests" / "benchmarks" / "curves.npz"
#: Images to train on.
TRAIN = 5_000
#: Images to validate on.
VALIDATION = 5_000
#: Epochs of a training.
EPOCHS = 5
#: Seeds per point.
SEEDS = 3
#: Seed of the first training of a point.
FIRST_SEED = 1_000
#: Trainings of a process: a trained network leaves a few megabytes behind.
TRAININGS_PER_PROCESS = 40
#: Values per dimension, per space.
SPACES: dict[str, dict[str, list[Any]]] = {
    "small": {
        "model.filters": [8, 16, 24, 32],
        "model.pooling": ["max", "average", "stride"],
        "model.batch_norm": [True, False],
    },
    "default": {
        "model.filters": [8, 16, 32],
        "model.pooling": ["max", "average", "stride"],
        "model.dropout": [0.0, 0.4],
        "training.learning_rate": [0.0003, 0.001, 0.003, 0.01],
        "training.schedule": ["constant", "cosine"],
    },
}

#: Values of a configuration by key.
Point = dict[str, Any]
#: What the file holds, by name.
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Curve:
    """A recorded training."""

    #: Images predicted correctly after every epoch.
    correct: list[int]
    #: Seconds of the steps of the fastest epoch.
    seconds: float


def points(space: str) -> list[Point]:
    """Return all combinations of a space, in its order."""
    dimensions = SPACES[space]
    return [dict(zip(dimensions, values, strict=True)) for values in product(*dimensions.values())]


def train(data: str | None, point: Point, seed: int) -> Curve:
    """Train a configuration without tracking.

    Args:
        data: Path of an mnist.npz; None downloads it.
        point: The configuration.
        seed: Number of the training, from 0.
    """
    import keras

    from digit_study.data.digits import load_digits
    from digit_study.model import fit
    from digit_study.model.networks import build_model

    config = _config(data, point, seed)
    digits = load_digits(config.data)
    fit.use_threads(1)
    keras.utils.set_random_seed(config.training.seed)
    model = build_model(config.model, config.training.precision, fit.FUSED_LAYERS)
    predict = fit.Predictor(model)
    correct: list[int] = []

    def validate() -> dict[str, float]:
        predicted = predict(digits.validation_images).argmax(axis=1)
        correct.append(int((predicted == digits.validation_labels).sum()))
        return {"val_loss": 0.0}

    epochs = fit.fit(
        model,
        digits.train_images,
        digits.train_labels,
        config.training,
        validate=validate,
        on_epoch=lambda record: None,
    )
    images = len(digits.train_images)
    return Curve(correct, min(images / record["images_per_second"] for record in epochs))


def _config(data: str | None, point: Point, seed: int) -> Any:
    """Return the resolved config of a training."""
    from digit_study.config import compose
    from digit_study.config.run_config import resolve_config

    compose.register()
    overrides = [f"{key}={json.dumps(value)}" for key, value in point.items()]
    overrides += [
        f"data.limit={TRAIN + VALIDATION}",
        f"data.validation={VALIDATION}",
        # the space varies the rest of the recipe, and a peer's trains on MNIST as it is, too
        "training=plain",
        "training.threads=1",
        f"training.epochs={EPOCHS}",
        f"training.seed={FIRST_SEED + seed}",
    ]
    if data is not None:
        overrides.append(f"data.path='{data}'")
    config, _ = resolve_config(compose.compose_config(overrides))
    return config


def record(space: str, train_point: Callable[[Point, int], Curve], arrays: Arrays) -> None:
    """Record what is missing of a space, and save after every point.

    Args:
        space: Its name in :data:`SPACES`.
        train_point: Trains a configuration with the seed of a number.
        arrays: What has been recorded so far; it is filled in.
    """
    all_points = points(space)
    count = len(all_points)
    arrays[f"{space}.points"] = np.array(json.dumps(all_points))
    correct = arrays.setdefault(f"{space}.right", np.zeros((count, SEEDS, EPOCHS), np.uint16))
    seconds = arrays.setdefault(f"{space}.seconds", np.zeros(count, np.float32))
    for number, point in enumerate(all_points):
        if correct[number].all():
            continue
        started = time.monotonic()
        curves = [train_point(point, seed) for seed in range(SEEDS)]
        correct[number] = [curve.correct for curve in curves]
        seconds[number] = min(curve.seconds for curve in curves)
        save(arrays)
        accuracy = correct[number, :, -1].mean() / VALIDATION
        took = time.monotonic() - started
        print(f"{space} {number + 1}/{count} {accuracy:.4f} {took:.0f} s {point}", flush=True)


def save(arrays: Arrays) -> None:
    """Write :data:`FILE`, whole or not at all."""
    part = FILE.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
    part.replace(FILE)


def load() -> Arrays:
    """Return what has been recorded so far."""
    if not FILE.exists():
        return {}
    with np.load(FILE) as archive:
        return dict(archive)


def main() -> None:
    """Record what is missing."""
    parser = argparse.ArgumentParser(description="Record learning curves of whole search spaces.")
    parser.add_argument("--data", help="an mnist.npz; else it is downloaded")
    parser.add_argument("--only", choices=SPACES)
    given = parser.parse_args()
    spaces = list(SPACES)
    if given.only:
        spaces = [given.only]
    arrays = load()
    with ProcessPoolExecutor(
        1, get_context("spawn"), max_tasks_per_child=TRAININGS_PER_PROCESS
    ) as pool:

        def train_point(point: Point, seed: int) -> Curve:
            return pool.submit(partial(train, given.data), point, seed).result()

        for space in spaces:
            record(space, train_point, arrays)


if __name__ == "__main__":
    main()
