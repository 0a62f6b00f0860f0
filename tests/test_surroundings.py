"""What people of other projects stumble over: their folders, servers, settings and files."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
import optuna
import pytest
from conftest import ROOT, Project, copy_project, sample
from mlflow.entities import Run
from optuna.storages import JournalStorage
from starlette.datastructures import Headers

from digit_study.apps.draw.same_origin import SameOriginMiddleware, allowed_hosts
from digit_study.config.run_config import Config, TrackingConfig
from digit_study.config.study_config import StudyConfig
from digit_study.study._optuna import JournalFile
from digit_study.study.results import RunResults
from digit_study.study.run_plan import plan_runs
from digit_study.study.search import NoParentError, no_parent
from digit_study.study.study_page import page_at_end
from digit_study.support.errors import StudyError
from digit_study.support.sqlite import sqlite_path
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import check_store, create_store
from digit_study.tracking.location import local_address
from digit_study.tracking.relocation import COLUMNS, follow_project
from digit_study.tracking.session import Tracker
from digit_study.tracking.ui import port_of

#: A name that a folder may have.
NAME = """it's "mine", 100% %41 [ü] #1? a=b,c ${x} {y}"""
SMALL = ["data=mnist_sample", "model=tiny", "training=smoke", "data.limit=300"]


def runs_of(uri: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments))


# ---------------------------------------------------------------------------------- splits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sets"),
    [
        (["model.filters=4,8"], 1),
        (["data.limit=200,300"], 1),
        (["data.validation=1000,1250"], 2),
        (["data.validation=1000,null"], 1),
        (["data.seed=0,1,2"], 3),
    ],
)
def test_it_is_known_before_training_which_runs_share_their_images(
    words: list[str], sets: int, store: str
) -> None:
    plan = plan_runs(["-m", "data=mnist_sample", "model=tiny", *words], Workspace(ROOT))
    assert plan.validation_sets == sets


