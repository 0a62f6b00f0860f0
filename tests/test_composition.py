"""Command lines to configs: what is typed, what is refused, and how a refusal reads."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from stub_worker import workspace

from digit_study.config import command_line, multirun_grid, renamed_keys
from digit_study.config import compose as composition
from digit_study.config.compose import compose_config
from digit_study.config.run_config import Config
from digit_study.model import networks
from digit_study.study import run_plan as launch
from digit_study.support import hardware
from digit_study.support.errors import StudyError
from digit_study.support.redaction import without_password
from digit_study.support.rules import flatten
from digit_study.support.signals import readable_errors
from digit_study.support.workspace import Workspace
from digit_study.tracking import database as stores
from digit_study.tracking.location import store_uri, view_command

composition.register()


def refusal(*overrides: str) -> str:
    with pytest.raises(StudyError) as caught:
        compose_config(overrides)
    return str(caught.value)


# ---------------------------------------------------------------------------------- configs


def test_the_yaml_defaults_are_the_schemas_defaults_but_for_the_recipe() -> None:
    # what an older store does not say of a recipe was that of training=plain
    assert compose_config(["training=plain"]) == Config()


def test_the_default_recipe_varies_handwriting() -> None:
    assert compose_config([]).training.augmentation == "handwriting"


@pytest.mark.slow
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
        (["resources.cpu=2"], "resources", {"cpu": 2}),
        (["+tracking.tags.owner=me"], "tracking.tags", {"owner": "me"}),
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
        ("model.filters=abc", "`model.filters` must be a whole number, got 'abc': correct it, or drop it"),
        ("model.filters=1.5", "`model.filters`"),
        ("model.filters=null", "`model.filters`"),
        ("model.filters=[1,2]", "`model.filters`"),
        ("model.filters=", "`model.filters`"),
        ("model.dropout=high", "`model.dropout` must be a number, got 'high'"),
        ("tracking.tags=[1]", "`tracking.tags` must map keys to values, got [1]: write 'tracking.tags={<key>:"),
        ("model@foo=tiny", "got 'model@foo=tiny': write model=<name>, without @foo"),
        ("model.batch_norm=maybe", "`model.batch_norm` must be true or false, got 'maybe'"),
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
    assert multirun_grid.expand(typed) == jobs


@pytest.mark.parametrize(
    "typed",
    [
        "model.filters",
        "model.filters=interval(0,1)",
        "model.filters=choice(8,choice(9,10))",
        "a=range(",
        "a=range(0,0)",
        "a=range(0,inf)",
        "a=range(0,20000)",
    ],
)
def test_a_sweep_that_cannot_be_expanded_is_refused(typed: str) -> None:
    with pytest.raises(StudyError, match=r"\w+"):
        multirun_grid.expand([typed])


@pytest.mark.parametrize(
    "typed",
    [
        ["hydra.sweeper.params={model.filters: '8,16'}", "seed=1"],
        ["+hydra.sweeper.params={model.filters: '8,16'}", "seed=1"],
        ["+hydra.sweeper.params={model.filters: [8, 16]}", "seed=1"],
        ["+hydra.sweeper.params.model.filters=8,16", "seed=1"],
    ],
)
def test_a_grid_that_hydra_would_sweep_is_expanded(typed: list[str]) -> None:
    assert multirun_grid.expand(typed) == [
        ["model.filters=8", "seed=1"],
        ["model.filters=16", "seed=1"],
    ]


def test_a_grid_that_is_none_is_refused() -> None:
    with pytest.raises(StudyError, match=r"`hydra.sweeper.params` must map keys to values"):
        multirun_grid.expand(["hydra.sweeper.params=8"])


def test_of_two_overrides_of_a_key_the_later_holds() -> None:
    assert multirun_grid.expand(["model.filters=8,16", "model.filters=9"]) == [["model.filters=9"]]


# --------------------------------------------------------------- own files, and what is gone


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with experiment files outside the project."""
    experiments = {
        "wide": "model: {filters: 48}",
        "grid": "hydra: {sweeper: {params: {model.filters: '8,16'}}}",
        "runs_grid": "hydra: {mode: MULTIRUN, sweeper: {params: {model.filters: '8,16'}}}",
        "old": "patience: 3",
        "typo": "outage_timeot: 3",
        "unresolved": "model: {filters: '${nope}'}",
    }
    (tmp_path / "experiment").mkdir()
    for name, text in experiments.items():
        path = tmp_path / "experiment" / f"{name}.yaml"
        path.write_text(f"# @package _global_\n{text}\n")
    return tmp_path


def typed(*words: str) -> list[str]:
    overrides: list[str] = command_line.parse_arguments(words).overrides
    return overrides


