"""The best configurations of a study, trained again on fresh seeds, and the winner among them.

A sweep's best trial is partly luck: of many noisy scores the highest is too high. Fresh seeds, the same for every
candidate, are not selected on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from digit_study.config.run import Config
from digit_study.config.study import StudyConfig, objectives_of
from digit_study.engine import process as worker_processes
from digit_study.engine.local import Pool, Worker, in_process
from digit_study.engine.results import TrialResult
from digit_study.evaluation import charts as figures
from digit_study.evaluation.ranking import Candidate, Group, confirmed_ranking
from digit_study.search import space, study_report, study_store, supervision
from digit_study.search.storage import address
from digit_study.search.study_plan import StudyPlan, plan_study
from digit_study.search.study_report import StudyView
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.terminal.signals import Interrupted, insist
from digit_study.tracking import lookups, stores
from digit_study.tracking import run_log as tracking
from digit_study.training import artifacts as report
from digit_study.verify import comparison_figures
from digit_study.verify.confirmation_display import progress

#: Far from the seeds of a sweep's trials, so that a confirmation never meets one that was selected on.
FIRST_SEED = 1_000_000
KIND = "confirmation"


#: Fingerprint of a candidate, and a seed.
Job = tuple[str, int]


@dataclass
class Confirmation:
    """A confirmation that goes on.

    Attributes:
        plan: the study that is confirmed.
        names: candidates by fingerprint, best first.
        configs: what each candidate trains.
        seeds: the same for every candidate.
        parent: id of the parent run.
        runs: finished runs by (fingerprint, seed).
        failures: what went wrong, one sentence each.
    """

    plan: StudyPlan
    names: dict[str, str]
    configs: dict[str, Config]
    seeds: list[int]
    parent: str = ""
    runs: dict[Job, Candidate] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def plan_confirmation(arguments: Sequence[str], study: StudyConfig) -> tuple[StudyPlan, Study]:
    """Rebuild the study as it was searched, from what its storage holds and what is typed now.

    Raises:
        StudyError: no such study, or it would not be the same.
    """
    found = study_store.find_study(study)
    stored = found.user_attrs[study_store.OVERRIDES]
    path = found.user_attrs.get(study_store.DATA_PATH)
    place = [] if path is None else [f"data.path={json.dumps(path)}"]
    plan = plan_study([*stored, *place, *arguments])
    study_store.refuse_changes(found, plan.study, plan.run)
    return plan, found


def confirm(plan: StudyPlan, study: Study, launch: Callable[..., Worker] = in_process) -> str:
    """Train every candidate on every seed, rank them, and name the winner.

    Returns:
        Run id of the winner.

    Raises:
        StudyError: nothing can be confirmed, or runs failed.
    """
    with supervision.alone(plan.study.study, "confirm", "is being confirmed"):
        if launch is in_process:
            worker_processes.warm_up()
        stores.prepare_store(plan.uri)
        work = _prepare(plan, study)
        winner = _confirm(work, study, launch)
    if work.failures:
        raise StudyError("\n".join([f"{len(work.failures)} runs of the confirmation failed:", *work.failures]))
    return winner


def _confirm(work: Confirmation, study: Study, launch: Callable[..., Worker]) -> str:
    plan, status = work.plan, "FAILED"
    work.parent = _parent_run(work, study)
    try:
        tracking.RunLog(plan.uri, work.parent).config(plan.run)
        _recall(work, study)
        _train(work, launch)
        log = tracking.RunLog(plan.uri, work.parent)
        winner = _conclude(work, log)
        status = "FINISHED" if not work.failures else "FAILED"
    except Interrupted:
        status = "KILLED"
        console.complain(f"interrupted: the same command goes on with the confirmation of '{plan.study.study}'")
        raise
    finally:
        tracking.close_children(plan.uri, work.parent, "KILLED")
        tracking.RunLog(plan.uri, work.parent).end(status, {"study": plan.study.study})
    return winner


def _view(plan: StudyPlan, study: Study) -> StudyView:
    return StudyView(
        study, plan.dimensions, objectives_of(plan.study.search), plan.uri, str(plan.run.data.sha256), plan.workers
    )


def _prepare(plan: StudyPlan, study: Study) -> Confirmation:
    if study_report.parent_of(study, plan.uri) is None:
        raise study_report.kept_elsewhere(plan.study.study, plan.uri)
    best = _candidates(_view(plan, study), plan.study.confirm.top)
    configs = {key: space.apply(trial.params, plan.overrides, plan.run) for key, trial in best.items()}
    names = {key: f"{trial.number}: {study_report.name_of(trial, plan.dimensions)}" for key, trial in best.items()}
    seeds = [FIRST_SEED + 1000 * plan.study.search.seed + number for number in range(plan.study.confirm.seeds)]
    return Confirmation(plan, names, configs, seeds)


def _recall(work: Confirmation, study: Study) -> None:
    """Take over what an earlier start of the same confirmation has finished."""
    tracking.close_children(work.plan.uri, work.parent, "KILLED")
    view = _view(work.plan, study)
    for run_id, tags in lookups.finished_children(work.plan.uri, work.parent):
        key = (tags.get("candidate", ""), int(tags.get("seed", -1)))
        if key[0] in work.names and key[1] in work.seeds:
            found = study_report.candidate(view, work.names[key[0]], run_id)
            work.runs |= {} if found is None else {key: found}


def _candidates(view: StudyView, top: int) -> dict[str, FrozenTrial]:
    """The first trial of each of the ``top`` distinct configurations, best first."""
    board = study_report.leaderboard(view)
    if board.empty:
        raise StudyError(
            f"a confirmation needs finished trials, but study '{view.study.study_name}' has none that keeps the "
            f"constraints: go on with python sweeps/optuna_search.py study={view.study.study_name}"
        )
    complete = {trial.user_attrs.get("run_id"): trial for trial in view.trials(TrialState.COMPLETE)}
    chosen = [complete[run_id] for run_id in board["run_id"].head(top)]
    return {hashlib.sha256(space.fingerprint(trial.params).encode()).hexdigest()[:12]: trial for trial in chosen}


def _parent_run(work: Confirmation, study: Study) -> str:
    """Find the parent run of the same confirmation again, or create it."""
    plan = work.plan
    content = json.dumps(
        [study.user_attrs[study_store.UID], sorted(work.configs), work.seeds, plan.study.confirm.prefer]
    )
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    known = lookups.find_run(plan.uri, {"kind": KIND, "confirmation.key": key})
    if known is not None and tracking.reopen_run(plan.uri, known):
        return known
    name = f"confirmation of {plan.study.study}"
    tags = {"kind": KIND, "study": plan.study.study, "confirmation.key": key}
    return tracking.create_run(plan.run, plan.uri, plan.dataset, name, **tags)


def _train(work: Confirmation, launch: Callable[..., Worker]) -> None:
    """Run what is missing; a run whose process was killed from outside runs once more."""
    search = work.plan.study.search
    waiting = [(key, seed) for seed in work.seeds for key in work.configs if (key, seed) not in work.runs]
    pool = Pool(work.plan.workers, search.trial_timeout, search.trial_memory, launch)
    jobs: dict[int, tuple[Job, str]] = {}
    died: set[Job] = set()
    number = 0
    with progress(len(work.configs) * len(work.seeds), len(work.runs)) as shown:
        try:
            while waiting or jobs:
                insist()
                while waiting and pool.free:
                    number, job = number + 1, waiting.pop(0)
                    jobs[number] = (job, _submit(work, pool, number, job))
                    shown.begin(number, _name(work, job), work.configs[job[0]].training.epochs)
                for event in pool.events():
                    if event.kind in ("steps", "epoch"):
                        shown.follow(event.key, event.kind, event.content)
                        pool.answer(event.key, True) if event.kind == "epoch" else None
                        continue
                    job, run_id = jobs.pop(event.key)
                    if event.kind == "died" and job not in died:
                        died.add(job)
                        waiting.append(job)
                        tracking.close_run(work.plan.uri, run_id, "FAILED", str(event.content))
                        shown.end(event.key, f"{_name(work, job)}: {event.content}; it runs again", False)
                    else:
                        _end(work, job, run_id, event.kind, event.content)
                        shown.end(event.key, _told(work, job, event.kind), True)
        finally:
            pool.stop()


def _submit(work: Confirmation, pool: Pool, number: int, job: Job) -> str:
    plan, (key, seed) = work.plan, job
    config = work.configs[key]
    experiment = tracking.experiment_name(plan.run, plan.dataset)
    place = replace(config.tracking, parent_run_id=work.parent, experiment=experiment, save_model=True)
    config = replace(config, training=replace(config.training, seed=seed), tracking=place)
    run_id = tracking.create_run(
        config, plan.uri, plan.dataset, f"{work.names[key]} seed {seed}",
        kind="confirmation-run", study=plan.study.study, candidate=key, seed=str(seed),
    )  # fmt: skip
    pool.submit(number, config, run_id)
    return run_id


def _end(work: Confirmation, job: Job, run_id: str, kind: str, content: TrialResult | str) -> None:
    key, seed = job
    if isinstance(content, TrialResult):
        order = content.evaluation.index.argsort()
        correct = (content.evaluation.predicted == content.evaluation.labels)[order]
        digest = str(work.plan.run.data.sha256)
        work.runs[job] = Candidate(work.names[key], run_id, content.metrics, correct, digest)
        return
    work.failures.append(f"{work.names[key]} seed {seed}: {content}")
    tracking.close_run(work.plan.uri, run_id, "FAILED", f"{kind}: {content}")


def _name(work: Confirmation, job: Job) -> str:
    return f"{work.names[job[0]]} seed {job[1]}"


def _told(work: Confirmation, job: Job, kind: str) -> str:
    accuracy = console.accuracy_with_interval(work.runs[job].metrics) if job in work.runs else f"FAILED ({kind})"
    return f"{_name(work, job)}: {accuracy}"


def _conclude(work: Confirmation, log: tracking.RunLog) -> str:
    groups = [
        Group(name, [work.runs[key, seed] for seed in work.seeds])
        for key, name in work.names.items()
        if all((key, seed) in work.runs for seed in work.seeds)
    ]
    if not groups:
        raise StudyError("\n".join(["no candidate finished on all seeds:", *work.failures]))
    ranking = confirmed_ranking(groups, work.plan.study.confirm.prefer)
    winner = ranking[ranking["winner"]].iloc[0]
    _write(work, ranking, log)
    log.tags({"winner.run_id": str(winner["run_id"]), "winner.name": str(winner["name"])})
    log.metrics({"winner_val_accuracy": winner["mean"]})
    for run in work.runs.values():
        if run.run_id != winner["run_id"]:
            tracking.drop_models(work.plan.uri, run.run_id)
    _say(work, ranking)
    return str(winner["run_id"])


def _write(work: Confirmation, ranking: pd.DataFrame, log: tracking.RunLog) -> None:
    rows = [
        {"candidate": work.names[key], "seed": seed, "val_accuracy": run.metrics["val_accuracy"], "run_id": run.run_id}
        for (key, seed), run in work.runs.items()
    ]
    seeds = pd.DataFrame(rows).query("candidate in @ranking.name")
    report.write_table(seeds, log.folder, "seeds")
    report.write_table(ranking, log.folder, "confirmation")
    picture = comparison_figures.confirmation(seeds, ranking.rename(columns={"name": "candidate"}))
    figures.save(picture, log.folder / "figures" / "confirmation.png")


def _say(work: Confirmation, ranking: pd.DataFrame) -> None:
    terminal = console.console()
    terminal.print(console.confirmation_table(ranking, f"Confirmation of study '{work.plan.study.study}'"))
    winner = ranking[ranking["winner"]].iloc[0]
    why = "the smallest of those that cannot be told from the best"
    if work.plan.study.confirm.prefer == "accuracy":
        why = "the highest mean"
    terminal.print(f"winner: {winner['name']} ({why}), run {winner['run_id']}", soft_wrap=True)
    where = address(work.plan.study.study, {"tracking.uri": work.plan.run.tracking.uri})
    terminal.print(f"next:\n  python sweeps/promote.py {where}", soft_wrap=True)
