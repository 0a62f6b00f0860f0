from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from digit_study.config import compose as composition
from digit_study.config.run_config import Config
from digit_study.config.space import (
    Dimension,
    apply,
    baseline,
    fingerprint,
    grid,
    parse_space,
    parse_start,
    suggest,
)
from digit_study.config.study_config import StudyConfig
from digit_study.study.study_plan import grid_size
from digit_study.support.errors import StudyError
from digit_study.support.rules import flatten, with_values

composition.register("study", StudyConfig)
BASE = Config()
START_SPACE = parse_space(
    {
        "model.filters": {"low": 8, "high": 32, "step": 8},
        "model.dense_units": {"low": 8, "high": 16},
        "training.shift": {
            "type": "float",
            "low": 1,
            "high": 2,
            "when": {"training.augmentation": ["shift_rotate"]},
        },
        "training.augmentation": {"choices": ["none", "shift_rotate"]},
    },
    BASE,
)


def parse(base: Config = BASE, **space: Any) -> list[Dimension]:
    return parse_space({key.replace("__", "."): entry for key, entry in space.items()}, base)


@pytest.mark.parametrize("name", composition.config_groups()["search/space"])
def test_every_space_that_is_shipped_is_sound(name: str) -> None:
    study = composition.compose_config([f"search/space={name}"], "study")
    assert {one.key for one in parse_space(study.search.space, study.run)} == set(
        study.search.space
    )


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "at least one key"),
        ({"model__filterz": {"choices": [1]}}, "did you mean 'model.filters'"),
        ({"tracking__uri": {"choices": ["a"]}}, "no config key that can be searched"),
        ({"model__filters": 8}, "must have choices, or low and high"),
        ({"model__filters": {"low": 1}}, "must have choices, or low and high"),
        ({"model__filters": {"low": 1, "high": 2, "choises": [1]}}, "did you mean 'choices'"),
        ({"model__filters": {"low": 1, "high": 2, "type": "integer"}}, "type categorical, int or float"),
        ({"model__filters": {"choices": []}}, "at least one choice"),
        ({"model__filters": {"choices": [8, 8]}}, "each choice once"),
        ({"model__filters": {"choices": [8], "low": 1}}, "either choices or a range"),
        ({"model__filters": {"low": 9, "high": 2}}, "low ≤ high"),
        ({"model__filters": {"low": 1.5, "high": 2}}, "whole numbers"),
        ({"model__filters": {"low": "1", "high": 2}}, "finite numbers"),
        ({"model__filters": {"low": True, "high": 2}}, "finite numbers"),
        ({"model__filters": {"low": 1, "high": 9, "step": 0}}, "step greater than 0"),
        ({"model__filters": {"low": 0, "high": 9}}, "`model.filters` must be in [1, 1024], got 0"),
        ({"model__filters": {"low": 8, "high": 2000}}, "`model.filters` must be in [1, 1024], got 2000"),
        ({"model__filters": {"choices": [8, "x"]}}, "must be of type int, got 'x'"),
        ({"model__filters": {"type": "float", "low": 8, "high": 16}}, "must be of type int, got 8.0"),
        ({"model__pooling": {"choices": ["max", "averag"]}}, "did you mean 'average'"),
        ({"model__dropout": {"type": "float", "low": 0, "high": 1}}, "in [0, 1), got 1.0"),
        ({"training__shift": {"type": "float", "low": 0, "high": 0.1, "log": True}}, "low greater than 0"),
        ({"training__shift": {"type": "float", "low": 0.1, "high": 0.2, "log": True, "step": 0.1}}, "either log"),
        ({"model__filters": {"low": 8, "high": 64, "log": "false"}}, "log: true or log: false, got 'false'"),
        ({"model__blocks": {"low": 1, "high": 6}}, "leaves nothing of a 28x28 image"),
        ({"model": {"choices": ["lenet", "cn"]}}, "`model` must be one of"),
        ({"model": {"choices": ["lenet", "cnn"]}, "model__blocks": {"low": 1, "high": 3}}, "model=lenet"),
        ({"model__filters": {"low": 1, "high": 2, "when": ["a"]}}, "must map a key"),
        ({"model__filters": {"low": 1, "high": 2, "when": {"model.pooling": "max"}}}, "must list the values"),
        ({"model__filters": {"choices": [1], "when": {"model.pooling": ["average"]}}}, "is max and not searched"),
        ({"model__filters": {"low": 1, "high": 2, "when": {"model.poolin": ["max"]}}}, "did you mean 'model.pooling'"),
        (
            {"training__optimizer": {"choices": ["sgd", "adamw"]},
             "training__weight_decay": {"choices": [0.1], "when": {"training.optimizer": ["adam"]}}},
            "which is never 'adam'",
        ),
        (
            {"model": {"choices": ["lenet", "cnn"]},
             "model__dropout": {"choices": [0.1], "when": {"model.family": ["cnn"]}}},
            "which the searched group `model` decides",
        ),
        (
            {"model__filters": {"choices": [1, 2], "when": {"model.dense_units": [8]}},
             "model__dense_units": {"choices": [8, 9], "when": {"model.filters": [1]}}},
            "and so on itself",
        ),
    ],
)  # fmt: skip
def test_a_space_that_is_not_sound_is_refused_with_a_reason(
    space: dict[str, Any], told: str
) -> None:
    with pytest.raises(StudyError) as caught:
        parse(**space)
    assert told in str(caught.value)


