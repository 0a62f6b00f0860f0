"""What people read of promotions: in the terminal, and in Markdown on the pages of MLflow.

Everything here is made of plain data; nothing asks a store and nothing decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlflow.entities import RunInfo
from mlflow.entities.model_registry import ModelVersion
from rich.table import Table

from digit_study.config.promote_config import GateConfig
from digit_study.data.sources import dataset_name
from digit_study.registry.contest import Challenger
from digit_study.registry.ledger import Entry, EntryKind, LedgerEvent
from digit_study.report.markdown import escape, run_page
from digit_study.report.sentences import counted
from digit_study.stats.gate import Budget
from digit_study.stats.metrics import accuracy_interval
from digit_study.support.formatting import (
    p_equals,
    percent,
    points,
    points_with_interval,
    with_interval,
)
from digit_study.tracking import pages

#: Figures of a run that the description of its version links.
FIGURES = ("confusion_matrix.png", "mistakes.png")


@dataclass(frozen=True)
class PromotionResult:
    """What a promotion did."""

    #: Name of the registered model.
    model: str
    #: Number of the new version.
    version: str
    is_promoted: bool
    #: Tags of the new version.
    evidence: Mapping[str, str]
    #: How often the sealed images have been opened, this time included.
    openings: int


def opened_sentence(openings: int) -> str:
    """Return how often the sealed test set has been opened."""
    return f"The sealed test set has been opened {counted(openings, 'time')}."


def rollback_sentence(
    version: str, run_id: str, instead_of: str | None, previous: str | None
) -> str:
    """Return what a rollback did.

    Args:
        version: The version that is champion again.
        run_id: Its run.
        instead_of: The version that was champion until now; None where there was none.
        previous: The champion before ``version``; None where there was none.
    """
    before = "there is none before it"
    if previous:
        before = f"version {previous} is the one before it"
    again = f"version {version} (run {run_id}) is champion again"
    if instead_of is not None:
        again += f" instead of version {instead_of}"
    return f"{again}; {before}"


def plan_table(
    challenger: Challenger,
    champion: ModelVersion | None,
    limits: GateConfig,
    openings: int,
    budget: Budget,
) -> Table:
    """Return what a dry run says, a row a fact.

    Args:
        challenger: The run that would be promoted.
        champion: The version that it would be compared with, if there is one.
        limits: The rules of the gate.
        openings: How often the sealed images have been opened so far.
        budget: What the comparison with the champion may spend.
    """
    metrics = challenger.run.data.metrics
    accuracy = metrics.get("val_accuracy", 0)
    parameters = metrics.get("parameters", 0)
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "challenger",
        f"run {challenger.run_id}: validation accuracy {percent(accuracy)}, "
        f"{parameters:,.0f} parameters",
    )
    if champion is None:
        table.add_row("champion", "none yet")
        table.add_row(
            "promoted if", f"it predicts {percent(limits.floor)} of the test images correctly"
        )
    else:
        table.add_row("champion", f"version {champion.version} (run {champion.run_id})")
        table.add_row(
            "promoted if",
            f"significantly better (exact McNemar p < {budget.level:.3g}), or smaller and shown to "
            f"be at most {100 * limits.margin:g} points worse (one-sided, at the same level)",
        )
        table.add_row("error budget", _budget_text(budget, limits.significance))
    opened = counted(openings, "time")
    table.add_row(
        "test images",
        f"{dataset_name(challenger.data)}, sealed: opened {opened} so far, and once more by this "
        "promotion",
    )
    return table


def _budget_text(budget: Budget, significance: float) -> str:
    return (
        f"comparison {budget.comparison} on these images spends {budget.level:.3g} of the "
        f"{significance:g} that all share; {budget.left:.2g} is left"
    )


def headline(result: PromotionResult) -> str:
    """Return what became of the challenger, in a sentence."""
    if result.is_promoted:
        return f"Promoted: version {result.version} of {result.model} is the champion now."
    champion = "there is still no champion"
    if "compared.version" in result.evidence:
        champion = f"version {result.evidence['compared.version']} stays the champion"
    return (
        f"Not promoted: version {result.version} of {result.model} is registered as challenger; "
        f"{champion}."
    )


def why(evidence: Mapping[str, str]) -> str:
    """Return why the gate decided as it did, in a sentence.

    Args:
        evidence: Tags of the version.
    """
    rule = evidence["decision"]
    if rule in ("first", "below_floor"):
        return _why_without_champion(rule, float(evidence["gate.floor"]))
    level_value = float(evidence["gate.level"])
    level = f"{level_value:.3g}"
    p_text = p_equals(float(evidence["mcnemar_p"]), level_value)
    p_value = f"exact McNemar {p_text}"
    if rule == "better":
        return f"significantly better than the champion: {p_value} is below {level}."
    margin_value = float(evidence["gate.margin"])
    margin = f"{100 * margin_value:g} points"
    if rule == "worse":
        return f"measured to be worse than the champion by more than {margin}."
    parameters = int(evidence["parameters"])
    saved = int(evidence["compared.parameters"]) - parameters
    difference = float(evidence["difference_at_worst"])
    at_worst = f"at worst {points(difference)} at the level {level}"
    if rule == "smaller":
        return f"{saved:,} parameters fewer, and not worse by {margin}: {at_worst}."
    not_better = f"not significantly better than the champion ({p_value}, level {level})"
    if saved > 0:
        return f"{not_better}; smaller, but it may be worse by {margin} or more: {at_worst}."
    return f"{not_better}, and no smaller."


def _why_without_champion(rule: str, floor: float) -> str:
    """Return why the gate decided as it did on a challenger that had no champion to beat."""
    relation = "below"
    if rule == "first":
        relation = "at least"
    return f"its accuracy is {relation} the {percent(floor)} that the first champion must reach."


def result_table(result: PromotionResult) -> Table:
    """Return both networks on the same sealed images, side by side."""
    evidence = result.evidence
    table = Table(
        title_justify="left", title=f"{int(evidence['test_images']):,} sealed test images"
    )
    for heading in ("", f"challenger, version {result.version}"):
        table.add_column(heading)
    rows = [
        ["accuracy [95 %]", _rate(evidence, "test_accuracy")],
        ["parameters", f"{int(evidence['parameters']):,}"],
    ]
    if "compared.version" in evidence:
        table.add_column(f"champion, version {evidence['compared.version']}")
        rows[0].append(_compared_accuracy(evidence))
        rows[1].append(f"{int(evidence['compared.parameters']):,}")
        rows += [
            [
                "correct where the other is not",
                f"{evidence['only_challenger_right']} images",
                f"{evidence['only_champion_right']} images",
            ],
            ["difference [95 %]", _difference(evidence, "difference"), ""],
        ]
    rows += _robust_rows(evidence)
    for row in rows:
        table.add_row(*row)
    return table


def _robust_rows(evidence: Mapping[str, str]) -> list[list[str]]:
    """Return how the networks did on corrupted validation images; nothing if that is not known."""
    if "robust_accuracy" not in evidence:
        return []
    images = int(evidence["robust_images"])
    heading = f"{images:,} corrupted validation images [95 %]"
    row = [heading, _rate(evidence, "robust_accuracy")]
    if "compared.version" not in evidence:
        return [row]
    if "compared.robust_accuracy" not in evidence:
        return [[*row, "another split"]]
    difference = _difference(evidence, "robust_difference")
    p_value = f"p = {float(evidence['robust_mcnemar_p']):.3g}"
    return [
        [*row, _rate(evidence, "compared.robust_accuracy")],
        ["difference there [95 %]", difference, p_value],
    ]


def _difference(evidence: Mapping[str, str], name: str) -> str:
    """Return a difference of two accuracies in points, with its 95 % interval."""
    difference = float(evidence[name])
    low = float(evidence[f"{name}_low"])
    high = float(evidence[f"{name}_high"])
    return points_with_interval(difference, low, high)


def _rate(evidence: Mapping[str, str], name: str) -> str:
    """Return a share with its 95 % interval."""
    share = float(evidence[name])
    low = float(evidence[f"{name}_low"])
    high = float(evidence[f"{name}_high"])
    return with_interval(share, low, high)


def _compared_accuracy(evidence: Mapping[str, str]) -> str:
    """Return the champion's accuracy with its 95 % interval."""
    accuracy = float(evidence["compared.test_accuracy"])
    images = int(evidence["test_images"])
    correct = round(accuracy * images)
    low, high = accuracy_interval(correct, images)
    return with_interval(accuracy, low, high)


