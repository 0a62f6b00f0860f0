"""The best configurations of a study, trained again on fresh seeds, and the winner among them.

A sweep's best trial is partly luck: of many noisy scores the highest is too high. Fresh seeds, the same for every
candidate, are not selected on.
"""

import hashlib
import json
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import TrialState

from digit_study.config import space
from digit_study.config.study_config import StudyConfig
from digit_study.data.digits import load_digits
from digit_study.report.figures import charts
from digit_study.stats.metrics import unread
from digit_study.stats.race import (
    ACCURACY_COLUMNS,
    FIRST,
    MOST_SEEDS,
    POWER,
    Gap,
    confirmed_ranking,
)
from digit_study.stats.ranking import Group
from digit_study.study import results as report
from digit_study.study.outcomes import RUN_ID
from digit_study.study.search import kept_elsewhere, parent_of
from digit_study.study.seed_race import Confirmation, parent_run, train
from digit_study.study.storage import (
    DATA_PATH,
    OVERRIDES,
    UID,
    StoredStudy,
    exclusive,
    find_study,
    refuse_changes,
)
from digit_study.study.study_plan import StudyPlan, address, plan_study
from digit_study.support import console
from digit_study.support.messages import StudyError
from digit_study.tracking import database as stores
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.tracking import views
from digit_study.tracking.uploader import BackgroundUploader
from digit_study.trial.protocol import ENGINES, Engine, EngineContext

#: Far from the seeds of a sweep's trials, so that a confirmation never meets one that was selected on.
FIRST_SEED = 1_000_000
KIND = "confirmation"
FIGURES = ["figures/confirmation.png", "figures/unread.png", "tables/seeds.csv"]


def plan_confirmation(
    arguments: Sequence[str], study: StudyConfig
) -> tuple[StudyPlan, StoredStudy]:
    """Rebuild a study from what its storage holds and what is typed now; raises StudyError if it were not the same."""
    found = find_study(study)
    attributes = found.study.user_attrs
    place = (
        [f"data.path={json.dumps(path)}"] if (path := attributes.get(DATA_PATH)) is not None else []
    )
    plan = plan_study([*attributes[OVERRIDES], *place, *arguments])
    refuse_changes(found.study, plan.study, plan.run)
    return plan, found


def confirm(
    plan: StudyPlan,
    stored: StoredStudy,
    open_engine: Callable[[EngineContext], Engine] | None = None,
) -> str:
    """Train every candidate on every seed, rank them, and name the winner; returns the id of the winner's run.

    Raises StudyError if nothing can be confirmed, or runs failed.
    """
    search, name = plan.study.search, plan.study.study
    with exclusive(name, "confirm", "is being confirmed"):
        engine = (open_engine or ENGINES[search.engine])(plan.context)
        stores.prepare_store(plan.uri)
        with BackgroundUploader(plan.uri, search.outage_timeout) as uploader:
            work = _prepare(plan, stored)
            winner = _walk(work, engine, uploader)
    if failures := work.failures():
        raise StudyError(
            "\n".join([f"{len(failures)} runs of the confirmation failed:", *failures])
        )
    return winner


def _walk(work: Confirmation, engine: Engine, uploader: BackgroundUploader) -> str:
    """The parent run, from its beginning to its end; returns the id of the winner's run."""
    name = work.plan.study.study
    told = f"interrupted: the same command goes on with the confirmation of '{name}'"
    with parent_run(work, told) as log:
        _describe(work, log, None)
        train(work, engine)
        uploader.wait()
        return _conclude(work)


