"""Runs that a store is asked for: found, checked, turned back into configs. Needs no TensorFlow."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import pandas as pd
from hydra.core.override_parser.types import Quote, QuotedString
from mlflow import MlflowException
from mlflow.entities import Run, ViewType

from digit_study.config import compose
from digit_study.config.engine_config import ENGINE_KEYS
from digit_study.config.run_config import Config, TrackingConfig
from digit_study.stats.metrics import Evaluation, evaluation_from_table
from digit_study.support import console
from digit_study.support.errors import StudyError, first_line
from digit_study.support.redaction import without_password
from digit_study.support.suggestions import nearest
from digit_study.support.trial_status import STATUS_TAG, TrialStatus
from digit_study.tracking import models, provenance
from digit_study.tracking.database import (
    restore_command,
    unknown_run,
)
from digit_study.tracking.runs import MOST_RUNS, Runs
from digit_study.tracking.spool import STOPPED, MetricValue
from digit_study.tracking.store import StoreFault
from digit_study.tracking.writer import BEST_OF

#: MLflow's codes for "there is no such thing", as its several stores spell it.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
#: Tags by which a run that is no training run names the run that a person probably means.
POINTERS = ("winner.run_id", "best.run_id")
#: Tag of the parent runs of a study and of its confirmations: which study of its name it is.
STUDY_UID = "study.uid"
#: Tag of a run that has trained a network to the end.
WEIGHTS = "weights.sha256"
#: Condition of MLflow's search for runs with a result. A pruned trial is FINISHED without one.
HAS_RESULT = f"attributes.status = 'FINISHED' and tags.`{WEIGHTS}` LIKE '%'"
#: How the params begin that are no part of what a run was, but of where it went.
NOT_RECORDED = ("tracking.", "reproduce", "fresh", BEST_OF, *ENGINE_KEYS)
T = TypeVar("T")
U = TypeVar("U")


class Queries(Runs):
    """A store that is asked for runs.

    What is spooled on this machine is part of the answers, whether the store has it by now or not.
    """

    # ------------------------------------------------------------------------------- found

    def open_trials(self, parent_run_id: str) -> dict[str, dict[str, str]]:
        """Return the runs of a study's trials that have not ended, by status or by their tag.

        A machine that dies while it ends a trial may have recorded the one and not the other.

        Args:
            parent_run_id: Id of the study's run.

        Returns:
            The tags of each by its id; none, with a warning, if the store does not answer.
        """
        is_failed = _all_of({STATUS_TAG: TrialStatus.FAIL})
        conditions = [f"attributes.status = 'RUNNING' and {is_failed}"]
        for status in (TrialStatus.RUNNING, TrialStatus.PAUSED):
            conditions.append(_all_of({STATUS_TAG: status}))
        found: dict[str, dict[str, str]] = {}
        try:
            for condition in conditions:
                found.update(self.children(parent_run_id, condition))
        except StoreFault as fault:
            console.warn(f"the children of run {parent_run_id} are unknown: {first_line(fault)}")
            return {}
        return found

    def find_run(self, tags: Mapping[str, str], *, is_deleted: bool = False) -> str | None:
        """Return the id of the newest run in any experiment that has all of ``tags``.

        Args:
            tags: Values by tag.
            is_deleted: Whether to look among deleted runs, which can be restored, instead.
        """
        view = ViewType.ACTIVE_ONLY
        if is_deleted:
            view = ViewType.DELETED_ONLY
        experiments = self._experiments()
        found = self.client.search_runs(experiments, _all_of(tags), view, max_results=1)
        if not found:
            return None
        return str(found[0].info.run_id)

    def restore_command(self, run_id: str) -> str:
        """Return the command that restores a deleted run.

        It restores the whole experiment, if that was deleted.
        """
        experiment_id = self.client.get_run(run_id).info.experiment_id
        experiment = self.client.get_experiment(experiment_id)
        if experiment.lifecycle_stage != "active":
            return restore_command(self.uri, "experiment", experiment_id, self.workspace)
        return restore_command(self.uri, "run", run_id, self.workspace)

    def has_run(self, run_id: str) -> bool:
        """Return whether the store knows a run, deleted or not."""
        try:
            self.client.get_run(run_id)
        except MlflowException as fault:
            if fault.error_code not in ABSENT:
                raise
            return False
        return True

    def _experiments(self) -> list[str]:
        """Return the ids of all experiments; the runs of a deleted experiment are deleted too."""
        found = self.client.search_experiments(ViewType.ALL)
        return [experiment.experiment_id for experiment in found]

    def runs_with_models(self, parent_run_id: str) -> set[str]:
        """Return the ids of all runs that have a model, in the experiment of a run."""
        experiment = self.experiment_of(parent_run_id)
        found: set[str] = set()
        token = None
        while True:
            page = self.client.search_logged_models([experiment], page_token=token)
            found |= {str(model.source_run_id) for model in page}
            token = page.token
            if not token:
                return found

    def newest_confirmation(self, study: str, uid: str, since: float) -> Run | None:
        """Return the latest confirmation of a study that has a winner.

        Args:
            study: Name of the study.
            uid: Which study of that name is meant. Confirmations of earlier code do not say that,
                and count by their name.
            since: When it must have begun at the earliest, in seconds since 1970.
        """
        began = f"attributes.start_time > {since * 1000:.0f}"
        confirmations = self._confirmations(study, began, "attributes.end_time DESC")
        own = (run for run in confirmations if _study_uid(run) in (None, uid))
        return next(own, None)

    def _confirmations(self, study: str, condition: str, order: str) -> Iterator[Run]:
        """Yield confirmations of a study that have a winner and meet a condition, in an order."""
        query = f"tags.kind = 'confirmation' and {condition}"
        experiments = self._experiments()
        found = self.client.search_runs(experiments, query, order_by=[order], max_results=MOST_RUNS)
        # the name is compared here: MLflow's filters cannot quote a quote
        for run in found:
            tags = run.data.tags
            if tags.get("study") == study and "winner.run_id" in tags:
                yield run

    def confirmed_winner(self, study: str, uid: str | None = None) -> str:
        """Return the run id of the winner of a study's latest finished confirmation.

        A store may hold several studies of a name, of several clones of the project. They are told
        apart by their uid; confirmations of earlier code have none and count by their name.

        Args:
            study: Name of the study.
            uid: Which study of that name is meant; None takes the study that was begun last.

        Raises:
            StudyError: If there is none, or if another study of that name has a winner too and
                ``uid`` does not say which is meant.
        """
        parents = self._studies(study)
        known = {_study_uid(run) for run in parents}
        if uid in known:
            parents = [run for run in parents if _study_uid(run) == uid]
        since = 0
        wanted = None
        if parents:
            # a study that was begun anew, with search.fresh, has nothing of the study before it
            newest = max(parents, key=lambda run: int(run.info.start_time))
            since = newest.info.start_time
            wanted = _study_uid(newest)
        is_finished = "attributes.status = 'FINISHED'"
        own = []
        of_others = []
        for run in self._confirmations(study, is_finished, "attributes.start_time DESC"):
            if _study_uid(run) not in (None, wanted):
                of_others.append(run)
            elif run.info.start_time >= since:
                own.append(run)
        if not own:
            raise self._no_winner(study, since, of_others)
        latest = own[0]
        if of_others and uid not in known:
            raise _ambiguous(study, [latest, *of_others])
        return str(latest.data.tags["winner.run_id"])

    def _studies(self, study: str) -> list[Run]:
        """Return the parent runs of all studies of a name."""
        experiments = self._experiments()
        is_study = "tags.kind = 'study'"
        found = self.client.search_runs(experiments, is_study, max_results=MOST_RUNS)
        return [run for run in found if run.data.tags.get("study") == study]

    def _no_winner(self, study: str, since: int, of_others: Sequence[Run]) -> StudyError:
        """Return the error for a study without a confirmed winner, and say what comes first."""
        experiments = self._experiments()
        is_of_study = "tags.study LIKE '%'"
        runs = self.client.search_runs(experiments, is_of_study, max_results=MOST_RUNS)
        own = [run for run in runs if run.data.tags["study"] == study]
        recent = [run for run in own if run.info.start_time >= since]
        trained = [run for run in recent if _is_trained(run)]
        remedy = (
            f"run `python sweeps/confirm.py study={study}`, or promote a run of your choice with "
            "run_id=<run_id>"
        )
        found = f" with {len(trained)} finished runs and no finished confirmation"
        if not own:
            names = {run.data.tags["study"] for run in runs}
            found = f", of which this store holds nothing{nearest(study, names)}"
            first = f"run `python sweeps/optuna_search.py study={study}`"
            deleted = self.find_run({"kind": "study", "study": study}, is_deleted=True)
            if deleted is not None:
                found = ", whose run was deleted in MLflow"
                first = f"restore it with `{self.restore_command(deleted)}`"
            remedy = f"{first}, then {remedy}"
        elif not trained:
            remedy = f"let it finish a trial, then {remedy}"
        if of_others:
            found += f" ({_named(of_others)} of another study of this name)"
        return StudyError(f"`study` must have a confirmed winner, got '{study}'{found}: {remedy}")

    # ------------------------------------------------------------------------------- a run

    def finished_run(self, run_id: str, key: str) -> Run:
        """Return a training run that ended well.

        Args:
            run_id: What a person gave.
            key: The config key that was set to it, for messages.

        Raises:
            StudyError: If there is no such run, or it did not end well.
        """
        try:
            run = self.client.get_run(run_id)
        except MlflowException as fault:
            if fault.error_code not in ABSENT:
                raise
            raise unknown_run(self.uri, run_id, key, self.workspace) from None
        if run.info.lifecycle_stage == "active" and _is_trained(run):
            return run
        tags = run.data.tags
        remedy = f"see the ids with `{self.view_command}`"
        if run.info.lifecycle_stage != "active":
            wanted = "run that is not deleted"
            found = "deleted"
            remedy = f"restore it with `{self.restore_command(run_id)}`"
        elif run.info.status != "FINISHED":
            wanted = "finished run"
            found = run.info.status
            remedy = f"wait for it, or take another one; {remedy}"
        elif _is_stopped(run):
            wanted = "run with a result"
            found = "a pruned trial, stopped before its last epoch"
            remedy = f"take another one; {remedy}"
        else:
            wanted = "training run"
            found = f"a {tags.get('kind', 'run of others')}"
            meant = [tags[tag] for tag in POINTERS if tag in tags]
            if meant:
                remedy = f"take the run it names, {meant[0]}"
        wrong = f"`{key}` must be a {wanted}, got '{run_id}', which is {found}"
        raise StudyError(f"{wrong}: {remedy}")

    def finished_metrics(self, run_id: str) -> dict[str, float] | None:
        """Return the final metrics of a run that has its result, None of any other."""
        spooled = self.spooled(run_id)
        if spooled.has_result:  # it may still draw figures, or be closed or uploaded just now
            values = spooled.metrics()
            if spooled.folder.is_dir():  # else it has just been uploaded
                return {name: points[-1].value for name, points in values.items()}
        run = self.client.get_run(run_id)
        if not _is_trained(run):
            return None
        return dict(run.data.metrics)

    def was_stopped(self, run_id: str) -> bool:
        """Return whether a trial ended its run because it was told to stop, without a result."""
        outcome = self.spooled(run_id).outcome
        if STOPPED in outcome:
            return True
        run = self.client.get_run(run_id)
        return _is_stopped(run)

    def epoch_values(self, run_id: str, metric: str) -> dict[int, float]:
        """Return a metric of a run after every epoch.

        Args:
            run_id: Id of the run.
            metric: Name of the metric.

        Returns:
            Its values by the number of the epoch, from 1. What the end of the run adds to the last
            epoch is left out.
        """
        points = self.spooled(run_id).metrics().get(metric, [])
        if not points:
            history = self.client.get_metric_history(run_id, metric)
            points = [MetricValue(found.step, found.timestamp, found.value) for found in history]
        values: dict[int, float] = {}
        for point in sorted(points):
            if point.step > 0:
                values.setdefault(point.step, point.value)
        return values

    def artifact_table(self, run_id: str, name: str) -> pd.DataFrame:
        """Return ``tables/<name>.csv`` of a run."""
        file = f"tables/{name}.csv"
        spooled = self.spooled(run_id).folder / file
        with suppress(FileNotFoundError):
            return pd.read_csv(spooled)
        with tempfile.TemporaryDirectory() as folder:
            downloaded = self.client.download_artifacts(run_id, file, folder)
            return pd.read_csv(downloaded)

    def predictions(self, run: Run, key: str) -> pd.DataFrame:
        """Return the predictions.csv of a run.

        Args:
            run: The run.
            key: The config key that a person set to it, for messages.

        Raises:
            StudyError: If the table is gone.
        """
        try:
            return self.artifact_table(run.info.run_id, "predictions")
        except (*StoreFault, pd.errors.ParserError) as fault:
            rule = f"`{key}` must be a run with tables/predictions.csv"
            wrong = f"{rule}, got '{run.info.run_id}' ({first_line(fault, 200)})"
            raise StudyError(f"{wrong}: train it again with `python src/run.py`") from None

    def evaluation_of_model(self, named: str) -> Evaluation:
        """Return how the run that made a model predicted its validation images.

        Args:
            named: The model, as in `location.MODEL_NAMES`, but no file.

        Raises:
            StudyError: If the store knows of no such run.
        """
        with self.readable_faults():
            run_id = models.run_of_model(self.client, named)
            run = self.client.get_run(run_id)
            table = self.predictions(run, "model")
            return evaluation_from_table(table)

    # ------------------------------------------------------------------------------- faults

    @contextmanager
    def readable_faults(self) -> Iterator[None]:
        """Turn what the store raises inside the block into one readable message."""
        try:
            yield
        except MlflowException as fault:
            rule = "`tracking.uri` must be an MLflow store that answers"
            wrong = f"{rule}, got '{without_password(self.uri)}', which said: {first_line(fault)}"
            remedy = "make it answer, then run the same command again"
            raise StudyError(f"{wrong}; {remedy}") from fault


def _ambiguous(study: str, confirmations: Sequence[Run]) -> StudyError:
    """Return the error for a name that several studies with a winner have."""
    return StudyError(
        f"`study` must name one study, got '{study}', which several studies in this store are "
        f"called ({_named(confirmations)}): promote the winner that you mean with run_id=<run_id>"
    )


def _named(confirmations: Sequence[Run]) -> str:
    """Name the winners of confirmations and their studies."""
    winners = {}
    for run in reversed(confirmations):  # the newest of a study counts
        winners[_study_uid(run)] = str(run.data.tags["winner.run_id"])
    named = [f"winner {winner} of study {uid}" for uid, winner in winners.items()]
    return ", ".join(named)


def _study_uid(run: Run) -> str | None:
    """Return which study a run is of; None for runs of earlier code."""
    uid: str | None = run.data.tags.get(STUDY_UID)
    return uid


def _is_trained(run: Run) -> bool:
    """Return whether a run has trained a network to the end."""
    return run.info.status == "FINISHED" and WEIGHTS in run.data.tags


def _is_stopped(run: Run) -> bool:
    """Return whether a run ended before its last epoch because it was told to stop."""
    is_pruned = run.data.tags.get(STATUS_TAG) == TrialStatus.PRUNED
    return is_pruned and not _is_trained(run)


def _all_of(tags: Mapping[str, str]) -> str:
    """Return the condition of MLflow's search that all tags match."""
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def recorded_config(run: Run) -> Config:
    """Rebuild the config of a run from its params, which name every leaf.

    Args:
        run: The run.

    Returns:
        The config, without what says where the run went.

    Raises:
        StudyError: If the run has none, or one that this code does not know.
    """
    if not run.data.params:
        raise StudyError(f"a run must hold its config, got '{run.info.run_id}' without params")
    compose.register()
    overrides = []
    for key, text in run.data.params.items():
        if not key.startswith(NOT_RECORDED):
            value = _override_value(text)
            overrides.append(f"{key}={value}")
    try:
        config: Config = compose.compose_config(overrides, recorded=True)
        config.validate()
    except StudyError as fault:
        commit = provenance.plain(run.data.tags).get("git.commit", provenance.UNKNOWN)
        remedy = f"check out the code it was made with, git commit {commit}"
        wrong = f"the config of run '{run.info.run_id}' must be one this code knows"
        raise StudyError(f"{wrong}: {fault}; {remedy}") from None
    return replace(config, tracking=TrackingConfig(), reproduce=None)


def _override_value(text: str) -> str:
    """Return a param as Hydra reads it: quoted it is a string, which the schema converts."""
    if text == "None":
        return "null"
    quoted = QuotedString(text, Quote.single)
    return str(quoted.with_quotes())
