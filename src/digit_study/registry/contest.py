"""The contest: find challenger and champion, compare both on sealed images, record the evidence."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from digit_study.config.promote_config import GateConfig, PromoteConfig
from digit_study.data import digits, sources
from digit_study.data.sources import DataConfig, Labels
from digit_study.inference import detector
from digit_study.model import calibration
from digit_study.stats.gate import Budget, GateDecision, NetworkResult, budget, decide
from digit_study.stats.metrics import (
    Probabilities,
    accuracy_interval,
    calibration_error,
    evaluation_from_table,
)
from digit_study.stats.ranking import PairedTest, paired_test
from digit_study.support.errors import StudyError, first_line
from digit_study.support.signals import native_stderr, signals_surface
from digit_study.tracking import provenance, queries
from digit_study.tracking.session import Tracker

#: Coverage of the prediction sets whose results a version is registered with; predict.py takes any.
COVERAGE = 0.99
#: Tag of a run and of a version: sha256 of the weights.
WEIGHTS_TAG = "weights.sha256"
#: Tag of a run and of a version: sha256 of the digits that it was trained on.
DATASET_TAG = "dataset.sha256"
#: Tags of a run that a version takes over.
KEPT_TAGS = ("dataset.name", DATASET_TAG, WEIGHTS_TAG, "git.commit")


@dataclass(frozen=True)
class NetworkFile:
    """A network as it is stored."""

    #: A Keras file.
    path: Path
    #: The sha256 that its weights must have; None where that is not known.
    sha256: str | None


@dataclass(frozen=True)
class Challenger:
    """A run that may become champion, checked before TensorFlow is imported."""

    run: Run
    run_id: str
    #: MLflow's id of its latest model.
    model_id: str
    #: The Keras file of that model.
    file: Path
    #: Where its digits lie now, resolved.
    data: DataConfig
    #: How many unsealed digits these are.
    images: int


@dataclass(frozen=True)
class SealedResult:
    """How networks did on the sealed images."""

    #: Per network, which images it predicts correctly, shape (n,).
    correct: list[npt.NDArray[np.bool_]]
    #: Per network, its number of parameters.
    parameters: list[int]
    #: Digest of the images and labels.
    sha256: str
    #: Of the first network, how far its probabilities hold: see :func:`measure_uncertainty`.
    uncertainty: dict[str, float]
    #: Per network, which corrupted validation images of the first it predicts correctly, shape
    #: (m,); empty where that was not measured.
    robust: list[npt.NDArray[np.bool_]] = field(default_factory=list)


#: What evaluates networks on the sealed images: see :func:`evaluate_sealed`.
EvaluateSealed = Callable[
    [Sequence[NetworkFile], DataConfig, Callable[[], None], float | None], SealedResult
]


def find_challenger(
    tracker: Tracker, config: PromoteConfig, study_uid: str | None = None
) -> Challenger:
    """Find the run to promote and its model.

    Args:
        tracker: The store.
        config: Names the run, or a study whose confirmed winner is taken.
        study_uid: Which study of that name is meant, where that is known.

    Raises:
        StudyError: If the run is unknown, unfinished or without a model, or if its digits are no
            longer where they were or have no test set.
    """
    key = "run_id" if config.run_id else "study"
    run_id = config.run_id or tracker.confirmed_winner(config.study, study_uid)
    run = tracker.finished_run(run_id, key)
    model_id = _latest_model(run)
    try:
        file = tracker.model_file(f"models:/{model_id}")
    except StudyError as fault:
        why = first_line(fault.__cause__ or fault).rstrip(".")
        raise StudyError(
            f"`run_id` must be a run whose model is still there, got '{run_id}' with {model_id} "
            f"({why}): train it again with `tracking.save_model=true`"
        ) from None
    source = queries.recorded_config(run).data
    if config.data.path is not None:
        source = replace(source, path=config.data.path)
    found = sources.resolve(source)
    data = found.config
    if data.path is not None:
        sources.require_test_set(Path(data.path))
    return Challenger(run, run_id, model_id, file, data, found.images)


def _latest_model(run: Run) -> str:
    """Return MLflow's id of the latest model of a run."""
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        raise StudyError(
            f"`run_id` must be a run with a model, got '{run.info.run_id}', which logged none: "
            "train it again with `tracking.save_model=true`"
        )
    return str(max(outputs, key=lambda output: int(output.step)).model_id)


