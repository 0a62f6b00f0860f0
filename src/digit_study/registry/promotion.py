"""Promotion from start to end: find the challenger, break the seal once, let the gate decide, move the alias."""

from contextlib import nullcontext

from mlflow.entities.model_registry import ModelVersion
from rich.table import Table

from digit_study.config.promote import GateConfig, PromoteConfig
from digit_study.data.digits import dataset_name
from digit_study.registry import contest
from digit_study.registry.contest import Challenger
from digit_study.registry.ledger import Entry, times
from digit_study.registry.registry import CHALLENGER, CHAMPION, Registry
from digit_study.report.description import run_page
from digit_study.stats.gate import budget
from digit_study.support import console
from digit_study.tracking import queries as lookup
from digit_study.tracking import views

OUTCOMES = {
    "promoted": "promoted as version {version}",
    "kept": "not promoted, registered as challenger, version {version}",
    "restored": "restored version {version}",
    "interrupted": "interrupted",
}


def serve(config: PromoteConfig) -> None:
    """Do what a checked config asks for: promote, roll back, or print the ledger; raises StudyError."""
    client, uri = lookup.open_store(config.tracking.uri)
    with lookup.store_faults(uri):
        registry = Registry(client, uri, config.promote.model_name)
        if config.history:
            _print_history(registry)
        elif config.rollback:
            _roll_back(registry, config.promote.dry_run)
        else:
            _promote(registry, contest.find_challenger(client, uri, config), config)


def evidence_by_run(config: PromoteConfig) -> dict[str, dict[str, str]]:
    """What the sealed test set has said of runs, by their ids: the tags of the versions of the registered model."""
    client, uri = lookup.open_store(config.tracking.uri)
    with lookup.store_faults(uri):
        versions = Registry(client, uri, config.promote.model_name).versions().values()
        return {str(one.run_id): dict(one.tags) for one in versions}


def _promote(registry: Registry, challenger: Challenger, config: PromoteConfig) -> None:
    """Check the challenger against the champion, then compare them; a dry run writes nothing and takes no lock."""
    run_id, dry_run = challenger.run_id, config.promote.dry_run
    with nullcontext(False) if dry_run else registry.lock(run_id) as waited:
        if not dry_run:
            registry.recover()
        champion = registry.at(CHAMPION)
        if champion is not None and champion.run_id == run_id:
            reigns = f"run {run_id} is the reigning champion already, as version {champion.version}"
            console.console().print(
                f"{reigns}: nothing to do\n{_page(registry, champion.version)}", soft_wrap=True
            )
            if waited:
                registry.ledger.record(
                    "noted", run_id, outcome="became champion while this request waited"
                )
            return
        if champion is not None:
            contest.require_same_data(challenger, champion, registry.client)
        if dry_run:
            _print_plan(registry, challenger, champion, config.promote)
        else:
            _compare(registry, challenger, champion, config)


def _print_plan(
    registry: Registry, challenger: Challenger, champion: ModelVersion | None, limits: GateConfig
) -> None:
    metrics = challenger.run.data.metrics
    against = f"there is no champion, so that {console.percent(limits.floor)} of them would make it the first"
    if champion is not None:
        may = budget(limits.significance, registry.ledger.openings(with_champion=True))
        against = (
            f"against the champion, version {champion.version} (run {champion.run_id}); it would be promoted if exact "
            f"McNemar p < {may.level:.3g} says better, or if it is smaller and its interval at that level says at most "
            f"{limits.margin:g} worse. This is comparison {may.comparison} on them: of the {limits.significance:g} "
            f"that all share it spends {may.level:.3g}, and {may.left:.2g} is left"
        )
    console.console().print(
        f"dry run: the sealed test images of {dataset_name(challenger.data)} would be opened once, for run "
        f"{challenger.run_id} ({metrics.get('parameters', 0):,.0f} parameters, validation accuracy "
        f"{console.percent(metrics.get('val_accuracy', 0))}): {against}. Nothing was opened or written; they have been "
        f"opened {times(registry.ledger.openings())} so far."
    )
    run = run_page(challenger.run.info.experiment_id, challenger.run_id)
    console.console().print(views.place(registry.uri, run), soft_wrap=True)