@pytest.mark.parametrize("option", ["--config-dir={}", "-cd={}", "hydra.searchpath=[{}]"])
def test_experiments_outside_the_project_are_used(option: str, own: Path) -> None:
    config = compose_config(typed("model=tiny", option.format(own), "experiment=wide"))
    assert config.model.filters == 48 and config.model.name == "tiny"


def test_folders_of_both_options_are_used(own: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "model").mkdir(parents=True)
    (tmp_path / "more" / "model" / "mine.yaml").write_text("name: mine\n")
    words = [f"--config-dir={own}", f"hydra.searchpath=[file://{tmp_path}/more]", "model=mine"]
    assert compose_config(typed(*words, "experiment=wide")).model.name == "mine"


@pytest.mark.parametrize("name", ["o'b", "a, b", "größe (2)", "end\\"])
def test_a_folder_of_any_name_is_used(name: str, own: Path) -> None:
    folder = own / name
    folder.mkdir()
    (own / "experiment").rename(folder / "experiment")
    words = typed(f"--config-dir={folder}", "experiment=wide")
    assert compose_config(words).model.filters == 48


def test_a_grid_in_a_file_is_run_by_multirun(own: Path) -> None:
    jobs = multirun_grid.expand(
        typed("-m", f"--config-dir={own}", "experiment=grid", "training.seed=1")
    )
    assert [compose_config(job).model.filters for job in jobs] == [8, 16]
    assert all("training.seed=1" in job for job in jobs)


@pytest.mark.parametrize(
    ("words", "is_multirun"),
    [
        (["-m"], True),
        (["hydra.mode=MULTIRUN", "model.filters=8,16"], True),
        (["experiment=runs_grid"], True),
        (["+experiment=runs_grid"], True),
        (["experiment=grid", "hydra.mode=MULTIRUN"], True),
        (["experiment=wide"], False),
        ([], False),
    ],
)
def test_the_mode_multirun_means_the_same_as_its_option(
    words: list[str], is_multirun: bool, own: Path
) -> None:
    parsed = command_line.parse_arguments([f"--config-dir={own}", *words])
    assert multirun_grid.is_multirun(parsed) is is_multirun


def test_a_single_run_says_that_it_leaves_out_the_grid_of_its_file(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = command_line.parse_arguments([f"--config-dir={own}", "experiment=grid"])
    assert not multirun_grid.is_multirun(parsed)
    assert "`hydra.sweeper.params` is not used by a single run: add -m" in capsys.readouterr().err


def test_a_typed_grid_without_its_option_is_refused() -> None:
    parsed = command_line.parse_arguments(["hydra.sweeper.params={model.filters: '8,16'}"])
    with pytest.raises(StudyError, match="add -m to run them all"):
        multirun_grid.is_multirun(parsed)


@pytest.mark.slow
@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_an_option_may_be_chosen_with_a_plus(plus: str, own: Path) -> None:
    words = typed(f"{plus}model=tiny", f"--config-dir={own}", f"{plus}experiment=wide")
    config = compose_config(words)
    assert (config.model.name, config.model.filters) == ("tiny", 48)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.filters=${nope}", "Interpolation key 'nope' not found: correct what stands in"),
        ("model.filters=${oc.env:NO_SUCH}", "`model.filters`: Environment variable 'NO_SUCH' not"),
        ("tracking.experiment=it's", "where that has special characters: got tracking.experiment="),
        ("hydra.mode=NOPE", "expected one of [RUN, MULTIRUN], got 'hydra.mode=NOPE': correct it"),
        ("hydra.job.chdir=maybe", "`hydra.job.chdir` must be true or false, got 'maybe'"),
        ("search=default", "`search` belongs to python sweeps/optuna_search.py, got"),
        ("search/space=wide", "`search/space` belongs to python sweeps/optuna_search.py, got"),
    ],
)
def test_what_hydra_and_omegaconf_find_is_told_with_a_remedy(override: str, told: str) -> None:
    assert told in refusal(override)


def test_a_choice_of_another_command_is_refused_with_its_name() -> None:
    with pytest.raises(StudyError, match="`search` belongs to python sweeps/optuna_search.py"):
        multirun_grid.expand(["search=default", "model.filters=8,16"])
    with pytest.raises(StudyError, match="`model` belongs to python src/run.py"):
        compose_config(["model=tiny"], "promote")


def test_letters_that_the_locale_does_not_know_are_those_that_were_typed() -> None:
    as_python_has_it = "tracking.note=café".encode().decode("ascii", "surrogateescape")
    assert command_line.parse_arguments([as_python_has_it]).overrides == ["tracking.note=café"]


def test_letters_that_the_locale_knows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda word: word.encode("latin-1"))
    words = ["tracking.note=café"]
    assert command_line.parse_arguments(words).overrides == words


