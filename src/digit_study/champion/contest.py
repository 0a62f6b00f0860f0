"""The contest between a run and the champion: found, read on the sealed images, judged, put down as evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from digit_study.champion.gate import Decision, Score, decide
from digit_study.config.promote import GateConfig, PromoteConfig
from digit_study.config.run import DataConfig
from digit_study.data import digits as data
from digit_study.data import sources
from digit_study.evaluation.metrics import PairedTest, paired_test
from digit_study.terminal.errors import StudyError
from digit_study.terminal.quiet import native_stderr
from digit_study.terminal.signals import not_swallowed
from digit_study.tracking import recorded


@dataclass(frozen=True)
class Challenger:
    """A run that may become champion, found sound before TensorFlow is imported."""

    run: Run
    model_id: str
    file: Path
    data: DataConfig

    @property
    def run_id(self) -> str:
        """Its id in MLflow."""
        return str(self.run.info.run_id)


@dataclass(frozen=True)
class Reading:
    """What two networks made of the sealed images.

    Attributes:
        challenger: which images it reads right, shape (n,), bool.
        champion: the same of the reigning champion; None without one.
        sizes: parameters of both.
        sha256: digest of the sealed digits.
    """

    challenger: npt.NDArray[np.bool_]
    champion: npt.NDArray[np.bool_] | None
    sizes: tuple[int, int]
    sha256: str


def find_challenger(client: mlflow.MlflowClient, uri: str, config: PromoteConfig) -> Challenger:
    """Find the run to promote and its model: ``run_id``, else the confirmed winner of ``study``.

    Raises:
        StudyError: it is unknown or not finished, it has no model, or its digits are not where they were.
    """
    run_id = config.run_id or recorded.confirmed_winner(client, config.study)
    run = recorded.finished_run(client, uri, run_id, "run_id" if config.run_id else "study")
    model_id, file = _model_of(run, uri)
    source = recorded.recorded_config(client, run).data
    if config.data.path is not None:
        source = replace(source, path=config.data.path)
    return Challenger(run, model_id, file, sources.resolve(source).config)


def _model_of(run: Run, uri: str) -> tuple[str, Path]:
    from digit_study.reading.prediction import model_file  # it loads scipy's image functions: late, for quick answers

    held = run.outputs.model_outputs if run.outputs else []
    remedy = "train it again with `tracking.save_model=true`"
    if not held:
        raise StudyError(f"`run_id` must be a run with a model, got '{run.info.run_id}', which logged none: {remedy}")
    model_id = str(max(held, key=lambda output: int(output.step)).model_id)
    try:
        return model_id, model_file(f"models:/{model_id}", uri)
    except StudyError as fault:
        raise StudyError(
            f"`run_id` must be a run whose model is still there, got '{run.info.run_id}' ({fault}): {remedy}"
        ) from None


def read_sealed(
    files: tuple[Path, Path | None],
    source: DataConfig,
    weights: tuple[str | None, str | None],
    record: Callable[[], None],
) -> Reading:
    """Load challenger and champion, then break the seal once and let both read the same images.

    Args:
        files: Keras files of the two.
        source: the challenger's digits.
        weights: sha256 that the two must have, where known.
        record: writes the opening down.

    Raises:
        StudyError: a file is not the network it should be; the seal is kept then.
    """
    with native_stderr(), not_swallowed():
        first = _load(files[0], weights[0])
        second = _load(files[1], weights[1]) if files[1] else None
    images, labels = data.open_sealed_test_set(source, record)

    def correct(model: Any) -> npt.NDArray[np.bool_]:
        answers: npt.NDArray[np.bool_] = model.predict(images, verbose=0).argmax(axis=1) == labels
        return answers

    sizes = first.count_params(), second.count_params() if second else 0
    sealed = sources.digest(images[..., 0], labels)
    return Reading(correct(first), correct(second) if second else None, sizes, sealed)


def _load(file: Path, weights: str | None) -> Any:
    import keras

    from digit_study.training.fit import weights_sha256

    model = keras.models.load_model(file, compile=False)  # in safe mode, which is the default
    found = weights_sha256(model)
    if weights not in (None, found):
        raise StudyError(
            f"a registered network must be the one that was trained, but the weights in {file} have sha256 {found}, "
            f"not {weights}: the file was changed; train the run again"
        )
    return model


def judge(
    challenger: Challenger, champion: ModelVersion | None, reading: Reading, limits: GateConfig
) -> tuple[Decision, PairedTest | None]:
    """Let the gate decide; also returns the paired test where there is a champion."""
    n = len(reading.challenger)
    mine = Score(f"run {challenger.run_id}", int(reading.challenger.sum()), n, reading.sizes[0])
    if champion is None or reading.champion is None:
        return decide(mine, None, None, limits), None
    test = paired_test(reading.champion, reading.challenger)
    theirs = Score(f"the champion, version {champion.version}", int(reading.champion.sum()), n, reading.sizes[1])
    return decide(mine, theirs, test, limits), test


def evidence_of(
    challenger: Challenger,
    champion: ModelVersion | None,
    reading: Reading,
    decision: Decision,
    test: PairedTest | None,
) -> dict[str, str]:
    """Tags of the version; numbers in full precision."""
    score = Score("", int(reading.challenger.sum()), len(reading.challenger), reading.sizes[0])
    tags = challenger.run.data.tags
    evidence: dict[str, Any] = {
        "run_id": challenger.run_id,
        **{key: tags[key] for key in ("dataset.name", "dataset.sha256", "weights.sha256", "git.commit") if key in tags},
        "test_accuracy": score.accuracy,
        "test_accuracy_low": score.interval[0],
        "test_accuracy_high": score.interval[1],
        "test_images": score.images,
        "test.sha256": reading.sha256,
        "parameters": score.parameters,
        "decision": decision.rule,
        "reason": decision.reason,
    }
    if champion is not None and test is not None and reading.champion is not None:
        evidence |= {
            "compared.version": champion.version,
            "compared.run_id": champion.run_id,
            "compared.test_accuracy": float(reading.champion.mean()),
            "compared.parameters": reading.sizes[1],
            "mcnemar_p": test.p_value,
            "difference": test.difference,
            "difference_low": test.low,
            "difference_high": test.high,
            "only_champion_right": test.only_first,
            "only_challenger_right": test.only_second,
        }
    return {key: str(value) for key, value in evidence.items()}
