"""Command lines to configs: what is typed, what is refused, and how a refusal reads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from digit_study.config import compose as composition
from digit_study.config.compose import compose_config, expand
from digit_study.config.run_config import Config
from digit_study.study import run_plan as launch
from digit_study.support.messages import StudyError, without_password
from digit_study.support.rules import flatten
from digit_study.support.signals import readable_errors
from digit_study.tracking import database as stores

composition.register()


def refusal(*overrides: str) -> str:
    with pytest.raises(StudyError) as caught:
        compose_config(overrides)
    return str(caught.value)


# ---------------------------------------------------------------------------------- configs


def test_the_yaml_defaults_are_the_schemas_defaults() -> None:
    assert compose_config([]) == Config()


@pytest.mark.parametrize("group", ["data", "model", "training"])
def test_every_option_composes_and_writes_every_key(group: str) -> None:
    for option in composition.config_groups()[group]:
        config = compose_config([f"{group}={option}"])
        config.validate()
        written = yaml.safe_load((composition.CONF / group / f"{option}.yaml").read_text())
        assert "defaults" in written or set(written) == set(asdict(config)[group]), option
        assert group != "model" or config.model.name == option


def test_every_leaf_can_be_overridden() -> None:
    changed = {
        "str": "x",
        "int": 7,
        "float": 0.25,
        "bool": True,
        "NoneType": None,
        "dict": {"cpu": 2},
    }
    for key, value in flatten(Config()).items():
        new = changed[type(value).__name__]
        text = {"None": "null", "{'cpu': 2}": "{cpu: 2}"}.get(str(new), str(new))
        config = compose_config([f"{key}={text}"])
        assert flatten(config)[key] == new, key


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["model.filters=16"], "model.filters", 16),
        (["+model.filters=16"], "model.filters", 16),
        (["++model.filters=16"], "model.filters", 16),
        (["model=tiny"], "model.filters", 8),
        (["model.filters=9", "model=tiny"], "model.filters", 9),
        (["model.filters=9", "model.filters=10"], "model.filters", 10),
        (["training.learning_rate=1e-4"], "training.learning_rate", 1e-4),
        (["training.early_stopping.patience=3"], "training.early_stopping.patience", 3),
        (["training.early_stopping={patience: 3}"], "training.early_stopping.patience", 3),
        (["training=smoke"], "training.epochs", 1),
        (["data.path='a b/ü=1.npz'"], "data.path", "a b/ü=1.npz"),
        (["tracking.run_name='it\\'s, fine'"], "tracking.run_name", "it's, fine"),
        (["hydra.verbose=true"], "model.filters", 32),
    ],
)
def test_what_is_typed_arrives(overrides: list[str], key: str, value: Any) -> None:
    assert flatten(compose_config(overrides))[key] == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.filterz=3", "unknown key `model.filterz` in 'model.filterz=3'; did you mean 'model.filters'?"),
        ("filterz=3", "did you mean 'model.filters'?"),
        ("modle=lenet", "unknown key `modle` in 'modle=lenet'; did you mean 'model'?"),
        ("+model.width=3", "unknown key `model.width`"),
        ("model=lenett", "`model` must be one of cnn, deep, lenet"),
        ("model=lenett", "got 'lenett'; did you mean 'lenet'?"),
        ("training=smok", "did you mean 'smoke'?"),
        ("model=null", "`model` must be one of"),
        ("model.filters=abc", "`model.filters`: Value 'abc' of type 'str' could not be converted to Integer"),
        ("model.filters=1.5", "`model.filters`"),
        ("model.filters=null", "`model.filters`"),
        ("model.filters=[1,2]", "`model.filters`"),
        ("model.filters=", "`model.filters`"),
        ("model.dropout=high", "`model.dropout`: Value 'high'"),
        ("model.batch_norm=maybe", "`model.batch_norm`: Value 'maybe' is not a valid bool"),
        ("training.early_stopping=3", "set one of training.early_stopping.patience"),
        ("training.early_stopping={patiense: 3}", "`training.early_stopping"),
        ("model.filters=16,32", "takes one value, got the sweep 'model.filters=16,32': add -m"),
        ("~model.filters", "every key of the config is needed"),
        ("model.filters", "an override reads key=value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_in_a_line(override: str, words: str) -> None:
    message = refusal(override)
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        (["model.filters=8"], [["model.filters=8"]]),
        (
            ["model.filters=8,16", "model=tiny,cnn"],
            [
                ["model.filters=8", "model=tiny"],
                ["model.filters=8", "model=cnn"],
                ["model.filters=16", "model=tiny"],
                ["model.filters=16", "model=cnn"],
            ],
        ),
        (
            ["training.seed=range(0,3)"],
            [["training.seed=0"], ["training.seed=1"], ["training.seed=2"]],
        ),
        (["training=glob(s*)"], [["training=smoke"]]),
    ],
)
def test_a_sweep_expands_as_hydra_does(typed: list[str], jobs: list[list[str]]) -> None:
    assert expand(typed) == jobs


@pytest.mark.parametrize(
    "typed", ["model.filters", "model.filters=interval(0,1)", "a=range(", "a=range(0,0)"]
)
def test_a_sweep_that_cannot_be_expanded_is_refused(typed: str) -> None:
    with pytest.raises(StudyError, match=r"\w+"):
        expand([typed])


# ---------------------------------------------------------------------------------- plans


def test_a_plan_settles_data_threads_and_precision(store: str) -> None:
    plan = launch.plan(["-m", "data=mnist_sample", "model.filters=8,16"])
    assert plan.multirun and plan.typed == ["data=mnist_sample", "model.filters=8,16"]
    assert [job.config.model.filters for job in plan.jobs] == [8, 16]
    for job in plan.jobs:
        assert (
            job.config.data.sha256
            and job.config.training.threads
            and job.config.training.precision != "auto"
        )
    again = compose_config([*plan.jobs[0].overrides, *plan.resolved_overrides()])
    assert (
        again.data == plan.jobs[0].config.data
        and again.training.threads == plan.jobs[0].config.training.threads
    )


@pytest.mark.parametrize(
    "bad",
    ["model.filters=8,0", "model=tiny,tinny", "training.epochs=1,x", "training.batch_size=8,3001"],
)
def test_one_bad_value_in_a_sweep_refuses_all(bad: str, store: str) -> None:
    with pytest.raises(StudyError, match=bad.partition("=")[0]):
        launch.plan(["-m", "data=mnist_sample", bad])


@pytest.mark.parametrize(
    ("limit", "batch", "fits"),
    [(100, 100, True), (100, 101, False), (2995, 128, True), (3001, 1, False)],
)
def test_batch_and_limit_fit_the_data(limit: int, batch: int, fits: bool, store: str) -> None:
    typed = ["data=mnist_sample", f"data.limit={limit}", f"training.batch_size={batch}"]
    if fits:
        assert launch.plan(typed).jobs[0].dataset == "mnist_sample"
        return
    with pytest.raises(StudyError, match=r"at most the \d+ digits"):
        launch.plan(typed)


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--info"], ["--hydra-help"]])
def test_questions_are_not_runs(words: list[str]) -> None:
    assert composition.asks_for_information(words)
    assert not composition.asks_for_information(["model=tiny"])


def test_a_message_ends_the_command_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, readable_errors():
        raise StudyError("`a` must be [b], got c")
    assert ended.value.code == 1 and capsys.readouterr().err == "`a` must be [b], got c\n"


# ---------------------------------------------------------------------------------- stores


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite:///{tmp}/none/x.db", "does not exist: make it first"),
        ("sqlite:///{tmp}/taken", "that is a directory"),
        ("sqlite:///{tmp}/text.db", "file is not a database"),
        ("sqlite:////proc/x.db", "cannot be written"),
        ("sqlite://", "gone with the process"),
        ("sqlite:///:memory:", "gone with the process"),
        ("http://127.0.0.1:9", "no answer"),
        ("http://127.0.0.1:x", "no answer"),
        ("./mlruns", "must be a sqlite:///"),
        ("file:///tmp/mlruns", "must be a sqlite:///"),
        ("postgresql://me:secret@127.0.0.1:9/x", "me:***@"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(
    uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_text("no database, however long this text may be " * 50)
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for key in ("tracking.uri", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if key == "MLFLOW_TRACKING_URI":
            monkeypatch.setenv(key, uri.format(tmp=tmp_path))
        with pytest.raises(StudyError) as caught:
            stores.check_store(uri.format(tmp=tmp_path))
        message = str(caught.value)
        assert (
            words in message and message.startswith(f"`{key}` must be") and "secret" not in message
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_stores_that_can_be_used_pass_and_are_not_touched(tmp_path: Path) -> None:
    stores.check_store(f"sqlite:///{tmp_path}/new.db")
    (tmp_path / "empty.db").touch()
    stores.check_store(f"sqlite:///{tmp_path}/empty.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db"]
    assert (tmp_path / "empty.db").stat().st_size == 0


@pytest.mark.slow
def test_a_database_that_another_run_is_writing_passes(tmp_path: Path) -> None:
    path = tmp_path / "busy.db"
    with sqlite3.connect(path) as other:
        other.execute("create table t (x)")
        other.execute("begin exclusive")
        stores.check_store(f"sqlite:///{path}")
    other.close()


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(self.server.code)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        thread = threading.Thread(target=answering.serve_forever, args=(0.01,))
        thread.start()
        yield answering
        answering.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "fits"), [(200, True), (401, True), (403, True), (404, False), (500, False)]
)
def test_a_server_is_asked_for_its_health(server: HTTPServer, code: int, fits: bool) -> None:
    server.code = code  # type: ignore[attr-defined]
    uri = f"http://127.0.0.1:{server.server_port}"
    if fits:
        stores.check_store(uri)
        return
    with pytest.raises(StudyError, match=f"it answers {code} to /health"):
        stores.check_store(uri)


def test_the_uri_is_the_configured_one_then_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert stores.tracking_uri("http://here") == "http://here"
    assert stores.tracking_uri(None) == "http://there"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert stores.tracking_uri(None) == f"sqlite:///{composition.ROOT}/mlflow.db"
    assert stores.view_command(stores.tracking_uri(None)) == "mlflow ui"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host:5432/x", "postgresql://me:***@host:5432/x"),
        ("http://me:a@b@host/x", "http://me:***@host/x"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_passwords_are_never_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


@pytest.mark.parametrize(
    "override", ["trackin.uri='{}'", "study='{}", "study={}#", "study='{}','{}'"]
)
def test_a_line_that_is_quoted_back_shows_no_password(override: str) -> None:
    with pytest.raises(StudyError) as caught:
        composition.compose_config([override.format(*2 * ["postgresql://me:hush@host/x"])])
    assert "me:***@host" in str(caught.value) and "hush" not in str(caught.value)