def closing_sentences(result: PromotionResult) -> str:
    """Return what the promotion has cost and where all numbers are."""
    evidence = result.evidence
    sentences = [opened_sentence(result.openings)]
    if "gate.comparison" in evidence:
        budget = Budget(
            int(evidence["gate.comparison"]),
            float(evidence["gate.level"]),
            float(evidence["gate.left"]),
        )
        text = _budget_text(budget, float(evidence["gate.significance"]))
        sentences.append(f"Error budget: {text}.")
    sentences.append(f"All numbers are tags of version {result.version}.")
    return "\n".join(sentences)


def entry_text(entry: Entry) -> str:
    """Return a promotion or rollback as the history shows it: what and when, by whom, why."""
    start = entry.start
    relation = "of"
    if start["kind"] == EntryKind.ROLLBACK:
        relation = "to"
    what = f"{start['kind']} {relation} run {start['run_id']}: {entry.outcome_text}"
    lines = [
        f"{_time(start['at'])}  {what}",
        f"by {start['who']}",
        _why_of(entry),
    ]
    return "\n  ".join(lines)


def note_text(event: LedgerEvent) -> str:
    """Return a request without an effect as the history shows it."""
    what = f"run {event['run_id']}"
    if event["run_id"] in ("", "rollback"):  # the word was kept by earlier versions
        what = "rollback"
    return f"{_time(event['at'])}  {what}: {event['outcome']}\n  by {event['who']}"


