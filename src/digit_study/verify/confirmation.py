"""The best configurations of a study, trained again on fresh seeds, and the winner among them.

A sweep's best trial is partly luck: of many noisy scores the highest is too high. Fresh seeds, the same for every
candidate, are not selected on.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import TrialState

from digit_study.config.run import Config
from digit_study.config.study import StudyConfig
from digit_study.data.digits import load_digits
from digit_study.engine.protocol import ENGINES, Engine, Event, Limits, TrialResult
from digit_study.evaluation import charts
from digit_study.evaluation.ranking import Candidate, Group, confirmed_ranking
from digit_study.search import report, space
from digit_study.search.outcomes import RUN_ID
from digit_study.search.plan import StudyPlan, address, plan_study
from digit_study.search.run import kept_elsewhere, parent_of
from digit_study.search.study import DATA_PATH, OVERRIDES, UID, StoredStudy, exclusive, find_study, refuse_changes
from digit_study.search.world import World
from digit_study.terminal import console
from digit_study.terminal.messages import StudyError, first_line
from digit_study.terminal.progress import confirmation_progress
from digit_study.terminal.signals import Interrupted, raise_if_interrupted
from digit_study.tracking import lookup, run_log, stores, views
from digit_study.tracking.courier import Courier
from digit_study.tracking.delivery import StoreFault

#: Far from the seeds of a sweep's trials, so that a confirmation never meets one that was selected on.
FIRST_SEED = 1_000_000
KIND = "confirmation"
#: Columns of the ranking as tables of accuracies name them.
ENDS = {"mean": "val_accuracy", "low": "val_accuracy_low", "high": "val_accuracy_high"}
#: Fingerprint of a candidate, and a seed.
Job = tuple[str, int]


@dataclass
class Confirmation:
    """A confirmation that goes on."""

    plan: StudyPlan  # of the study that is confirmed
    names: dict[str, str]  # candidates by fingerprint, best first
    configs: dict[str, Config]  # what each candidate trains
    seeds: list[int]  # the same for every candidate
    parent: str  # id of the parent run
    runs: dict[Job, Candidate] = field(default_factory=dict)  # finished ones
    failures: list[str] = field(default_factory=list)  # what went wrong, one sentence each

    def name(self, job: Job) -> str:
        """Candidate and seed, for a person."""
        return f"{self.names[job[0]]} seed {job[1]}"


def plan_confirmation(arguments: Sequence[str], study: StudyConfig) -> tuple[StudyPlan, StoredStudy]:
    """Rebuild a study from what its storage holds and what is typed now; raises StudyError if it were not the same."""
    found = find_study(study)
    attributes = found.study.user_attrs
    place = [f"data.path={json.dumps(path)}"] if (path := attributes.get(DATA_PATH)) is not None else []
    plan = plan_study([*attributes[OVERRIDES], *place, *arguments])
    refuse_changes(found.study, plan.study, plan.run)
    return plan, found


def confirm(plan: StudyPlan, stored: StoredStudy, open_engine: Callable[[Limits], Engine] | None = None) -> str:
    """Train every candidate on every seed, rank them, and name the winner; returns the id of the winner's run.

    Raises StudyError if nothing can be confirmed, or runs failed.
    """
    search, name = plan.study.search, plan.study.study
    with exclusive(name, "confirm", "is being confirmed"):
        limits = Limits(plan.workers, search.trial_timeout, search.trial_memory)
        engine = (open_engine or ENGINES[search.engine])(limits)
        stores.prepare_store(plan.uri)
        with Courier(plan.uri, search.patience) as courier:
            work = _prepare(plan, stored)
            winner = _walk(work, engine, courier)
    if work.failures:
        raise StudyError("\n".join([f"{len(work.failures)} runs of the confirmation failed:", *work.failures]))
    return winner


def _walk(work: Confirmation, engine: Engine, courier: Courier) -> str:
    """The parent run, from its beginning to its end; returns the id of the winner's run."""
    plan, status = work.plan, "FAILED"
    name, uri = plan.study.study, plan.uri
    try:
        log, digits = run_log.RunLog(uri, work.parent), load_digits(plan.run.data)
        log.config(plan.run)
        log.dataset(digits.name, digits.sha256, digits.counts())
        _describe(work, log, None)
        run_log.close_children(uri, work.parent, "KILLED")
        for run_id, tags in run_log.children(uri, work.parent, "attributes.status = 'FINISHED'"):
            key, seed = tags.get("candidate", ""), int(tags.get("seed", -1))
            if key in work.names and seed in work.seeds:  # an earlier start of this confirmation finished it
                found = report.candidate(plan, work.names[key], run_id)
                work.runs |= {} if found is None else {(key, seed): found}
        _train(work, engine)
        courier.wait()
        winner = _conclude(work)
        status = "FINISHED" if not work.failures else "FAILED"
    except Interrupted:
        status = "KILLED"
        console.print_error(f"interrupted: the same command goes on with the confirmation of '{name}'")
        raise
    finally:
        run_log.close_children(uri, work.parent, "KILLED")
        run_log.RunLog(uri, work.parent).end(status, {"study": name})
    return winner


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
    names, configs = {}, {}
    for run_id in board["run_id"].head(wanted.top):
        trial = complete[run_id]
        key = hashlib.sha256(space.fingerprint(trial.params).encode()).hexdigest()[:12]
        names[key] = report.trial_name(trial, plan)
        configs[key] = space.apply(trial.params, plan.overrides, plan.run)
    seeds = [FIRST_SEED + 1000 * plan.study.search.seed + number for number in range(wanted.seeds)]
    content = json.dumps([stored.study.user_attrs[UID], sorted(configs), seeds, wanted.prefer])
    known = {"kind": KIND, "confirmation.key": hashlib.sha256(content.encode()).hexdigest()[:16]}
    parent = lookup.find_run(plan.uri, known)
    if parent is None or not run_log.reopen_run(plan.uri, parent):
        parent = run_log.create_run(plan.run, plan.uri, plan.dataset, f"confirmation of {name}", study=name, **known)
    return Confirmation(plan, names, configs, seeds, parent)


