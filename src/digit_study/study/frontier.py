"""The shipped networks on equal seeds: accuracy, size, and which no smaller network beats."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pandas as pd

from digit_study.config import compose
from digit_study.config.renamed_keys import key_of
from digit_study.config.run_config import Config
from digit_study.data.sources import MNIST_SHA256
from digit_study.report import sentences
from digit_study.report.description import RunDescription
from digit_study.report.figures import charts
from digit_study.report.figures.ranking_figures import frontier_figure
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.terminal import print_next, print_ranking
from digit_study.stats.race import confirmed_ranking
from digit_study.stats.ranking import Group
from digit_study.study.parent_run import find_or_create
from digit_study.study.results import RunResults
from digit_study.study.seed_race import RaceEntry, SeedRace, race_run
from digit_study.study.storage import exclusive
from digit_study.study.study_plan import StudyPlan, plan_study
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker, session
from digit_study.trial.protocol import ENGINES

#: Far from the seeds of trials and confirmations.
FIRST_SEED = 2_000_000
#: Distance of two seeds: as many members as an ensemble may have.
SEED_STEP = 100
#: Config groups that a command line may set for all networks, as a whole or key by key.
OF_NETWORKS = ("model", "training")
#: Columns of the table of the frontier, beside the accuracy on the sealed test images.
COLUMNS = (
    "name",
    "run_id",
    "parameters",
    "minutes",
    "seeds",
    "mean",
    "low",
    "high",
    "robust_accuracy",
    "tied",
    "front",
)


@dataclass(frozen=True)
class FrontierPlan:
    """What a frontier trains."""

    #: By which the networks are trained.
    study: StudyPlan
    #: The networks, by what tells their runs from those of others.
    networks: dict[str, RaceEntry]


def plan_frontier(arguments: Sequence[str], workspace: Workspace) -> FrontierPlan:
    """Check a command line.

    Args:
        arguments: The command line, without the name of the command.
        workspace: Where runs are spooled.

    Raises:
        StudyError: If anything is wrong.
    """
    plan = plan_study(["study=frontier", *arguments], workspace)
    searched = set(plan.overrides) - set(compose.without_space(plan.overrides))
    if searched:
        raise StudyError(
            "a frontier searches nothing, it trains the networks of `frontier.networks`, got "
            f"{' '.join(sorted(searched))!r}: drop that, or search with sweeps/optuna_search.py"
        )
    networks: dict[str, RaceEntry] = {}
    compose.register()
    typed = [text for text in plan.overrides if key_of(text).partition(".")[0] in OF_NETWORKS]
    for name, text in plan.study.frontier.networks.items():
        try:
            own: Config = compose.compose_config([*shlex.split(text), *typed])
            own.validate()
        except StudyError as fault:
            raise StudyError(
                f"`frontier.networks.{name}` must be overrides of a run, got '{text}': {fault}"
            ) from None
        machine = plan.run.training
        training = replace(own.training, threads=machine.threads, precision=machine.precision)
        config = replace(plan.run, model=own.model, training=training)
        key = _fingerprint(config)
        if key in networks:
            raise StudyError(
                f"`frontier.networks` must differ from each other, got {networks[key].name} and "
                f"{name}, which train the same: drop one"
            )
        networks[key] = RaceEntry(name, config)
    return FrontierPlan(plan, networks)


def _fingerprint(config: Config) -> str:
    """Return what tells the runs of a network from those of others, whatever its threads."""
    trained = repr((config.data.sha256, config.model, replace(config.training, threads=None)))
    data = config.data
    split = (data.seed, data.validation, data.limit)
    if split != (0, None, None):
        # runs on the usual split keep the name that they have in stores of earlier versions
        trained += repr(split)
    return hashlib.sha256(trained.encode()).hexdigest()[:12]


def measure(planned: FrontierPlan) -> SeedRace:
    """Train every network on every seed, but for what an earlier start has finished.

    Args:
        planned: What is trained.

    Raises:
        StudyError: If a run failed.
    """
    plan = planned.study
    with exclusive(plan.workspace, plan.study.study, "confirm", "is being trained"):
        engine = ENGINES[plan.study.search.engine](plan.context)
        with _session(plan) as tracker:
            race = _prepare(planned, tracker)
            with race_run(race, RunResults(tracker), "interrupted: the same command goes on"):
                race.train(engine)
    race.raise_failures("frontier")
    return race


def _session(plan: StudyPlan) -> AbstractContextManager[Tracker]:
    timeout = plan.study.search.outage_timeout
    return session(plan.uri, plan.workspace, timeout, "search.outage_timeout")


def _prepare(planned: FrontierPlan, tracker: Tracker) -> SeedRace:
    """Find the parent run of the frontier on these digits again, or create it."""
    plan = planned.study
    count = plan.study.frontier.seeds
    # further networks or seeds become children of the same parent
    identity = {
        "kind": "frontier",
        "study": plan.study.study,
        "dataset.sha256": str(plan.run.data.sha256),
    }
    parent = find_or_create(tracker, plan.run, plan.dataset, "frontier", identity)
    return SeedRace(
        plan=plan,
        tracker=tracker,
        parent_run_id=parent,
        entries=planned.networks,
        seeds=[FIRST_SEED + SEED_STEP * number for number in range(count)],
        first_seeds=count,
    )


def table_of(race: SeedRace, evidence: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Return one row a network, by parameters.

    Args:
        race: What was trained.
        evidence: What promotions have measured on the sealed test images, by the id of the run.

    Returns:
        :data:`COLUMNS`, and test_accuracy with its ends, which are NaN without evidence. ``run_id``
        is of the first seed, ``minutes`` of one network, and ``front`` says that no network with as
        few parameters is as good.
    """
    groups = [Group(entry.name, race.finished(key)) for key, entry in race.entries.items()]
    ranking = confirmed_ranking(groups, race.interim(), "accuracy").set_index("name")
    ranking["run_id"] = {group.name: group.runs[0].run_id for group in groups}
    ranking["minutes"] = {group.name: group.mean("training_seconds") / 60 for group in groups}
    table = ranking.sort_values(["parameters", "mean"], ascending=[True, False]).reset_index()
    table["front"] = table["mean"] > table["mean"].cummax().shift(fill_value=0.0)
    measured = [f"test_accuracy{end}" for end in ("", "_low", "_high")]
    for column in measured:
        table[column] = [
            float(evidence.get(run_id, {}).get(column, "nan")) for run_id in table["run_id"]
        ]
    return table[[*COLUMNS, *measured]]


def conclude(race: SeedRace, table: pd.DataFrame) -> None:
    """Draw, record and print the table; only the models of the first seed are kept.

    Args:
        race: What was trained.
        table: See :func:`table_of`.
    """
    plan = race.plan
    ranking = RankedTable.of(RankingKind.NETWORKS, table)
    best = max(ranking.rows, key=lambda row: row.accuracy.value)
    description = RunDescription(
        answer=sentences.frontier_answer(best),
        question=sentences.frontier_question(len(table), plan.dataset),
        ranking=ranking,
        files=["figures/frontier.png"],
        note=plan.run.tracking.note or "",
    )
    with _session(plan) as tracker:
        log = tracker.writer(race.parent_run_id)
        charts.write_table(table, log.folder, "frontier")
        is_mnist = plan.run.data.sha256 == MNIST_SHA256
        figure = frontier_figure(table, plan.dataset, is_mnist=is_mnist)
        charts.save(figure, log.folder / "figures" / "frontier.png")
        log.describe(description)
        race.keep_models(set(table["run_id"]))
        log.end("FINISHED", {})
    print_ranking("Networks by parameters", ranking)
    print_next(tracker.address(race.parent_run_id, children=True))