def find_networks(
    tracker: Tracker, challenger: Challenger, champion: ModelVersion | None
) -> list[NetworkFile]:
    """Find the files of the challenger and, after it, of the champion.

    Raises:
        StudyError: If the champion's file is gone.
    """
    networks = [NetworkFile(challenger.file, challenger.run.data.tags[WEIGHTS_TAG])]
    if champion is None:
        return networks
    named = f"models:/{champion.name}/{champion.version}"
    try:
        file = tracker.model_file(named)
    except StudyError as fault:
        raise StudyError(
            f"the champion must be there to be compared with: {fault}; restore its files, or go "
            "back to the one before with rollback=true"
        ) from None
    return [*networks, NetworkFile(file, champion.tags.get(WEIGHTS_TAG))]


def require_same_data(tracker: Tracker, challenger: Challenger, champion: ModelVersion) -> None:
    """Check that two networks were trained on the same digits.

    Raises:
        StudyError: If they were not, or if that is unknown.
    """
    digest = challenger.run.data.tags.get(DATASET_TAG)
    found = champion.tags.get(DATASET_TAG)
    if not found and champion.run_id:
        with suppress(mlflow.MlflowException):  # the run was deleted for good
            found = tracker.client.get_run(champion.run_id).data.tags.get(DATASET_TAG)
    if digest is None or digest != found:
        raise StudyError(
            f"challenger and champion must stem from the same digits, got {DATASET_TAG} {digest} "
            f"for run {challenger.run_id} and {found} for the champion, version "
            f"{champion.version}: train on the champion's digits, or keep a registered model of "
            f"its own for these, promote.model_name={champion.name}-2"
        )


def evaluate_sealed(
    networks: Sequence[NetworkFile],
    source: DataConfig,
    record: Callable[[], None],
    threshold: float | None = None,
) -> SealedResult:
    """Load networks, then break the seal of the digits once and evaluate all on the same images.

    Args:
        networks: Their files; the first is the challenger.
        source: Resolved source of the digits.
        record: Writes the opening down, before anything is opened.
        threshold: Probability that a digit needs to stand in a prediction set of the first
            network; None makes no sets.

    Raises:
        StudyError: If a file is not the network that it should be. The seal is kept then.
    """
    models = [_load(network) for network in networks]
    robust = measure_robustness(models, source)
    accepts = detector.load()
    images, labels = digits.open_sealed_test_set(source, record)
    probabilities = [model.predict(images, verbose=0) for model in models]
    return SealedResult(
        correct=[rows.argmax(axis=1) == labels for rows in probabilities],
        parameters=[model.count_params() for model in models],
        sha256=sources.digest(images[..., 0], labels),
        uncertainty=measure_uncertainty(
            labels, probabilities[0], refused=~accepts(images), threshold=threshold
        ),
        robust=robust,
    )


def measure_robustness(models: Sequence[Any], source: DataConfig) -> list[npt.NDArray[np.bool_]]:
    """Let networks predict the same corrupted validation images; the seal stays whole.

    Args:
        models: Keras models.
        source: Resolved source of the digits, with the split of the first network.

    Returns:
        Per network, which images it predicts correctly, shape (m,); nothing if the split cannot be
        made again. No promotion fails for that: its gate does not ask.
    """
    from digit_study.model.robustness import robust_correct

    with suppress(StudyError):
        held_out = digits.load_digits(source)
        images = held_out.validation_images
        labels = held_out.validation_labels
        return [
            robust_correct(partial(model.predict, verbose=0), images, labels) for model in models
        ]
    return []


