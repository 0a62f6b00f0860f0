"""A ``-m`` that was interrupted, found again: the same command trains only what is missing.

It is the same command if the same words are typed, and if every run would have the same bits: the
same config, digits, code, versions and processor. A ``-m`` that came to its end trains anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pandas.errors import ParserError

from digit_study.config.renamed_keys import key_of
from digit_study.stats.metrics import Evaluation, evaluation_from_table
from digit_study.study.run_plan import RunPlan
from digit_study.tracking.pages import INITIAL
from digit_study.tracking.provenance import TECHNICAL
from digit_study.tracking.queries import WEIGHTS
from digit_study.tracking.session import Tracker
from digit_study.tracking.store import StoreFault
from digit_study.trial.checkpoint import fingerprint
from digit_study.trial.events import Finished
from digit_study.trial.protocol import TrialResult

#: Tag of the parent run: fingerprint of its command.
COMMAND_TAG = f"{TECHNICAL}command"
#: Tag of the parent run that came to its end, whatever its runs did.
ENDED_TAG = f"{TECHNICAL}ended"
#: Tag of a child: fingerprint of its config.
JOB_TAG = f"{TECHNICAL}job"


@dataclass(frozen=True)
class MultirunParent:
    """The parent run of a ``-m``, new or opened again."""

    run_id: str
    #: Runs that an earlier command has finished, by their number.
    finished: Mapping[int, Finished] = field(default_factory=dict)


def open_parent(plan: RunPlan, tracker: Tracker, title: str) -> MultirunParent:
    """Open the parent of the same command that was interrupted, or create a parent.

    Args:
        plan: What the command asks for; with ``fresh=true`` the parent is new.
        tracker: The store.
        title: Name of a new parent.
    """
    first = plan.runs[0]
    command = _command_fingerprint(plan)
    # of two commands that start at once only one goes on
    with plan.workspace.lock(".multirun.lock"):
        known = None
        if not first.config.fresh:
            known = _interrupted(tracker, command)
        if known is None:
            tags = {"kind": "multirun", **INITIAL, COMMAND_TAG: command}
            created = tracker.create_run(first.config, first.dataset, title, **tags)
            return MultirunParent(created)
        tracker.reopen_run(known)
        tracker.claim_run(known)
    tracker.close_children(known, "KILLED")
    return MultirunParent(known, _finished(plan, tracker, known))


def _command_fingerprint(plan: RunPlan) -> str:
    """Return a digest of what is typed and of everything that decides the bits of the runs."""
    typed = [text for text in plan.typed if key_of(text) != "fresh"]
    jobs = [fingerprint(planned.config) for planned in plan.runs]
    content = "\n".join([*typed, *jobs])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _interrupted(tracker: Tracker, command: str) -> str | None:
    """Return the newest parent of a command, None if it has come to its end or still runs."""
    run_id = tracker.find_run({"kind": "multirun", COMMAND_TAG: command})
    if run_id is None:
        return None
    run = tracker.client.get_run(run_id)
    is_running = run.info.status == "RUNNING" and not tracker.spooled(run_id).is_abandoned
    if is_running or ENDED_TAG in run.data.tags:
        return None
    return run_id


def _finished(plan: RunPlan, tracker: Tracker, parent_run_id: str) -> dict[int, Finished]:
    """Return the runs of a plan that the children of a parent have finished, by their number."""
    missing: dict[str, list[int]] = {}
    for number, planned in enumerate(plan.runs):
        job = fingerprint(planned.config)
        missing.setdefault(job, []).append(number)
    found: dict[int, Finished] = {}
    has_job = f"tags.`{JOB_TAG}` LIKE '%'"
    for run_id, tags in tracker.children(parent_run_id, has_job):
        numbers = missing.get(tags[JOB_TAG], [])
        if not numbers:
            continue
        result = _result(tracker, run_id, tags)
        if result is not None:
            number = numbers.pop(0)
            found[number] = Finished(number, result)
    return found


def _result(tracker: Tracker, run_id: str, tags: Mapping[str, str]) -> TrialResult | None:
    """Return what a finished run has left; None if it has not finished, or not all is there."""
    metrics = tracker.finished_metrics(run_id)
    if metrics is None:
        return None
    try:
        table = tracker.artifact_table(run_id, "predictions")
        evaluation: Evaluation = evaluation_from_table(table)
    except (*StoreFault, ParserError, KeyError):
        return None
    return TrialResult(run_id, metrics, [], evaluation, tags.get(WEIGHTS, ""))
