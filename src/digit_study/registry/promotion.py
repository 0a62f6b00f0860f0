"""Promotion from start to end: find the challenger, break the seal once, let the gate decide.

Only then does the alias move. Rollback and the history of a registered model are here too.
"""

from mlflow.entities.model_registry import ModelVersion

from digit_study.config.promote_config import PromoteConfig
from digit_study.config.run_config import StoreConfig
from digit_study.registry import contest, promotion_report
from digit_study.registry.contest import Challenger, EvaluateSealed, Verdict, evaluate_sealed
from digit_study.registry.ledger import Entry, EntryKind, EventKind
from digit_study.registry.promotion_lock import WAIT_S
from digit_study.registry.promotion_report import PromotionResult
from digit_study.registry.registry import CHALLENGER, CHAMPION, Registry, outcome_of
from digit_study.report.markdown import run_page
from digit_study.report.terminal import print_next
from digit_study.stats.gate import budget
from digit_study.support.console import console
from digit_study.support.workspace import Workspace
from digit_study.tracking import pages
from digit_study.tracking.session import open_store


def run(
    config: PromoteConfig,
    workspace: Workspace,
    *,
    study_uid: str | None = None,
    evaluate: EvaluateSealed = evaluate_sealed,
    lock_wait_s: float = WAIT_S,
) -> None:
    """Do what a checked config asks for: promote, roll back, or print the ledger.

    Args:
        config: What to do.
        workspace: Where the usual store lies.
        study_uid: Which study of the name in ``config`` is meant, where that is known.
        evaluate: Opens the sealed images and evaluates networks on them.
        lock_wait_s: Seconds for which it waits for another promotion.

    Raises:
        StudyError: If that cannot be done.
    """
    tracker = open_store(config.tracking.uri, workspace)
    with tracker.readable_faults():
        registry = Registry(tracker, config.promote.model_name, lock_wait_s)
        if config.history:
            _print_history(registry)
        elif config.rollback and config.promote.dry_run:
            _plan_rollback(registry)
        elif config.rollback:
            _roll_back(registry)
        else:
            challenger = contest.find_challenger(tracker, config, study_uid)
            if config.promote.dry_run:
                _plan_promotion(registry, challenger, config)
            else:
                _promote(registry, challenger, config, evaluate)


def evidence_by_run(config: PromoteConfig, workspace: Workspace) -> dict[str, dict[str, str]]:
    """Return what the sealed test set has said of runs.

    Args:
        config: Names the store and the registered model.
        workspace: Where the usual store lies.

    Returns:
        The tags of all versions, by the ids of their runs.
    """
    tracker = open_store(config.tracking.uri, workspace)
    with tracker.readable_faults():
        registry = Registry(tracker, config.promote.model_name)
        versions = registry.versions().values()
        return {str(version.run_id): dict(version.tags) for version in versions}


def _plan_promotion(registry: Registry, challenger: Challenger, config: PromoteConfig) -> None:
    """Say what a promotion would do; write nothing and take no lock."""
    champion = registry.at(CHAMPION)
    if _is_champion(challenger, champion, registry):
        return
    if champion is not None:
        contest.require_same_data(registry.tracker, challenger, champion)
    limits = config.promote
    table = promotion_report.plan_table(
        challenger,
        champion,
        limits,
        openings=registry.ledger.openings(),
        budget=budget(limits.significance, registry.ledger.comparisons()),
    )
    page = run_page(challenger.run.info.experiment_id, challenger.run_id)
    terminal = console()
    terminal.print("Dry run: nothing was opened or written.")
    terminal.print(table)
    terminal.print(registry.tracker.page_address(page), soft_wrap=True)


def _promote(
    registry: Registry, challenger: Challenger, config: PromoteConfig, evaluate: EvaluateSealed
) -> None:
    """Check the challenger against the champion, then compare them."""
    with registry.lock(challenger.run_id) as waited:
        registry.recover()
        champion = registry.at(CHAMPION)
        if _is_champion(challenger, champion, registry):
            if waited:
                outcome = "became champion while this request waited"
                registry.ledger.record(EventKind.NOTED, challenger.run_id, outcome=outcome)
            return
        if champion is not None:
            contest.require_same_data(registry.tracker, challenger, champion)
        result = _compare(registry, challenger, champion, config, evaluate)
        _print_result(registry, result)


def _is_champion(challenger: Challenger, champion: ModelVersion | None, registry: Registry) -> bool:
    """Return whether there is nothing to do, and say so."""
    if champion is None or champion.run_id != challenger.run_id:
        return False
    console().print(
        f"run {challenger.run_id} is the champion already, as version {champion.version}: nothing "
        f"to do\n{_page(registry, str(champion.version))}",
        soft_wrap=True,
    )
    return True


