"""Trains a recorded run again from what MLflow holds of it, and says how far the result is the same."""

import os
from collections.abc import Mapping
from dataclasses import replace

from mlflow.entities import Run

from digit_study.config.run import Config, resolve_config
from digit_study.report.terminal import print_lines, print_run
from digit_study.stats.metrics import evaluation_of
from digit_study.stats.ranking import SIGNIFICANCE, PairedTest, paired_test
from digit_study.support.messages import StudyError
from digit_study.tracking import provenance as origin
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.tracking import views
from digit_study.trial.local.child import train_here

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


def reproduce(asked: Config) -> None:
    """Do what ``reproduce=<run_id>`` on a command line asks for, see :func:`digit_study.study.run_plan.plan_reproduction`.

    Raises StudyError if the run cannot be rebuilt.
    """
    client, uri = lookup.open_store(asked.tracking.uri)
    with lookup.store_faults(uri):
        old = lookup.finished_run(client, uri, str(asked.reproduce), "reproduce")
        before = evaluation_of(lookup.predictions(client, old, "reproduce"))
        config, dataset = _rebuild(lookup.recorded_config(old), asked, old)
        experiment = asked.tracking.experiment or client.get_experiment(old.info.experiment_id).name
        config = replace(config, tracking=replace(asked.tracking, uri=uri, experiment=experiment))
    # oneDNN decides the bits too; TensorFlow reads this once, when it is imported
    os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
    if (onednn := origin.plain(old.data.tags).get("onednn", "default")) != "default":
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = onednn
    tags = {"kind": "reproduction", "reproduction.of": str(old.info.run_id)}
    run_id = run_log.create_run(
        config, uri, dataset, f"reproduction of {old.info.run_name}", **tags
    )
    result = train_here(config, run_id)
    with lookup.store_faults(uri):
        if list(before.index) != list(result.evaluation.index):
            raise StudyError(
                "a reproduction must be validated on the same images, got others: its split has changed"
            )
        test = paired_test(before.correct, result.evaluation.correct)
        verdict, sentence = assess(old, client.get_run(run_id), result.weights_sha256, test)
        client.set_tag(run_id, "reproduction.verdict", verdict)
        client.set_tag(run_id, "reproduction.sentence", sentence)
    where = views.address(client, uri, run_id, children=False)
    print_run(run_id, result.metrics, where)
    print_lines(sentence)
    if result.kept:
        raise StudyError(
            f"training ended, but the tracking store did not take the result: it is kept in {result.kept}"
        )


def _rebuild(config: Config, asked: Config, old: Run) -> tuple[Config, str]:
    """Resolve the config on the same digits and with the same arithmetic; also returns the name of the digits."""
    tags, recipe, data = origin.plain(old.data.tags), config.training, config.data
    path = data.path if asked.data.path is None else asked.data.path
    data = replace(data, path=path, sha256=tags.get("dataset.sha256", data.sha256))
    # the config of a run that was resolved has precision and threads too; its tags have them in every case
    precision, threads = tags.get("precision", recipe.precision), tags.get("threads", "")
    recipe = replace(
        recipe, precision=precision, threads=int(threads) if threads.isdecimal() else recipe.threads
    )
    try:
        resolved, source = resolve_config(replace(config, data=data, training=recipe))
    except StudyError as fault:
        why = (
            f"the data differ or are gone: {fault}; give the same digits with data.path=<mnist.npz>"
        )
        raise StudyError(f"run '{old.info.run_id}' cannot be reproduced, for {why}") from None
    return resolved, source.name


def assess(old: Run, new: Run, weights: str, test: PairedTest) -> tuple[str, str]:
    """Say how far the new run is the old one again: bit-identical, within seed noise or different; and a sentence why.

    ``test`` is new against old on the same validation images.
    """
    name = f"run {new.info.run_id} against run {old.info.run_id}"
    if old.data.tags.get("weights.sha256") == weights:
        return "bit-identical", f"bit-identical: {name}: equal weights, sha256 {weights}"
    facts = f"{100 * test.difference:+.2f} points [{100 * test.low:+.2f}, {100 * test.high:+.2f}]"
    facts += f" on {test.images:,} validation images, exact McNemar p = {test.p_value:.3g}; "
    facts += (
        "; ".join(differences(origin.plain(old.data.tags), origin.plain(new.data.tags)))
        or "nothing that was recorded differs"
    )
    if test.p_value >= SIGNIFICANCE:
        return "within seed noise", f"within seed noise: {name}: other weights, {facts}"
    return "different", f"different: {name}: {facts}"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Name what was recorded of code, versions, machine and data and is not the same."""
    versions = sorted(key for key in {*old, *new} if key.startswith("version."))
    changed = [key for key in (*DECIDING, *versions) if old.get(key) != new.get(key)]
    found = [
        f"{key} was {old.get(key, 'not recorded')}, is {new.get(key, 'not recorded')}"
        for key in changed
    ]
    if old.get("git.dirty") == new.get("git.dirty") == "true":
        found.append("both ran with uncommitted changes (git.dirty), which may differ")
    return found