def _prepare(plan: StudyPlan, stored: StoredStudy) -> Confirmation:
    """Choose the candidates, and find the parent run of the same confirmation again, or create it."""
    name, wanted = plan.study.study, plan.study.confirm
    if parent_of(plan, stored) is None:
        raise kept_elsewhere(plan)
    board = report.leaderboard(plan, stored)
    if board.empty:
        remedy = f"go on with python sweeps/optuna_search.py study={name}"
        raise StudyError(
            f"a confirmation needs finished trials, but study '{name}' has none that keeps the constraints: {remedy}"
        )
    complete = {trial.user_attrs.get(RUN_ID): trial for trial in stored.trials(TrialState.COMPLETE)}
    names, configs, searched = {}, {}, {}
    for run_id, accuracy in (
        board[["run_id", "val_accuracy"]].head(wanted.top).itertuples(index=False)
    ):
        trial = complete[run_id]
        key = hashlib.sha256(space.fingerprint(trial.params).encode()).hexdigest()[:12]
        names[key] = report.trial_name(trial, plan)
        configs[key] = space.apply(trial.params, plan.overrides, plan.run)
        searched[key] = float(accuracy)
    most = wanted.fixed or wanted.max_seeds
    seeds = [FIRST_SEED + 1000 * plan.study.search.seed + number for number in range(most)]
    asked = seeds if wanted.fixed else ["race", *seeds]
    content = json.dumps([stored.study.user_attrs[UID], sorted(configs), asked, wanted.prefer])
    known = {"kind": KIND, "confirmation.key": hashlib.sha256(content.encode()).hexdigest()[:16]}
    parent = lookup.find_run(plan.uri, known)
    if parent is None or not run_log.reopen_run(plan.uri, parent):
        tags = {**views.INITIAL, "study": name, **known}
        parent = run_log.create_run(
            plan.run, plan.uri, plan.dataset, f"confirmation of {name}", **tags
        )
    return Confirmation(
        plan, names, configs, searched, len(board), seeds, wanted.fixed or FIRST, parent
    )


def _conclude(work: Confirmation) -> str:
    """Rank the candidates, track and print the ranking, keep the winner's model alone; returns the winner's run id."""
    log, interim = run_log.RunLog(work.plan.uri, work.parent), work.interim()
    if "in" not in interim.states:
        raise StudyError("\n".join(["no candidate finished on all seeds:", *work.failures()]))
    counted = [
        work.finished(key)[:count] for key, count in zip(work.names, interim.seeds, strict=True)
    ]
    groups = [Group(name, runs) for name, runs in zip(work.names.values(), counted, strict=True)]
    ranking = confirmed_ranking(groups, interim, work.plan.study.confirm.prefer)
    searched = ranking["name"].map({name: work.searched[key] for key, name in work.names.items()})
    ranking = ranking.assign(sweep_val_accuracy=searched, optimism=searched - ranking["mean"])
    winner = ranking[ranking["winner"]].iloc[0]
    rows = [
        (one.name, seed, run.metrics["val_accuracy"], run.run_id)
        for one in groups
        for seed, run in zip(work.seeds, one.runs, strict=False)
        if one.name in set(ranking["name"])
    ]
    seeds = pd.DataFrame(rows, columns=["candidate", "seed", "val_accuracy", "run_id"])
    charts.write_table(seeds, log.folder, "seeds")
    charts.write_table(ranking, log.folder, "confirmation")
    selected = ranking[
        ranking["name"] == next(iter(work.names.values()))
    ]  # by the sweep; it may have been lost
    lessons = [*_optimism(selected, work.configurations), *_more_seeds(ranking, groups)]
    figure = confirmation_figure(seeds, ranking.rename(columns={"name": "candidate"}), lessons)
    charts.save(figure, log.folder / "figures" / "confirmation.png")
    _write_errors(work, [run.run_id for one in groups for run in one.runs], log)
    _describe(work, log, ranking.rename(columns=ACCURACY_COLUMNS), lessons)
    log.tags({"winner.run_id": str(winner["run_id"]), "winner.name": str(winner["name"])})
    optimism = {"sweep_optimism": selected["optimism"].iloc[0]} if len(selected) else {}
    log.best_of(f"{len(ranking)} candidates", dict(winner.rename(ACCURACY_COLUMNS)))
    log.metrics(
        {f"winner_{name}": winner[end] for end, name in ACCURACY_COLUMNS.items()} | optimism
    )
    work.keep_models([str(winner["run_id"])])
    _print(work, log, ranking, lessons)
    return str(winner["run_id"])


