"""One function walks the whole way from a config to a tracked run: the one file that knows all the stages."""

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import keras

from digit_study.config.run import Config
from digit_study.data.digits import Digits, load_digits
from digit_study.model import calibration, fit
from digit_study.model.networks import Model, build_model, mean_of
from digit_study.model.robustness import robust_accuracy
from digit_study.report.figures import run_figures as figures
from digit_study.stats.metrics import Evaluation, score
from digit_study.support import machine
from digit_study.support.signals import Interrupted, deferred_signals, raise_if_interrupted
from digit_study.tracking import provenance as origin
from digit_study.tracking.database import tracking_uri
from digit_study.tracking.runs import RunLog
from digit_study.trial.protocol import Epoch, Pruned, TrialResult

Listener = Callable[..., None]  # of (epoch, step, steps) or of (number, record)


def run_trial(
    config: Config,
    run_id: str,
    on_steps: Listener,
    on_epoch: Listener,
    on_result: Callable[[TrialResult], None] = lambda result: None,
    data_figures: bool = True,
) -> TrialResult:
    """Load, look, build, train, predict, evaluate, track, draw: a resolved config to the MLflow run ``run_id``.

    What a listener raises ends the trial. ``on_result`` hears of a result that is kept whatever happens then: what is
    left are figures. ``data_figures`` are those of the digits, which a parent has for its children. The run ends FAILED
    if training diverged or the data changed, KILLED by a signal and if Pruned; with a result it ends FINISHED.
    """
    log = RunLog(tracking_uri(config.tracking.uri), run_id)
    try:
        result, draw = _walk(config, log, on_steps, on_epoch, data_figures)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".strip()[:500]
        log.tags({"failure": reason})
        was_stopped = isinstance(error, Interrupted | KeyboardInterrupt | Pruned)
        log.end("KILLED" if was_stopped else "FAILED", {"reason": reason})
        raise
    try:
        with deferred_signals():
            _finish(log, result, on_result, draw)
    finally:
        kept = log.deliver()
    return replace(result, kept=kept, fault=log.fault)


def forget_networks() -> None:
    """Let go of what Keras and TensorFlow keep of the networks so far, and let the names of layers start anew."""
    with deferred_signals():  # in one of the many finalisers that this runs a signal would be lost
        keras.utils.clear_session()
        gc.freeze()  # what is left by now stays, and would be gone through after every trial, and in each


def _finish(
    log: RunLog, result: TrialResult, on_result: Listener, draw: Callable[[], None]
) -> None:
    """Tell a result, draw, and end the run on disk; with its result it is FINISHED whatever happens."""
    try:
        on_result(result)
        draw()
    except Exception as error:
        log.spooled.close(log.uri, "FAILED", f"{type(error).__name__}: {error}"[:500])
        raise
    log.spooled.end("FINISHED", metrics=result.metrics, weights_sha256=result.weights_sha256)


def _walk(
    config: Config, log: RunLog, on_steps: Listener, on_epoch: Listener, data_figures: bool
) -> tuple[TrialResult, Callable[[], None]]:
    """All but the figures, which what comes second draws."""
    started = time.perf_counter()
    log.config(config)
    digits = load_digits(config.data)
    log.dataset(digits.name, digits.sha256, digits.counts())
    if data_figures:
        figures.write_data_figures(digits, log.folder)
    fit.use_threads(config.training.threads or machine.cores())
    epochs: list[Epoch] = []

    def log_epoch(record: Epoch) -> None:
        epochs.append(record)
        log.epoch(len(epochs), record)
        on_epoch(len(epochs), record)

    training, members = config.training, []
    for number in range(config.model.members):
        one = replace(config, training=replace(training, seed=training.seed + number))
        with (
            deferred_signals()
        ):  # an exception of ours in the middle of TensorFlow leaves it waiting for its own locks
            member, read, outcome = _train(one, digits, len(epochs), on_steps, log_epoch)
        members.append(member)
    final_model, images = mean_of(members), digits.validation_images
    if (
        len(members) > 1
    ):  # else it can read already; to compile it again would cost every trial a tenth of a second
        read = fit.Predictor(final_model)
        outcome = score(digits.validation_labels, read(images), digits.validation_index)
    t, claims = calibration.calibrated(outcome.labels, outcome.probabilities)
    outcome = replace(outcome, probabilities=calibration.tempered(outcome.probabilities, t))
    if (
        len(images) <= fit.READ_AT_ONCE
    ):  # the first batch, in which TensorFlow prepares, was the only one
        for _ in range(3):
            read(images)
    losses = [record["val_loss"] for record in epochs]
    metrics = {
        **outcome.metrics,
        **claims,
        **digits.counts(),
        "robust_accuracy": robust_accuracy(read, images, digits.validation_labels),
        "parameters": float(final_model.count_params()),
        "training_seconds": sum(record["epoch_seconds"] for record in epochs),
        "inference_milliseconds": 1000 * read.seconds_an_image,
        "best_epoch": losses.index(min(losses)) + 1.0,
    }
    weights = fit.weights_sha256(final_model)
    log.tags({"weights.sha256": weights})
    figures.write_run_tables(outcome, log.folder)
    if config.tracking.save_model:
        log.model(calibration.with_temperature(final_model, t))
    log.result({**metrics, "total_seconds": time.perf_counter() - started}, step=len(epochs))
    result = TrialResult(log.run_id, metrics, epochs, outcome, weights, origin.machine_tags())
    return result, partial(
        figures.write_run_figures, outcome, epochs, digits, config.model.name, log.folder
    )


def _train(
    config: Config, digits: Digits, earlier: int, on_steps: Listener, on_record: Listener
) -> tuple[Model, fit.Predictor, Evaluation]:
    """One network, how to read with it, and how it reads the validation images at its end.

    The steps it tells of are those after ``earlier`` epochs, of other members.
    """
    keras.utils.set_random_seed(config.training.seed)
    trained_model = build_model(config.model, config.training.precision, fit.FUSED_LAYERS)
    # trained in bfloat16 or not, a network is judged and saved in float32: the same numbers on every machine
    final_model = build_model(config.model)
    read, read_finally = fit.Predictor(trained_model), fit.Predictor(final_model)
    images, truth = digits.validation_images, (digits.validation_labels, digits.validation_index)
    readings: list[Evaluation] = []

    def read_exactly() -> Evaluation:
        final_model.set_weights(trained_model.get_weights())
        return score(truth[0], read_finally(images), truth[1])

    def validate() -> dict[str, float]:
        is_last = len(readings) + 1 == config.training.epochs
        readings.append(read_exactly() if is_last else score(truth[0], read(images), truth[1]))
        return readings[-1].metrics

    def tell(epoch: int, *where: int) -> None:
        raise_if_interrupted()
        on_steps(earlier + epoch, *where)

    given = trained_model, digits.train_images, digits.train_labels, config.training
    fit.fit(*given, validate=validate, on_epoch=on_record, on_steps=tell)
    # under early stopping it may have gone back to an earlier epoch
    outcome = readings[-1] if config.training.early_stopping.patience is None else read_exactly()
    return final_model, read_finally, outcome