def _compare(
    registry: Registry,
    challenger: Challenger,
    champion: ModelVersion | None,
    config: PromoteConfig,
    evaluate: EvaluateSealed,
) -> PromotionResult:
    """Break the seal, decide and register.

    What ends early after the opening is finished or undone at once, or by the next command.
    """
    networks = contest.find_networks(registry.tracker, challenger, champion)
    before = registry.ledger.comparisons()
    threshold = contest.set_threshold(registry.tracker, challenger)
    is_same_split = contest.has_same_split(registry.tracker, challenger, champion)
    opened: list[Entry] = []

    def record() -> None:
        opened.append(_begin(registry, challenger, champion, config))

    try:
        result = evaluate(networks, challenger.data, record, threshold)
        verdict = contest.decide_contest(
            challenger,
            champion,
            result,
            config.promote,
            before,
            is_same_split=is_same_split,
        )
        version = _register(registry, opened[0], challenger, verdict, config.tracking)
    except BaseException as fault:
        for entry in opened:
            registry.resolve(entry, f"{type(fault).__name__}: {fault}"[:500])
        raise
    return PromotionResult(
        model=registry.name,
        version=version,
        is_promoted=verdict.decision.promoted,
        evidence=verdict.evidence,
        openings=registry.ledger.openings(),
    )


def _begin(
    registry: Registry,
    challenger: Challenger,
    champion: ModelVersion | None,
    config: PromoteConfig,
) -> Entry:
    """Write down that the sealed test set is about to be opened."""
    compared = None
    if champion is not None:
        compared = {"version": str(champion.version), "run_id": champion.run_id}
    study = None
    if not config.run_id:
        study = config.study
    return registry.begin(
        EntryKind.PROMOTION,
        challenger.run_id,
        study=study,
        dataset_sha256=challenger.data.sha256,
        compared=compared,
    )


def _register(
    registry: Registry,
    entry: Entry,
    challenger: Challenger,
    verdict: Verdict,
    store: StoreConfig,
) -> str:
    """Register the challenger with its evidence and close the entry; return its version."""
    alias = CHALLENGER
    if verdict.decision.promoted:
        alias = CHAMPION
    description = promotion_report.version_description(
        challenger.run.info, registry.name, verdict.evidence
    )
    if store.note:
        description = f"{store.note}\n\n{description}"
    evidence = {**store.own_tags, **verdict.evidence}
    version = registry.register(entry, challenger.model_id, alias, evidence, description)
    registry.end(
        entry,
        outcome_of(alias),
        verdict.decision.reason,
        version=version,
        evidence=verdict.evidence,
    )
    return version


def _print_result(registry: Registry, result: PromotionResult) -> None:
    model = ""
    if not result.is_promoted and "compared.version" not in result.evidence:
        model = f" model=models:/{registry.name}/{result.version}"
    terminal = console()
    terminal.print(promotion_report.headline(result))
    terminal.print(f"Why: {promotion_report.why(result.evidence)}")
    terminal.print(promotion_report.result_table(result))
    terminal.print(promotion_report.closing_sentences(result))
    page = pages.model_page(registry.name)
    where = registry.tracker.newest_address(page)
    print_next(f"python src/predict.py <images>{model}", where)


def _plan_rollback(registry: Registry) -> None:
    """Say what a rollback would do; write nothing."""
    target = registry.previous()
    console().print(
        f"Dry run: version {target.version} (run {target.run_id}) would be champion again; nothing "
        f"was written.\n{_page(registry, str(target.version))}",
        soft_wrap=True,
    )


def _roll_back(registry: Registry) -> None:
    if registry.is_clean():
        registry.previous()  # without it nothing is to be written
    with registry.lock():
        registry.recover()
        sentence = registry.roll_back()
    console().print(f"Rolled back: {sentence}.")
    page = pages.model_page(registry.name)
    console().print(registry.tracker.newest_address(page), soft_wrap=True)


def _print_history(registry: Registry) -> None:
    """Print the ledger, oldest entry first.

    What was cut off is finished or undone before, unless a promotion is under way.
    """
    registry.recover_if_idle()
    terminal = console()
    for entry in registry.ledger.entries():
        terminal.print(promotion_report.entry_text(entry))
    for event in registry.ledger.events(EventKind.NOTED):
        terminal.print(promotion_report.note_text(event))
    aliases = registry.aliases()
    terminal.print(promotion_report.alias_text(registry.name, aliases))
    terminal.print(promotion_report.opened_sentence(registry.ledger.openings()))
    if aliases:
        terminal.print(_page(registry), soft_wrap=True)


def _page(registry: Registry, version: str = "") -> str:
    """Return where to look at the registered model, or at a version of it."""
    return registry.tracker.page_address(pages.model_page(registry.name, version))