def _write_errors(work: Confirmation, run_ids: Sequence[str], log: run_log.RunLog) -> None:
    """Table and picture of the validation images that none of the networks reads."""
    uri = work.plan.uri
    read = lookup.each(uri, lambda run_id: report.evaluation(uri, run_id), run_ids)
    if known := [one for one in read if one is not None]:
        digits, table = load_digits(work.plan.run.data), unread(known)
        charts.write_table(table, log.folder, "unread")
        figure = charts.unread_figure(
            table, digits.validation_images, digits.validation_index, len(known)
        )
        charts.save(figure, log.folder / "figures" / "unread.png")


def _optimism(selected: pd.DataFrame, configurations: int) -> list[str]:
    """By how much the sweep's best was better there than on fresh seeds, as a sentence; none if there is no row."""
    found = []
    for row in selected.to_dict("records"):
        then, now = console.percent(row["sweep_val_accuracy"]), console.percent(row["mean"])
        where = f"{row['name'].split(':')[0]}, best of {configurations}: {then}; on {row['seeds']} fresh seeds {now}"
        found.append(f"optimism of the sweep: {100 * row['optimism']:+.2f} points ({where})")
    return found


def _more_seeds(ranking: pd.DataFrame, groups: Sequence[Group]) -> list[str]:
    """How many more seeds would tell the first from the second, as a sentence; none if there is one candidate."""
    if len(ranking) == 1:
        return []
    pair = [one for name in ranking["name"][:2] for one in groups if one.name == name]
    seeds = min(len(one.runs) for one in pair)
    gap = Gap.of(*(np.array([run.correct for run in one.runs[:seeds]]) for one in pair))
    both = " from ".join(one.name.split(":")[0] for one in pair)
    apart = f"{100 * gap.difference:.2f} points"
    if not ranking["tied"][1]:
        return [f"these seeds tell {both}: {apart}"]
    more = gap.more_seeds()
    if more is None:
        return [
            f"no number of seeds can tell {both}: {gap.images:,} images are too few for {apart}"
        ]
    count = f"more than {MOST_SEEDS:,}" if more + seeds > MOST_SEEDS else f"about {more}"
    return [
        f"{count} more seed{'s' * (more > 1)} each would tell {both} ({apart}, power {100 * POWER:.0f} %)"
    ]


def _print(
    work: Confirmation, log: run_log.RunLog, ranking: pd.DataFrame, lessons: Sequence[str]
) -> None:
    """Print the ranking, what it teaches, the winner, and what to do next."""
    study, terminal, winner = work.plan.study, console.console(), ranking[ranking["winner"]].iloc[0]
    title, note = (
        f"Confirmation of study '{study.study}'",
        " (Tukey over seeds, or Holm over images); * the winner",
    )
    is_even = ranking["seeds"].nunique() == 1
    note += "" if is_even else "; those with more seeds first"
    terminal.print(
        console.ranked_table(
            title, ranking.rename(columns=ACCURACY_COLUMNS), console.CANDIDATES, note
        )
    )
    is_smallest = study.confirm.prefer == "smallest"
    why = f"the highest mean{'' if is_even else ' of those with the most seeds'}"
    why = "the smallest of those that cannot be told from the best" if is_smallest else why
    networks = f"{ranking['seeds'].sum()} networks were compared"
    winner_text = f"winner: {winner['name']} ({why}), run {winner['run_id']}"
    mixed = report.mixture(work.plan.uri, work.parent, {run.run_id for run in work.runs.values()})
    terminal.print(
        "\n".join([*lessons, networks, *filter(None, [mixed]), winner_text]), soft_wrap=True
    )
    where = address(study.study, {"tracking.uri": work.plan.run.tracking.uri})
    view = views.address(log.client, log.uri, log.run_id, children=True)
    terminal.print(f"next:\n  python sweeps/promote.py {where}\n  {view}", soft_wrap=True)