def _train(work: Confirmation, engine: Engine) -> None:
    """Run what is missing; a run that was killed from outside runs once more, one that the world ended waits for it."""
    waiting = [(key, seed) for seed in work.seeds for key in work.configs if (key, seed) not in work.runs]
    jobs: dict[int, tuple[Job, str]] = {}  # and the id of the run, by number
    died: set[Job] = set()
    world, number = World(work.plan), 0
    with confirmation_progress(len(work.configs) * len(work.seeds), len(work.runs)) as progress:
        try:
            while waiting or jobs:
                raise_if_interrupted()
                while waiting and engine.free and world.is_well() and (run_id := _create(work, waiting[0], world)):
                    number, job = number + 1, waiting.pop(0)
                    jobs[number] = job, run_id
                    progress.begin(number, work.name(job), work.configs[job[0]].training.epochs)
                    engine.submit(number, _config(work, job), run_id)
                for event in engine.events():
                    if event.kind in ("steps", "epoch"):
                        progress.follow(event.key, event.kind, event.content)
                        if event.kind == "epoch":
                            engine.answer(event.key, True)
                        continue
                    job, run_id = jobs.pop(event.key)
                    if event.kind == "world" or (event.kind == "died" and job not in died):
                        waiting.append(job)
                        run_log.close_run(work.plan.uri, run_id, "FAILED", str(event.content))
                        progress.end(event.key, f"{work.name(job)}: {event.content}; it runs again", False)
                        if event.kind == "died":
                            died.add(job)
                        else:
                            world.hit(str(event.content))
                    else:
                        progress.end(event.key, f"{work.name(job)}: {_record(work, job, run_id, event)}", True)
        finally:
            engine.stop()


def _config(work: Confirmation, job: Job) -> Config:
    """What a run trains."""
    plan, (key, seed) = work.plan, job
    config = work.configs[key]
    experiment = run_log.experiment_name(plan.run, plan.dataset)
    place = replace(config.tracking, parent_run_id=work.parent, experiment=experiment, save_model=True)
    return replace(config, training=replace(config.training, seed=seed), tracking=place)


def _create(work: Confirmation, job: Job, world: World) -> str | None:
    """Create the run of a candidate and a seed; returns its id, None, known to the world, if the store is gone."""
    tags = {"kind": "confirmation-run", "study": work.plan.study.study, "candidate": job[0], "seed": str(job[1])}
    try:
        return run_log.create_run(_config(work, job), work.plan.uri, work.plan.dataset, work.name(job), **tags)
    except StoreFault as fault:
        world.hit(first_line(fault))
        return None


def _record(work: Confirmation, job: Job, run_id: str, event: Event) -> str:
    """Keep the result or the failure of a run; returns how it ended, for a person."""
    result = event.content
    if isinstance(result, TrialResult):
        correct = result.evaluation.correct[result.evaluation.index.argsort()]
        work.runs[job] = Candidate(work.names[job[0]], run_id, result.metrics, correct, str(work.plan.run.data.sha256))
        return console.accuracy_with_interval(result.metrics)
    work.failures.append(f"{work.name(job)}: {result}")
    run_log.close_run(work.plan.uri, run_id, "FAILED", f"{event.kind}: {result}")
    return f"FAILED ({event.kind})"


