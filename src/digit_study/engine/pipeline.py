"""One function walks the whole way from a config to a tracked run: the one file that knows all the stages."""

from __future__ import annotations

import time
from dataclasses import replace

import keras

from digit_study.config import machine as hardware
from digit_study.config.run import Config
from digit_study.data import digits as data
from digit_study.engine.results import Epoch, Listener, TrialResult
from digit_study.evaluation import metrics as evaluation
from digit_study.evaluation.metrics import Evaluation
from digit_study.terminal.signals import Interrupted, Pruned
from digit_study.tracking import run_log as tracking
from digit_study.tracking import stores
from digit_study.training import artifacts as report
from digit_study.training import fit as training
from digit_study.training.networks import build_model, fused


def run_trial(
    config: Config, run_id: str, *, listener: Listener | None = None, pictures_of_data: bool = True
) -> TrialResult:
    """Load, look, build, train, predict, evaluate, draw, track: one config to one MLflow run.

    Args:
        config: validated and resolved (:func:`digit_study.config.resolve.resolve_config`).
        run_id: of the MLflow run that was created for this trial.
        listener: told of progress.
        pictures_of_data: also log the two pictures of the digits; a parent run has them for its children.

    Raises:
        StudyError: training diverged, or the data changed. The run is FAILED.
        Interrupted: a signal came. The run is KILLED.
    """
    log = tracking.RunLog(stores.tracking_uri(config.tracking.uri), run_id)
    try:
        result = _walk(config, log, listener or Listener(), pictures_of_data)
    except BaseException as error:
        log.tags({"failure": _reason(error)})
        log.end("KILLED" if _was_stopped(error) else "FAILED", {"reason": _reason(error)})
        raise
    kept = log.end("FINISHED", {"metrics": result.metrics, "weights_sha256": result.weights_sha256})
    return replace(result, kept=kept, fault=log.fault)


def _walk(config: Config, log: tracking.RunLog, listener: Listener, pictures_of_data: bool) -> TrialResult:
    started = time.perf_counter()
    log.config(config)
    digits = data.load_digits(config.data)
    log.dataset(digits.name, digits.sha256, digits.counts())
    if pictures_of_data:
        report.write_data_pictures(digits, log.folder)

    training.use_threads(config.training.threads or hardware.cores())
    keras.utils.set_random_seed(config.training.seed)
    # trained in bfloat16 or not, a network is judged and shipped in float32: the same numbers on every machine
    judge = build_model(config.model)
    model = fused(build_model(config.model, config.training.precision))

    def validate() -> Evaluation:
        judge.set_weights(model.get_weights())
        found = evaluation.evaluate(judge, digits.validation_images, digits.validation_labels, digits.validation_index)
        evaluations.append(found)
        return found

    def on_epoch(record: Epoch) -> None:
        epochs.append(record)
        log.epoch(len(epochs), record)
        listener.on_epoch(len(epochs), record)

    epochs: list[Epoch] = []
    evaluations: list[Evaluation] = []
    training.fit(
        model,
        digits.train_images,
        digits.train_labels,
        config.training,
        validate=lambda: validate().metrics,
        on_epoch=on_epoch,
        on_steps=listener.on_steps,
    )
    # early stopping may have gone back to an earlier epoch; else the last epoch's reading is that of the result
    outcome = evaluations[-1] if config.training.early_stopping.patience is None else validate()
    metrics = {**outcome.metrics, **_costs(judge, digits, epochs), **digits.counts()}
    weights = training.weights_sha256(judge)
    log.tags({"weights.sha256": weights})
    report.write_run(outcome, epochs, digits, config.model.name, log.folder)
    log.metrics({**metrics, "total_seconds": time.perf_counter() - started}, step=len(epochs))
    if config.tracking.save_model:
        log.model(judge)
    return TrialResult(log.run_id, metrics, epochs, outcome, weights)


def _costs(model: keras.Model, digits: data.Digits, epochs: list[Epoch]) -> dict[str, float]:
    best = min(range(len(epochs)), key=lambda at: epochs[at]["val_loss"])
    return {
        "parameters": float(model.count_params()),
        "training_seconds": sum(record["epoch_seconds"] for record in epochs),
        "inference_milliseconds": _inference_milliseconds(model, digits),
        "best_epoch": float(best + 1),
    }


def _inference_milliseconds(model: keras.Model, digits: data.Digits, images: int = 256) -> float:
    """Milliseconds an image of a warm forward pass over one batch, the fastest of three."""
    batch = digits.validation_images[:images]
    model.predict_on_batch(batch)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        model.predict_on_batch(batch)
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds) / len(batch)


def _was_stopped(error: BaseException) -> bool:
    return isinstance(error, Interrupted | KeyboardInterrupt | Pruned)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip()[:500]
