"""How a reproduction is assessed, and what it is rebuilt from; no training here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import recorded_store as rs
from mlflow.entities import Param, Run

from digit_study.config.run_config import Config
from digit_study.data.sources import DataConfig
from digit_study.model.networks import ModelConfig
from digit_study.model.recipe import TrainingConfig
from digit_study.stats.ranking import PairedTest
from digit_study.study import reproduction
from digit_study.study.run_plan import asks_to_reproduce, plan_reproduction
from digit_study.support.errors import StudyError
from digit_study.support.rules import flatten
from digit_study.support.workspace import Workspace
from digit_study.tracking.queries import recorded_config


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> rs.Store:
    return rs.make_store(migrated, tmp_path)


def run_with(store: rs.Store, **tags: str) -> Run:
    return store.client.get_run(rs.add_run(store, model=False, tags=tags))


def paired(p_value: float) -> PairedTest:
    return PairedTest(3, 5, 1_000, 0.002, -0.004, 0.008, p_value)


@pytest.mark.parametrize(
    ("weights", "p_value", "kind"),
    [("w", 1.0, "bit-identical"), ("x", 0.7, "within seed noise"), ("x", 0.04, "different")],
)
def test_verdicts(store: rs.Store, weights: str, p_value: float, kind: str) -> None:
    old, new = run_with(store), run_with(store)
    verdict = reproduction.assess(old, new, weights, paired(p_value))
    assert verdict.name == kind
    assert verdict.sentence.startswith(kind)
    assert ("McNemar p" in verdict.sentence) == (kind != "bit-identical")


def test_what_differs_is_named() -> None:
    old = {
        "git.commit": "a",
        "git.dirty": "false",
        "version.keras": "3.14",
        "threads": "1",
        "host": "x",
    }
    new = {**old, "git.commit": "b", "version.keras": "3.15"}
    assert reproduction.differences(old, new) == [
        "git.commit was a, is b",
        "version.keras was 3.14, is 3.15",
    ]
    assert reproduction.differences(old, {**old, "git.dirty": "true"}) == [
        "git.dirty was false, is true"
    ]
    assert (
        "uncommitted" in reproduction.differences({"git.dirty": "true"}, {"git.dirty": "true"})[0]
    )
    assert reproduction.differences(old, old) == []


CONFIG = Config(
    data=DataConfig(
        source="mnist_sample", path="/a b/it's, [odd]=\\x.npz", sha256="f" * 64, seed=3
    ),
    model=ModelConfig(name="1e5", filters=7, batch_norm=False, dropout=0.0),
    training=TrainingConfig(learning_rate=1e-05, precision="float32", threads=1, seed=9),
)


def test_a_config_comes_back_as_it_was(store: rs.Store) -> None:
    # a path beside data=mnist_sample breaks a rule, so one of the two must go
    wanted = replace(CONFIG, data=replace(CONFIG.data, source="auto"))
    run_id = store.client.create_run(store.experiment).info.run_id
    store.client.log_batch(
        run_id, params=[Param(key, str(value)) for key, value in flatten(wanted).items()]
    )
    assert recorded_config(store.client.get_run(run_id)) == wanted


@pytest.mark.parametrize(
    "tag", ["technical.git.commit", "git.commit"]
)  # as now, and as of earlier code
def test_a_config_of_other_code_is_named(store: rs.Store, tag: str) -> None:
    run_id = store.client.create_run(store.experiment, tags={tag: "abc"}).info.run_id
    store.client.log_batch(run_id, params=[Param("model.wings", "2")])
    with pytest.raises(StudyError, match=r"model.wings.* git commit abc"):
        recorded_config(store.client.get_run(run_id))
    bare = store.client.create_run(store.experiment).info.run_id
    with pytest.raises(StudyError, match="without params"):
        recorded_config(store.client.get_run(bare))


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["-m", "reproduce=a,b"], "one run"),
        (["reproduce=abc", "model.filters=3"], "'model.filters=3' beside it"),
        (["reproduce=abc", "tracking.uri=sqlite:////nowhere/x.db"], "does not exist"),
    ],
)
def test_command_lines_are_checked(words: list[str], word: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=word):
        plan_reproduction(words, Workspace(tmp_path))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["reproduce=abc"], True),
        (["++reproduce=abc"], True),
        (["tracking.run_name=x", "+reproduce=abc"], True),
        (["reproduce=null"], False),
        (["model.filters=8"], False),
    ],
)
def test_a_run_to_train_again_is_noticed_however_its_key_is_typed(
    words: list[str], expected: bool
) -> None:
    assert asks_to_reproduce(words) == expected


def reproduce(store: rs.Store, run_id: str) -> None:
    words = [f"reproduce={run_id}", f"tracking.uri='{store.uri}'"]
    reproduction.reproduce(plan_reproduction(words, store.workspace), store.workspace)


def test_unknown_runs_and_runs_without_predictions(store: rs.Store) -> None:
    with pytest.raises(StudyError, match="which is unknown"):
        reproduce(store, "0" * 32)
    with pytest.raises(StudyError, match=r"predictions\.csv"):
        reproduce(store, rs.add_run(store))


def test_changed_digits_are_named(store: rs.Store) -> None:
    table = rs.predictions([1], [1], [0])
    run_id = rs.add_run(store, tags={"dataset.sha256": "f" * 64}, table=table)
    with pytest.raises(StudyError, match="the data differ or are gone"):
        reproduce(store, run_id)
