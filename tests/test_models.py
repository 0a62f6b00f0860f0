"""Every variant: built, counted, and honest about pixels and probabilities."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from digit_study.config import compose as composition
from digit_study.config.compose import compose_config
from digit_study.config.run_config import Config
from digit_study.model.fit import FUSED_LAYERS, FusedBatchNormalization, Predictor
from digit_study.model.networks import ACTIVATIONS, POOLINGS, ModelConfig, build_model, measured
from digit_study.model.recipe import TrainingConfig, build_optimizer

composition.register()
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
#: Counted by hand: convolutions without bias before batch norm (four numbers a channel), then the
#: dense layers.
PARAMETERS = {
    "cnn": 421_930,
    "deep": 436_650,
    "lenet": 61_706,
    "simple_m3": 1_126_280,
    "simple_m5": 1_129_160,
    "simple_m7": 2_292_952,
    "tiny": 8_946,
}


def variant(name: str) -> ModelConfig:
    model: ModelConfig = compose_config([f"model={name}"]).model
    return model


def layers_of(model: keras.Model, kind: type) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def read(model: keras.Model, images: Any = IMAGES) -> np.ndarray[Any, Any]:
    return np.asarray(model(images, training=False))


@pytest.mark.parametrize("name", ["mine, wide", "$6", "_a/b", "größer (v2)"])
def test_a_network_may_have_any_name(name: str) -> None:
    model = build_model(ModelConfig(name=name, filters=1, dense_units=0))
    assert read(model).shape == (3, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", composition.config_groups()["model"])
def test_every_variant_gives_ten_probabilities_from_raw_pixels(name: str) -> None:
    model = build_model(variant(name))
    assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 10)
    probabilities = read(model)
    assert probabilities.shape == (3, 10) and probabilities.dtype == np.float32
    assert probabilities.min() >= 0 and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(probabilities, read(model, IMAGES.astype(np.float32)))
    assert model.count_params() == PARAMETERS[name]


def test_tiny_is_under_ten_thousand() -> None:
    assert build_model(variant("tiny")).count_params() < 10_000


def test_lenet_is_lecuns() -> None:
    model = build_model(variant("lenet"))
    assert [layer.filters for layer in layers_of(model, keras.layers.Conv2D)] == [6, 16]
    assert [layer.units for layer in layers_of(model, keras.layers.Dense)] == [120, 84, 10]


@pytest.mark.parametrize(
    ("name", "kernel", "widths"),
    [
        ("simple_m3", 3, list(range(32, 177, 16))),
        ("simple_m5", 5, [32, 64, 96, 128, 160]),
        ("simple_m7", 7, [48, 96, 144, 192]),
    ],
)
def test_simple_is_ans(name: str, kernel: int, widths: list[int]) -> None:
    convolutions = layers_of(build_model(variant(name)), keras.layers.Conv2D)
    assert [layer.filters for layer in convolutions] == widths
    assert {(layer.kernel_size, layer.padding, layer.strides) for layer in convolutions} == {
        ((kernel, kernel), "valid", (1, 1))
    }


@pytest.mark.parametrize(
    ("pooling", "blocks", "batch_norm"), list(product(POOLINGS, [1, 2, 3, 4], [True, False]))
)  # fmt: skip
def test_every_pooling_depth_and_norm_builds(pooling: str, blocks: int, batch_norm: bool) -> None:
    config = replace(
        variant("tiny"), filters=2, pooling=pooling, blocks=blocks, batch_norm=batch_norm
    )
    Config(model=config).validate()
    model = build_model(config)
    convolutions = layers_of(model, keras.layers.Conv2D)
    assert [layer.filters for layer in convolutions] == [2 * 2**block for block in range(blocks)]
    pools = layers_of(model, keras.layers.MaxPooling2D) + layers_of(
        model, keras.layers.AveragePooling2D
    )
    assert len(pools) == (blocks if pooling in ("max", "average") else 0)
    assert {layer.strides for layer in convolutions} == {(2, 2) if pooling == "stride" else (1, 1)}
    assert bool(layers_of(model, keras.layers.BatchNormalization)) == batch_norm
    assert {layer.use_bias for layer in convolutions} == {not batch_norm}


@pytest.mark.parametrize(
    ("family", "pooling", "blocks", "kernel"),
    [
        *product(["cnn"], POOLINGS, [1, 3, 4], [3]),
        *product(["cnn"], ["stride"], [5, 7], [3]),
        *product(["lenet"], POOLINGS, [2], [5, 10, 13]),
        *product(["simple"], ["none"], [2, 3], [3, 10]),
    ],
)
def test_the_rule_knows_the_side_that_is_built(
    family: str, pooling: str, blocks: int, kernel: int
) -> None:
    config = ModelConfig(
        family=family,
        pooling=pooling,
        blocks=blocks,
        kernel_size=kernel,
        filters=1,
        filters_step=1,
        dense_units=0,
    )
    Config(model=config).validate()
    (flat,) = layers_of(build_model(config), keras.layers.Flatten)
    layers = measured(config)
    assert layers is not None
    assert flat.input.shape[1:3] == (layers.smallest_side, layers.smallest_side)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_builds(activation: str) -> None:
    model = build_model(replace(variant("tiny"), filters=2, activation=activation))
    assert np.isfinite(read(model)).all()


def test_more_convolutions_a_block_and_a_hidden_layer() -> None:
    config = replace(variant("cnn"), filters=2, convs_per_block=3, dense_units=7, dropout=0.5)
    model = build_model(config)
    assert [layer.filters for layer in layers_of(model, keras.layers.Conv2D)] == [2, 2, 2, 4, 4, 4]
    assert [layer.units for layer in layers_of(model, keras.layers.Dense)] == [7, 10]
    assert [layer.rate for layer in layers_of(model, keras.layers.Dropout)] == [0.5]


@pytest.mark.slow
def test_bfloat16_keeps_weights_and_output_in_float32_and_shares_them() -> None:
    single, half = build_model(variant("tiny")), build_model(variant("tiny"), "mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in half.get_weights()} == {np.dtype(np.float32)}
    assert layers_of(half, keras.layers.Conv2D)[0].compute_dtype == "bfloat16"
    single.set_weights(half.get_weights())
    assert read(half).dtype == np.float32
    assert np.allclose(read(half), read(single), atol=0.02) and not np.array_equal(
        read(half), read(single)
    )


def test_a_build_that_fails_leaves_the_policy_as_it_was() -> None:
    with pytest.raises(ValueError, match="shape"):
        build_model(ModelConfig(family="simple", blocks=9, kernel_size=9), "mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "lenet", "simple_m3"])
def test_fused_batch_norm_is_kerass_own_but_for_rounding(name: str) -> None:
    # smooth: rounding would move single ReLUs of a deep network over zero, and the gradient too
    keras.utils.set_random_seed(0)
    config = replace(variant(name), dropout=0.0, batch_norm=True, filters=16, activation="gelu")
    stock, fast = build_model(config), build_model(config, layers=FUSED_LAYERS)
    fast.set_weights(stock.get_weights())
    assert [weight.path.split("/")[-1] for weight in fast.weights] == [
        w.path.split("/")[-1] for w in stock.weights
    ]
    assert any(isinstance(layer, FusedBatchNormalization) for layer in fast.layers)
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
    labels = np.arange(64) % 10
    gradients = []
    for model in (stock, fast):
        with tf.GradientTape() as tape:
            probabilities = model(images, training=True)
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            )
        gradients.append([np.asarray(one) for one in tape.gradient(loss, model.trainable_weights)])
    for one, other in zip(*gradients, strict=True):
        assert np.linalg.norm(one - other) <= 0.002 * np.linalg.norm(one) + 1e-4
    for one, other in zip(stock.get_weights(), fast.get_weights(), strict=True):
        np.testing.assert_allclose(
            one, other, rtol=1e-3, atol=1e-6
        )  # 1/1,600: the variance of a batch is unbiased
    np.testing.assert_allclose(stock(images), fast(images), atol=1e-4)


def test_a_network_without_batch_norm_is_fused_already() -> None:
    config = replace(variant("tiny"), batch_norm=False)
    stock, fast = build_model(config), build_model(config, layers=FUSED_LAYERS)
    assert [type(layer) for layer in fast.layers] == [type(layer) for layer in stock.layers]


def test_fused_batch_norm_computes_in_bfloat16_and_keeps_its_moments_in_float32() -> None:
    model = build_model(replace(variant("tiny"), filters=16), "mixed_bfloat16", FUSED_LAYERS)
    before = model.get_weights()
    model(np.full((8, 28, 28, 1), 200, np.uint8), training=True)
    (layer, *_) = (one for one in model.layers if isinstance(one, FusedBatchNormalization))
    assert layer.compute_dtype == "bfloat16" and layer.moving_mean.dtype == "float32"
    assert any(
        not np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 256, 300])
def test_images_are_predicted_in_their_order_as_keras_predicts_them(count: int) -> None:
    model = build_model(variant("tiny"))
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)
    predict = Predictor(model)
    np.testing.assert_allclose(predict(images), model.predict(images, verbose=0), atol=1e-5)
    # the weights of now, not those that it was compiled with. A softmax of zeros is a tenth to the
    # last bit or its neighbour: vector units and the rest of a batch round differently on some CPUs
    model.set_weights([0 * weight for weight in model.get_weights()])
    np.testing.assert_array_max_ulp(
        predict(images), np.full((count, 10), 0.1, np.float32), maxulp=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_adam_is_kerass_own_but_for_rounding(name: str) -> None:
    recipe = TrainingConfig(
        optimizer=name, weight_decay=0.01, schedule="cosine", learning_rate=0.01, ema=True
    )
    fused = build_optimizer(recipe, 20)
    stock = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name].from_config(
        fused.get_config()
    )
    random, updated = np.random.default_rng(0), []
    values, gradients = random.normal(size=(2, 3, 50)), random.normal(size=(20, 2, 3, 50))
    for optimizer in (fused, stock):
        variables = [keras.Variable(value, dtype="float32") for value in values]
        optimizer.build(variables)
        for step in gradients:
            optimizer.apply([tf.constant(one, tf.float32) for one in step])
        updated.append(
            np.array(
                [
                    np.asarray(one)
                    for one in [*variables, *optimizer._model_variables_moving_average]
                ]
            )
        )
    np.testing.assert_allclose(*updated, rtol=1e-4, atol=1e-6)
    assert np.abs(updated[0][:2] - values).max() > 0.01
