"""Train a recorded run again, and say how far the result is the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow.entities import Run

from digit_study.config.run_config import Config, resolve_config
from digit_study.report.terminal import print_lines, print_run
from digit_study.stats.metrics import Evaluation, evaluation_from_table
from digit_study.stats.ranking import SIGNIFICANCE, PairedTest, paired_test
from digit_study.study.multirun import train_single
from digit_study.study.run_plan import PlannedRun, RunPlan
from digit_study.support.errors import StudyError
from digit_study.support.formatting import p_equals, points_with_interval
from digit_study.support.workspace import Workspace
from digit_study.tracking import provenance, session
from digit_study.tracking.location import store_uri
from digit_study.tracking.queries import recorded_config
from digit_study.tracking.session import Tracker
from digit_study.trial.protocol import EngineContext, TrialResult

#: Environment variable that switches oneDNN, which decides the bits. TensorFlow reads it once.
ONEDNN_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
#: Tags that decide the bits, beside the config: code, versions, machine, arithmetic.
DECIDING = (
    "git.commit",
    "git.dirty",
    "dataset.sha256",
    "precision",
    "threads",
    "onednn",
    "host",
    "os",
    "processor",
)


@dataclass(frozen=True)
class Verdict:
    """How far a new run is an old run again."""

    #: bit-identical, within seed noise, or different.
    name: str
    #: Why, for a person.
    sentence: str


def reproduce(asked: Config, workspace: Workspace) -> None:
    """Train the run that ``reproduce=<run_id>`` names again, and print how far it is the same.

    Args:
        asked: The config of the command line.
        workspace: Where runs are kept.

    Raises:
        StudyError: If the run cannot be rebuilt, or its training fails.
    """
    existing = session.open_store(asked.tracking.uri, workspace)
    with existing.readable_faults():
        old = existing.finished_run(str(asked.reproduce), "reproduce")
        predictions = existing.predictions(old, "reproduce")
        before = evaluation_from_table(predictions)
        experiment = existing.client.get_experiment(old.info.experiment_id).name
    plan = _plan(asked, old, experiment, workspace)
    _use_onednn_of(old)
    name = f"reproduction of {old.info.run_name}"
    tags = {"kind": "reproduction", "reproduction.of": str(old.info.run_id)}
    timeout = asked.outage_timeout
    with session.session(plan.uri, workspace, timeout, "outage_timeout") as tracker:
        result = train_single(plan, tracker, name, **tags)
        verdict = _compare(tracker, old, before, result)
        verdict_tags = {
            "reproduction.verdict": verdict.name,
            "reproduction.sentence": verdict.sentence,
        }
        tracker.tag_run(result.run_id, verdict_tags)
        where = tracker.address(result.run_id)
    print_run(result.run_id, result.metrics, where)
    print_lines(verdict.sentence)


def assess(old: Run, new: Run, weights: str, test: PairedTest) -> Verdict:
    """Return how far a new run is an old run again.

    Args:
        old: The recorded run.
        new: The run that trained it again.
        weights: sha256 of the new weights.
        test: The new run against the old on the same validation images.
    """
    name = f"run {new.info.run_id} against run {old.info.run_id}"
    if old.data.tags.get("weights.sha256") == weights:
        sentence = f"bit-identical: {name}: equal weights, sha256 {weights}"
        return Verdict("bit-identical", sentence)
    difference = points_with_interval(test.difference, test.low, test.high)
    before = provenance.plain(old.data.tags)
    after = provenance.plain(new.data.tags)
    changed = "; ".join(differences(before, after))
    facts = (
        f"{difference} on {test.images:,} validation "
        f"images, exact McNemar {p_equals(test.p_value)}; "
        f"{changed or 'nothing that was recorded differs'}"
    )
    if test.p_value >= SIGNIFICANCE:
        sentence = f"within seed noise: {name}: other weights, {facts}"
        return Verdict("within seed noise", sentence)
    return Verdict("different", f"different: {name}: {facts}")


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return what was recorded of code, versions, machine and data and is not the same.

    Args:
        old: Provenance of the recorded run, by name.
        new: Provenance of the new run.
    """
    versions = sorted(key for key in {*old, *new} if key.startswith("version."))
    found = []
    for key in (*DECIDING, *versions):
        was = old.get(key, "not recorded")
        now = new.get(key, "not recorded")
        if was != now:
            found.append(f"{key} was {was}, is {now}")
    if old.get("git.dirty") == new.get("git.dirty") == "true":
        found.append("both ran with uncommitted changes (git.dirty), which may differ")
    return found


def _plan(asked: Config, old: Run, experiment: str, workspace: Workspace) -> RunPlan:
    """Rebuild the plan of a recorded run, on the same digits and with the same arithmetic.

    Raises:
        StudyError: If its data differ or are gone.
    """
    config = recorded_config(old)
    tags = provenance.plain(old.data.tags)
    path = config.data.path
    if asked.data.path is not None:
        path = asked.data.path
    sha256 = tags.get("dataset.sha256", config.data.sha256)
    data = replace(config.data, path=path, sha256=sha256)
    # the tags have precision and threads in every case, the config where it was resolved
    threads = config.training.threads
    if tags.get("threads", "").isdecimal():
        threads = int(tags["threads"])
    precision = tags.get("precision", config.training.precision)
    training = replace(config.training, precision=precision, threads=threads)
    try:
        resolved, source = resolve_config(replace(config, data=data, training=training))
    except StudyError as fault:
        raise StudyError(
            f"run '{old.info.run_id}' cannot be reproduced, for the data differ or are gone: "
            f"{fault}; give the same digits with data.path=<mnist.npz>"
        ) from None
    uri = store_uri(asked.tracking.uri, workspace)
    same_experiment = asked.tracking.experiment or experiment
    tracking = replace(asked.tracking, uri=uri, experiment=same_experiment)
    # what goes on from another run's epochs would not show that they come out again
    resolved = replace(resolved, tracking=tracking, fresh=True)
    planned = PlannedRun([], resolved, source.name, cost=0.0)
    context = EngineContext(
        workspace=workspace,
        options=asked.engine_options,
        data=resolved.data,
        tracking_uri=uri,
    )
    return RunPlan(
        typed=[],
        runs=[planned],
        is_multirun=False,
        uri=uri,
        context=context,
    )


def _use_onednn_of(old: Run) -> None:
    """Let TensorFlow, which is not imported yet, use oneDNN as it did for a recorded run."""
    os.environ.pop(ONEDNN_VARIABLE, None)
    tags = provenance.plain(old.data.tags)
    onednn = tags.get("onednn", "default")
    if onednn != "default":
        os.environ[ONEDNN_VARIABLE] = onednn


def _compare(tracker: Tracker, old: Run, before: Evaluation, result: TrialResult) -> Verdict:
    """Compare a result with the recorded run once the store has it."""
    after = result.evaluation
    if list(before.index) != list(after.index):
        raise StudyError(
            "a reproduction must be validated on the same images, got others: its split has changed"
        )
    test = paired_test(before.correct, after.correct)
    tracker.wait()
    with tracker.readable_faults():
        new = tracker.client.get_run(result.run_id)
    return assess(old, new, result.weights_sha256, test)