def test_all_flaws_are_told_at_once() -> None:
    with pytest.raises(StudyError) as caught:
        parse(model__filters={"choices": []}, model__dropout={"low": 1})
    assert "model.filters" in str(caught.value) and "model.dropout" in str(caught.value)


def test_conditions_come_first_and_one_that_holds_anyway_is_dropped() -> None:
    dimensions = parse(
        training__shift={
            "type": "float",
            "low": 1,
            "high": 2,
            "when": {"training.augmentation": ["shift_rotate"]},
        },
        training__augmentation={"choices": ["none", "shift_rotate"]},
        model__filters={"low": 8, "high": 16, "when": {"model.pooling": ["max"]}},
    )
    assert [one.key for one in dimensions] == [
        "training.augmentation",
        "training.shift",
        "model.filters",
    ]
    assert dimensions[2].when == {}


def test_an_option_is_checked_only_where_it_is_used() -> None:
    [_, blocks] = parse(
        model={"choices": ["lenet", "cnn"]},
        model__blocks={"low": 1, "high": 3, "when": {"model": ["cnn"]}},
    )
    assert blocks.when == {"model": ("cnn",)}


def test_a_key_is_checked_under_the_conditions_of_its_conditions() -> None:
    # only the family simple leaves out the padding
    base = with_values(BASE, {"model.pooling": "none"})
    with pytest.raises(StudyError, match=r"with model.family=simple, .* leaves nothing"):
        parse(
            base,
            model__family={"choices": ["cnn", "simple"]},
            model__dense_units={"choices": [8], "when": {"model.family": ["simple"]}},
            model__blocks={"choices": [5], "when": {"model.dense_units": [8]}},
            model__kernel_size={"choices": [7], "when": {"model.blocks": [5]}},
        )


def test_a_group_brings_its_own_values_and_keeps_what_was_resolved() -> None:
    base = with_values(BASE, {"training.precision": "float32", "training.threads": 1})
    config = apply(
        {"model": "lenet", "training": "smoke", "model.dropout": 0.1}, ["model.filters=20"], base
    )
    assert (config.model.family, config.model.filters, config.model.dropout) == ("lenet", 20, 0.1)
    assert (config.training.epochs, config.training.precision, config.training.threads) == (
        1,
        "float32",
        1,
    )


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (None, "training.early_stopping.patience"),
        (3, "training.early_stopping.patience"),
        (5, "training.rotation"),
    ],
)
def test_values_take_the_type_of_their_key(value: Any, key: str) -> None:
    placed = flatten(with_values(BASE, {key: value}))[key]
    assert placed == value and (key != "training.rotation" or isinstance(placed, float))


ranges = st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(1, 9)).map(
    lambda t: {"low": t[0], "high": t[0] + t[1], "step": t[2]}
)


@given(ranges)
def test_a_stepped_range_lists_what_it_contains_and_nothing_else(entry: dict[str, int]) -> None:
    [one] = parse(model__filters=entry)
    values = one.grid()
    assert values == tuple(range(entry["low"], entry["high"] + 1, entry["step"]))
    assert one.high == values[-1]
    assert [v for v in range(entry["low"] - 1, entry["high"] + 2) if one.contains(v)] == list(
        values
    )
    assert one.high == values[-1]


@given(st.integers(1, 30), st.floats(0.01, 0.1))
def test_every_point_of_a_float_grid_can_be_suggested(count: int, step: float) -> None:
    step = round(step, 3)
    one = Dimension("model.dropout", "float", low=0.0, high=round(count * step, 12), step=step)
    values = one.grid()
    assert values is not None and len(values) == count + 1
    assert all(
        one.contains(value) and one.suggest(FixedTrial({one.key: value})) == value
        for value in values
    )