def test_options_may_stand_between_overrides(own: Path) -> None:
    words = typed("model=tiny", "--config-dir", str(own), "experiment=wide")
    assert words[:2] == ["model=tiny", "experiment=wide"]


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("typo", "Key 'outage_timeot' not in 'Config'; did you mean 'outage_timeout'?"),
        ("unresolved", "`model.filters`: Interpolation key 'nope' not found"),
        ("wid", "did you mean 'wide'?"),
    ],
)
def test_what_is_wrong_in_an_own_file_is_refused_in_a_line(
    experiment: str, words: str, own: Path
) -> None:
    message = refusal(*typed(f"--config-dir={own}", f"experiment={experiment}"))
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config-name=study"], "`--config-name` is fixed"),
        (["--config-path=/somewhere"], "`--config-path` is fixed"),
        (["--config-dir=/not/there"], "`--config-dir` and `hydra.searchpath` must name folders"),
        (["hydra/launcher=joblib"], "workers=<runs at a time>"),
        (["hydra.launcher.n_jobs=2"], "workers=<runs at a time>"),
        (["hydra/sweeper=optuna"], "sweeps/optuna_search.py"),
        (["hydra.run.dir=/elsewhere"], "tracking.uri=<store>"),
        (["hydra.sweep.dir=/elsewhere"], "tracking.uri=<store>"),
        (["hydra.sweep.subdir=x"], "tracking.uri=<store>"),
        (["search.watch=true"], "the live page is gone; use optuna-dashboard or mlflow ui"),
        (["+search.watch=true"], "the live page is gone; use optuna-dashboard or mlflow ui"),
    ],
)
def test_what_is_gone_names_what_replaces_it(words: list[str], told: str) -> None:
    with pytest.raises(StudyError) as caught:
        command_line.parse_arguments(["-m", "model=tiny", *words])
    message = str(caught.value)
    assert told in message and "\n" not in message


def test_a_folder_that_is_none_is_refused() -> None:
    assert "must name folders of config files" in refusal("hydra.searchpath=[/not/there]")


