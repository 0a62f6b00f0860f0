"""Learning curves of whole search spaces, recorded once by real training, for bench_search.py to replay in seconds.

    python tests/benchmarks/record_curves.py [--data mnist.npz] [--only small]

Every point of two spaces is trained with three seeds on the same 5,000 images and validated on the same 5,000 after
every epoch: ``small`` as it is shipped, and a grid of the five dimensions of ``default`` that matter most. Goes on
where it was stopped; about half an hour of one core. Writes curves.npz beside this file: of each space its points as
JSON, the images read right after each epoch (points, seeds, epochs), and the seconds of an epoch's steps (points,).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

OUT = Path(__file__).with_name("curves.npz")
TRAIN, VALIDATION, EPOCHS, SEEDS = 5_000, 5_000, 5, 3
#: A trained network leaves a few megabytes behind in its process.
TRAININGS_A_PROCESS = 40
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


def points(space: str) -> list[dict[str, Any]]:
    """All combinations of a space, in its order."""
    return [
        dict(zip(SPACES[space], values, strict=True)) for values in product(*SPACES[space].values())
    ]


def curve(data: str | None, point: dict[str, Any], seed: int) -> tuple[list[int], float]:
    """Train once: images read right after each epoch, and the fastest epoch's seconds of steps."""
    import keras

    from digit_study.config import compose
    from digit_study.config.run_config import resolve_config
    from digit_study.data.digits import load_digits
    from digit_study.model import fit
    from digit_study.model.networks import build_model

    compose.register()
    words = [f"{key}={json.dumps(value)}" for key, value in point.items()]
    words += [f"data.path='{data}'"] if data else []
    words += [
        f"data.limit={TRAIN + VALIDATION}",
        f"data.validation={VALIDATION}",
        "training.threads=1",
    ]
    words += [f"training.epochs={EPOCHS}", f"training.seed={1000 + seed}"]
    config, _ = resolve_config(compose.compose_config(words))
    digits = load_digits(config.data)
    fit.use_threads(1)
    keras.utils.set_random_seed(config.training.seed)
    model = build_model(config.model, config.training.precision, fit.FUSED_LAYERS)
    read, right = fit.Predictor(model), list[int]()

    def validate() -> dict[str, float]:
        right.append(
            int((read(digits.validation_images).argmax(axis=1) == digits.validation_labels).sum())
        )
        return {"val_loss": 0.0}

    given = model, digits.train_images, digits.train_labels, config.training
    epochs = fit.fit(*given, validate=validate, on_epoch=lambda record: None)
    return right, min(len(digits.train_images) / record["images_per_second"] for record in epochs)


def record(
    space: str,
    train: Callable[[dict[str, Any], int], tuple[list[int], float]],
    save: Callable[..., None],
    held: dict[str, Any],
) -> None:
    """Fill in what ``held`` lacks of a space, saving after every point."""
    all_points = points(space)
    right = held.get(f"{space}.right", np.zeros((len(all_points), SEEDS, EPOCHS), np.uint16))
    seconds = held.get(f"{space}.seconds", np.zeros(len(all_points), np.float32))
    for number, point in enumerate(all_points):
        if right[number].all():
            continue
        started, costs = time.monotonic(), []
        for seed in range(SEEDS):
            right[number, seed], cost = train(point, seed)
            costs.append(cost)
        seconds[number] = min(costs)
        save(
            **{
                f"{space}.points": json.dumps(all_points),
                f"{space}.right": right,
                f"{space}.seconds": seconds,
            }
        )
        accuracy = right[number, :, -1].mean() / VALIDATION
        print(
            f"{space} {number + 1}/{len(all_points)} {accuracy:.4f} {time.monotonic() - started:.0f} s {point}",
            flush=True,
        )


def main() -> None:
    """Record what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="an mnist.npz; else it is downloaded")
    parser.add_argument("--only", choices=SPACES)
    given = parser.parse_args()
    held: dict[str, Any] = dict(np.load(OUT)) if OUT.exists() else {}

    def save(**arrays: Any) -> None:
        held.update(arrays)
        part = OUT.with_suffix(".part.npz")
        np.savez_compressed(part, **held)
        part.replace(OUT)

    pool = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=TRAININGS_A_PROCESS)
    with pool:
        for space in [given.only] if given.only else SPACES:
            record(
                space,
                lambda point, seed: pool.submit(curve, given.data, point, seed).result(),
                save,
                held,
            )


if __name__ == "__main__":
    main()