def _conclude(work: Confirmation) -> str:
    """Rank the candidates, track and print the ranking, keep the winner's model alone; returns the winner's run id."""
    study, log = work.plan.study, run_log.RunLog(work.plan.uri, work.parent)
    whole = [key for key in work.names if all((key, seed) in work.runs for seed in work.seeds)]
    groups = [Group(work.names[key], [work.runs[key, seed] for seed in work.seeds]) for key in whole]
    if not groups:
        raise StudyError("\n".join(["no candidate finished on all seeds:", *work.failures]))
    ranking = confirmed_ranking(groups, study.confirm.prefer)
    winner = ranking[ranking["winner"]].iloc[0]
    ended = [(seed, run) for (key, seed), run in work.runs.items() if key in whole]
    rows = [(run.name, seed, run.metrics["val_accuracy"], run.run_id) for seed, run in ended]
    seeds = pd.DataFrame(rows, columns=["candidate", "seed", "val_accuracy", "run_id"])
    charts.write_table(seeds, log.folder, "seeds")
    charts.write_table(ranking, log.folder, "confirmation")
    figure = confirmation_figure(seeds, ranking.rename(columns={"name": "candidate"}))
    charts.save(figure, log.folder / "figures" / "confirmation.png")
    _describe(work, log, ranking.rename(columns=ENDS))
    log.tags({"winner.run_id": str(winner["run_id"]), "winner.name": str(winner["name"])})
    log.metrics({"winner_val_accuracy": winner["mean"]})
    for run in work.runs.values():
        if run.run_id != winner["run_id"]:
            run_log.drop_models(work.plan.uri, run.run_id)
    terminal = console.console()
    title, note = f"Confirmation of study '{study.study}'", " (Tukey over seeds, or Holm over images); * the winner"
    terminal.print(console.ranked_table(title, ranking.rename(columns=ENDS), console.CANDIDATES, note))
    is_smallest = study.confirm.prefer == "smallest"
    why = "the smallest of those that cannot be told from the best" if is_smallest else "the highest mean"
    terminal.print(f"winner: {winner['name']} ({why}), run {winner['run_id']}", soft_wrap=True)
    where = address(study.study, {"tracking.uri": work.plan.run.tracking.uri})
    view = views.address(log.client, log.uri, log.run_id, children=True)
    terminal.print(f"next:\n  python sweeps/promote.py {where}\n  {view}", soft_wrap=True)
    return str(winner["run_id"])


def _describe(work: Confirmation, log: run_log.RunLog, ranking: pd.DataFrame | None) -> None:
    """Put the winner, the ranking and what failed on the parent's page; without a ranking it goes on."""
    study, keys = work.plan.study, ["training.seed", *(one.key for one in work.plan.dimensions)]
    asked = f"Asked: are the {len(work.names)} best configurations of study '{study.study}' as good on "
    asked += f"{len(work.seeds)} fresh seeds; the winner is the {study.confirm.prefer} among ties"
    where = address(study.study, {"tracking.uri": work.plan.run.tracking.uri})
    if ranking is None:
        log.describe(views.Note("no winner yet", asked, command=f"python sweeps/confirm.py {where}"), keys)
        return
    winner, figures = ranking[ranking["winner"]].iloc[0], ["figures/confirmation.png", "tables/seeds.csv"]
    mean = f"{console.accuracy_with_interval(dict(winner))}, mean of {winner['seeds']} fresh seeds"
    answer = f"{mean}, is the accuracy of the winner, {winner['name']}"
    given = ranking, console.CANDIDATES, work.failures[:5], figures, f"python sweeps/promote.py {where}"
    log.describe(views.Note(answer, asked, *given), keys)


def confirmation_figure(seeds: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Draw every candidate over its seeds, the best mean on top; accuracies lie in [0, 1].

    Columns of ``seeds`` are candidate, seed, val_accuracy; of ``summary`` candidate, mean, low and high (its 95 %
    interval), winner, parameters.
    """
    if summary.empty:
        return charts.message_figure("Confirmation over seeds", "No candidate has been confirmed yet.")
    ranked = summary.sort_values("mean", ascending=False, kind="stable").set_index("candidate")
    title = f"{len(ranked)} candidates, each trained with {seeds['seed'].nunique()} seeds"
    other: charts.Look = {"color": charts.BLUE, "marker": "D", "ms": 8, "label": "mean, 95 % interval"}
    winner: charts.Look = {"color": charts.GREEN, "marker": "*", "ms": 16, "label": "winner"}
    looks = [winner if won else other for won in ranked["winner"]]
    ends = 100 * ranked[["mean", "low", "high"]].to_numpy(dtype=float).T
    texts = [f"{count:,} parameters" for count in ranked["parameters"]]
    figure, axes, shared = charts.interval_figure(title, ranked.index, ends, looks, texts, row=0.75)
    table = seeds.pivot_table(index="candidate", columns="seed", values="val_accuracy").reindex(ranked.index)
    ring: charts.Look = {"color": charts.MUTED, "lw": 1, "ms": 6, "mfc": "white", "mec": charts.GREY, "zorder": 1}
    label = "one seed (a line joins the same seed)"
    axes.plot(100 * table.to_numpy(), np.arange(len(table)), "o-", label=label, **ring)
    charts.style_axes(axes, "validation accuracy (%)", "candidate", shared)
    charts.legend_below(figure, axes)
    return figure
