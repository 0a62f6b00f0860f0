"""Trains a recorded run again from what MLflow holds of it, and says how far the outcome is the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
from mlflow.entities import Run

from digit_study.config.resolve import resolve_config
from digit_study.config.run import Config
from digit_study.engine.results import TrialResult
from digit_study.engine.trial import train_here
from digit_study.evaluation.metrics import PairedTest
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.tracking import recorded, stores
from digit_study.tracking import run_log as tracking
from digit_study.verify import comparing

#: Tags that decide the bits, beside the config: code, versions, machine, arithmetic.
DECIDING = ("git.commit", "git.dirty", "dataset.sha256", "precision", "threads", "onednn", "host", "os", "processor")
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """How far two trainings of one config agree: bit-identical, within seed noise, or different; and why."""

    kind: str
    sentence: str


def reproduce(asked: Config) -> None:
    """Do what ``reproduce=<run_id>`` on a command line asks for, see :func:`launch.asked_reproduction`.

    Raises:
        StudyError: the run cannot be rebuilt.
    """
    client, uri = recorded.open_store(asked.tracking.uri)
    with recorded.store_faults(uri):
        old = recorded.finished_run(client, uri, str(asked.reproduce), "reproduce")
        table = recorded.predictions(client, old, "reproduce")
        config, dataset = _rebuilt(recorded.recorded_config(client, old), asked, old)
        experiment = asked.tracking.experiment or client.get_experiment(old.info.experiment_id).name
        config = replace(config, tracking=replace(asked.tracking, uri=uri, experiment=experiment))
    _set_arithmetic(old.data.tags.get("onednn", "default"))
    run_id, result = _train(config, uri, dataset, old)
    with recorded.store_faults(uri):
        new = client.get_run(run_id)
        outcome = judge(old, new, result.weights_sha256, _paired(table, result))
        client.set_tag(run_id, "reproduction.verdict", outcome.kind)
        client.set_tag(run_id, "reproduction.sentence", outcome.sentence)
    console.console().print(console.run_table(run_id, result.metrics, stores.look(uri)))
    console.console().print(outcome.sentence, markup=False)
    if result.kept:
        raise StudyError(f"training ended, but the tracking store did not take the result: it is kept in {result.kept}")


def _rebuilt(config: Config, asked: Config, old: Run) -> tuple[Config, str]:
    if asked.data.path is not None:
        config = replace(config, data=replace(config.data, path=asked.data.path))
    digest = old.data.tags.get("dataset.sha256", config.data.sha256)
    precision, threads = _arithmetic(old, config)
    recipe = replace(config.training, precision=precision, threads=threads)
    rebuilt = replace(config, data=replace(config.data, sha256=digest), training=recipe)
    try:
        resolved, source = resolve_config(rebuilt)
    except StudyError as fault:
        raise StudyError(
            f"run '{old.info.run_id}' cannot be reproduced, for the data differ or are gone: {fault}; "
            "give the same digits with data.path=<mnist.npz>"
        ) from None
    return resolved, source.name


def _arithmetic(old: Run, config: Config) -> tuple[str, int | None]:
    """Precision and threads as they were: the config of a run that was resolved has them, its tags have them too."""
    tags, recipe = old.data.tags, config.training
    threads = tags.get("threads", str(recipe.threads))
    return tags.get("precision", recipe.precision), int(threads) if threads.isdecimal() else recipe.threads


def _set_arithmetic(onednn: str) -> None:
    """Turn oneDNN on or off as it was; it decides the bits, and TensorFlow reads this once, when imported."""
    if onednn == "default":
        os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
    else:
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = onednn


def _train(config: Config, uri: str, dataset: str, old: Run) -> tuple[str, TrialResult]:
    name = f"reproduction of {recorded.name_of(old)}"
    tags = {"kind": "reproduction", "reproduction.of": str(old.info.run_id)}
    run_id = tracking.create_run(config, uri, dataset, name, **tags)
    try:
        with console.ticker(config.model.name, config.training.epochs) as ticker:
            return run_id, train_here(config, run_id, ticker)
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        tracking.close_run(uri, run_id, status, f"{type(error).__name__}: {error}")
        raise


def _paired(table: pd.DataFrame, result: TrialResult) -> PairedTest:
    before = comparing.as_evaluation(table)
    if list(before.index) != list(result.evaluation.index):
        raise StudyError("a reproduction must be validated on the old run's images, got others: its split has changed")
    return comparing.paired(before, result.evaluation)


def judge(old: Run, new: Run, weights: str, test: PairedTest) -> Verdict:
    """Compare the old run with the new one; ``test`` is new against old on the same validation images."""
    name = f"run {new.info.run_id} against run {old.info.run_id}"
    if old.data.tags.get("weights.sha256") == weights:
        return Verdict("bit-identical", f"bit-identical: {name}: equal weights, sha256 {weights}")
    low, high = 100 * test.low, 100 * test.high
    numbers = (
        f"{100 * test.difference:+.2f} points [{low:+.2f}, {high:+.2f}] on {test.images:,} validation images, "
        f"exact McNemar p = {test.p_value:.3g}"
    )
    why = "; ".join(differences(old.data.tags, new.data.tags)) or "nothing that was recorded differs"
    if test.p_value >= SIGNIFICANCE:
        return Verdict("within seed noise", f"within seed noise: {name}: other weights, {numbers}; {why}")
    return Verdict("different", f"different: {name}: {numbers}; {why}")


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Name what was recorded of code, versions, machine and data and is not the same."""
    versions = sorted(key for key in {*old, *new} if key.startswith("version."))
    found = [
        f"{key} was {old.get(key, 'not recorded')}, is {new.get(key, 'not recorded')}"
        for key in (*DECIDING, *versions)
        if old.get(key) != new.get(key)
    ]
    if old.get("git.dirty") == new.get("git.dirty") == "true":
        found.append("both ran with uncommitted changes (git.dirty), which may differ")
    return found
