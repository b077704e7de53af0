# SPDX-License-Identifier: MIT
"""GroupQueryAttention refuses what Keras's own layer refuses."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from cpuattn.compat.keras import GroupQueryAttention
from support import normal

os.environ["KERAS_BACKEND"] = "numpy"
keras = pytest.importorskip(
    "keras", reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)"
)
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

if keras.config.backend() != "numpy":
    pytest.skip("keras was imported with another backend", allow_module_level=True)

from keras_support import HEADS, THEIRS, inputs, pair  # noqa: E402

# Keras warns where there is one key, and NumPy of Keras's variables.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "heads": {"num_query_heads": 5},
    "no_heads": {"num_key_value_heads": 0},
    "no_head_dim": {"head_dim": 0},
    "window_0": {"sliding_window": 0},
    "window_negative": {"sliding_window": -1},
    "window_float": {"sliding_window": 2.0},
    "window_numpy": {"sliding_window": np.int64(2)},
    "flash_dropout": {"flash_attention": True, "dropout": 0.1},
    "name_slash": {"name": "a/b"},
    "name_number": {"name": 5},
    "trainable": {"trainable": 1},
    "unknown": {"foo": 1},
    "initializer": {"kernel_initializer": "bogus"},
    "regularizer": {"bias_regularizer": "bogus"},
    "constraint": {"kernel_constraint": "bogus"},
    "dtype": {"dtype": "bogus"},
    "dtype_object": {"dtype": 3},
}


@pytest.mark.parametrize("config", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_keras_layer_rejects_what_keras_rejects(config: dict[str, Any]) -> None:
    arguments: dict[str, Any] = HEADS | config
    with pytest.raises(Exception) as theirs:
        THEIRS(**arguments)
    with pytest.raises(type(theirs.value)) as ours:
        GroupQueryAttention(**arguments)
    assert str(ours.value) == str(theirs.value)


BAD_BUILDS: dict[str, dict[str, Any]] = {
    "dropout_high": {"dropout": 1.5},
    "dropout_negative": {"dropout": -0.5},
    "dropout_string": {"dropout": "x"},
    "seed": {"dropout": 0.5, "seed": "x"},
    "seed_numpy": {"dropout": 0.5, "seed": np.int64(4)},
}


@pytest.mark.parametrize("config", BAD_BUILDS.values(), ids=BAD_BUILDS)
def test_keras_layer_rejects_at_build_what_keras_rejects(
    config: dict[str, Any], rng: np.random.Generator
) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        THEIRS(**HEADS, **config)(*inputs(rng))
    built = GroupQueryAttention(**HEADS, **config)
    with pytest.raises(type(theirs.value)) as ours:
        built(*inputs(rng))
    assert str(ours.value) == str(theirs.value)
    assert not built.built


def test_keras_layer_without_an_initializer_does_not_build() -> None:
    for kind in (THEIRS, GroupQueryAttention):
        with pytest.raises(AttributeError):
            kind(**HEADS, kernel_initializer=None).build((2, 5, 6), (2, 7, 5))


BAD_CALLS: dict[str, tuple[tuple[int, ...], ...]] = {
    "lengths": ((2, 5, 6), (2, 7, 5), (2, 3, 4)),
    "batches": ((2, 5, 6), (3, 7, 5), (3, 7, 4)),
    "query_features": ((2, 5, 3), (2, 7, 5), (2, 7, 4)),
    "value_features": ((2, 5, 6), (2, 7, 3), (2, 7, 4)),
    "key_features": ((2, 5, 6), (2, 7, 5), (2, 7, 3)),
    "query_2_axes": ((5, 6), (2, 7, 5), (2, 7, 4)),
    "value_4_axes": ((2, 5, 6), (1, 2, 7, 5), (2, 7, 4)),
}


@pytest.mark.parametrize("scored", [False, True], ids=["output", "scores"])
@pytest.mark.parametrize("shapes", BAD_CALLS.values(), ids=BAD_CALLS)
def test_keras_layer_rejects_shapes_that_do_not_fit(
    shapes: Any, scored: bool, rng: np.random.Generator
) -> None:
    for built in pair(rng, 6, 5, 4, **HEADS):
        with pytest.raises(ValueError):
            built(*(normal(rng, *x) for x in shapes), return_attention_scores=scored)


BAD_MASKS = {
    "attention": {"attention_mask": np.ones((6, 7), bool)},
    "attention_heads": {"attention_mask": np.ones((2, 2, 5, 7), bool)},
    "attention_5_axes": {"attention_mask": np.ones((1, 2, 4, 5, 7), bool)},
    "query": {"query_mask": np.ones((2, 7), bool)},
    "value": {"value_mask": np.ones((2, 5), bool)},
    "key": {"value_mask": np.ones((2, 7), bool), "key_mask": np.ones((2, 5), bool)},
}


@pytest.mark.parametrize("masks", BAD_MASKS.values(), ids=BAD_MASKS)
def test_keras_layer_rejects_masks_that_do_not_fit(
    masks: Any, rng: np.random.Generator
) -> None:
    for built in pair(rng, 6, 5, 4, **HEADS):
        with pytest.raises(ValueError):
            built(*inputs(rng), **masks)


@pytest.mark.parametrize(("axes", "error"), [(2, IndexError), (4, ValueError)])
def test_keras_layer_first_call_needs_3_axes(
    axes: int, error: type[Exception], rng: np.random.Generator
) -> None:
    arrays = [normal(rng, *[2] * axes) for _ in range(2)]
    for kind in (THEIRS, GroupQueryAttention):
        with pytest.raises(error):
            kind(**HEADS)(*arrays)


def test_keras_layer_rejects_what_is_no_array(rng: np.random.Generator) -> None:
    query, value, key = inputs(rng)
    for built in pair(rng, 6, 5, 4, **HEADS):
        with pytest.raises(ValueError):
            built(query, None, key)
        with pytest.raises(ValueError):
            built(query.tolist(), value, key)
        with pytest.raises(TypeError):
            built(query)
        with pytest.raises(TypeError):
            built(query, value, key, foo=1)


def test_keras_layer_rejects_complex_inputs(rng: np.random.Generator) -> None:
    query, value, key = inputs(rng)
    ours, _ = pair(rng, 6, 5, 4, **HEADS)
    with pytest.raises(TypeError, match="query: must be real; got dtype complex"):
        ours(query + 1j, value, key)


def test_keras_layer_flash_attention_excludes_scores(rng: np.random.Generator) -> None:
    text = "Returning attention scores is not supported when flash attention is enabled"
    for built in pair(rng, 6, 5, 4, **HEADS, flash_attention=True):
        with pytest.raises(ValueError, match=text):
            built(*inputs(rng), return_attention_scores=True)