@pytest.fixture
def notices(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """What is printed, in a process that has not given a notice yet."""
    renamed_keys.tell_new_name.cache_clear()
    yield capsys
    renamed_keys.tell_new_name.cache_clear()


NOTICE = "`patience` is now `outage_timeout`\n"


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_old_name_is_taken_with_a_notice(
    prefix: str, notices: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert compose_config(typed(f"{prefix}patience=3")).outage_timeout == 3.0
    assert notices.readouterr().err == NOTICE


@pytest.mark.slow
def test_an_old_name_in_a_file_is_taken_with_a_notice(
    own: Path, notices: pytest.CaptureFixture[str]
) -> None:
    words = typed(f"--config-dir={own}", "experiment=old", "training=plain")
    assert compose_config(words) == replace(Config(), outage_timeout=3.0)
    assert notices.readouterr().err == NOTICE


def test_an_old_name_that_was_recorded_is_read_without_a_notice(
    notices: pytest.CaptureFixture[str],
) -> None:
    config = compose_config(["patience=3", "search.watch=true"], recorded=True)
    assert config.outage_timeout == 3.0
    assert notices.readouterr().err == ""


def test_a_wrong_value_under_an_old_name_is_refused() -> None:
    assert "`outage_timeout` must be a number, got 'long'" in refusal("patience=long")


@pytest.mark.parametrize(
    "override", ["model.filters=${nope}", "model.filters=${oc.env:NOSUCH}", "data.path=${nope}"]
)
def test_an_interpolation_that_leads_nowhere_is_refused_in_a_line(override: str) -> None:
    message = refusal(override)
    assert message.startswith(f"`{override.partition('=')[0]}`: ")
    assert ("nope" in message or "NOSUCH" in message) and "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--cfg", "job", "-m", "model.filters=8,16"], 0, "filters: 8"),
        (["--cfg", "job", "--resolve", "data.path=${oc.env:HOME}"], 0, "path: /"),
        (["--cfg", "job", "tracking.tags.owner=me"], 0, "owner: me"),
        (["--cfg", "job", "--resolve", "model.filters=${nope}"], 1, "`model.filters`: "),
        (["--cfg", "job", "-m", "model.filters=choice(8,choice(9,10))"], 1, "in one place"),
        (["--cfg", "job", "model.filterz=3"], 1, "did you mean 'model.filters'?"),
        (["--config-name=study"], 1, "`--config-name` is fixed"),
        (["model.filters=${oc.env:NOSUCH}"], 1, "`model.filters`: "),
    ],
)
def test_a_command_answers_without_a_traceback(words: list[str], code: int, told: str) -> None:
    command = [sys.executable, str(composition.ROOT / "src" / "run.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code
    assert told in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert code == 0 or done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------- plans


def test_a_plan_settles_data_threads_and_precision(store: str) -> None:
    plan = launch.plan_runs(["-m", "data=mnist_sample", "model.filters=8,16"], workspace())
    assert plan.is_multirun and plan.typed == ["data=mnist_sample", "model.filters=8,16"]
    assert [run.config.model.filters for run in plan.runs] == [8, 16]
    for run in plan.runs:
        assert run.config.data.sha256
        assert run.config.training.threads
        assert run.config.training.precision != "auto"
    slots = plan.context.slots
    assert slots is not None and slots * plan.runs[0].config.training.threads <= hardware.cores()
    assert [plan.runs[number].config.model.filters for number in plan.longest_first] == [16, 8]


def test_a_family_of_layers_that_are_not_counted_is_planned_too(
    monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    def separable(layers: Any, x: Any, config: Any) -> Any:
        return layers.SeparableConv2D(config.filters, 3)(x)

    monkeypatch.setitem(networks.FAMILIES, "simple", separable)
    words = ["-m", "data=mnist_sample", "model.family=cnn,simple", "model.pooling=none"]
    plan = launch.plan_runs(words, workspace())
    first = plan.runs[plan.longest_first[0]]
    assert first.config.model.family == "simple"


@pytest.mark.parametrize(
    "bad",
    ["model.filters=8,0", "model=tiny,tinny", "training.epochs=1,x", "training.batch_size=8,3001"],
)
def test_one_bad_value_in_a_sweep_refuses_all(bad: str, store: str) -> None:
    with pytest.raises(StudyError, match=bad.partition("=")[0]):
        launch.plan_runs(["-m", "data=mnist_sample", bad], workspace())


@pytest.mark.parametrize(
    ("limit", "batch", "fits"),
    [(100, 100, True), (100, 101, False), (2995, 128, True), (3001, 1, False)],
)
def test_batch_and_limit_fit_the_data(limit: int, batch: int, fits: bool, store: str) -> None:
    typed = ["data=mnist_sample", f"data.limit={limit}", f"training.batch_size={batch}"]
    if fits:
        assert launch.plan_runs(typed, workspace()).runs[0].dataset == "mnist_sample"
        return
    with pytest.raises(StudyError, match=r"at most the \d+ digits"):
        launch.plan_runs(typed, workspace())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--resolve"], "`--resolve` says how --cfg shows a config"),
        (["-m", "--resolve", "model.filters=8,16"], "give --cfg job --resolve"),
        (["--package=model"], "`--package` says how"),
        (["--hydra-help", "--resolve"], "`--resolve` says how"),
        (["--cfg=job", "--info"], "got --cfg and --info: give one of them"),
        (["--experimental-rerun=old"], "reproduce=<run_id>"),
    ],
)
def test_options_that_hydra_cannot_take_together_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(StudyError) as caught:
        command_line.parse_arguments(words)
    assert told in str(caught.value)


@pytest.mark.slow
def test_a_config_is_shown_with_the_space_that_is_typed() -> None:
    script = composition.ROOT / "sweeps" / "optuna_search.py"
    words = ["--cfg=job", "--package=search.space", "-m", "model.filters=range(8,33,8)"]
    command = [sys.executable, str(script), *words, "search.space.model.pooling=max,average"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert yaml.safe_load(done.stdout) == {
        "model.filters": {"type": "int", "low": 8, "high": 32, "step": 8},
        "model.pooling": {"choices": ["max", "average"]},
    }


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--info"], ["--hydra-help"]])
def test_questions_are_not_runs(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.answer(words, "config", Config)
    parsed = command_line.answer(["model=tiny"], "config", Config)
    assert parsed.overrides == ["model=tiny"]


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
    here = Workspace.of_project()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert store_uri("http://here", here) == "http://here"
    assert store_uri(None, here) == "http://there"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_uri(None, here) == f"sqlite:///{here.root}/mlflow.db"
    assert view_command(store_uri(None, here), here) == "mlflow ui"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host:5432/x", "postgresql://me:***@host:5432/x"),
        ("http://me:a@b@host/x", "http://me:***@host/x"),
        ("https://token@host:5000/x", "https://***@host:5000/x"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("got 'http://h/?token=a': no answer", "got 'http://h/?token=***': no answer"),
        ("http://h/?secret=a&x=1 does not answer", "http://h/?secret=***&x=1 does not answer"),
        # a secret may hold spaces and quotes
        ("http://h/?secret=a b", "http://h/?secret=***"),
        ("mysql://u@h/d?password=it's_me&x=1", "mysql://u@h/d?password=***&x=1"),
        ("got 'mysql://u@h/d?password=it's me', no", "got 'mysql://u@h/d?password=***', no"),
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
