"""The same search by this project and by its peers: seconds, epochs, and the best validation accuracy of each.

    python -m venv ~/peers
    ~/peers/bin/pip install 'ray[tune]==2.60.*' keras-tuner tensorboard optuna mlflow tensorflow pandas
    python tests/benchmarks/bench_peers.py --peers ~/peers/bin/python [--rounds 3] [--data mnist.npz]

Twenty trials of at most six epochs on 20,000 images, Adam, batches of 128; two padded convolutions of {8, 16, 32}
filters and twice as many, {max, average} pooling, dropout in [0, 0.5], learning rate in [1e-4, 1e-2]. All train on the
same images and read the same 5,000; what varies between rounds is the seed. Each peer prunes with what its manual
begins with: Ray Tune by ASHA with Optuna's sampler, two trials of a core each at a time; Keras Tuner by Hyperband; the
loop by hand by Optuna's median pruner, with MLflow's metrics and models, as this project logs them. A round takes
about eight minutes on two cores; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "src")]

from conftest import copy_project  # noqa: E402
from typed_study import trials_of  # noqa: E402

TRIALS, EPOCHS, IMAGES, VALIDATION = 20, 6, 20_000, 5_000

COMMON = f"""
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
path, folder, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
TRIALS, EPOCHS = {TRIALS}, {EPOCHS}
def load():
    with np.load(path) as found:
        scaled = [found[name].astype("float32") / 255 for name in ("x", "x_val")]
        return scaled[0], found["y"], scaled[1], found["y_val"]
def build(filters, pooling, dropout, learning_rate):
    pool = keras.layers.MaxPooling2D if pooling == "max" else keras.layers.AveragePooling2D
    layers = [keras.Input((28, 28, 1))]
    for width in (filters, 2 * filters):
        layers += [keras.layers.Conv2D(width, 3, padding="same", activation="relu"), pool(2)]
    layers += [keras.layers.Flatten(), keras.layers.Dropout(dropout), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
def tell(trials, epochs, best):
    print("RESULT", json.dumps([int(trials), int(epochs), float(best)]), flush=True)
"""

BY_HAND = """
import mlflow, optuna
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_experiment("by hand")
x, y, x_val, y_val = load()
class Told(keras.callbacks.Callback):
    def __init__(self, trial):
        super().__init__()
        self.trial = trial
    def on_epoch_end(self, epoch, logs=None):
        mlflow.log_metrics({name: float(value) for name, value in logs.items()}, step=epoch)
        self.trial.report(logs["val_accuracy"], epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned
def objective(trial):
    keras.utils.set_random_seed(seed * 1000 + trial.number)
    chosen = dict(filters=trial.suggest_categorical("filters", [8, 16, 32]),
                  pooling=trial.suggest_categorical("pooling", ["max", "average"]),
                  dropout=trial.suggest_float("dropout", 0, 0.5),
                  learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True))
    with mlflow.start_run(nested=True):
        mlflow.log_params(chosen)
        model = build(**chosen)
        history = model.fit(x, y, batch_size=128, epochs=EPOCHS, validation_data=(x_val, y_val), verbose=0,
                            callbacks=[Told(trial)])
        mlflow.keras.log_model(model, name="model")
    return history.history["val_accuracy"][-1]
with mlflow.start_run(run_name="study"):
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=TRIALS)
tell(len(study.trials), sum(len(one.intermediate_values) for one in study.trials), study.best_value)
"""

RAY_TUNE = """
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
def train(config):
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    x, y, x_val, y_val = load()
    class Told(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            tune.report({"val_accuracy": float(logs["val_accuracy"])})
    keras.utils.set_random_seed(seed)
    build(**config).fit(x, y, batch_size=128, epochs=EPOCHS, validation_data=(x_val, y_val), verbose=0,
                        callbacks=[Told()])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
space = {"filters": tune.choice([8, 16, 32]), "pooling": tune.choice(["max", "average"]),
         "dropout": tune.uniform(0, 0.5), "learning_rate": tune.loguniform(1e-4, 1e-2)}
tuner = tune.Tuner(
    tune.with_resources(train, {"cpu": 1}), param_space=space,
    tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", num_samples=TRIALS, max_concurrent_trials=2,
                                search_alg=OptunaSearch(seed=seed), scheduler=ASHAScheduler(max_t=EPOCHS)),
    run_config=tune.RunConfig(storage_path=folder, verbose=0))
results = tuner.fit()
frame = results.get_dataframe()
tell(len(frame), frame["training_iteration"].sum(), frame["val_accuracy"].max())
"""

KERAS_TUNER = """
import keras_tuner
x, y, x_val, y_val = load()
def hyper(given):
    return build(given.Choice("filters", [8, 16, 32]), given.Choice("pooling", ["max", "average"]),
                 given.Float("dropout", 0, 0.5), given.Float("learning_rate", 1e-4, 1e-2, sampling="log"))