def _compare(
    registry: Registry, challenger: Challenger, champion: ModelVersion | None, config: PromoteConfig
) -> None:
    """Break the seal, decide, register, tell. What ends this early is settled at once, or by the next call."""
    networks = contest.find_networks(challenger, champion, registry.uri)
    opened: list[Entry] = []
    before = registry.ledger.openings(with_champion=True)
    least = contest.least_probability(registry.client, challenger)

    def record() -> None:
        study = None if config.run_id else config.study
        compared = (
            {"version": str(champion.version), "run_id": champion.run_id} if champion else None
        )
        details = {"study": study, "dataset_sha256": challenger.data.sha256, "compared": compared}
        opened.append(registry.begin("promotion", challenger.run_id, **details))

    try:
        result = contest.read_sealed(networks, challenger.data, record, least)
        decision, evidence = contest.decide_contest(
            challenger, champion, result, config.promote, before
        )
        alias, outcome = (CHAMPION, "promoted") if decision.promoted else (CHALLENGER, "kept")
        version = registry.register(
            opened[0],
            challenger.model_id,
            alias,
            evidence,
            contest.version_note(challenger, champion, evidence),
        )
        registry.end(opened[0], outcome, decision.reason, version=version, evidence=evidence)
    except BaseException as fault:
        for entry in opened:
            registry.settle(entry, f"{type(fault).__name__}: {fault}"[:500])
        raise
    table = Table(
        title=f"Version {version} of {registry.name}", show_header=False, title_justify="left"
    )
    for key, value in evidence.items():
        if key != "reason":
            table.add_row(key, value)
    console.console().print(table)
    is_served = decision.promoted or champion is not None
    verb = (
        "moves to"
        if decision.promoted
        else f"{'stays' if is_served else 'names none'}; 'challenger' is"
    )
    model = "" if is_served else f" model=models:/{registry.name}/{version}"
    console.console().print(f"The alias 'champion' {verb} version {version}: {decision.reason}.")
    console.console().print(
        f"The sealed test set has been opened {times(registry.ledger.openings())}."
    )
    where = views.open_at(registry.uri, views.model_page(registry.name))
    console.console().print(
        f"next:\n  python src/predict.py <images>{model}\n  {where}", soft_wrap=True
    )


def _roll_back(registry: Registry, dry_run: bool) -> None:
    if dry_run or registry.is_clean():
        target = registry.previous()  # without one nothing is to be written
    if dry_run:
        again = f"version {target.version} (run {target.run_id}) would be champion again"
        console.console().print(
            f"dry run: {again}; nothing was written\n{_page(registry, target.version)}",
            soft_wrap=True,
        )
        return
    with registry.lock("rollback"):
        registry.recover()
        console.console().print(registry.roll_back())
    console.console().print(
        views.open_at(registry.uri, views.model_page(registry.name)), soft_wrap=True
    )


def _print_history(registry: Registry) -> None:
    """Print the ledger, oldest entry first; what was cut off is recovered before, unless a promotion is under way."""
    registry.recover_if_idle()
    terminal = console.console()
    for entry in registry.ledger.entries():
        start, end = entry.start, entry.end
        outcome = OUTCOMES.get(end.get("outcome", ""), "has not ended").format(
            version=end.get("version")
        )
        what = (
            f"{start['kind']} {'to' if start['kind'] == 'rollback' else 'of'} run {start['run_id']}"
        )
        why = end.get("reason", "under way, or cut off")
        terminal.print(f"{start['at']}  {start['who']}  {what}: {outcome}: {why}")
    for event in registry.ledger.events("noted"):
        terminal.print(f"{event['at']}  {event['who']}  run {event['run_id']}: {event['outcome']}")
    aliases = ", ".join(
        f"{alias}: version {version}" for alias, version in registry.aliases().items()
    )
    terminal.print(
        f"{registry.name}: {aliases or 'no alias is set, nothing has been promoted yet'}"
    )
    terminal.print(f"The sealed test set has been opened {times(registry.ledger.openings())}.")
    if aliases:
        terminal.print(_page(registry), soft_wrap=True)


def _page(registry: Registry, version: str = "") -> str:
    """Where to look at the registered model, or at one of its versions."""
    return views.place(registry.uri, views.model_page(registry.name, str(version)))
