"""The search space on a command line: what a sweep becomes, what it replaces, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from digit_study.config import compose, multirun_grid
from digit_study.config.space import Dimension, parse_space
from digit_study.config.study_config import StudyConfig
from digit_study.support.errors import StudyError

compose.register()
compose.register("study", StudyConfig)
SMALL = compose.compose_config(["search/space=small"], "study").search.space


def space(*words: str) -> dict[str, Any]:
    study: StudyConfig = compose.compose_config(words, "study")
    return study.search.space


def dimensions(*words: str) -> list[Dimension]:
    study: StudyConfig = compose.compose_config(words, "study")
    return parse_space(study.search.space, study.run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sweep", "entry"),
    [
        ("model.filters=8,16", {"choices": [8, 16]}),
        ("+model.filters=choice(8,16)", {"choices": [8, 16]}),
        ("model.filters=sort(16,8)", {"choices": [8, 16]}),
        ("model.pooling=max,'average'", {"choices": ["max", "average"]}),
        ("model.batch_norm=true,false", {"choices": [True, False]}),
        ("training.early_stopping.patience=2,null", {"choices": [2, None]}),
        ("model=cnn,lenet", {"choices": ["cnn", "lenet"]}),
        ("model.blocks=range(1,4)", {"type": "int", "low": 1, "high": 3}),
        ("model.blocks=range(3,0,-1)", {"type": "int", "low": 1, "high": 3}),
        ("model.blocks=range(2,3)", {"type": "int", "low": 2, "high": 2}),
        ("model.filters=range(8,33,8)", {"type": "int", "low": 8, "high": 32, "step": 8}),
        ("model.filters=tag(log,range(8,64))", {"type": "int", "low": 8, "high": 63, "log": True}),
        ("training.shift=range(1,4)", {"type": "float", "low": 1.0, "high": 3.0, "step": 1.0}),
        ("model.dropout=range(0,0.6,0.1)", {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1}),
        ("model.filters=interval(8,64)", {"type": "int", "low": 8, "high": 64}),
        ("model.dropout=interval(0,0.5)", {"type": "float", "low": 0.0, "high": 0.5}),
        (
            "training.learning_rate=tag(log, interval(1e-4, 1e-2))",
            {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        ),
    ],
)
def test_a_sweep_is_the_whole_space(sweep: str, entry: dict[str, Any]) -> None:
    key = sweep.partition("=")[0].lstrip("+")
    assert space(sweep) == {key: entry}
    assert [dimension.key for dimension in dimensions(sweep)] == [key]


@pytest.mark.parametrize("ends", ["1,4", "8,33,8", "8,32,8", "8,34,8", "9,10,3", "16,3,-4"])
def test_a_range_searches_what_multirun_lists(ends: str) -> None:
    sweep = f"model.filters=range({ends})"
    [dimension] = dimensions(sweep)
    searched = {f"model.filters={value}" for value in dimension.grid() or ()}
    assert searched == {job[0] for job in multirun_grid.expand([sweep])}


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["search.space.model.filters.high=64"], {"model.filters": {**SMALL["model.filters"], "high": 64}}),
        (["search.space.model.filters=8,16"], {"model.filters": {"choices": [8, 16]}}),
        (["search.space.model.filters={choices: [8, 16]}"], {"model.filters": {"choices": [8, 16]}}),
        (["search.space.model.pooling=null", "~search.space.model.batch_norm"],
         {"model.pooling": None, "model.batch_norm": None}),
        (["search.space.model.blocks=range(1,3)", "search.space.model.blocks.high=3"],
         {"model.blocks": {"type": "int", "low": 1, "high": 3}}),
    ],
)  # fmt: skip
def test_single_keys_change_the_space_of_the_file(
    words: list[str], changed: dict[str, Any]
) -> None:
    expected = {key: entry for key, entry in {**SMALL, **changed}.items() if entry is not None}
    assert space("search/space=small", *words) == expected


def test_sweeps_come_before_single_keys_and_a_set_value_is_the_first_trial() -> None:
    words = ["search.space.model.filters.when={model.pooling: [max]}", "model.filters=8,16"]
    assert space(*words) == {
        "model.filters": {"choices": [8, 16], "when": {"model.pooling": ["max"]}}
    }
    study = compose.compose_config(["model.filters=8", "model.filters=8,16"], "study")
    assert study.model.filters == 8


def test_a_study_is_the_same_whether_its_space_is_typed_or_in_a_file() -> None:
    typed = space(
        "model.filters=range(8,33,8)",
        "model.pooling=max,average,stride",
        "model.batch_norm=true,false",
    )
    assert typed == SMALL


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.filters=shuffle(8,16)"], "the sampler decides on their order"),
        (["model.filters=shuffle(range(8,16))"], "the sampler decides on their order"),
        (["model=glob(*)"], "`model` is searched by a,b,c, choice(…), range(…) or interval(…)"),
        (["model.filters=choice(8,choice(16,32))"], "must list its choices in one place"),
        (["model.filters=range(3,3)"], "must have a range with a value or more"),
        (["model.filters=range(0,inf)"], "must have a range with a value or more"),
        (["model.filters=range(inf,inf)"], "must have a range with a value or more"),
        (["model.filters=tag(lgo,range(1,3))"], "may have the tag log"),
        (["model.filters=tag(log,choice(1,3))"], "on a range or an interval"),
        (["model.filters=tag(log,range(1,9,2))"], "takes either log or step"),
        (["model.filtrs=8,16"], "did you mean 'model.filters'?"),
        (["modle.filters=8,16"], "did you mean 'model.filters'?"),
        (["data.path=a,b"], "`data.path` is no config key that can be searched"),
        (["search.sampler=tpe,random"], "`search.sampler` takes one value"),
        (["search/space=small,wide"], "`search/space` takes one value"),
        (["search.space=1,2"], "`search.space` takes one value"),
        (["~model.filters=1,2"], "every key of the config is needed"),
        (["model.filters=8,abc"], "must be of type int, got 'abc'"),
        (["model.filters=8,8"], "each choice once"),
        (["model.filters=interval(1.5,3)"], "whole numbers"),
        (["model.pooling=interval(0,1)"], "must be of type str"),
        (["model.filters=8,4000"], "must be in [1, 1024], got 4000"),
        (["model.filters=8,16", "search/space=small"], "swept keys are the whole space"),
        (["model.filters=8,16", "search.space={model.blocks: {choices: [2]}}"], "swept keys are"),
        (["search.space.model.filtrs=8,16"], "did you mean 'model.filters'?"),
        (["search.space.model.filtrs={choices: [8]}"], "did you mean 'model.filters'?"),
        (["search.space.model.filters=16"], "must have choices, or low and high, got 16"),
        (["search.space.model.units.high=16"], "`search.space` has no key `model.units`"),
        (["search.space.model.filters.high=16,32"], "takes one value"),
        (["search.space.model.filters.hihg=64"], "no config key that can be searched"),
        (["search.space.training.optimizer=null"], "has no key `training.optimizer` to drop"),
    ],
)
def test_what_is_no_space_is_refused_in_a_line(words: list[str], told: str) -> None:
    with pytest.raises(StudyError) as caught:
        dimensions(*words)
    message = str(caught.value)
    assert told in message and "\n" not in message


def test_only_the_command_that_trains_several_runs_names_multirun() -> None:
    with pytest.raises(StudyError, match="add -m to run them all"):
        compose.compose_config(["model.filters=8,16"])
    with pytest.raises(StudyError, match="takes one value") as caught:
        compose.compose_config(["search.trials=8,16"], "study")
    assert "-m" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "origin"),
    [
        ([], "files of search/space"),
        (["model.filters=8,16"], "keys swept on the command line"),
        (["search.space={}"], "search.space on the command line"),
        (["search.space.model.filters.high=9"], "changed by search.space.model.filters.high"),
    ],
)
def test_a_plan_says_where_its_space_comes_from(words: list[str], origin: str) -> None:
    assert origin in compose.origin_of_space(words)