def _describe(
    work: Confirmation,
    log: run_log.RunLog,
    ranking: pd.DataFrame | None,
    lessons: Sequence[str] = (),
) -> None:
    """Put the winner, the ranking and what failed on the parent's page; without a ranking it goes on."""
    study, keys = work.plan.study, ["training.seed", *(one.key for one in work.plan.dimensions)]
    asked = (
        f"Asked: are the {len(work.names)} best configurations of study '{study.study}' as good on "
    )
    count = (
        f"{len(work.seeds)}"
        if work.first == len(work.seeds)
        else f"{work.first} to {len(work.seeds)}"
    )
    asked += f"{count} fresh seeds; the winner is the {study.confirm.prefer} among ties"
    where = address(study.study, {"tracking.uri": work.plan.run.tracking.uri})
    if ranking is None:
        log.describe(
            views.RunDescription(
                "no winner yet", asked, command=f"python sweeps/confirm.py {where}"
            ),
            keys,
        )
        return
    winner, figures = ranking[ranking["winner"]].iloc[0], FIGURES
    mean = f"{console.accuracy_with_interval(dict(winner))}, mean of {winner['seeds']} fresh seeds"
    answer = f"{mean}, is the accuracy of the winner, {winner['name']}"
    asked = ". ".join([asked, *lessons])
    given = (
        ranking,
        console.CANDIDATES,
        work.failures()[:5],
        figures,
        f"python sweeps/promote.py {where}",
    )
    log.describe(views.RunDescription(answer, asked, *given), keys)


def confirmation_figure(
    seeds: pd.DataFrame, summary: pd.DataFrame, lessons: Sequence[str] = ()
) -> Figure:
    """Draw every candidate over its seeds, in the order of the ranking; accuracies lie in [0, 1].

    Columns of ``seeds`` are candidate, seed, val_accuracy; of ``summary`` candidate, mean, low and high (its 95 %
    interval), winner, tied, parameters, sweep_val_accuracy, and the standard deviations sd_seeds, sd_images, sd_both.
    """
    if summary.empty:
        return charts.message_figure(
            "Confirmation over seeds", "No candidate has been confirmed yet."
        )
    ranked = summary.set_index("candidate")
    each, counted = ("", "candidate") if len(ranked) == 1 else (" each", "candidates")
    counts = seeds.groupby("candidate").size()
    count = (
        f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    )
    count = f"{count} fresh seed{'s' * (count != '1')}"
    title = (
        f"{len(ranked)} {counted} on {count}{each}, {len(seeds)} network{'s' * (len(seeds) > 1)}"
    )
    looks = [_look(won, tied) for won, tied in zip(ranked["winner"], ranked["tied"], strict=True)]
    ends = 100 * ranked[["mean", "low", "high"]].to_numpy(dtype=float).T
    texts = []
    for row in ranked.to_dict("records"):
        noise = [f"{100 * row[f'sd_{name}']:.2f}" for name in ("seeds", "images", "both")]
        noises = f"± {noise[0]} seeds, {noise[1]} images, {noise[2]} both"
        texts.append(f"{row['parameters']:,} parameters\n{noises}")
    figure, axes, shared = charts.interval_figure(title, ranked.index, ends, looks, texts, row=0.75)
    table = seeds.pivot_table(index="candidate", columns="seed", values="val_accuracy").reindex(
        ranked.index
    )
    ring: charts.Look = {
        "color": charts.GREY,
        "lw": 0.5,
        "ms": 6,
        "mfc": "white",
        "mec": charts.GREY,
        "zorder": 1,
    }
    label = "one seed (lines join the same)"
    axes.plot(100 * table.to_numpy(), np.arange(len(table)), "o-", label=label, **ring)
    cross: charts.Look = {"marker": "X", "color": charts.ORANGE, "ms": 9, "ls": "", "zorder": 4}
    axes.plot(
        100 * ranked["sweep_val_accuracy"], np.arange(len(table)), label="in the sweep", **cross
    )
    heading = [textwrap.fill(text[0].upper() + text[1:], 95) for text in lessons]
    charts.style_axes(
        axes,
        "validation accuracy (%), 95 % interval of the mean",
        "candidate",
        "\n".join([*heading, *filter(None, [shared])]),
    )
    charts.legend_below(figure, axes)
    return figure


def _look(won: bool, tied: bool) -> charts.Look:
    if won:
        return {"color": charts.GREEN, "marker": "*", "ms": 16, "label": "winner"}
    if tied:
        return {
            "color": charts.BLUE,
            "marker": "D",
            "ms": 8,
            "label": "cannot be told from the best",
        }
    return {
        "color": charts.RED,
        "marker": "D",
        "ms": 8,
        "mfc": "white",
        "label": "worse than the best",
    }