def _load(network: NetworkFile) -> Any:
    """Load a Keras model in safe mode, which is the default, and check its weights."""
    with native_stderr(), signals_surface():
        import keras

        from digit_study.model.fit import weights_sha256

        model = keras.models.load_model(network.path, compile=False)
    found = weights_sha256(model)
    if network.sha256 not in (None, found):
        raise StudyError(
            "a registered network must be the one that was trained, but the weights in "
            f"{network.path} have sha256 {found}, not {network.sha256}: the file was changed; "
            "train the run again"
        )
    return model


def measure_uncertainty(
    labels: Labels,
    probabilities: Probabilities,
    refused: npt.NDArray[np.bool_],
    threshold: float | None,
) -> dict[str, float]:
    """Measure how far the probabilities of a network hold on sealed images.

    Args:
        labels: The digits, shape (n,).
        probabilities: What the network says of each, shape (n, 10).
        refused: Which images the detector takes for no digit, shape (n,).
        threshold: Probability that a digit needs to stand in a prediction set; None makes no sets.

    Returns:
        The calibration error and the share of refused images, then coverage and size of the
        prediction sets. Shares come with their 95 % intervals (Wilson).
    """
    found = {
        "test_calibration_error": calibration_error(labels, probabilities),
        **_rate("test_refused", refused),
    }
    if threshold is None:
        return found
    sets = calibration.prediction_sets(probabilities, threshold)
    is_covered = sets[np.arange(len(labels)), labels]
    return {
        **found,
        "claimed_coverage": COVERAGE,
        "test_set_size": float(sets.sum(axis=1).mean()),
        **_rate("test_coverage", is_covered),
    }