def _time(at: str) -> str:
    """Return a time of the ledger as a person reads it."""
    return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M} UTC"


def _why_of(entry: Entry) -> str:
    """Return why an entry ended as it did, in short where its evidence is complete."""
    evidence = entry.end.get("evidence", {})
    try:
        return f"test accuracy {_rate(evidence, 'test_accuracy')}: {why(evidence)}"
    except KeyError:
        return entry.reason


def alias_text(model: str, aliases: Mapping[str, str]) -> str:
    """Return which versions of a registered model its aliases point at."""
    if not aliases:
        return f"{model}: no alias is set, nothing has been promoted yet"
    versions = [f"{alias}: version {version}" for alias, version in aliases.items()]
    return f"{model}: {', '.join(versions)}"


def model_description(champion: ModelVersion | None, replaced: str | None, openings: int) -> str:
    """Return the description of a registered model, in Markdown.

    Args:
        champion: The champion, if there is one.
        replaced: The version that it replaced, if there was one.
        openings: How often the sealed test set has been opened.
    """
    current = "none."
    if champion is not None:
        before = "there was none before it"
        if replaced:
            before = f"it replaced version {replaced}"
        current = f"**version {champion.version}**, run {champion.run_id}; {before}."
        # a version that was registered by hand may have none
        if champion.description:
            current += f"\n\n{champion.description}"
    opened = counted(openings, "time")
    return (
        "Recognizes a handwritten digit: raw pixels (n, 28, 28, 1), 0 to 255, to ten "
        f"probabilities.\n\nChampion: {current}\n\nThe sealed test set has been opened "
        f"{opened}; the tags `ledger.*` say by whom, when, for which run and to what end "
        "(`python sweeps/promote.py history=true`)."
    )


def version_description(run: RunInfo, model: str, evidence: Mapping[str, str]) -> str:
    """Return the description of a version, in Markdown: the decision, then both networks.

    Args:
        run: The run that the version is of.
        model: Name of the registered model.
        evidence: Tags of the version.
    """
    page = run_page(run.experiment_id, run.run_id)
    figures = [f"[{name}]({page}/artifacts/figures/{name})" for name in FIGURES]
    paragraphs = [
        f"**{escape(evidence['reason'])}**",
        "Question: may it replace the champion, by a single comparison on test images that nothing "
        "was selected on?",
        _markdown_table(_version_rows(str(run.run_name), page, model, evidence)),
        _uncertainty_text(evidence),
        f"Figures, on its validation images: {' · '.join(figures)}",
        f"Next: `python src/predict.py <images> model=runs:/{run.run_id}/model`",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _version_rows(
    run_name: str, page: str, model: str, evidence: Mapping[str, str]
) -> list[list[str]]:
    rows = [
        ["", "this version"],
        [":--", "--:"],
        ["trained by", f"[{escape(run_name)}]({page})"],
        [
            f"correct of {int(evidence['test_images']):,} sealed images",
            _rate(evidence, "test_accuracy"),
        ],
        ["parameters", f"{int(evidence['parameters']):,}"],
    ]
    has_robust = "robust_accuracy" in evidence
    if has_robust:
        rows.append(["corrupted validation images", _rate(evidence, "robust_accuracy")])
    version = evidence.get("compared.version")
    if version is None:
        return rows
    column = [
        "the champion then",
        "--:",
        f"[version {version}]({pages.model_page(model, version)})",
        percent(float(evidence["compared.test_accuracy"])),
        f"{int(evidence['compared.parameters']):,}",
    ]
    if "compared.robust_accuracy" in evidence:
        column.append(percent(float(evidence["compared.robust_accuracy"])))
    elif has_robust:
        column.append("another split")
    return [[*row, cell] for row, cell in zip(rows, column, strict=True)]


def _markdown_table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _uncertainty_text(evidence: Mapping[str, str]) -> str:
    """Return how the prediction sets did, if there are any."""
    if "test_coverage" not in evidence:
        return ""
    claimed = 100 * float(evidence["claimed_coverage"])
    size = float(evidence["test_set_size"])
    return (
        f"Its prediction sets at {claimed:g} % contain the true digit of "
        f"{_rate(evidence, 'test_coverage')} of these images, with {size:.3f} digits each; "
        f"{_rate(evidence, 'test_refused')} of them are refused as no digit."
    )
