"""The whole way from a config to a tracked run: the only file that knows all the stages."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import keras

from digit_study.config.run_config import Config
from digit_study.data.digits import Digits, load_digits
from digit_study.model import calibration, fit
from digit_study.model.networks import Model, build_model, mean_of
from digit_study.model.robustness import robust_correct
from digit_study.model.training_state import Epoch, TrainingState
from digit_study.report.figures import run_figures
from digit_study.stats.metrics import Evaluation, evaluate
from digit_study.support import hardware
from digit_study.support.errors import StudyError
from digit_study.support.signals import Interrupted, deferred_signals, raise_if_interrupted
from digit_study.support.trial_status import ABANDONED, FAILURE_TAG, PRUNED_REASON
from digit_study.tracking import provenance
from digit_study.tracking.session import Tracker
from digit_study.tracking.writer import RunWriter
from digit_study.trial.checkpoint import Checkpoint, RunState, this_command
from digit_study.trial.events import Decision
from digit_study.trial.protocol import TrialResult, TrialStopped

#: Characters of a reason that a run keeps.
LONGEST_REASON = 500
#: How often a set that is a single batch is predicted again to measure its time.
TIMED_PREDICTIONS = 3
#: Tag of a run that went on where another was interrupted: the id of that run.
CONTINUES = "continues"


class Listener(Protocol):
    """Follows a trial; what it raises ends the trial."""

    def on_steps(self, epoch: int, step: int, steps: int) -> None:
        """Follow an epoch: ``step`` of its ``steps`` are done, all counted from 1."""

    def on_epoch(self, epoch: int, record: Epoch) -> Decision:
        """Take the metrics of an epoch, counted from 1; decide whether the trial goes on."""

    def on_result(self, result: TrialResult) -> None:
        """Take the result, which is kept whatever happens from then on."""


@dataclass(frozen=True)
class _Trained:
    """A trained network in float32."""

    model: Model
    predictor: fit.Predictor
    #: How it predicts the validation images.
    evaluation: Evaluation


def run_trial(
    config: Config,
    run_id: str,
    tracker: Tracker,
    listener: Listener,
    *,
    digits_folder: Path | None = None,
    data_figures: bool = True,
    figures_in_background: bool = True,
) -> TrialResult:
    """Load the digits, build, train, evaluate and record a network, and draw its figures.

    The run ends FINISHED with a result, and also where the listener stopped the trial: then its tag
    says so. It ends KILLED after a signal, else FAILED. A single run that was interrupted before
    goes on after its last epoch, see `checkpoint`.

    Args:
        config: What to train, resolved.
        run_id: Id of the MLflow run that is written.
        tracker: The tracking store of the run.
        listener: Follows the trial.
        digits_folder: Folder of digits by their sha256, on a machine that was handed them.
        data_figures: Whether to draw the digits too; a parent run has that for its children.
        figures_in_background: Whether the listener gets the result before the figures are drawn,
            else when the run has ended.

    Returns:
        The result.

    Raises:
        TrialStopped: If the listener decided so.
        StudyError: If training diverged or the digits have changed.
    """
    writer = tracker.writer(run_id)
    checkpoint = Checkpoint(config, tracker.workspace, tracker.uri)
    try:
        result, draw = _walk(
            config, writer, listener, checkpoint, digits_folder, data_figures=data_figures
        )
        checkpoint.remove()
    except BaseException as error:
        if isinstance(error, TrialStopped):
            writer.stop(str(error))
            raise
        if isinstance(error, StudyError):
            checkpoint.remove()  # the same epoch would fail again
        reason = f"{type(error).__name__}: {error}".strip()[:LONGEST_REASON]
        status = "FAILED"
        if isinstance(error, Interrupted | KeyboardInterrupt):
            status = "KILLED"
        if isinstance(error, EOFError | BrokenPipeError):
            # nobody listens any more, which may be found out before the signal comes
            status = "KILLED"
            reason = ABANDONED
        writer.tags({FAILURE_TAG: reason})
        writer.end(status, {})
        raise
    try:
        with deferred_signals():
            _finish(writer, result, draw, listener if figures_in_background else None)
    finally:
        writer.upload()
    if not figures_in_background:
        listener.on_result(result)
    return result


def forget_networks() -> None:
    """Release what Keras and TensorFlow keep of networks; names of layers start anew."""
    with deferred_signals():  # a signal in one of the many finalisers that this runs would be lost
        keras.utils.clear_session()
        # What is left by now stays. Else every collection of garbage would go through it again.
        gc.freeze()


def _finish(
    writer: RunWriter, result: TrialResult, draw: Callable[[], None], listener: Listener | None
) -> None:
    """Report a result, draw its figures, and end the run on disk.

    The run ends FINISHED also where the figures fail: ``close`` sees that it has its result.
    """
    try:
        if listener is not None:
            listener.on_result(result)
        draw()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        writer.close("FAILED", reason)
        raise
    writer.finish()


def _walk(
    config: Config,
    writer: RunWriter,
    listener: Listener,
    checkpoint: Checkpoint,
    digits_folder: Path | None,
    *,
    data_figures: bool,
) -> tuple[TrialResult, Callable[[], None]]:
    """Do all but the figures; return the result and what draws them."""
    started = time.perf_counter()
    writer.config(config)
    if config.tracking.system_metrics:
        writer.start_system_metrics()
    digits = load_digits(config.data, digits_folder)
    writer.dataset(digits.name, digits.sha256, digits.counts())
    if data_figures:
        run_figures.write_data_figures(digits, writer.folder)
    fit.use_threads(config.training.threads or hardware.cores())

    before = checkpoint.read()
    if before is not None:
        started -= before.seconds
    training = _Training(config, digits, writer, listener, checkpoint, started)
    trained = training.run(before)
    epochs = training.epochs
    outcome = trained.evaluation
    temperature, uncertainty = calibration.calibrated(outcome.labels, outcome.probabilities)
    calibrated = calibration.tempered(outcome.probabilities, temperature)
    outcome = replace(outcome, probabilities=calibrated)
    metrics = {**outcome.metrics, **uncertainty, **_facts(trained, digits, epochs)}

    weights = fit.weights_sha256(trained.model)
    writer.tags({"weights.sha256": weights})
    run_figures.write_run_tables(outcome, writer.folder)
    if config.tracking.save_model:
        writer.model(calibration.with_temperature(trained.model, temperature))
    writer.result({**metrics, "total_seconds": time.perf_counter() - started}, step=len(epochs))
    result = TrialResult(
        writer.run_id, metrics, epochs, outcome, weights, provenance.machine_tags()
    )
    draw = partial(
        run_figures.write_run_figures, outcome, epochs, digits, config.model.name, writer.folder
    )
    return result, draw


@dataclass
class _Training:
    """Trains every member of an ensemble, usually the only network."""

    config: Config
    digits: Digits
    writer: RunWriter
    listener: Listener
    checkpoint: Checkpoint
    #: When the run started, by the clock of `time.perf_counter`.
    started: float
    #: Records of all epochs so far.
    epochs: list[Epoch] = field(default_factory=list)
    #: Members that are trained.
    members: list[Model] = field(default_factory=list)
    #: Their epochs.
    member_epochs: int = 0

    def run(self, before: RunState | None) -> _Trained:
        """Train what is not trained yet.

        Args:
            before: Where an interrupted run stands; None: everything is still to train.
        """
        start = None
        if before is not None:
            start = before.training
            self._go_on(before)
        for number in range(len(self.members), self.config.model.members):
            recipe = replace(self.config.training, seed=self.config.training.seed + number)
            member_config = replace(self.config, training=recipe)
            self.member_epochs = len(self.epochs)
            if start is not None:
                self.member_epochs -= len(start.epochs)
            # An exception of ours in the middle of TensorFlow leaves it waiting for its own locks.
            with deferred_signals():
                trained = self._train(member_config, start)
            self.members.append(trained.model)
            start = None
        if len(self.members) == 1:  # to compile it again would cost every trial 0.1 seconds
            return trained
        model = mean_of(self.members)
        predictor = fit.Predictor(model)
        return _Trained(model, predictor, _evaluate(predictor, self.digits))

    def _go_on(self, before: RunState) -> None:
        """Take over what an interrupted run has trained, and record it in this run."""
        self.writer.tags({CONTINUES: before.run_id})
        for number, record in enumerate(before.epochs, start=1):
            self.writer.epoch(number, record)
        self.epochs += before.epochs
        for weights in before.members:
            member = build_model(self.config.model)
            member.set_weights(weights)
            self.members.append(member)

    def _on_record(self, record: Epoch) -> None:
        """Record an epoch, and ask whether training goes on."""
        self.epochs.append(record)
        self.writer.epoch(len(self.epochs), record)
        if self.listener.on_epoch(len(self.epochs), record) is Decision.STOP:
            raise TrialStopped(PRUNED_REASON)

    def _on_steps(self, epoch: int, step: int, steps: int) -> None:
        raise_if_interrupted()
        self.listener.on_steps(self.member_epochs + epoch, step, steps)

    def _on_state(self, state: Callable[[], TrainingState]) -> None:
        """Keep the state of the run, unless nothing is trained yet."""
        if self.epochs:
            self.checkpoint.write(lambda: self._state(state()))

    def _state(self, training: TrainingState) -> RunState:
        return RunState(
            run_id=self.writer.run_id,
            command=this_command(),
            seconds=time.perf_counter() - self.started,
            members=[member.get_weights() for member in self.members],
            member_epochs=self.epochs[: self.member_epochs],
            training=training,
        )

    def _train(self, config: Config, start: TrainingState | None) -> _Trained:
        """Train a network.

        Args:
            config: What to train.
            start: Where to go on; None: from the start.
        """
        keras.utils.set_random_seed(config.training.seed)
        trained_model = build_model(config.model, config.training.precision, fit.FUSED_LAYERS)
        # Trained in bfloat16 or not, a network is judged and saved in float32: the same numbers on
        # every machine.
        final_model = build_model(config.model)
        predictor = fit.Predictor(trained_model)
        final_predictor = fit.Predictor(final_model)
        evaluations: list[Evaluation] = []

        def evaluate_exactly() -> Evaluation:
            final_model.set_weights(trained_model.get_weights())
            return _evaluate(final_predictor, self.digits)

        def validate() -> dict[str, float]:
            epoch = len(self.epochs) - self.member_epochs + 1
            is_last = epoch == config.training.epochs
            evaluation = evaluate_exactly() if is_last else _evaluate(predictor, self.digits)
            evaluations.append(evaluation)
            return evaluation.metrics

        fit.fit(
            trained_model,
            self.digits.train_images,
            self.digits.train_labels,
            config.training,
            validate=validate,
            on_epoch=self._on_record,
            on_steps=self._on_steps,
            start=start,
            on_state=self._on_state,
        )
        if config.training.early_stopping.patience is None:
            return _Trained(final_model, final_predictor, evaluations[-1])
        # under early stopping it may have gone back to an earlier epoch
        return _Trained(final_model, final_predictor, evaluate_exactly())


def _evaluate(predictor: fit.Predictor, digits: Digits) -> Evaluation:
    """Predict the validation images."""
    probabilities = predictor(digits.validation_images)
    return evaluate(digits.validation_labels, probabilities, digits.validation_index)


def _facts(trained: _Trained, digits: Digits, epochs: list[Epoch]) -> dict[str, float]:
    """Return the metrics of size and time."""
    images = digits.validation_images
    if len(images) <= fit.IMAGES_AT_ONCE:  # the only batch was the one in which TensorFlow prepares
        for _ in range(TIMED_PREDICTIONS):
            trained.predictor(images)
    is_robust = robust_correct(trained.predictor, images, digits.validation_labels)
    losses = [record["val_loss"] for record in epochs]
    return {
        **digits.counts(),
        "robust_accuracy": float(is_robust.mean()),
        "parameters": float(trained.model.count_params()),
        "training_seconds": sum(record["epoch_seconds"] for record in epochs),
        "inference_milliseconds": 1000 * trained.predictor.seconds_an_image,
        "best_epoch": losses.index(min(losses)) + 1.0,
    }