tuner = keras_tuner.Hyperband(hyper, "val_accuracy", max_epochs=EPOCHS, seed=seed, directory=folder)
class Count(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("EPOCH", flush=True)
tuner.search(x, y, batch_size=128, validation_data=(x_val, y_val), verbose=0, callbacks=[Count()])
trials = tuner.oracle.get_best_trials(100)
tell(len(tuner.oracle.trials), -1, trials[0].score)
"""

SPACE = (
    "search.space={model.filters: {choices: [8, 16, 32]}, model.pooling: {choices: [max, average]}, "
    "model.dropout: {type: float, low: 0.0, high: 0.5}, "
    "training.learning_rate: {type: float, low: 0.0001, high: 0.01, log: true}}"
)
Result = tuple[float, int, int, float]  # seconds, trials, epochs, best validation accuracy


def timed(command: list[str], folder: Path, **environment: str) -> tuple[float, str]:
    """Seconds of a whole command, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return seconds, done.stdout


def peer(script: str, python: str) -> Callable[[Path, Path, int], Result]:
    """A round of a peer."""

    def one_round(digits: Path, folder: Path, seed: int) -> Result:
        seconds, said = timed(
            [python, "-c", COMMON + script, str(digits), str(folder), str(seed)], folder
        )
        told = next(line for line in said.splitlines() if line.startswith("RESULT "))
        trials, epochs, best = json.loads(told.removeprefix("RESULT "))
        return seconds, trials, said.count("EPOCH\n") if epochs < 0 else epochs, best

    return one_round


def ours(place: list[str]) -> Callable[[Path, Path, int], Result]:
    """A round of this project, in a copy of it."""

    def one_round(digits: Path, folder: Path, seed: int) -> Result:
        copy_project(folder)
        compileall.compile_dir(folder / "src", quiet=1)  # as any but the first command finds it
        words = [
            "study=peers", *place, f"data.limit={IMAGES}", f"data.validation={VALIDATION}", "model=cnn",
            "model.batch_norm=false", "model.dense_units=0", "training=plain", f"training.epochs={EPOCHS}", "training.schedule=constant",
            SPACE, f"search.trials={TRIALS}", f"search.seed={seed}",
        ]  # fmt: skip
        uri = f"sqlite:///{folder}/mlflow.db"
        seconds, _ = timed(
            [sys.executable, "sweeps/optuna_search.py", *words], folder, MLFLOW_TRACKING_URI=uri
        )
        trials = trials_of(folder, "peers")
        best = max(
            one.value for one in trials if one.value is not None and one.state.name == "COMPLETE"
        )
        return seconds, len(trials), sum(len(one.intermediate_values) for one in trials), best

    return one_round


def shared(place: list[str], folder: Path) -> Path:
    """The digits that all train on and read, as this project splits them."""
    from digit_study.config import compose
    from digit_study.data import sources
    from digit_study.data.digits import load_digits

    compose.register()
    asked = compose.compose_config(
        ["data=mnist", *place, f"data.limit={IMAGES}", f"data.validation={VALIDATION}"]
    )
    found = load_digits(sources.resolve(asked.data).config)
    np.savez(
        folder / "digits.npz",
        x=found.train_images, y=found.train_labels, x_val=found.validation_images, y_val=found.validation_labels,
    )  # fmt: skip
    return folder / "digits.npz"


def main() -> None:
    """Alternate all, and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", required=True, help="the Python of their environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", help="a local mnist.npz; Keras's own where not given")
    given = parser.parse_args()
    place = [f"data.path='{Path(given.data).resolve()}'"] if given.data else []
    who = {"this project": ours(place), "by hand": peer(BY_HAND, given.peers)}
    who |= {"Ray Tune": peer(RAY_TUNE, given.peers), "Keras Tuner": peer(KERAS_TUNER, given.peers)}
    found: dict[str, list[Result]] = {name: [] for name in who}
    with tempfile.TemporaryDirectory() as common:
        digits = shared(place, Path(common))
        for seed in range(given.rounds):
            for name, one_round in who.items():
                with tempfile.TemporaryDirectory() as folder:
                    found[name].append(one_round(digits, Path(folder), seed))
                seconds, trials, epochs, best = found[name][-1]
                print(
                    f"{name:13} {seconds:6.1f} s  {trials} trials  {epochs} epochs  best {best:.2%}",
                    flush=True,
                )
    own = found["this project"]
    for name, results in found.items():
        seconds, best = (statistics.median(one[part] for one in results) for part in (0, 3))
        ratio = statistics.median(mine[0] / one[0] for mine, one in zip(own, results, strict=True))
        ahead = [f"{100 * (mine[3] - one[3]):+.2f}" for mine, one in zip(own, results, strict=True)]
        a_epoch = statistics.median(one[0] / one[2] for one in results)
        print(f"{name:13} median {seconds:6.1f} s, {a_epoch:.2f} s an epoch, best {best:.2%}; this project takes "
              f"{ratio:.2f} of it and is {', '.join(ahead)} points ahead")  # fmt: skip


if __name__ == "__main__":
    main()
