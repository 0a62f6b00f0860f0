"""The contest: find challenger and champion, compare them on the sealed images, and record the evidence."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from digit_study.config.promote import GateConfig, PromoteConfig
from digit_study.data import digits, sources
from digit_study.data.sources import DataConfig, Labels
from digit_study.inference import detector
from digit_study.model import calibration
from digit_study.report.description import escape, run_page
from digit_study.stats.gate import Decision, Score, budget, decide
from digit_study.stats.metrics import (
    Probabilities,
    accuracy_interval,
    calibration_error,
    evaluation_of,
)
from digit_study.stats.ranking import paired_test
from digit_study.support.console import percent, with_interval
from digit_study.support.messages import StudyError, first_line
from digit_study.support.signals import native_stderr, signals_surface
from digit_study.tracking import provenance as origin
from digit_study.tracking import queries as lookup
from digit_study.tracking import views
from digit_study.tracking.database import model_file

#: Prediction sets that a version is registered with hold the true digit at least as often; predict.py takes any.
COVERAGE = 0.99
#: A Keras file, and the sha256 that its weights must have, if known.
Network = tuple[Path, str | None]


@dataclass(frozen=True)
class Challenger:
    """A run that may become champion, checked before TensorFlow is imported."""

    run: Run
    run_id: str
    model_id: str
    file: Path
    data: DataConfig  # resolved


@dataclass(frozen=True)
class SealedResult:
    """How the networks read the sealed images."""

    correct: list[
        npt.NDArray[np.bool_]
    ]  # of each network which images it reads correctly, shape (n,)
    parameters: list[int]  # of each network its size
    sha256: str  # of the images and labels
    claims: dict[
        str, float
    ]  # by name, how what the first network claims holds on them, see :func:`claims_of`


def find_challenger(client: mlflow.MlflowClient, uri: str, config: PromoteConfig) -> Challenger:
    """Find the run to promote and its model: ``run_id``, else the confirmed winner of ``study``.

    Raises StudyError if it is unknown, unfinished or without a model, or its digits are no longer where they were.
    """
    run_id = config.run_id or lookup.confirmed_winner(client, config.study)
    run = lookup.finished_run(client, uri, run_id, "run_id" if config.run_id else "study")
    outputs = run.outputs.model_outputs if run.outputs else []
    remedy = "train it again with `tracking.save_model=true`"
    if not outputs:
        raise StudyError(
            f"`run_id` must be a run with a model, got '{run_id}', which logged none: {remedy}"
        )
    model_id = str(max(outputs, key=lambda output: int(output.step)).model_id)
    try:
        file = model_file(f"models:/{model_id}", uri)
    except StudyError as fault:
        why = first_line(fault.__cause__ or fault).rstrip(".")
        got = f"got '{run_id}' with {model_id} ({why})"
        raise StudyError(
            f"`run_id` must be a run whose model is still there, {got}: {remedy}"
        ) from None
    source = lookup.recorded_config(run).data
    source = replace(source, path=source.path if config.data.path is None else config.data.path)
    return Challenger(run, run_id, model_id, file, sources.resolve(source).config)


def find_networks(challenger: Challenger, champion: ModelVersion | None, uri: str) -> list[Network]:
    """Find the files of challenger and champion; raises StudyError if the champion's is gone."""
    networks: list[Network] = [(challenger.file, challenger.run.data.tags["weights.sha256"])]
    if champion is not None:
        try:
            file = model_file(f"models:/{champion.name}/{champion.version}", uri)
        except StudyError as fault:
            remedy = "restore its files, or go back to the one before with rollback=true"
            raise StudyError(
                f"the champion must be there to be compared with: {fault}; {remedy}"
            ) from None
        networks.append((file, champion.tags.get("weights.sha256")))
    return networks


