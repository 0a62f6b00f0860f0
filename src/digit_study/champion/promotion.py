"""Promotion, start to end: the challenger is found, the seal is broken once, the gate decides, the alias moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from rich.table import Table

from digit_study.champion.contest import Challenger, evidence_of, find_challenger, judge, read_sealed
from digit_study.champion.gate import Decision, require_same_data
from digit_study.champion.ledger import Entry, Ledger, times
from digit_study.champion.promotion_lock import if_idle, note, only_one
from digit_study.champion.registry import CHALLENGER, CHAMPION, Registry
from digit_study.config.promote import GateConfig, PromoteConfig
from digit_study.data import digits as data
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.tracking import recorded

OUTCOMES = {
    "promoted": "promoted as version {version}",
    "kept": "not promoted, registered as challenger, version {version}",
    "restored": "restored version {version}",
    "interrupted": "interrupted",
}


def serve(config: PromoteConfig) -> None:
    """Do what a checked config asks for: promote, roll back, or print the ledger.

    Raises:
        StudyError: with the rule, the value and the remedy.
    """
    client, uri = recorded.open_store(config.tracking.uri)
    with recorded.store_faults(uri):
        registry = Registry(client, Ledger(client, uri, config.promote.model_name))
        if config.history:
            print_history(registry)
        elif config.rollback:
            _roll_back(registry, config.promote.dry_run)
        else:
            _promote(registry, find_challenger(client, uri, config), config)


def _promote(registry: Registry, challenger: Challenger, config: PromoteConfig) -> None:
    if config.promote.dry_run:
        _rehearse(registry, challenger, config.promote)
        return
    with only_one(registry.ledger, challenger.run_id) as waited:
        _tell(registry.tidy())
        champion = registry.at(CHAMPION)
        if _reigns(champion, challenger):
            if waited:
                note(registry.ledger, challenger.run_id, "became champion while this request waited")
            return
        _require_same_data(registry, champion, challenger)
        _contest(registry, challenger, champion, config)


def _say(sentence: str) -> None:
    console.console().print(sentence, markup=False)


def _tell(sentences: list[str]) -> None:
    for sentence in sentences:
        console.warn(sentence)


def _reigns(champion: ModelVersion | None, challenger: Challenger) -> bool:
    if champion is None or champion.run_id != challenger.run_id:
        return False
    _say(f"run {challenger.run_id} is the reigning champion already, as version {champion.version}: nothing to do")
    return True


def _require_same_data(registry: Registry, champion: ModelVersion | None, challenger: Challenger) -> None:
    if champion is not None:
        held = champion.tags.get("dataset.sha256") or _run_tag(registry.client, champion, "dataset.sha256")
        names = f"run {challenger.run_id}", f"the champion, version {champion.version}"
        require_same_data(challenger.run.data.tags.get("dataset.sha256"), held, names, registry.name)


def _run_tag(client: mlflow.MlflowClient, version: ModelVersion, tag: str) -> str | None:
    try:
        return client.get_run(version.run_id).data.tags.get(tag) if version.run_id else None
    except mlflow.MlflowException:  # the run was deleted for good
        return None


def _rehearse(registry: Registry, challenger: Challenger, limits: GateConfig) -> None:
    champion = registry.at(CHAMPION)
    if _reigns(champion, challenger):
        return
    _require_same_data(registry, champion, challenger)
    metrics = challenger.run.data.metrics
    who = (
        f"run {challenger.run_id} ({metrics.get('parameters', 0):,.0f} parameters, "
        f"validation accuracy {console.percent(metrics.get('val_accuracy', 0))})"
    )
    if champion is None:
        against = f"there is no champion, so that {console.percent(limits.floor)} of them would make it the first"
    else:
        against = (
            f"against the champion, version {champion.version} (run {champion.run_id}); it would be promoted if exact "
            f"McNemar p < {limits.significance:g} says better, or at most {limits.margin:g} worse with fewer parameters"
        )
    _say(
        f"dry run: the sealed test images of {data.dataset_name(challenger.data)} would be opened once, for {who}: "
        f"{against}. Nothing was opened or written; they have been opened {times(registry.ledger.openings())} so far."
    )


def _contest(registry: Registry, challenger: Challenger, champion: ModelVersion | None, config: PromoteConfig) -> None:
    """Break the seal, decide, register. Whatever ends it early is settled at once, or by the next call."""
    files = challenger.file, _champion_file(registry, champion)
    weights = challenger.run.data.tags["weights.sha256"], champion.tags.get("weights.sha256") if champion else None
    opened: list[Entry] = []

    def record() -> None:
        compared = {"version": str(champion.version), "run_id": champion.run_id} if champion else None
        details: dict[str, Any] = {"dataset_sha256": challenger.data.sha256, "compared": compared}
        study = None if config.run_id else config.study
        opened.append(registry.begin("promotion", challenger.run_id, study=study, **details))

    try:
        reading = read_sealed(files, challenger.data, weights, record)
        decision, test = judge(challenger, champion, reading, config.promote)
        evidence = evidence_of(challenger, champion, reading, decision, test)
        alias = CHAMPION if decision.promoted else CHALLENGER
        version = registry.register(opened[0], challenger.model_id, alias, evidence)
        outcome = "promoted" if decision.promoted else "kept"
        registry.end(opened[0], outcome, decision.reason, version=version, evidence=evidence)
    except BaseException as fault:
        _tell([registry.settle(entry, f"{type(fault).__name__}: {fault}"[:500]) for entry in opened])
        raise
    _report(registry, version, decision, evidence)


def _champion_file(registry: Registry, champion: ModelVersion | None) -> Path | None:
    if champion is None:
        return None
    from digit_study.reading.prediction import model_file

    try:
        return model_file(f"models:/{registry.name}/{champion.version}", registry.uri)
    except StudyError as fault:
        raise StudyError(
            f"the champion must be there to be compared with: {fault}; restore its files, or go back to the one before "
            "with rollback=true"
        ) from None


def _report(registry: Registry, version: str, decision: Decision, evidence: dict[str, str]) -> None:
    table = Table(title=f"Version {version} of {registry.name}", show_header=False, title_justify="left")
    for key, value in evidence.items():
        if key != "reason":
            table.add_row(key, value)
    console.console().print(table)
    verb = "moves to" if decision.promoted else "stays; 'challenger' is"
    _say(f"The alias 'champion' {verb} version {version}: {decision.reason}.")
    _say(f"The sealed test set has been opened {times(registry.ledger.openings())}.")


def _roll_back(registry: Registry, dry_run: bool) -> None:
    if dry_run or registry.is_tidy():
        target = registry.previous()  # without one nothing is to be written
    if dry_run:
        _say(f"dry run: version {target.version} (run {target.run_id}) would be champion again; nothing was written")
        return
    with only_one(registry.ledger, "rollback"):
        _tell(registry.tidy())
        _say(registry.roll_back())


def print_history(registry: Registry) -> None:
    """Print the ledger, oldest entry first; what was cut off is tidied up before, unless a promotion is under way."""
    if not registry.is_tidy():
        with if_idle(registry.ledger) as idle:
            _tell(registry.tidy() if idle else [])
    for entry in registry.ledger.entries():
        _say(_line(entry))
    for event in registry.ledger.notes():
        _say(f"{event['at']}  {event['who']}  run {event['run_id']}: {event['outcome']}")
    standing = ", ".join(f"{alias}: version {version}" for alias, version in registry.aliases().items())
    _say(f"{registry.name}: {standing or 'no alias is set, nothing has been promoted yet'}")
    _say(f"The sealed test set has been opened {times(registry.ledger.openings())}.")


def _line(entry: Entry) -> str:
    begun, ended = entry.begun, entry.ended
    outcome = OUTCOMES.get(ended.get("outcome", ""), "has not ended").format(version=ended.get("version"))
    what = f"{begun['kind']} {'to' if begun['kind'] == 'rollback' else 'of'} run {begun['run_id']}"
    return f"{begun['at']}  {begun['who']}  {what}: {outcome}: {ended.get('reason', 'under way, or cut off')}"
