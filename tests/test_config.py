"""The rules that a config obeys, without composing one."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digit_study.config.run_config import Config
from digit_study.model.networks import (
    FAMILIES,
    POOLINGS,
    WIDEST,
    ModelConfig,
    relation_violations,
)
from digit_study.model.recipe import EarlyStoppingConfig
from digit_study.support.errors import StudyError
from digit_study.support.rules import flatten, rules_of
from digit_study.support.suggestions import nearest, short_names

RULES = rules_of(Config)


def with_values(**values: Any) -> Config:
    """The default config with ``model__filters=16`` and the like put in."""
    whole = Config()
    for key, value in values.items():
        section, _, name = key.partition("__")
        if "__" in name:
            return replace(
                whole, training=replace(whole.training, early_stopping=EarlyStoppingConfig(value))
            )
        inner = replace(getattr(whole, section), **{name: value}) if name else value
        whole = replace(whole, **{section: inner})
    return whole


def complaint(**values: Any) -> str:
    with pytest.raises(StudyError) as caught:
        with_values(**values).validate()
    return str(caught.value)


def test_the_default_is_valid() -> None:
    Config().validate()


BROKEN: list[tuple[str, Any, str]] = [
    ("data__source", "mnits", "did you mean 'mnist'"),
    ("data__validation", 9, "at least 10"),
    ("data__limit", 0, "at least 10"),
    ("workers", 0, "in [1, 256]"),
    ("outage_timeout", -1.0, "in [0, 1000000]"),
    ("data__seed", -1, "in [0, 4294967295]"),
    ("model__family", "cn", "did you mean 'cnn'"),
    ("model__filters", 0, "in [1, 1024]"),
    ("model__filters", -1, "got -1"),
    ("model__filters", 1025, "got 1025"),
    ("model__filters_step", -1, "in [0, 1024]"),
    ("model__blocks", 0, "in [1, 64]"),
    ("model__blocks", 10**9, "got 1000000000"),
    ("model__convs_per_block", 0, "in [1, 8]"),
    ("model__kernel_size", 0, "in [1, 28]"),
    ("model__kernel_size", 29, "got 29"),
    (
        "model__pooling",
        "maxx",
        "one of max, average, stride, none, got 'maxx'; did you mean 'max'?",
    ),
    ("model__dense_units", -1, "in [0, 4096]"),
    ("model__dropout", 1.5, "in [0, 1), got 1.5"),
    ("model__dropout", 1.0, "got 1.0"),
    ("model__dropout", -0.1, "got -0.1"),
    ("model__dropout", math.nan, "got nan"),
    ("model__activation", "rellu", "did you mean 'relu'"),
    ("model__members", 0, "in [1, 100]"),
    ("training__epochs", 0, "at least 1"),
    ("training__batch_size", 0, "at least 1"),
    ("training__optimizer", "adamm", "did you mean 'adam'"),
    ("training__learning_rate", 0.0, "greater than 0"),
    ("training__learning_rate", -0.1, "got -0.1"),
    ("training__learning_rate", math.nan, "got nan"),
    ("training__learning_rate", math.inf, "got inf"),
    ("training__weight_decay", 1.0, "in [0, 1)"),
    ("training__schedule", "cosin", "did you mean 'cosine'"),
    ("training__early_stopping__patience", 0, "at least 1"),
    ("training__augmentation", "shift", "one of none, shift_rotate"),
    ("training__shift", 15.0, "in [0, 14]"),
    ("training__rotation", math.nan, "in [0, 180]"),
    ("training__ema_momentum", 1.0, "in [0, 1)"),
    ("training__label_smoothing", 1.0, "in [0, 1)"),
    ("training__precision", "float16", "one of auto, float32, mixed_bfloat16"),
    ("training__threads", 0, "in [1, 1024]"),
    ("training__seed", 2**32, "got 4294967296"),
]


@pytest.mark.parametrize(("key", "value", "words"), BROKEN)
def test_a_broken_rule_names_key_rule_and_value(key: str, value: Any, words: str) -> None:
    message = complaint(**{key: value})
    assert message.startswith(f"`{key.replace('__', '.')}` must be ")
    assert words in message and repr(value) in message and "\n" not in message


def test_every_rule_has_a_case_above_and_every_number_a_rule() -> None:
    assert {key.replace("__", ".") for key, _, _ in BROKEN} == set(RULES)
    numbers = {key for key, value in flatten(Config()).items() if type(value) in (int, float)}
    assert numbers <= set(RULES)


def test_every_broken_rule_is_told_at_once() -> None:
    message = complaint(model__filters=0, model__dropout=2.0, training__epochs=0)
    assert len(message.split("\n")) == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model__blocks": 5}, "leaves nothing of a 28x28 image: take fewer blocks"),
        ({"model__blocks": 64}, "leaves nothing"),
        ({"model__family": "simple", "model__pooling": "none", "model__kernel_size": 15}, "leaves nothing"),
        ({"model__family": "lenet", "model__kernel_size": 15}, "leaves nothing"),
        ({"model__family": "lenet", "model__blocks": 3}, "must be 2 in the lenet family, got 3"),
        ({"model__family": "simple", "model__pooling": "max"}, "must be none in the simple family, got 'max'"),
        ({"model__blocks": 9, "model__pooling": "none"}, "grows to 8192 channels"),
        ({"model__blocks": 64, "model__pooling": "none"}, "at most 4096"),
        ({"data__source": "mnist_sample", "data__path": "x.npz"}, "drop one of the two"),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together(values: dict[str, Any], words: str) -> None:
    assert words in complaint(**values)


@given(st.integers(-3, 2000), st.integers(-1, 12), st.sampled_from(POOLINGS))
def test_validation_answers_whatever_the_numbers(filters: int, blocks: int, pooling: str) -> None:
    config = with_values(model__filters=filters, model__blocks=blocks, model__pooling=pooling)
    sound = 1 <= filters <= 1024 and blocks >= 1 and filters * 2 ** max(blocks - 1, 0) <= WIDEST
    if sound and (pooling in ("none", "stride") or blocks <= 4):
        config.validate()
    else:
        assert complaint(model__filters=filters, model__blocks=blocks, model__pooling=pooling)


@given(st.floats(), st.floats(0, 1, exclude_max=True))
def test_a_float_passes_exactly_within_its_bounds(value: float, inside: float) -> None:
    assert RULES["model.dropout"].holds(value) == (0 <= value < 1)
    assert RULES["training.learning_rate"].holds(value) == (0 < value <= 10)
    assert RULES["model.dropout"].holds(inside)


@pytest.mark.parametrize(
    ("values", "is_wide"),
    [
        ({"filters": 1024, "blocks": 3}, False),
        ({"filters": 1024, "blocks": 4}, True),
        ({"family": "simple", "filters": 1024, "filters_step": 1024, "blocks": 4}, False),
        ({"family": "simple", "filters": 1024, "filters_step": 1024, "blocks": 5}, True),
    ],
)
def test_the_width_of_the_last_block_is_bounded(values: dict[str, Any], is_wide: bool) -> None:
    told = " ".join(relation_violations(ModelConfig(**{"pooling": "none", **values})))
    assert ("at most 4096 are allowed" in told) == is_wide


def test_the_lenet_family_is_blamed_for_its_blocks_alone() -> None:
    message = complaint(model__family="lenet", model__blocks=30)
    assert "must be 2 in the lenet family, got 30" in message and "\n" not in message


def test_a_kernel_of_one_pixel_leaves_the_depth_bounded() -> None:
    """Such blocks of the family simple neither shrink the image nor grow wider."""
    deep = {"model__family": "simple", "model__pooling": "none", "model__kernel_size": 1}
    assert "must be in [1, 64], got 1000000000" in complaint(model__blocks=10**9, **deep)


def test_a_family_of_layers_that_are_not_counted_violates_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(layers: Any, x: Any, config: ModelConfig) -> Any:
        return layers.SeparableConv2D(config.filters)(x)

    monkeypatch.setitem(FAMILIES, "cnn", build)
    assert not list(relation_violations(ModelConfig(blocks=64)))


def test_flatten_names_every_leaf_once_and_in_order() -> None:
    def leaves(kind: Any) -> int:
        return sum(
            leaves(getattr(kind, f.name)) if is_dataclass(getattr(kind, f.name)) else 1
            for f in fields(kind)
        )

    flat = flatten(Config())
    assert len(flat) == leaves(Config())
    assert [key for key in flat if "." in key][:2] == ["data.source", "data.path"] and flat[
        "training.early_stopping.patience"
    ] is None


# ---------------------------------------------------------------------------------- nearest names

NAMES = [*RULES, "model", "data"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.filter", "model.filters"),
        ("filterz", "model.filters"),
        ("trainig.epochs", "training.epochs"),
        ("modle", "model"),
        ("learning_rte", "training.learning_rate"),
    ],
)
def test_the_nearest_name_is_offered(wrong: str, right: str) -> None:
    assert nearest(wrong, NAMES) == f"; did you mean '{right}'?"


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert nearest("zzzzzzzz", NAMES) == ""


@pytest.mark.parametrize(
    ("names", "short", "shared"),
    [
        (["2: a=1 b=3 c=x", "7: a=2 b=3 c=x"], ["2: a=1", "7: a=2"], "b=3 c=x"),
        (["2: a=1 b=3"], ["2: a=1 b=3"], ""),  # one name is told from nothing
        (
            ["a=1 b=3", "a=1 b=3 c=2"],
            ["a=1 b=3", "a=1 b=3 c=2"],
            "",
        ),  # nothing would be left of the first
        (["lenet", "cnn"], ["lenet", "cnn"], ""),
        ([], [], ""),
    ],
)
def test_names_are_told_apart_by_what_differs(
    names: list[str], short: list[str], shared: str
) -> None:
    assert short_names(names) == (short, shared)


@given(st.sampled_from(NAMES), st.data())
def test_one_letter_too_few_still_finds_a_name(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    assert nearest(name[:at] + name[at + 1 :], NAMES)


@given(st.text(max_size=30))
def test_only_names_that_exist_are_offered(wrong: str) -> None:
    offered = nearest(wrong, NAMES)
    assert offered == "" or offered.split("'")[1] in NAMES
