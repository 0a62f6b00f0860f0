"""A study that began with other files of ``conf/`` goes on with what they said then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal._storage import JournalOperation
from stub_worker import SPACE, plan, workspace

from digit_study.config import compose
from digit_study.config.study_config import StudyConfig
from digit_study.study import storage
from digit_study.study._optuna import JournalFile
from digit_study.study.begun_study import (
    DEFINITION,
    OVERRIDES,
    kept_overrides,
    words_of_begin,
)
from digit_study.study.journal import (
    DELETE_STUDY,
    SET_STUDY_ATTRIBUTE,
    journal_path,
    stored_attributes,
)
from digit_study.support.errors import StudyError

compose.register("study", StudyConfig)
#: What a command line gives today.
TODAY: StudyConfig = compose.compose_config(["study=s"], "study")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def attributes(*first_words: str, **values: Any) -> dict[str, Any]:
    """Return the attributes of a study that began with these words and other values."""
    began: StudyConfig = compose.compose_config(["study=s", *first_words], "study")
    definition = storage.definition_of(began, began.run)
    changed = {key.replace("__", "."): value for key, value in values.items()}
    return {DEFINITION: definition | changed, OVERRIDES: ["study=s", *first_words]}


def opened_study() -> optuna.Study:
    """Begin a study, or find it again."""
    asked = plan()
    return storage.open_study(asked.study, asked.run, asked.overrides, workspace()).study


def begin_with_batches_of(size: int) -> None:
    """Begin a study when the files gave another size of batches."""
    study = opened_study()
    definition = study.user_attrs[DEFINITION]
    study.set_user_attr(DEFINITION, {**definition, "training.batch_size": size})


def test_nothing_is_kept_where_the_files_say_the_same() -> None:
    assert kept_overrides(attributes(), ["study=s"]) == []


def test_nothing_is_kept_of_a_study_that_does_not_say_what_it_is() -> None:
    assert kept_overrides({}, ["study=s"]) == []


def test_other_values_are_kept_and_compose_to_what_was() -> None:
    stored = attributes(training__epochs=5, training__augmentation="none", model__dropout=0.125)
    kept = kept_overrides(stored, ["study=s"])
    assert sorted(kept) == [
        "model.dropout=0.125",
        "training.augmentation=none",
        "training.epochs=5",
    ]
    study: StudyConfig = compose.compose_config(["study=s", *kept], "study")
    assert storage.definition_of(study, study.run) == stored[DEFINITION]
    assert words_of_begin(stored) == ["study=s", *kept]


@pytest.mark.parametrize("name", ["mine, wide", "wide (v2)", "größer", "O'Neill", "12"])
def test_a_name_with_special_characters_is_kept(name: str) -> None:
    kept = kept_overrides(attributes(model__name=name), ["study=s"])
    study: StudyConfig = compose.compose_config(["study=s", *kept], "study")
    assert study.model.name == name
    assert study.search.space == TODAY.search.space


def test_a_key_that_did_not_exist_then_had_its_default() -> None:
    stored = attributes()
    del stored[DEFINITION]["training.augmentation"]
    assert kept_overrides(stored, ["study=s"]) == ["training.augmentation=none"]


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["training.epochs=9", "training=smoke", "experiment=quick"])
def test_what_is_typed_now_counts(typed: str) -> None:
    stored = attributes(training__epochs=5)
    assert kept_overrides(stored, ["study=s", typed]) == []


@pytest.mark.parametrize("typed", ["training.epochs=5", "training=plain", "experiment=quick"])
def test_what_was_typed_then_has_to_be_typed_again(typed: str) -> None:
    stored = attributes(typed)
    assert kept_overrides(stored, ["study=s"]) == []
    assert kept_overrides(stored, ["study=s", typed]) == []


def test_another_space_is_kept_unless_the_command_line_is_about_it() -> None:
    stored = attributes()
    entry = {
        "type": "float",
        "low": 0.5,
        "high": 3.0,
        "when": {"training.augmentation": ["shift_rotate"]},
    }
    stored[DEFINITION]["search.space.training.shift"] = entry
    kept = kept_overrides(stored, ["study=s"])
    assert len(kept) == 1
    study: StudyConfig = compose.compose_config(["study=s", *kept], "study")
    assert study.search.space == {**TODAY.search.space, "training.shift": entry}
    for word in ("search/space=small", "model.filters=8,16", "search.space.model.filters.high=64"):
        assert kept_overrides(stored, ["study=s", word]) == []


def test_a_study_goes_on_and_says_with_what(capsys: pytest.CaptureFixture[str]) -> None:
    begin_with_batches_of(64)
    capsys.readouterr()
    again = plan("search.trials=9")
    assert again.run.training.batch_size == 64
    assert "training.batch_size=64" in again.overrides
    assert "goes on with what the files of conf/ said" in capsys.readouterr().err
    storage.open_study(again.study, again.run, again.overrides, workspace())


def test_a_study_that_is_refused_names_the_command_that_goes_on() -> None:
    begin_with_batches_of(64)
    changed = plan("training.batch_size=32")
    with pytest.raises(StudyError, match="it began with .* training.batch_size=64`"):
        storage.open_study(changed.study, changed.run, changed.overrides, workspace())


def test_a_fresh_study_keeps_nothing() -> None:
    begin_with_batches_of(64)
    assert plan("search.fresh=true").run.training.batch_size == 128


def test_a_study_that_was_deleted_to_begin_anew_is_not_gone_on_with() -> None:
    """As where search.fresh=true is killed before the new study says what it is."""
    begin_with_batches_of(64)
    journal = JournalStorage(JournalFile(journal_path(workspace(), "s")))
    optuna.delete_study(study_name="s", storage=journal)
    assert plan().run.training.batch_size == 128


def test_the_attributes_of_a_journal_are_read_without_optuna() -> None:
    found = opened_study()
    path = workspace().studies / "s.journal"
    with path.open("ab") as journal:
        journal.write(b'{"op_code": 2, "user_at')
    assert stored_attributes(path) == found.user_attrs
    assert stored_attributes(path.with_name("none.journal")) == {}


def test_the_operations_of_a_journal_are_numbered_as_optuna_numbers_them() -> None:
    assert JournalOperation.DELETE_STUDY == DELETE_STUDY
    assert JournalOperation.SET_STUDY_USER_ATTR == SET_STUDY_ATTRIBUTE


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(1e-6, 1e6)
    | st.sampled_from(["max", "average", "shift_rotate", "1e-3", "True", "null", "a, b", "ü (2)"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["low", "choices", "model.filters"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["low", "choices", "when"]), VALUES, max_size=3))
def test_a_typed_value_is_read_back(value: dict[str, Any]) -> None:
    word = f"+x={compose.typed_value(value)}"
    assert compose.parse_overrides([word])[0].value() == value


def test_the_space_of_the_stubs_is_typed_as_it_was() -> None:
    study: StudyConfig = compose.compose_config([SPACE], "study")
    word = f"search.space={compose.typed_value(study.search.space)}"
    again: StudyConfig = compose.compose_config([word], "study")
    assert again.search.space == study.search.space