@given(st.lists(st.sampled_from(["max", "average", "stride"]), min_size=1, unique=True), ranges)
def test_a_grid_has_distinct_points_and_no_inactive_keys(
    poolings: list[str], entry: dict[str, int]
) -> None:
    dimensions = parse(
        model__pooling={"choices": poolings},
        model__filters={**entry, "when": {"model.pooling": poolings[:1]}},
    )
    points = grid(dimensions)
    assert points is not None
    assert (
        len({fingerprint(point) for point in points}) == len(points) <= (grid_size(dimensions) or 0)
    )
    assert all(
        ("model.filters" in point) == (point["model.pooling"] == poolings[0]) for point in points
    )


def test_what_is_continuous_has_no_grid() -> None:
    dimensions = parse(model__dropout={"type": "float", "low": 0.0, "high": 0.5})
    assert grid(dimensions) is None and grid_size(dimensions) is None


@pytest.mark.parametrize(
    ("entry", "params", "outside"),
    [({"low": 8, "high": 32, "step": 8}, {"model.filters": 32}, []),
     ({"low": 8, "high": 24, "step": 8}, {}, ["model.filters"]),
     ({"low": 7, "high": 33, "step": 2}, {}, ["model.filters"])],
)  # fmt: skip
def test_the_baseline_is_told_apart_from_what_lies_outside(
    entry: dict[str, int], params: dict[str, int], outside: list[str]
) -> None:
    assert baseline(parse(model__filters=entry), BASE) == (params, outside)


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.booleans() | st.none(), max_size=4))
def test_a_fingerprint_knows_no_order(params: dict[str, Any]) -> None:
    assert fingerprint(params) == fingerprint(dict(reversed(params.items())))


@pytest.mark.parametrize(
    ("point", "told"),
    [
        (3, "must be values by searched key, {model.filters: 32}, got 3"),
        ({}, "must be values by searched key"),
        ({"model.filtrs": 8}, "did you mean 'model.filters'"),
        ({"model.blocks": 2}, "must have keys that are searched, got 'model.blocks'"),
        ({"model.filters": 9}, "`model.filters` is 8 to 32, step 8, got 9"),
        ({"model.filters": True}, "got True"),
        ({"model.dense_units": 8.5}, "`model.dense_units` is 8 to 16, got 8.5"),
        ({"training.augmentation": "shift_rotat"}, "did you mean 'shift_rotate'"),
        ({"training.shift": 1.5}, "only when training.augmentation is shift_rotate: give that too"),
        (
            {"training.augmentation": "none", "training.shift": 1.5},
            "only when training.augmentation is shift_rotate",
        ),
    ],
)
def test_a_starting_point_outside_the_space_is_refused_with_a_reason(point: Any, told: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_start([{"model.filters": 8}, point], START_SPACE, [], BASE)
    message = str(caught.value)
    assert message.startswith("`search.start` configuration 2 ") and told in message


def test_a_starting_point_takes_the_types_of_the_space_and_may_leave_keys_out() -> None:
    points = [
        {"model.filters": 16.0},
        {"training.shift": 2, "training.augmentation": "shift_rotate"},
    ]
    first, second = parse_start(points, START_SPACE, [], BASE)
    assert first == {"model.filters": 16} and isinstance(first["model.filters"], int)
    assert list(second) == ["training.augmentation", "training.shift"]
    assert isinstance(second["training.shift"], float)


def test_a_starting_point_that_cannot_be_trained_is_refused() -> None:
    space = parse(model__pooling={"choices": ["max"]}, model__blocks={"low": 1, "high": 4})
    base = with_values(BASE, {"model.convs_per_block": 1})
    assert parse_start([{"model.blocks": 4}], space, [], base) == [{"model.blocks": 4}]
    odd = with_values(BASE, {"model.kernel_size": 25, "model.family": "lenet"})
    with pytest.raises(StudyError, match="configuration 1 cannot be trained: "):
        parse_start([{"model.blocks": 4}], space, [], odd)


def test_a_trial_is_asked_only_for_what_matters() -> None:
    dimensions = parse(
        training__augmentation={"choices": ["none"]},
        training__optimizer={"choices": ["sgd", "adam"]},
        training__weight_decay={"choices": [0.1], "when": {"training.optimizer": ["sgd"]}},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = [suggest(study.ask(), dimensions) for _ in range(12)]
    assert {("training.weight_decay" in params, params["training.optimizer"]) for params in asked} == {
        (True, "sgd"), (False, "adam")}  # fmt: skip
