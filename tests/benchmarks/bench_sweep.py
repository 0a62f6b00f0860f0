"""The same 12 trials by this project's sweep, and by the loop a person would write: seconds, and the best accuracy.

Both walk the same grid of 12 configurations, 4 epochs each on 20,000 images: the sweep once as it comes and once
without pruning, so that what pruning gives is told apart. The plain loop is Optuna in one process with stock
`model.fit` in float32 on all cores and `mlflow.keras.log_model` without tricks. They alternate; medians and ratios are
printed. A round takes a quarter of an hour on two cores; run it on an idle machine:

    python tests/benchmarks/bench_sweep.py [--rounds 3] [--data mnist.npz]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRIALS, EPOCHS, IMAGES, VALIDATION = 12, 4, 20_000, 5_000

PLAIN_LOOP = """
import sys, keras, mlflow, numpy as np, optuna
path, uri, trials, epochs, images, validation = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
mlflow.set_tracking_uri(uri)
mlflow.set_experiment("plain loop")
(x, y) = (lambda d: (d["x_train"], d["y_train"]))(np.load(path)) if path else keras.datasets.mnist.load_data()[0]
x = x[..., None].astype("float32") / 255
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order], y[order]
x_val, y_val = x[:validation], y[:validation]
x, y = x[validation:validation + images], y[validation:validation + images]

def objective(trial):
    with mlflow.start_run(nested=True):
        filters = trial.suggest_categorical("filters", [16, 32, 48])
        kernel = trial.suggest_categorical("kernel_size", [3, 5])
        dropout = trial.suggest_categorical("dropout", [0.1, 0.3])
        mlflow.log_params(trial.params)
        layers = [keras.Input((28, 28, 1))]
        for width in (filters, 2 * filters):
            layers += [keras.layers.Conv2D(width, kernel, padding="same", use_bias=False),
                       keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.MaxPooling2D()]
        layers += [keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"),
                   keras.layers.Dropout(dropout), keras.layers.Dense(10, activation="softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.Adam(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(x, y, batch_size=128, epochs=epochs, validation_data=(x_val, y_val), verbose=0)
        for epoch in range(epochs):
            for name, values in history.history.items():
                mlflow.log_metric(name, values[epoch], step=epoch)
        mlflow.keras.log_model(model, name="model")
        return history.history["val_accuracy"][-1]

with mlflow.start_run(run_name="study"):
    grid = {"filters": [16, 32, 48], "kernel_size": [3, 5], "dropout": [0.1, 0.3]}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=0))
    study.optimize(objective, n_trials=trials)
print("BEST", study.best_value)
"""

SPACE = (
    "search.space={model.filters: {choices: [16, 32, 48]}, model.kernel_size: {choices: [3, 5]}, "
    "model.dropout: {choices: [0.1, 0.3]}}"
)


def run(command: list[str], uri: str, cwd: str | Path = ROOT) -> tuple[float, float]:
    """Seconds of the whole command, and the best validation accuracy it names."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command[:3])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return seconds, best_of(done.stdout)


def best_of(output: str) -> float:
    """The best validation accuracy in what either of the two printed."""
    plain = [line.split()[1] for line in output.splitlines() if line.startswith("BEST ")]
    if plain:
        return float(plain[0])
    last = [line for line in output.splitlines() if "best so far: trial" in line][-1]
    return float(last.rsplit("best so far: trial ", 1)[1].split(", ")[1].split(" ")[0]) / 100


def sweep(data: str, uri: str, name: str, extra: list[str]) -> tuple[float, float]:
    """This project's sweep."""
    place = [f"data.path='{data}'"] if data else []
    overrides = [
        f"study={name}", f"tracking.experiment={name}", "data=mnist", *place,
        f"data.limit={IMAGES}", f"data.validation={VALIDATION}", SPACE,
        "training=plain", f"training.epochs={EPOCHS}", "training.schedule=constant", "training.learning_rate=0.001",
        "search.sampler=grid", f"search.trials={TRIALS}", *extra,
    ]  # fmt: skip
    try:
        return run([sys.executable, "sweeps/optuna_search.py", *overrides], uri)
    finally:
        shutil.rmtree(ROOT / "mlruns" / name, ignore_errors=True)
        for left in (ROOT / "mlruns" / "studies").glob(f"{name}.*"):
            left.unlink()


def plain_loop(data: str, uri: str, folder: str) -> tuple[float, float]:
    """The loop a person would write."""
    sizes = [str(n) for n in (TRIALS, EPOCHS, IMAGES, VALIDATION)]
    return run([sys.executable, "-c", PLAIN_LOOP, data, uri, *sizes], uri, folder)


def one_round(data: str, name: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each of the three in stores of its own, told as soon as it is done."""
    with tempfile.TemporaryDirectory() as folder:
        uri, plain = f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/plain.db"
        yield "sweep", sweep(data, uri, name, [])
        yield "sweep, every epoch", sweep(data, uri, f"{name}-whole", ["search.pruner=none"])
        yield "plain loop", plain_loop(data, plain, folder)


def main() -> None:
    """Alternate the three, and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="", help="a local mnist.npz; Keras's own where not given")
    asked = parser.parse_args()
    data = str(Path(asked.data).resolve()) if asked.data else ""
    taken: dict[str, list[tuple[float, float]]] = {}
    for number in range(asked.rounds):
        for part, (seconds, best) in one_round(data, f"bench-{os.getpid()}-{number}"):
            taken.setdefault(part, []).append((seconds, best))
            print(
                f"round {number + 1}: {part:20} {seconds:7.1f} s   best val_accuracy {best:.4f}",
                flush=True,
            )
    plain = [seconds for seconds, _ in taken["plain loop"]]
    for part, results in taken.items():
        seconds, best = (statistics.median(values) for values in zip(*results, strict=True))
        ratio = statistics.median(p / s for p, (s, _) in zip(plain, results, strict=True))
        print(
            f"{part:20} median {seconds:7.1f} s   best val_accuracy {best:.4f}   {ratio:.2f} x as fast as plain"
        )


if __name__ == "__main__":
    main()