def require_same_data(
    challenger: Challenger, champion: ModelVersion, client: mlflow.MlflowClient
) -> None:
    """Raise StudyError if two networks were trained on different digits, or on unknown ones."""
    found, digest = (
        champion.tags.get("dataset.sha256"),
        challenger.run.data.tags.get("dataset.sha256"),
    )
    if not found and champion.run_id:
        with suppress(mlflow.MlflowException):  # the run was deleted for good
            found = client.get_run(champion.run_id).data.tags.get("dataset.sha256")
    if digest is None or digest != found:
        raise StudyError(
            f"challenger and champion must stem from the same digits, got dataset.sha256 {digest} for run "
            f"{challenger.run_id} and {found} for the champion, version {champion.version}: train on the champion's "
            f"digits, or keep a registered model of its own for these, promote.model_name={champion.name}-2"
        )


def read_sealed(
    networks: Sequence[Network],
    source: DataConfig,
    record: Callable[[], None],
    least: float | None = None,
) -> SealedResult:
    """Load the networks, then break the seal of the digits once, and let each network read the same images.

    ``least`` is how probable a digit must be for a prediction set of the first. ``record`` writes the opening down. A
    file that is not the network it should be raises StudyError; the seal is kept.
    """
    with native_stderr(), signals_surface():
        import keras

        from digit_study.model.fit import weights_sha256

        # in safe mode, which is the default
        models: list[Any] = [keras.models.load_model(file, compile=False) for file, _ in networks]
    for model, (file, expected) in zip(models, networks, strict=True):
        if expected not in (None, found := weights_sha256(model)):
            why = f"the weights in {file} have sha256 {found}, not {expected}: the file was changed"
            raise StudyError(
                f"a registered network must be the one that was trained, but {why}; train the run again"
            )
    accepts = detector.load()
    images, labels = digits.open_sealed_test_set(source, record)
    read = [model.predict(images, verbose=0) for model in models]
    correct, sizes = (
        [one.argmax(axis=1) == labels for one in read],
        [model.count_params() for model in models],
    )
    claims = claims_of(labels, read[0], ~accepts(images), least)
    return SealedResult(correct, sizes, sources.digest(images[..., 0], labels), claims)


def claims_of(
    labels: Labels,
    probabilities: Probabilities,
    refused: npt.NDArray[np.bool_],
    least: float | None,
) -> dict[str, float]:
    """What a network claims of sealed images (n,), and how it holds: calibration, prediction sets, digits refused.

    Rates come with their 95 % intervals (Wilson). Without ``least`` there are no sets.
    """
    found = {
        "test_calibration_error": calibration_error(labels, probabilities),
        **_rate("test_refused", refused),
    }
    if least is None:
        return found
    sets = calibration.prediction_sets(probabilities, least)
    is_in = sets[np.arange(len(labels)), labels]
    sizes = {"claimed_coverage": COVERAGE, "test_set_size": float(sets.sum(axis=1).mean())}
    return {**found, **sizes, **_rate("test_coverage", is_in)}


def _rate(name: str, happened: npt.NDArray[np.bool_]) -> dict[str, float]:
    low, high = accuracy_interval(int(happened.sum()), len(happened))
    return {name: float(happened.mean()), f"{name}_low": low, f"{name}_high": high}


def least_probability(client: mlflow.MlflowClient, challenger: Challenger) -> float | None:
    """How probable a digit must be for a set of :data:`COVERAGE`; None if validation images are too few, or not known.

    No promotion fails for that: its gate does not ask.
    """
    with suppress(StudyError):
        read = evaluation_of(lookup.predictions(client, challenger.run, "run_id"))
        return calibration.least_probability(read.labels, read.probabilities, COVERAGE)
    return None


