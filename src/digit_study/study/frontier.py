"""The shipped networks on equal seeds: how well each reads, at how many parameters, and which no smaller one beats."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from digit_study.config import compose
from digit_study.config.run_config import Config
from digit_study.report.figures import charts
from digit_study.stats.race import ACCURACY_COLUMNS, confirmed_ranking
from digit_study.stats.ranking import Group
from digit_study.study.seed_race import Confirmation, parent_run, train
from digit_study.study.storage import exclusive
from digit_study.study.study_plan import StudyPlan, plan_study
from digit_study.support import console
from digit_study.support.messages import StudyError
from digit_study.tracking import database as stores
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.tracking import views
from digit_study.tracking.uploader import BackgroundUploader
from digit_study.trial.protocol import ENGINES

#: Far from the seeds of trials and confirmations, and as far apart as an ensemble may have members.
FIRST_SEED, SEED_STEP = 2_000_000, 100
#: Groups of a run's keys that a command line may set for all networks.
OF_NETWORKS = ("model.", "training.")
#: What An et al. 2020 (arXiv 2008.10400) publish of their ensembles; epochs were chosen on the test set.
PUBLISHED = {"An et al. 2020, vote of three": 0.9987, "An et al. 2020, two layers of votes": 0.9991}

#: Columns of the table in the parent run's description.
COLUMNS = {
    "network": "{name}", "parameters": "{parameters:,.0f}", "minutes": "{minutes:.1f}", "mean [95 %]": "{accuracy}",
    "seeds": "{seeds}", "": "{mark}",
}  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """What is trained: names and configs by what tells their runs from those of others."""

    names: dict[str, str] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)

    def add(self, name: str, config: Config) -> None:
        """Add a network; raises StudyError if another one trains the same."""
        trained = repr((config.data.sha256, config.model, replace(config.training, threads=None)))
        key = hashlib.sha256(trained.encode()).hexdigest()[:12]
        if key in self.names:
            rule = "`frontier.networks` must differ from each other"
            raise StudyError(
                f"{rule}, got {self.names[key]} and {name}, which train the same: drop one"
            )
        self.names[key], self.configs[key] = name, config


def plan_frontier(arguments: Sequence[str]) -> tuple[StudyPlan, Networks]:
    """Check a command line; the plan by which the networks are trained, and these. Raises StudyError."""
    plan = plan_study(["study=frontier", *arguments])
    machine, networks = plan.run.training, Networks()
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
        training = replace(own.training, threads=machine.threads, precision=machine.precision)
        networks.add(name, replace(plan.run, model=own.model, training=training))
    return plan, networks


def measure(plan: StudyPlan, networks: Networks) -> Confirmation:
    """Train every network on every seed, but for what an earlier start has finished; raises StudyError if one fails."""
    with exclusive(plan.study.study, "confirm", "is being trained"):
        engine = ENGINES[plan.study.search.engine](plan.context)
        stores.prepare_store(plan.uri)
        with BackgroundUploader(plan.uri, plan.study.search.outage_timeout) as uploader:
            work = _prepare(plan, networks)
            with parent_run(work, "interrupted: the same command goes on"):
                train(work, engine)
                uploader.wait()
    if failures := work.failures():
        raise StudyError("\n".join([f"{len(failures)} runs of the frontier failed:", *failures]))
    return work


def _prepare(plan: StudyPlan, networks: Networks) -> Confirmation:
    """Find the parent run of the frontier on these digits again, or create it."""
    count = plan.study.frontier.seeds
    seeds = [FIRST_SEED + SEED_STEP * number for number in range(count)]
    # further networks or seeds go beneath the same parent
    known = {
        "kind": "frontier",
        "study": plan.study.study,
        "dataset.sha256": str(plan.run.data.sha256),
    }
    parent = lookup.find_run(plan.uri, known)
    if parent is None or not run_log.reopen_run(plan.uri, parent):
        parent = run_log.create_run(
            plan.run, plan.uri, plan.dataset, "frontier", **views.INITIAL, **known
        )
    return Confirmation(plan, networks.names, networks.configs, {}, 0, seeds, count, parent)


def table_of(work: Confirmation, evidence: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """One row a network, by parameters: name, run_id (of the first seed), parameters, minutes, mean, low, high, front.

    ``front``: no network with as few parameters reads better. ``minutes`` are those of one network. ``test_accuracy``
    and its ends are those on the sealed images, NaN unless ``evidence`` has them by the id of the run.
    """
    groups = [Group(name, work.finished(key)) for key, name in work.names.items()]
    ranking = confirmed_ranking(groups, work.interim(), "accuracy").set_index("name")
    ranking["run_id"] = {one.name: one.runs[0].run_id for one in groups}
    ranking["minutes"] = {one.name: one.mean("training_seconds") / 60 for one in groups}
    table = ranking.sort_values(["parameters", "mean"], ascending=[True, False]).reset_index()
    table["front"] = table["mean"] > table["mean"].cummax().shift(fill_value=0.0)
    for end in ("", "_low", "_high"):
        found = [
            evidence.get(run_id, {}).get(f"test_accuracy{end}", "nan") for run_id in table["run_id"]
        ]
        table[f"test_accuracy{end}"] = [float(value) for value in found]
    columns = [
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
    ]
    return table[[*columns, "test_accuracy", "test_accuracy_low", "test_accuracy_high"]]


def conclude(work: Confirmation, table: pd.DataFrame) -> None:
    """Draw, track and print the table; only the models of the first seed are kept."""
    plan = work.plan
    with BackgroundUploader(plan.uri, plan.study.search.outage_timeout):
        log = run_log.RunLog(plan.uri, work.parent)
        charts.write_table(table, log.folder, "frontier")
        charts.save(frontier_figure(table, plan.dataset), log.folder / "figures" / "frontier.png")
        best = table.sort_values("mean").iloc[-1]
        reads = console.with_interval(*best[["mean", "low", "high"]])
        answer = f"{reads}, mean of {best['seeds']} seeds, is the best validation accuracy, of {best['name']}"
        asked = f"Asked: how well does each of {len(table)} networks read {plan.dataset}, and which does no smaller beat"
        figures = ["figures/frontier.png"]
        log.describe(
            views.RunDescription(
                answer, asked, table.rename(columns=ACCURACY_COLUMNS), COLUMNS, figures=figures
            )
        )
        work.keep_models(set(table["run_id"]))
        log.end("FINISHED", {})
    terminal = console.console()
    terminal.print(_printed(table))
    terminal.print(
        f"next:\n  {views.address(log.client, log.uri, log.run_id, children=True)}", soft_wrap=True
    )


def _printed(table: pd.DataFrame) -> Table:
    shown = Table(title="Networks by parameters", title_justify="left", caption_justify="left")
    shown.caption = (
        "^ no network as small reads better; minutes of one network; sealed images: the first seed"
    )
    for heading in (
        "network",
        "parameters",
        "minutes",
        "validation, mean [95 %]",
        "",
        "sealed images [95 %]",
    ):
        shown.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for row in table.to_dict("records"):
        test = [row[f"test_accuracy{end}"] for end in ("", "_low", "_high")]
        reads = console.with_interval(row["mean"], row["low"], row["high"])
        cells = (
            row["name"],
            f"{row['parameters']:,}",
            f"{row['minutes']:.1f}",
            reads,
            "^" if row["front"] else "",
        )
        shown.add_row(*cells, "" if np.isnan(test[0]) else console.with_interval(*test))
    return shown


def frontier_figure(table: pd.DataFrame, dataset: str) -> Figure:
    """Draw accuracy against parameters, with intervals and the Pareto front; see :func:`table_of` for the columns."""
    figure = charts.new_figure(11, 6.5, f"How well networks of each size read {dataset}")
    axes = figure.subplots()
    front = table[table["front"]]
    ends = [charts.GREY, charts.BLUE]
    for is_front, rows in table.groupby("front"):
        values = 100 * rows[["mean", "low", "high"]].to_numpy(float).T
        look: charts.Look = {
            "marker": "o",
            "ms": 8,
            "ls": "",
            "capsize": 4,
            "color": ends[bool(is_front)],
        }
        seeds = " to ".join(
            str(count) for count in sorted({rows["seeds"].min(), rows["seeds"].max()})
        )
        label = f"mean of {seeds} seeds on validation images, 95 % interval: "
        label += "no smaller one is as good" if is_front else "a smaller one is as good"
        axes.errorbar(
            rows["parameters"], values[0], yerr=np.abs(values[1:] - values[0]), label=label, **look
        )
    axes.plot(
        front["parameters"],
        100 * front["mean"],
        drawstyle="steps-post",
        color=charts.BLUE,
        lw=1,
        alpha=0.6,
    )
    sealed = table.dropna(subset=["test_accuracy"])
    if len(sealed):
        star: charts.Look = {"marker": "X", "ms": 9, "ls": "", "color": charts.ORANGE, "zorder": 4}
        axes.plot(
            sealed["parameters"],
            100 * sealed["test_accuracy"],
            label="first seed, sealed test images",
            **star,
        )
    axes.set_xscale("log")
    # at equal distances beside the axes, by accuracy: beside their points names would cover each other
    ordered = table.sort_values("mean").to_dict("records")
    for row, height in zip(ordered, np.linspace(0.04, 0.8, len(ordered)), strict=True):
        line = {"arrowstyle": "-", "color": charts.GREY, "lw": 0.7, "relpos": (0, 0.5)}
        text, at = (
            f"{row['name']}  {100 * row['mean']:.2f} %",
            (row["parameters"], 100 * row["mean"]),
        )
        axes.annotate(
            text,
            at,
            (1.02, height),
            "data",
            "axes fraction",
            line,
            fontsize=charts.TICK,
            va="center",
        )
    for name, accuracy in PUBLISHED.items():
        axes.axhline(100 * accuracy, color=charts.GREEN, lw=1, ls="--")
        text, at = f"{name}: {100 * accuracy:.2f} %, chosen on the test set", (0.01, 100 * accuracy)
        axes.text(
            *at,
            text,
            color=charts.GREEN,
            fontsize=charts.TICK,
            va="bottom",
            transform=axes.get_yaxis_transform(),
        )
    axes.grid(alpha=0.3)
    charts.style_axes(axes, "parameters", "accuracy (%)")
    charts.legend_below(figure, axes, columns=1)
    return figure
