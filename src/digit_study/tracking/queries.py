"""Runs and models as MLflow holds them: found, checked, and turned back into what made them. Needs no TensorFlow."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import mlflow
import pandas as pd
from hydra.core.override_parser.types import Quote, QuotedString
from mlflow import MlflowException
from mlflow.entities import Run

from digit_study.config import compose
from digit_study.config.engine_config import ENGINE_KEYS
from digit_study.config.renamed_keys import current_key
from digit_study.config.run_config import Config, TrackingConfig
from digit_study.stats.metrics import Evaluation, evaluation_of
from digit_study.support import console
from digit_study.support.messages import StudyError, first_line, nearest, without_password
from digit_study.tracking import database as stores
from digit_study.tracking import provenance as origin
from digit_study.tracking import views
from digit_study.tracking.runs import BEST_OF, children, client_of
from digit_study.tracking.spool import SpooledRun
from digit_study.tracking.upload import StoreFault

#: MLflow's codes for "there is no such thing", as its several stores spell it.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
#: Tags by which a run that is not a training run names the one that a person probably means.
POINTERS = ("winner.run_id", "best.run_id")
#: Questions that a server is asked at a time.
AT_A_TIME = 16
T = TypeVar("T")
U = TypeVar("U")


def each(uri: str, ask: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """What ``ask`` returns for every item, in their order: of a server all at a time, for each waits for its answer."""
    if not uri.startswith(stores.SERVERS):
        return list(map(ask, items))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(ask, items))


def finished_metrics(uri: str, run_id: str) -> dict[str, float] | None:
    """Final metrics of a run that has its result, whether the store has it by now or not; None of any other."""
    spooled = SpooledRun(run_id)
    if spooled.has_result:  # it may still be drawn, closed or sent at this moment
        values = spooled.metrics()
        if spooled.folder.is_dir():  # else it has just been sent
            return {name: all[-1][2] for name, all in values.items()}
    run = client_of(uri).get_run(run_id)
    return dict(run.data.metrics) if run.info.status == "FINISHED" else None


def children_tagged(
    uri: str, parent_run_id: str, tags: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Ids and tags of the runs beneath a parent that have all these tags; none, with a warning, without a store."""
    try:
        return children(uri, parent_run_id, _all_of(tags))
    except StoreFault as fault:
        console.warn(
            f"the runs beneath {parent_run_id} could not be looked at: {first_line(fault)}"
        )
        return []


def find_run(uri: str, tags: Mapping[str, str]) -> str | None:
    """The newest run in any experiment that has all these tags."""
    client = client_of(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, _all_of(tags), max_results=1)
    return str(found[0].info.run_id) if found else None


def _all_of(tags: Mapping[str, str]) -> str:
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def runs_with_models(uri: str, parent_run_id: str) -> set[str]:
    """Ids of all runs that have a model, in the experiment of ``parent_run_id``."""
    found: set[str] = set()
    experiment, token = views.experiment_of(client_of(uri), parent_run_id), None
    while True:
        page = client_of(uri).search_logged_models([experiment], page_token=token)
        found |= {str(model.source_run_id) for model in page}
        if not (token := page.token):
            return found


def prediction_table(uri: str, run_id: str) -> pd.DataFrame:
    """The predictions.csv of a run, as MLflow holds it."""
    return artifact_table(uri, run_id, "predictions")


def evaluation_of_model(named: str, tracking: str | None) -> Evaluation:
    """How the run that made a model reads its validation images; raises StudyError if ``named`` says of no such run."""
    client, uri = open_store(tracking)
    with store_faults(uri):
        run_id = views.run_of_model(client, named)
        return evaluation_of(predictions(client, client.get_run(run_id), "model"))