def _rate(name: str, happened: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return a share with the ends of its 95 % interval, by name."""
    low, high = accuracy_interval(int(happened.sum()), len(happened))
    return {name: float(happened.mean()), f"{name}_low": low, f"{name}_high": high}


def set_threshold(tracker: Tracker, challenger: Challenger) -> float | None:
    """Return the probability that a digit needs to stand in a prediction set of :data:`COVERAGE`.

    Returns:
        None if there are too few validation images, or if they are not known. No promotion fails
        for that: its gate does not ask.
    """
    with suppress(StudyError):
        found = evaluation_from_table(tracker.predictions(challenger.run, "run_id"))
        return calibration.least_probability(found.labels, found.probabilities, COVERAGE)
    return None


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and on what evidence."""

    decision: GateDecision
    #: Tags of the new version: numbers in full precision and the rules in force.
    evidence: dict[str, str]


def has_same_split(tracker: Tracker, challenger: Challenger, champion: ModelVersion | None) -> bool:
    """Return whether champion and challenger were validated on the same images.

    If not, the champion may have been trained on images that the challenger was validated on. The
    two stem from the same digits, see :func:`require_same_data`.
    """
    if champion is None or not champion.run_id:
        return False
    try:
        run = tracker.client.get_run(champion.run_id)
        other = queries.recorded_config(run).data
    except (mlflow.MlflowException, StudyError):  # the run was deleted, or an early version's
        return False
    own = challenger.data
    _, own_size = digits.split_sizes(challenger.images, own)
    _, other_size = digits.split_sizes(challenger.images, other)
    return (own.seed, own_size) == (other.seed, other_size)


def decide_contest(
    challenger: Challenger,
    champion: ModelVersion | None,
    result: SealedResult,
    limits: GateConfig,
    before: int,
    *,
    is_same_split: bool = False,
) -> Verdict:
    """Let the gate decide on a challenger.

    Args:
        challenger: The run that may become champion.
        champion: The version to compare it with, if any.
        result: Their results, in this order.
        limits: The rules of the gate.
        before: Number of comparisons on the same sealed images so far.
        is_same_split: Whether both were validated on the same images. Otherwise they are not
            compared on corrupted validation images.
    """
    name = f"run {challenger.run_id}"
    contestant = _contestant(name, result, 0)
    evidence = _evidence(challenger, contestant, result)
    if champion is None:
        decision = decide(contestant, None, None, limits, before)
        return _verdict(decision, limits, evidence, {})
    other = _contestant(f"the champion, version {champion.version}", result, 1)
    correct = result.correct[0]
    correct_of_champion = result.correct[1]
    test = paired_test(correct_of_champion, correct)
    decision = decide(contestant, other, test, limits, before)
    spent = budget(limits.significance, before)
    comparison = _comparison(champion, other, test, spent)
    if is_same_split:
        comparison |= _robust_comparison(result)
    return _verdict(decision, limits, evidence, comparison)


def _contestant(name: str, result: SealedResult, position: int) -> NetworkResult:
    correct = result.correct[position]
    return NetworkResult(name, int(correct.sum()), len(correct), result.parameters[position])


def _evidence(
    challenger: Challenger, contestant: NetworkResult, result: SealedResult
) -> dict[str, Any]:
    """Return what is known of the challenger alone."""
    tags = provenance.plain(challenger.run.data.tags)
    return {
        "run_id": challenger.run_id,
        **{key: tags[key] for key in KEPT_TAGS if key in tags},
        **_rate("test_accuracy", result.correct[0]),
        "test_images": contestant.images,
        "test.sha256": result.sha256,
        "parameters": contestant.parameters,
        **result.uncertainty,
        **_robustness(result),
    }


def _robustness(result: SealedResult) -> dict[str, Any]:
    """Return how the challenger did on corrupted validation images, if that was measured."""
    if not result.robust:
        return {}
    correct = result.robust[0]
    return {**_rate("robust_accuracy", correct), "robust_images": len(correct)}


def _robust_comparison(result: SealedResult) -> dict[str, Any]:
    """Return how the two differ on the same corrupted validation images; the gate does not ask."""
    if not result.robust:
        return {}
    correct = result.robust[0]
    correct_of_champion = result.robust[1]
    test = paired_test(correct_of_champion, correct)
    low, high = accuracy_interval(int(correct_of_champion.sum()), test.images)
    return {
        "compared.robust_accuracy": float(correct_of_champion.mean()),
        "compared.robust_accuracy_low": low,
        "compared.robust_accuracy_high": high,
        "robust_difference": test.difference,
        "robust_difference_low": test.low,
        "robust_difference_high": test.high,
        "robust_mcnemar_p": test.p_value,
    }


def _comparison(
    champion: ModelVersion, other: NetworkResult, test: PairedTest, spent: Budget
) -> dict[str, Any]:
    """Return what is known from the comparison with the champion."""
    return {
        "compared.version": champion.version,
        "compared.run_id": champion.run_id,
        "compared.test_accuracy": other.accuracy,
        "compared.parameters": other.parameters,
        "mcnemar_p": test.p_value,
        "difference": test.difference,
        "difference_low": test.low,
        "difference_high": test.high,
        "only_champion_right": test.only_first,
        "only_challenger_right": test.only_second,
        "gate.comparison": spent.comparison,
        "gate.level": spent.level,
        "gate.left": spent.left,
        "difference_at_worst": test.lower_end(spent.level),
    }


def _verdict(
    decision: GateDecision,
    limits: GateConfig,
    evidence: Mapping[str, Any],
    comparison: Mapping[str, Any],
) -> Verdict:
    """Put the evidence in its order: the challenger, the decision, the rules, the comparison."""
    rules = {
        "decision": decision.rule,
        "reason": decision.reason,
        "gate.floor": limits.floor,
        "gate.margin": limits.margin,
        "gate.significance": limits.significance,
    }
    everything = {**evidence, **rules, **comparison}
    return Verdict(decision, {key: str(value) for key, value in everything.items()})
