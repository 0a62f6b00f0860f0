"""The shipped networks on equal seeds: accuracy, size, and which no smaller network beats."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import pandas as pd

from digit_study.config import compose
from digit_study.config.run import Config
from digit_study.report import sentences
from digit_study.report.description import RunDescription
from digit_study.report.figures import charts
from digit_study.report.figures.ranking_figures import frontier_figure
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.terminal import print_next, print_ranking
from digit_study.stats.race import confirmed_ranking
from digit_study.stats.ranking import Group
from digit_study.study.results import RunResults
from digit_study.study.seed_race import Confirmation, parent_run, train
from digit_study.study.storage import exclusive
from digit_study.study.study_plan import StudyPlan, plan_study
from digit_study.support.messages import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker, session
from digit_study.tracking.views import INITIAL
from digit_study.trial.protocol import ENGINES

#: Far from the seeds of trials and confirmations.
FIRST_SEED = 2_000_000
#: Distance of two seeds: as many members as an ensemble may have.
SEED_STEP = 100
#: Groups of a run's keys that a command line may set for all networks.
OF_NETWORKS = ("model.", "training.")
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
    "tied",
    "front",
)


@dataclass(frozen=True)
class FrontierNetworks:
    """What is trained: names and configs, by what tells their runs from those of others."""

    names: dict[str, str] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)

    def add(self, name: str, config: Config) -> None:
        """Add a network.

        Raises:
            StudyError: If another network trains the same.
        """
        trained = repr((config.data.sha256, config.model, replace(config.training, threads=None)))
        key = hashlib.sha256(trained.encode()).hexdigest()[:12]
        if key in self.names:
            raise StudyError(
                f"`frontier.networks` must differ from each other, got {self.names[key]} and "
                f"{name}, which train the same: drop one"
            )
        self.names[key] = name
        self.configs[key] = config


def plan_frontier(arguments: Sequence[str]) -> tuple[StudyPlan, FrontierNetworks]:
    """Check a command line.

    Returns:
        The plan by which the networks are trained, and these.

    Raises:
        StudyError: If anything is wrong.
    """
    plan = plan_study(["study=frontier", *arguments])
    networks = FrontierNetworks()
    compose.register()
    typed = [text for text in plan.overrides if text.startswith(OF_NETWORKS)]
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
        networks.add(name, replace(plan.run, model=own.model, training=training))
    return plan, networks


def measure(plan: StudyPlan, networks: FrontierNetworks, workspace: Workspace) -> Confirmation:
    """Train every network on every seed, but for what an earlier start has finished.

    Args:
        plan: By which they are trained.
        networks: What is trained.
        workspace: Where runs are spooled.

    Raises:
        StudyError: If a run failed.
    """
    with exclusive(plan.study.study, "confirm", "is being trained"):
        engine = ENGINES[plan.study.search.engine](plan.context)
        with _session(plan, workspace) as tracker:
            work = _prepare(plan, networks, tracker)
            message = "interrupted: the same command goes on"
            with parent_run(work, RunResults(tracker), message):
                train(work, engine)
                tracker.wait()
    failures = work.failures()
    if failures:
        raise StudyError(f"{len(failures)} runs of the frontier failed:\n" + "\n".join(failures))
    return work


def _session(plan: StudyPlan, workspace: Workspace) -> AbstractContextManager[Tracker]:
    timeout = plan.study.search.outage_timeout
    return session(plan.uri, workspace, timeout, "search.outage_timeout")


def _prepare(plan: StudyPlan, networks: FrontierNetworks, tracker: Tracker) -> Confirmation:
    """Find the parent run of the frontier on these digits again, or create it."""
    count = plan.study.frontier.seeds
    # further networks or seeds become children of the same parent
    known = {
        "kind": "frontier",
        "study": plan.study.study,
        "dataset.sha256": str(plan.run.data.sha256),
    }
    parent = tracker.find_run(known)
    if parent is None or not tracker.reopen_run(parent):
        parent = tracker.create_run(plan.run, plan.dataset, "frontier", **INITIAL, **known)
    return Confirmation(
        plan=plan,
        names=networks.names,
        configs=networks.configs,
        searched={},
        configurations=0,
        seeds=[FIRST_SEED + SEED_STEP * number for number in range(count)],
        first=count,
        parent=parent,
    )


def table_of(work: Confirmation, evidence: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Return one row a network, by parameters.

    Args:
        work: What was trained.
        evidence: What promotions have measured on the sealed test images, by the id of the run.

    Returns:
        :data:`COLUMNS`, and test_accuracy with its ends, which are NaN without evidence. ``run_id``
        is of the first seed, ``minutes`` of one network, and ``front`` says that no network with as
        few parameters is as good.
    """
    groups = [Group(name, work.finished(key)) for key, name in work.names.items()]
    ranking = confirmed_ranking(groups, work.interim(), "accuracy").set_index("name")
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


def conclude(work: Confirmation, table: pd.DataFrame, workspace: Workspace) -> None:
    """Draw, record and print the table; only the models of the first seed are kept.

    Args:
        work: What was trained.
        table: See :func:`table_of`.
        workspace: Where runs are spooled.
    """
    plan = work.plan
    ranking = RankedTable.of(RankingKind.NETWORKS, table)
    best = max(ranking.rows, key=lambda row: row.accuracy.value)
    description = RunDescription(
        answer=sentences.frontier_answer(best),
        question=sentences.frontier_question(len(table), plan.dataset),
        ranking=ranking,
        files=["figures/frontier.png"],
    )
    with _session(plan, workspace) as tracker:
        log = tracker.writer(work.parent)
        charts.write_table(table, log.folder, "frontier")
        figure = frontier_figure(table, plan.dataset)
        charts.save(figure, log.folder / "figures" / "frontier.png")
        log.describe(description)
        work.keep_models(set(table["run_id"]))
        log.end("FINISHED", {})
    print_ranking("Networks by parameters", ranking)
    print_next(tracker.address(work.parent, children=True))