def epoch_values(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run after every epoch, by its number; what the end of the run adds to the last is left out."""
    found: dict[int, float] = {}
    kept = SpooledRun(run_id).metrics().get(metric, [])
    told = client_of(uri).get_metric_history(run_id, metric) if not kept else []
    for step, _, value in sorted(kept + [(one.step, one.timestamp, one.value) for one in told]):
        if step > 0:
            found.setdefault(step, value)
    return found


def newest_confirmation(uri: str, study: str, since: float) -> Run | None:
    """The latest confirmation of ``study`` that has a winner and began after ``since``, in seconds since 1970."""
    began = f"attributes.start_time > {since * 1000:.0f}"
    return next(_confirmations(client_of(uri), study, began, "attributes.end_time DESC"), None)


def _confirmations(
    client: mlflow.MlflowClient, study: str, condition: str, order: str
) -> Iterator[Run]:
    """Confirmations of ``study`` that have a winner and meet a condition of MLflow's search, in an order of it."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    query = f"tags.kind = 'confirmation' and {condition}"
    # the name is compared here: MLflow's filters cannot quote a quote
    for run in client.search_runs(experiments, query, order_by=[order], max_results=5_000):
        if run.data.tags.get("study") == study and "winner.run_id" in run.data.tags:
            yield run


def artifact_table(uri: str, run_id: str, name: str) -> pd.DataFrame:
    """The ``tables/<name>.csv`` of a run, as MLflow holds it or will."""
    with suppress(FileNotFoundError):
        return pd.read_csv(SpooledRun(run_id).folder / "tables" / f"{name}.csv")
    with tempfile.TemporaryDirectory() as folder:
        return pd.read_csv(client_of(uri).download_artifacts(run_id, f"tables/{name}.csv", folder))


def open_store(configured: str | None) -> tuple[mlflow.MlflowClient, str]:
    """Client and URI of a store that exists already; raises StudyError if there is none or it does not answer."""
    uri = stores.require_store(
        configured, "runs must have been tracked first", "run `python src/run.py`"
    )
    stores.prepare_store(uri)
    mlflow.set_tracking_uri(uri)  # the registry and the artifacts follow it
    return client_of(uri), uri


@contextmanager
def store_faults(uri: str) -> Iterator[None]:
    """Turn what a store raises inside the block into one readable message."""
    try:
        yield
    except MlflowException as fault:
        wrong = f"`tracking.uri` must be an MLflow store that answers, got '{without_password(uri)}', which said"
        raise StudyError(
            f"{wrong}: {first_line(fault)}; make it answer, then run the same command again"
        ) from fault


def finished_run(client: mlflow.MlflowClient, uri: str, run_id: str, key: str) -> Run:
    """Look up a training run that ended well; raises StudyError if it is none. ``key`` was set to ``run_id``."""
    try:
        run = client.get_run(run_id)
    except MlflowException as fault:
        if fault.error_code not in ABSENT:
            raise
        raise stores.unknown_run(uri, run_id, key) from None
    tags, remedy = run.data.tags, f"see the ids with `{stores.view_command(uri)}`"
    if run.info.lifecycle_stage != "active":
        wanted, found, remedy = "run that is not deleted", "deleted", "`mlflow runs restore` it"
    elif run.info.status != "FINISHED":
        wanted, found = "finished run", run.info.status
        remedy = f"wait for it, or take another one; {remedy}"
    elif "weights.sha256" not in tags:
        wanted, found = "training run", f"a {tags.get('kind', 'run of others')}"
        if meant := [tags[tag] for tag in POINTERS if tag in tags]:
            remedy = f"take the run it names, {meant[0]}"
    else:
        return run
    raise StudyError(f"`{key}` must be a {wanted}, got '{run_id}', which is {found}: {remedy}")


def confirmed_winner(client: mlflow.MlflowClient, study: str) -> str:
    """Run id of the winner of the latest finished confirmation of ``study``; raises StudyError if there is none."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    studies = client.search_runs(experiments, "tags.kind = 'study'", max_results=5_000)
    # one that was begun anew, with search.fresh, has nothing of the one before it
    since = max(
        (run.info.start_time for run in studies if run.data.tags.get("study") == study), default=0
    )
    finished = f"attributes.status = 'FINISHED' and attributes.start_time >= {since}"
    for run in _confirmations(client, study, finished, "attributes.start_time DESC"):
        return str(run.data.tags["winner.run_id"])
    runs = client.search_runs(experiments, "tags.study LIKE '%'", max_results=5_000)
    names = {run.data.tags["study"] for run in runs}
    own = [run for run in runs if run.data.tags["study"] == study and run.info.start_time >= since]
    done = sum(run.info.status == "FINISHED" and "weights.sha256" in run.data.tags for run in own)
    found, first = (
        f" with {done} finished runs and no finished confirmation",
        "let it finish a trial, then ",
    )
    if study not in names:
        found = f", of which this store holds nothing{nearest(study, names)}"
        first = f"run `python sweeps/optuna_search.py study={study}`, then "
    remedy = f"run `python sweeps/confirm.py study={study}`, or promote a run of your choice with run_id=<run_id>"
    raise StudyError(
        f"`study` must have a confirmed winner, got '{study}'{found}: {'' if done else first}{remedy}"
    )


def recorded_config(run: Run) -> Config:
    """Rebuild the config of a run from its params, which name every leaf; raises StudyError if that cannot be done."""
    leaves = run.data.params
    if not leaves:
        raise StudyError(f"a run must hold its config, got '{run.info.run_id}' without params")
    compose.register()
    # quoted, a value is a string, which the schema converts
    overrides = [
        f"{key}={'null' if text == 'None' else QuotedString(text, Quote.single).with_quotes()}"
        for key, text in leaves.items()
        if not current_key(key).startswith(("tracking.", "reproduce", BEST_OF, *ENGINE_KEYS))
    ]
    try:
        config: Config = compose.compose_config(overrides, recorded=True)
        config.validate()
    except StudyError as fault:
        commit = origin.plain(run.data.tags).get("git.commit", "unknown")
        remedy = f"check out the code it was made with, git commit {commit}"
        wrong = f"the config of run '{run.info.run_id}' must be one this code knows"
        raise StudyError(f"{wrong}: {fault}; {remedy}") from None
    # tracking says where the run went, not what it was
    return replace(config, tracking=TrackingConfig(), reproduce=None)


def predictions(client: mlflow.MlflowClient, run: Run, key: str) -> pd.DataFrame:
    """The run's predictions.csv; ``key`` is what the person set to the run. Raises StudyError if the table is gone."""
    try:
        return prediction_table(client.tracking_uri, run.info.run_id)
    except (*StoreFault, pd.errors.ParserError) as fault:
        wrong = f"`{key}` must be a run with tables/predictions.csv, got '{run.info.run_id}' ({first_line(fault, 200)})"
        raise StudyError(f"{wrong}: train it again with `python src/run.py`") from None