@pytest.mark.slow
def test_splits_of_the_data_are_not_ranked_but_averaged(project: Project, typed_store: str) -> None:
    done = project.run("-m", "data.seed=0,1", *SMALL, MLFLOW_TRACKING_URI=typed_store)
    assert done.code == 0, done.err
    assert done.out.startswith("The runs have 2 different sets of validation images")
    assert "verdict" not in done.out and "Mean validation accuracy over the splits" in done.out
    (parent,) = [run for run in runs_of(typed_store) if run.data.tags.get("kind") == "multirun"]
    children = [run for run in runs_of(typed_store) if run.info.run_id != parent.info.run_id]
    accuracies = [run.data.metrics["val_accuracy"] for run in children]
    assert parent.data.metrics["mean_val_accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert "over 2 splits" in parent.data.tags["answer"]


@pytest.mark.slow
def test_validation_sets_of_two_sizes_have_a_table_each(project: Project, typed_store: str) -> None:
    words = ["-m", "data.validation=200,400", "model.filters=2,4", *SMALL]
    done = project.run(*words, MLFLOW_TRACKING_URI=typed_store)
    assert done.code == 0, done.err
    assert done.out.count("Comparison on the validation images") == 2
    (parent,) = [run for run in runs_of(typed_store) if run.data.tags.get("kind") == "multirun"]
    tables = mlflow.MlflowClient(typed_store).list_artifacts(parent.info.run_id, "tables")
    assert {Path(table.path).name for table in tables} == {"comparison.csv", "comparison_2.csv"}


@pytest.mark.slow
def test_a_store_that_was_deleted_begins_anew(project: Project, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        done = project.run(*SMALL, MLFLOW_TRACKING_URI=uri)
        assert done.code == 0, done.err
        # all is in the file, so that a copy of it is whole
        assert (tmp_path / "mlflow.db-wal").stat().st_size == 0
        assert len(runs_of(uri)) == 1
        # and its log is left behind, with what this process has written
        (tmp_path / "mlflow.db").unlink()


# ---------------------------------------------------------------------------------- moved


def locations(uri: str) -> set[str]:
    """Return every artifact location of a sqlite store."""
    with closing(sqlite3.connect(sqlite_path(uri))) as connection:
        found = set()
        for table, column in COLUMNS:
            found |= {row[0] for row in connection.execute(f"SELECT {column} FROM {table}")}
    return {text for text in found if text and "/mlruns/mine" in text}


@pytest.fixture
def old_home(migrated: Path, tmp_path: Path) -> Workspace:
    """A project with an experiment, a run, a model and a version of it."""
    workspace = Workspace(tmp_path / "an old home")
    (workspace.artifacts / "mine").mkdir(parents=True)
    shutil.copy(migrated, workspace.root / "mlflow.db")
    client = mlflow.MlflowClient(workspace.default_store)
    experiment = client.create_experiment("mine", (workspace.artifacts / "mine").as_uri())
    run_id = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, "model", run_id)
    client.create_registered_model("digits")
    client.create_model_version("digits", model.artifact_location, run_id, model_id=model.model_id)
    return workspace


@pytest.mark.parametrize("is_copied", [False, True])
def test_the_store_follows_its_project(
    old_home: Workspace, is_copied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    spooled = old_home.spool / "a-run"
    spooled.mkdir(parents=True)
    (spooled / "about.json").write_text(json.dumps({"uri": old_home.default_store}))
    new = Workspace(old_home.root.with_name("new 100% #1?"))
    place = f"{old_home.artifacts.as_uri()}/mine/models/m-1"
    (spooled / "sent.json").write_text(json.dumps({"model_place": place}))
    if is_copied:
        shutil.copytree(old_home.root, new.root)
    else:
        old_home.root.rename(new.root)
    follow_project(new.default_store, new)
    assert "its store follows" in capsys.readouterr().err
    found = locations(new.default_store)
    own = f"{new.artifacts.as_uri()}/mine"
    assert len(found) >= 3 and all(text == own or text.startswith(f"{own}/") for text in found)
    about = json.loads((new.spool / "a-run" / "about.json").read_text())
    assert about == {"uri": new.default_store}
    sent = json.loads((new.spool / "a-run" / "sent.json").read_text())
    assert sent == {"model_place": f"{own}/models/m-1"}
    follow_project(new.default_store, new)
    assert capsys.readouterr().err == ""


def test_the_store_follows_its_project_with_artifacts_on_another_disk(
    old_home: Workspace, tmp_path: Path
) -> None:
    old_home.artifacts.rename(tmp_path / "disk")
    old_home.artifacts.symlink_to(tmp_path / "disk")
    new = Workspace(tmp_path / "new home")
    old_home.root.rename(new.root)
    follow_project(new.default_store, new)
    assert f"{new.artifacts.as_uri()}/mine" in locations(new.default_store)


def test_artifacts_that_a_person_placed_elsewhere_stay_there(
    old_home: Workspace, tmp_path: Path
) -> None:
    before = locations(old_home.default_store)
    other = Workspace(tmp_path / "other")
    other.artifacts.mkdir(parents=True)
    # the store of another project, named by tracking.uri, and an own database with foreign artifacts
    follow_project(old_home.default_store, other)
    shutil.copy(old_home.root / "mlflow.db", other.root / "mlflow.db")
    follow_project(other.default_store, other)
    assert locations(old_home.default_store) == locations(other.default_store) == before


@pytest.mark.reliability
def test_a_run_in_a_moved_project_is_kept_in_its_new_folder(
    project: Project, migrated: Path, tmp_path: Path
) -> None:
    """A folder with every character that URIs, Hydra, SQL and shells know another meaning of."""
    old = Workspace(tmp_path / "old")
    (old.artifacts / "mine").mkdir(parents=True)
    shutil.copy(migrated, old.root / "mlflow.db")
    copy_project(old.root)
    client = mlflow.MlflowClient(old.default_store)
    client.create_experiment("mine", (old.artifacts / "mine").as_uri())
    new = Workspace(tmp_path / NAME)
    old.root.rename(new.root)
    moved = Project(new.root, project.environment)
    done = moved.start(*SMALL, "tracking.experiment=mine").finish()
    assert done.code == 0 and f"The project has moved from {old.root}" in done.err, done.err
    # MLflow makes the folder of an encoded name too
    assert [folder.name for folder in tmp_path.iterdir()] == [NAME]
    assert list((new.artifacts / "mine").glob("*/artifacts/config.yaml"))
    assert list((new.artifacts / "mine" / "models").glob("*/artifacts/data/model.keras"))


def test_an_environment_that_mlflow_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its migrations of databases lie in it, and their tool takes a percent sign for its own."""
    monkeypatch.setattr(sys, "prefix", "/home/me/100%/.venv")
    with pytest.raises(StudyError, match="must lie in a folder without %, for MLflow, got '/home"):
        check_store(Workspace(tmp_path).default_store)
    check_store("databricks://mine")  # a server needs no migrations here


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, "it's", "time 10:30", "back\\slash"])
def test_a_store_is_created_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    """MLflow writes the folder into SQL as it is."""
    workspace = Workspace(tmp_path / name)
    workspace.root.mkdir()
    create_store(workspace.default_store, workspace)
    client = mlflow.MlflowClient(workspace.default_store)
    (default,) = client.search_experiments()
    assert default.artifact_location == (workspace.artifacts / "0").as_uri()
    assert default.experiment_id == "0"


@pytest.mark.slow
def test_the_page_of_mlflow_starts_in_a_moved_project(tmp_path: Path) -> None:
    """A console script of an environment that was moved has a dead first line."""
    copy_project(tmp_path)
    workspace = Workspace(tmp_path)
    workspace.artifacts.mkdir()
    workspace.newest_result.write_text("http://127.0.0.1:5000/#/experiments/1?workflowType=x\n")
    line = [sys.executable, "-m", "digit_study.tracking.ui", "--port=5079", "--help"]
    environment = {**os.environ, "PYTHONPATH": "src", "BROWSER": "true"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    shown = done.stdout.splitlines()[0]
    assert shown == "the newest result: http://127.0.0.1:5079/#/experiments/1?workflowType=x"
    assert "python -m mlflow ui" in done.stdout and done.returncode == 0
    recipe = subprocess.run(["make", "-n", "ui"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "-m digit_study.tracking.ui" in recipe and "bin/mlflow" not in recipe


@pytest.mark.parametrize(
    ("words", "port"),
    [
        ([], "5055"),
        (["--port", "5079"], "5079"),
        (["-p", "5079", "--host", "0.0.0.0"], "5079"),
        (["-p5079"], "5079"),
        (["--port=1", "--port=2"], "2"),
    ],
)
def test_printed_addresses_have_the_port_that_is_asked_for(
    words: list[str], port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "5055")
    assert local_address(port_of(words)) == f"http://127.0.0.1:{port}"


# ---------------------------------------------------------------------------------- foreign


@pytest.fixture(scope="module")
def usual(project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as it is on a machine where nothing is unusual."""
    uri = f"sqlite:///{shutil.copy(migrated, tmp_path_factory.mktemp('usual') / 'mlflow.db')}"
    done = project.run(*SMALL, MLFLOW_TRACKING_URI=uri)
    assert done.code == 0, done.err
    (run,) = runs_of(uri)
    run.data.tags["store"] = uri
    return run


@pytest.fixture(scope="module")
def foreign(project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run with a keras.json and a GIT_DIR of other projects, by `python -I`."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    keras = {"floatx": "float16", "image_data_format": "channels_first", "backend": "jax"}
    (folder / "keras.json").write_text(json.dumps(keras))
    root = folder / "clone"
    copy_project(root)
    inside = Project(root, project.environment)
    command = inside.start(
        *SMALL,
        "tracking.tags={owner: me, purpose: thesis}",
        "tracking.note=the first of many",
        python=("-I",),
        MLFLOW_TRACKING_URI=f"sqlite:///{shutil.copy(migrated, folder / 'mlflow.db')}",
        KERAS_HOME=str(folder),
        KERAS_BACKEND="torch",
        GIT_DIR=str(folder / ".git"),
    )
    done = command.finish()
    assert done.code == 0, done.err
    return runs_of(f"sqlite:///{folder}/mlflow.db")[0]


@pytest.mark.slow
def test_a_keras_json_of_another_project_changes_no_bit(usual: Run, foreign: Run) -> None:
    assert foreign.data.tags["weights.sha256"] == usual.data.tags["weights.sha256"]
    assert "floatx=float32" in foreign.data.tags["technical.keras"]


@pytest.mark.slow
def test_the_commit_of_another_repository_is_not_recorded(usual: Run, foreign: Run) -> None:
    assert foreign.data.tags["technical.git.commit"] == "unknown"
    assert foreign.data.tags["technical.git.dirty"] == "unknown"
    assert usual.data.tags["technical.git.dirty"] == "false"


@pytest.mark.slow
def test_own_tags_and_a_note_are_kept(foreign: Run) -> None:
    assert (foreign.data.tags["owner"], foreign.data.tags["purpose"]) == ("me", "thesis")
    assert foreign.data.tags["mlflow.note.content"] == "the first of many"


@pytest.mark.slow
def test_a_served_model_takes_pixels_of_any_kind(usual: Run, project: Project) -> None:
    client = mlflow.MlflowClient(usual.data.tags["store"])
    (logged,) = client.search_logged_models([usual.info.experiment_id])
    served = mlflow.pyfunc.load_model(logged.artifact_location)
    images = sample()[0][:3]
    wanted = served.predict(images[..., None].astype(np.float32))
    assert wanted.shape == (3, 10) and np.allclose(wanted.sum(axis=1), 1, atol=1e-5)
    for given in (images, images.astype(np.float64), images[..., None], images.tolist()):
        assert np.array_equal(served.predict(given), wanted)


@pytest.mark.parametrize("name", ["mlflow.note.content", "kind", "study.uid", "a\tb"])
def test_own_tags_have_names_of_their_own(name: str, store: str) -> None:
    with pytest.raises(StudyError, match=r"`tracking\.tags`"):
        Config(tracking=TrackingConfig(tags={name: 1})).validate()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-P", "-I"])
@pytest.mark.parametrize("script", ["src/run.py", "src/draw.py"])
def test_commands_are_found_where_python_adds_no_folder(script: str, option: str) -> None:
    done = subprocess.run([sys.executable, option, script, "--help"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------- journals


@pytest.mark.parametrize("line", ["<<<<<<< HEAD", '{"half": ', "[1, 2]", '{"op_code": "x"}'])
def test_a_foreign_line_in_a_journal_is_named_and_nothing_is_lost(
    line: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.journal"
    study = optuna.create_study(storage=JournalStorage(JournalFile(path)), study_name="mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[3:], ""]))
    before = path.read_bytes()
    with pytest.raises(StudyError, match="line 4, must be a record") as refused:
        JournalStorage(JournalFile(path))
    assert str(path) in str(refused.value) and "delete that line" in str(refused.value)
    assert path.read_bytes() == before


# ---------------------------------------------------------------------------------- stores


def test_a_store_of_a_newer_mlflow_is_refused_in_a_line(migrated: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(migrated, tmp_path / "mlflow.db"))
    check_store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    with pytest.raises(StudyError, match="newer MLflow than 3") as refused:
        check_store(f"sqlite:///{path}")
    assert "\n" not in str(refused.value)


class AsksWho(BaseHTTPRequestHandler):
    """A server that answers those alone who give its password."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(b"user:se cret").decode()
        is_known = self.headers.get("Authorization") == wanted and self.path == "/health"
        self.send_response(200 if is_known else 500)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Stay quiet."""


@pytest.mark.slow
def test_a_server_may_be_named_with_its_password() -> None:
    with HTTPServer(("127.0.0.1", 0), AsksWho) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check_store(f"http://user:se%20cret@127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_deleted_run_is_said_to_be_deleted_and_a_removed_one_to_be_gone(
    old_home: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(old_home.default_store, old_home)
    client = tracker.client
    (experiment,) = client.search_experiments(filter_string="name = 'mine'")
    tags = {"kind": "study", "study.uid": "u"}
    parent = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    trial = client.create_run(experiment.experiment_id).info.run_id
    trials = [SimpleNamespace(user_attrs={"run_id": trial})]
    stored: Any = SimpleNamespace(uid="u", trials=lambda: trials)
    plan: Any = SimpleNamespace(study=StudyConfig(study="mine"), uri=tracker.uri)
    client.delete_run(parent)
    deleted = str(no_parent(plan, stored, tracker))
    assert f"mlflow runs restore --run-id {parent}" in deleted and "was deleted" in deleted
    client.delete_experiment(experiment.experiment_id)
    with_experiment = str(no_parent(plan, stored, tracker))
    number = experiment.experiment_id
    assert f"mlflow experiments restore --experiment-id {number}" in with_experiment
    client.restore_experiment(number)
    assert tracker.find_run({"study.uid": "u"}) is not None
    with closing(sqlite3.connect(sqlite_path(tracker.uri))) as connection, connection:
        connection.execute("DELETE FROM tags WHERE run_uuid = ?", (parent,))
    assert "is gone from MLflow for good" in str(no_parent(plan, stored, tracker))
    trials.clear()
    error = no_parent(plan, stored, tracker)
    assert "MLFLOW_TRACKING_URI" in str(error)
    with pytest.raises(NoParentError), page_at_end(plan, RunResults(tracker)):
        raise error
    assert not capsys.readouterr().err, "said once, by whoever ends the command"


# ---------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("host", "origin", "is_answered"),
    [
        ("phone.local:8765", "http://phone.local:8765", True),
        ("phone.local:8765", "http://evil.example", False),
        ("phone.local", None, False),
        ("other.local:8765", None, False),
        ("127.0.0.1:8765", None, True),
    ],
)
def test_only_hosts_that_were_allowed_may_open_the_page(
    host: str, origin: str | None, is_answered: bool
) -> None:
    headers = {"host": host}
    if origin is not None:
        headers["origin"] = origin
    app: Any = None
    guard = SameOriginMiddleware(app, 8765, allowed_hosts(["Phone.local:8765"]))
    assert (guard.refusal(Headers(headers)) is None) == is_answered
    if host.startswith("phone"):
        assert SameOriginMiddleware(app, 8765).refusal(Headers(headers)) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "needs `--allow=<host:port>`"),
        (["--host", "0.0.0.0", "--allow", "*"], "`--allow` must be a host with its port"),
        (["--host", "192.0.2.1", "--allow", "a:1"], "`--host` must be an IPv4 address"),
    ],
)
def test_the_page_is_not_opened_to_others_by_accident(words: list[str], told: str) -> None:
    line = [sys.executable, "src/draw.py", "--port=0", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------------------- ray


SLOW_RAY = """
import subprocess, sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
number, *_ = connection.recv()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep({seconds})
child.kill()
child.wait()
if {answers}:
    connection.send((number, True, None))
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("answers", [True, False])
def test_a_start_of_ray_is_waited_for_as_long_as_its_processes_live(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ray_engine = pytest.importorskip("digit_study.trial.ray.ray_engine")
    start = subprocess.Popen
    source = SLOW_RAY.format(seconds=2.5, answers=answers)

    def start_stub(line: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-c", source, line[-1]], **options)

    monkeypatch.setattr(ray_engine.subprocess, "Popen", start_stub)
    monkeypatch.setattr(ray_engine, "CONNECT_S", 1.0)
    monkeypatch.setattr(ray_engine, "NOTICE_S", 1.0)
    connection = ray_engine.RayConnection("local", Workspace(tmp_path))
    if answers:
        connection.connect()
        connection.kill()
    else:
        with pytest.raises(StudyError, match="does not answer"):
            connection.connect()
    assert "Ray is starting on this machine" in capsys.readouterr().err