def decide_contest(
    challenger: Challenger,
    champion: ModelVersion | None,
    result: SealedResult,
    limits: GateConfig,
    before: int,
) -> tuple[Decision, dict[str, str]]:
    """Let the gate decide on challenger and champion, in this order in ``result``, after ``before`` other comparisons.

    Also returns the evidence: tags of the new version, with numbers in full precision and the rules in force.
    """
    tags, names = origin.plain(challenger.run.data.tags), [f"run {challenger.run_id}"]
    if champion is not None:
        names.append(f"the champion, version {champion.version}")
    facts = zip(names, result.correct, result.parameters, strict=True)
    score, *others = [
        Score(name, int(correct.sum()), len(correct), size) for name, correct, size in facts
    ]
    other, test = (
        (others[0], paired_test(result.correct[1], result.correct[0])) if others else (None, None)
    )
    decision, may = decide(score, other, test, limits, before), budget(limits.significance, before)
    evidence: dict[str, Any] = {
        "run_id": challenger.run_id,
        **{key: tags[key] for key in ("dataset.name", "dataset.sha256", "weights.sha256", "git.commit") if key in tags},
        **_rate("test_accuracy", result.correct[0]),
        "test_images": score.images, "test.sha256": result.sha256, "parameters": score.parameters,
        **result.claims,
        "decision": decision.rule, "reason": decision.reason,
        "gate.floor": limits.floor, "gate.margin": limits.margin, "gate.significance": limits.significance,
    }  # fmt: skip
    if champion is not None and other is not None and test is not None:
        evidence |= {
            "compared.version": champion.version, "compared.run_id": champion.run_id,
            "compared.test_accuracy": other.accuracy, "compared.parameters": other.parameters,
            "mcnemar_p": test.p_value,
            "difference": test.difference, "difference_low": test.low, "difference_high": test.high,
            "only_champion_right": test.only_first, "only_challenger_right": test.only_second,
            "gate.comparison": may.comparison, "gate.level": may.level, "gate.left": may.left,
            "difference_at_worst": test.lower_end(may.level),
        }  # fmt: skip
    return decision, {key: str(value) for key, value in evidence.items()}


def version_note(
    challenger: Challenger, champion: ModelVersion | None, evidence: Mapping[str, str]
) -> str:
    """The description of a version in Markdown: the decision first, then both networks on the same sealed images."""

    def rate(name: str) -> str:
        return with_interval(*(float(evidence[f"{name}{end}"]) for end in ("", "_low", "_high")))

    run = challenger.run
    page = run_page(run.info.experiment_id, challenger.run_id)
    rows = [
        ["", "this version"],
        [":--", "--:"],
        ["trained by", f"[{escape(str(run.info.run_name))}]({page})"],
        [f"right of {int(evidence['test_images']):,} sealed images", rate("test_accuracy")],
        ["parameters", f"{int(evidence['parameters']):,}"],
    ]
    if champion is not None:
        link = f"[version {champion.version}]({views.model_page(champion.name, str(champion.version))})"
        other = (
            percent(float(evidence["compared.test_accuracy"])),
            f"{int(evidence['compared.parameters']):,}",
        )
        for row, cell in zip(rows, ["the champion then", "--:", link, *other], strict=True):
            row.append(cell)
    claims = ""
    if "test_coverage" in evidence:
        claims = f"Its prediction sets at {100 * float(evidence['claimed_coverage']):g} % hold the true digit of "
        claims += (
            f"{rate('test_coverage')} of these images, with {float(evidence['test_set_size']):.3f} "
        )
        claims += f"digits each; {rate('test_refused')} of them are refused as no digit."
    figures = [
        f"[{name}]({page}/artifacts/figures/{name})"
        for name in ("confusion_matrix.png", "mistakes.png")
    ]
    return "\n\n".join([
        f"**{escape(evidence['reason'])}**",
        "Asked: may it replace the champion, by one comparison on test images that nothing was selected on?",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        *filter(None, [claims]),
        f"Figures, on its validation images: {' · '.join(figures)}",
        f"Next: `python src/predict.py <images> model=runs:/{challenger.run_id}/model`",
    ])  # fmt: skip
