"""The whole way from a config to a tracked run, in this process and on a few hundred digits."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Finalised, open_store
from mlflow.entities import Run

from digit_study.config import compose as composition
from digit_study.config.compose import compose_config
from digit_study.config.run_config import Config, resolve_config
from digit_study.data import digits as data
from digit_study.data import sources
from digit_study.model.fit import Diverged, Predictor, weights_sha256
from digit_study.model.networks import build_model
from digit_study.report.figures import run_figures as figures
from digit_study.stats import metrics as evaluation
from digit_study.support import hardware
from digit_study.support.errors import StudyError
from digit_study.support.rules import flatten
from digit_study.support.signals import Interrupted, interruptible
from digit_study.support.trial_status import ABANDONED
from digit_study.support.workspace import Workspace
from digit_study.tracking import writer
from digit_study.tracking.location import store_uri
from digit_study.tracking.session import Tracker
from digit_study.trial.events import Decision
from digit_study.trial.local import child
from digit_study.trial.protocol import TrialResult, TrialStopped
from digit_study.trial.run_trial import forget_networks, run_trial

composition.register()


def trial(npz: Path, *overrides: str) -> Config:
    small = [
        f"data.path='{npz}'",
        "model=tiny",
        "model.blocks=2",
        "training.epochs=2",
        "training.batch_size=50",
    ]
    return resolve_config(compose_config([*small, "training.threads=1", *overrides]))[0]


class Listener:
    """Notes what it hears of a trial, and may end it after an epoch."""

    def __init__(self, after_epoch: Callable[[], Decision] = lambda: Decision.CONTINUE) -> None:
        self.after_epoch = after_epoch
        self.heard: list[Any] = []
        self.results: list[TrialResult] = []

    def on_steps(self, epoch: int, step: int, steps: int) -> None:
        self.heard.append((epoch, step, steps))

    def on_epoch(self, epoch: int, record: Any) -> Decision:
        self.heard.append(epoch)
        return self.after_epoch()

    def on_result(self, result: TrialResult) -> None:
        self.results.append(result)


def tracker_of(config: Config) -> Tracker:
    """Return the tracker of the store that MLFLOW_TRACKING_URI names, beside which artifacts lie."""
    uri = store_uri(config.tracking.uri, Workspace(Path("/nowhere")))
    return Tracker(uri, Workspace(Path(uri.removeprefix("sqlite:///")).parent))


def begin(config: Config) -> tuple[Tracker, str]:
    tracker = tracker_of(config)
    return tracker, tracker.create_run(config, sources.dataset_name(config.data), "a name")


def walk(config: Config, listener: Listener | None = None) -> tuple[TrialResult, Run]:
    tracker, run_id = begin(config)
    result = run_trial(config, run_id, tracker, listener or Listener())
    return result, tracker.client.get_run(run_id)


@dataclass(frozen=True)
class Finished:
    config: Config
    result: TrialResult
    run: Run
    tracker: Tracker
    listener: Listener

    @property
    def client(self) -> mlflow.MlflowClient:
        return self.tracker.client


@pytest.fixture(scope="module")
def finished(
    small_npz: Path, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """One run with a model, trained in bfloat16 for two epochs; the store stays open for the tests that look at it."""
    with pytest.MonkeyPatch.context() as patch:
        uri = open_store(migrated, tmp_path_factory.mktemp("run"), patch)
        patch.setattr(mlflow, "_tracking_uri", None, raising=False)
        config = trial(small_npz, "training.precision=mixed_bfloat16")
        listener = Listener()
        result, run = walk(config, listener)
        mlflow.set_tracking_uri(uri)
        yield Finished(config, result, run, tracker_of(config), listener)


def listed(finished: Finished, folder: str) -> set[str]:
    return {one.path for one in finished.client.list_artifacts(finished.run.info.run_id, folder)}


def fetched(finished: Finished, path: str) -> Path:
    return Path(finished.client.download_artifacts(finished.run.info.run_id, path))


def test_the_listener_hears_steps_and_epochs_in_order(finished: Finished) -> None:
    assert finished.listener.heard == [(1, 6, 6), 1, (2, 6, 6), 2]
    assert [result.run_id for result in finished.listener.results] == [finished.result.run_id]


def test_it_is_finished_and_nothing_is_left_in_the_outbox(finished: Finished) -> None:
    assert finished.run.info.status == "FINISHED" and finished.run.info.run_name == "a name"
    assert not finished.tracker.is_spooled(finished.result.run_id)


def test_every_leaf_of_the_config_is_a_param_and_the_whole_a_file(finished: Finished) -> None:
    assert finished.run.data.params == {
        key: str(value) for key, value in flatten(finished.config).items()
    }
    assert yaml.safe_load(fetched(finished, "config.yaml").read_text()) == asdict(finished.config)


def test_the_tags_say_code_data_machine_and_weights(finished: Finished) -> None:
    tags = finished.run.data.tags
    technical = {"git.commit", "git.dirty", "host", "os", "processor"}
    assert {"weights.sha256", *(f"technical.{name}" for name in technical)} <= set(tags)
    assert {
        f"technical.version.{name}" for name in ("tensorflow", "keras", "numpy", "mlflow", "optuna")
    } <= set(tags)
    assert tags["dataset.name"] == "small" and tags["dataset.sha256"] == finished.config.data.sha256
    assert tags["technical.precision"] == "mixed_bfloat16" and tags["technical.threads"] == "1"
    assert tags["technical.version.keras"] == keras.__version__
    assert tags["weights.sha256"] == finished.result.weights_sha256 and "failure" not in tags


def test_the_digits_are_its_input(finished: Finished) -> None:
    (given,) = finished.run.inputs.dataset_inputs
    assert given.dataset.name == "small" and str(finished.config.data.sha256).startswith(
        given.dataset.digest
    )
    profile = json.loads(given.dataset.profile)
    assert profile == {
        "sha256": finished.config.data.sha256,
        "train_images": 300,
        "validation_images": 100,
    }


@pytest.mark.parametrize("metric", writer.EPOCH_METRICS)
def test_every_epoch_has_its_point(finished: Finished, metric: str) -> None:
    history = finished.client.get_metric_history(finished.run.info.run_id, metric)
    by_step = {point.step: point.value for point in history}
    assert by_step == {
        number: record[metric] for number, record in enumerate(finished.result.epochs, start=1)
    }


def test_the_final_metrics_are_those_of_the_kept_weights(finished: Finished) -> None:
    metrics, result = finished.run.data.metrics, finished.result
    assert {name: metrics[name] for name in result.metrics} == result.metrics
    assert result.metrics["val_accuracy"] == result.epochs[-1]["val_accuracy"]
    assert metrics["train_images"] == 300 and metrics["validation_images"] == 100
    assert (
        metrics["total_seconds"] >= metrics["training_seconds"] > 0
        and metrics["inference_milliseconds"] > 0
    )
    assert metrics["parameters"] == build_model(finished.config.model).count_params()
    assert metrics["best_epoch"] == 1 + int(
        np.argmin([record["val_loss"] for record in result.epochs])
    )


def test_figures_and_tables_are_there_and_pictures_are_pictures(finished: Finished) -> None:
    names = ("curves", "confusion_matrix", "mistakes", "class_counts", "samples")
    assert listed(finished, "figures") == {f"figures/{name}.png" for name in names}
    assert listed(finished, "tables") == {"tables/per_class.csv", "tables/predictions.csv"}
    for path in listed(finished, "figures"):
        assert fetched(finished, path).read_bytes().startswith(b"\x89PNG")


def test_the_table_of_predictions_is_the_evaluation(finished: Finished) -> None:
    table = pd.read_csv(fetched(finished, "tables/predictions.csv"))
    assert list(table["index"]) == list(finished.result.evaluation.index)
    assert table["correct"].mean() == finished.result.metrics["val_accuracy"]
    _, labels = sources.read_npz(Path(str(finished.config.data.path)), "train")
    assert np.array_equal(labels[table["index"]], table["label"])


@pytest.mark.slow
def test_the_model_loads_and_gives_exactly_what_was_logged(finished: Finished) -> None:
    digits = data.load_digits(finished.config.data)
    (logged,) = finished.client.search_logged_models([finished.run.info.experiment_id])
    assert logged.name == "model" and logged.source_run_id == finished.run.info.run_id
    model = mlflow.keras.load_model(f"models:/{logged.model_id}")
    assert weights_sha256(model) == finished.result.weights_sha256
    read = Predictor(model)(digits.validation_images)
    again = evaluation.evaluate(digits.validation_labels, read, digits.validation_index)
    # the metrics are those before, the model gives probabilities at its temperature
    assert np.allclose(read, finished.result.evaluation.probabilities, atol=1e-6)
    assert again.metrics["val_accuracy"] == finished.result.metrics["val_accuracy"]
    served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    probabilities = served.predict(digits.validation_images.astype(np.float32))
    score = evaluation.evaluate(digits.validation_labels, np.asarray(probabilities))
    assert score.metrics["val_accuracy"] == finished.run.data.metrics["val_accuracy"]
    assert {
        spec.name: (str(spec.type), spec.shape) for spec in served.metadata.signature.outputs
    } == {"probabilities": ("float32", (-1, 10))}
    images = digits.validation_images[:5]
    of_five = served.predict(images)
    # a batch of another size is added up in another order
    assert np.allclose(of_five, probabilities[:5], atol=1e-6)
    for given in (images.astype(np.float64), images[..., 0], images[..., 0].tolist()):
        assert np.array_equal(served.predict(given), of_five)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["training.ema=true"],
        [
            "training.epochs=4",
            "training.optimizer=sgd",
            "training.learning_rate=0.9",
            "training.early_stopping.patience=2",
        ],
        ["model.members=2"],
    ],
    ids=["averaged weights", "early stopping", "an ensemble"],
)
def test_what_is_reported_is_read_by_the_weights_that_are_kept(
    words: list[str], small_npz: Path, store: str
) -> None:
    config = trial(small_npz, *words)
    result, run = walk(config)
    mlflow.set_tracking_uri(store)
    (logged,) = mlflow.MlflowClient(store).search_logged_models([run.info.experiment_id])
    digits = data.load_digits(config.data)
    model = mlflow.keras.load_model(f"models:/{logged.model_id}")
    read = Predictor(model)(digits.validation_images)
    again = evaluation.evaluate(digits.validation_labels, read, digits.validation_index)
    assert np.allclose(read, result.evaluation.probabilities, atol=1e-6)
    for name in ("val_accuracy", "val_macro_f1"):
        assert again.metrics[name] == result.metrics[name]


@pytest.mark.slow
def test_the_same_config_gives_the_same_bits(finished: Finished, store: str) -> None:
    result, run = walk(finished.config)
    assert result.weights_sha256 == finished.result.weights_sha256
    clocks = ("seconds", "milliseconds", "per_second")
    for name, value in finished.result.metrics.items():
        assert name.endswith(clocks) or result.metrics[name] == value, name
    assert run.data.tags["weights.sha256"] == finished.run.data.tags["weights.sha256"]


@pytest.mark.slow
def test_a_worker_that_has_trained_other_networks_gives_the_same_bits_and_names(
    finished: Finished, small_npz: Path, store: str
) -> None:
    seed = finished.config.training.seed + 1
    others = [
        f"training.seed={seed}",
        "model.dropout=0.3",
        "training.ema=true",
        "training.augmentation=shift_rotate",
    ]
    layers = []
    listener = Listener()
    for config in (trial(small_npz, *others), finished.config, finished.config):
        tracker, run_id = begin(config)
        child.train(config, run_id, listener, workspace=tracker.workspace)  # type: ignore[arg-type]
        (logged,) = tracker.client.get_run(run_id).outputs.model_outputs
        mlflow.set_tracking_uri(tracker.uri)
        model = mlflow.keras.load_model(f"models:/{logged.model_id}")
        layers.append([layer.name for layer in model.layers])
        forget_networks()  # the names of what was loaded
    assert listener.results[-1].weights_sha256 == finished.result.weights_sha256
    assert layers[1] == layers[2]


# ---------------------------------------------------------------------------------- ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(15), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (BrokenPipeError(), "KILLED"),  # its supervisor was killed
        (StudyError("no"), "FAILED"),
        (MemoryError(), "FAILED"),
    ],
)
def test_a_trial_that_ends_early_says_how_and_keeps_its_epochs(
    error: BaseException, status: str, small_npz: Path, store: str
) -> None:
    def stop() -> Decision:
        raise error

    config = trial(small_npz, "tracking.save_model=false")
    tracker, run_id = begin(config)
    with pytest.raises(type(error)):
        run_trial(config, run_id, tracker, Listener(stop), data_figures=False)
    run = tracker.client.get_run(run_id)
    assert run.info.status == status and run.info.end_time
    reason = ABANDONED if isinstance(error, BrokenPipeError) else type(error).__name__
    assert run.data.tags["failure"].startswith(reason) and run.data.metrics["val_accuracy"] >= 0
    assert not tracker.is_spooled(run_id)


@pytest.mark.slow
def test_a_trial_that_the_listener_stops_has_ended_well_without_a_result(
    small_npz: Path, store: str
) -> None:
    config = trial(small_npz, "tracking.save_model=false")
    tracker, run_id = begin(config)
    listener = Listener(lambda: Decision.STOP)
    with pytest.raises(TrialStopped):
        run_trial(config, run_id, tracker, listener, data_figures=False)
    assert listener.heard == [(1, 6, 6), 1] and not listener.results
    run = tracker.client.get_run(run_id)
    assert (run.info.status, run.data.tags["trial.state"]) == ("FINISHED", "PRUNED")
    assert tracker.was_stopped(run_id) and tracker.finished_metrics(run_id) is None


@pytest.mark.slow
def test_a_worker_is_asked_to_end_while_it_lets_networks_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    went_on = []
    monkeypatch.setattr(keras.utils, "clear_session", Finalised)
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        forget_networks()
        went_on.append(True)
    assert not went_on


@pytest.mark.slow
def test_a_signal_that_is_lost_in_a_finaliser_ends_a_trial_all_the_same(
    small_npz: Path, store: str
) -> None:
    def lose_a_signal() -> Decision:
        Finalised()
        return Decision.CONTINUE

    config = trial(small_npz, "training.epochs=5")
    listener = Listener(lose_a_signal)
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        tracker, run_id = begin(config)
        run_trial(config, run_id, tracker, listener)
    assert [heard for heard in listener.heard if isinstance(heard, int)] == [1]
    assert tracker.client.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_a_signal_while_tensorflow_traces_ends_the_trial_after_its_first_steps(
    small_npz: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception there would leave TensorFlow's locks behind, for which its own clean-up then waits for ever."""
    calls: list[str] = []
    call = keras.losses.SparseCategoricalCrossentropy.call

    def traced(*given: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        calls.append("not cut short")
        return call(*given)

    monkeypatch.setattr(keras.losses.SparseCategoricalCrossentropy, "call", traced)
    config = trial(small_npz)
    tracker, run_id = begin(config)
    listener = Listener()
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        run_trial(config, run_id, tracker, listener)
    assert calls == ["not cut short"] and not listener.heard
    assert tracker.client.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_figures_that_fail_cost_no_result(
    small_npz: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        assert listener.results  # before anything is drawn
        raise RuntimeError("no font")

    monkeypatch.setattr(figures, "write_run_figures", fail)
    config = trial(small_npz)
    listener = Listener()
    tracker, run_id = begin(config)
    with pytest.raises(RuntimeError, match="no font"):
        run_trial(config, run_id, tracker, listener, data_figures=False)
    run = tracker.client.get_run(run_id)
    assert (
        run.info.status == "FINISHED"
        and "not all figures: RuntimeError: no font" in run.data.tags["failure"]
    )
    assert run.data.metrics["val_accuracy"] == pytest.approx(
        listener.results[0].metrics["val_accuracy"]
    )
    table = tracker.predictions(run, "run")
    assert table["correct"].mean() == run.data.metrics["val_accuracy"]
    assert len(run.outputs.model_outputs) == 1


def test_data_that_changed_since_they_were_resolved_fail_the_run(
    small_npz: Path, store: str
) -> None:
    config = trial(small_npz)
    tracker, run_id = begin(config)
    object.__setattr__(config.data, "sha256", "0" * 64)
    with pytest.raises(StudyError, match="`data.sha256` says"):
        run_trial(config, run_id, tracker, Listener())
    assert tracker.client.get_run(run_id).info.status == "FAILED"


@pytest.mark.slow
def test_divergence_fails_the_run_with_its_reason(small_npz: Path, store: str) -> None:
    # a decay of 0.9 times a rate of 10 makes every weight eight times as large in every step
    wild = ["training.optimizer=sgd", "training.learning_rate=10", "training.weight_decay=0.9"]
    config = trial(
        small_npz,
        *wild,
        "training.schedule=constant",
        "model.batch_norm=false",
        "training.epochs=30",
    )
    tracker, run_id = begin(config)
    with pytest.raises(Diverged, match=r"`train_loss` is (nan|inf) in epoch \d+, in steps"):
        run_trial(config, run_id, tracker, Listener())
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FAILED" and "`train_loss` is" in run.data.tags["failure"]


# ---------------------------------------------------------------------------------- what auto becomes


def test_settling_twice_changes_nothing(small_npz: Path) -> None:
    once, source = resolve_config(compose_config([f"data.path={small_npz}"]))
    twice, again = resolve_config(once)
    assert once == twice and source == again
    assert once.training.threads == hardware.cores()
    assert once.training.precision == hardware.resolve_precision("auto")


@pytest.mark.parametrize(("parallel", "threads"), [(1, 8), (2, 4), (3, 2), (100, 1)])
def test_cores_are_shared_among_parallel_runs(
    parallel: int, threads: int, small_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    config = compose_config([f"data.path={small_npz}"])
    assert resolve_config(config, parallel)[0].training.threads == threads
    chosen = compose_config([f"data.path={small_npz}", "training.threads=5"])
    assert resolve_config(chosen, parallel)[0].training.threads == 5
