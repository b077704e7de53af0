# SPDX-License-Identifier: MIT
"""dot_product_attention against Keras's own on its NumPy backend."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from support import Array, check, normal, qkv

os.environ["KERAS_BACKEND"] = "numpy"
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
keras = pytest.importorskip(
    "keras", reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)"
)


def as_dtype(array: Array, dtype: str) -> Array:
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def agree(query: Array, key: Array, value: Array, **options: Any) -> Array:
    """Assert that ours agrees with Keras, and with the oracle as well as Keras does."""
    ours = cpuattn.dot_product_attention(query, key, value, **options)
    naive = np.asarray(keras.ops.dot_product_attention(query, key, value, **options))
    mask = options.pop("mask", None)
    causal = options.pop("is_causal", False)
    exact = reference.attention(
        query,
        key,
        value,
        layout="bshd",
        mask=None if mask is None else np.asarray(mask).astype(bool),
        causal="top_left" if causal else False,
        fully_masked="mean",
        **options,
    )
    np.testing.assert_allclose(naive, exact, rtol=1e-3, atol=1e-4)
    check(ours, exact, naive, scale=float(np.abs(value).max(initial=0.0)))
    return ours


SHAPES = {
    "square": {"q_len": 17, "kv_len": 17},
    "fewer_rows": {"q_len": 9, "kv_len": 33},
    "more_rows": {"q_len": 33, "kv_len": 9},
    "one_row": {"q_len": 1, "kv_len": 100},
    "one_key": {"q_len": 9, "kv_len": 1},
    "value_dim": {"q_len": 9, "kv_len": 33, "head_dim_v": 7},
    "multi_query": {"q_len": 9, "kv_len": 33, "kv_heads": 1},
    "no_rows": {"q_len": 0, "kv_len": 33},
    "no_batch": {"batch": (0,), "q_len": 9, "kv_len": 33},
}


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_keras_shapes_agree(
    shape: dict[str, Any], is_causal: bool, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, **shape, layout="bshd")
    out = agree(*inputs, is_causal=is_causal)
    assert out.shape == (*inputs[0].shape[:3], inputs[2].shape[3])


SCORE_SHAPES = [(9, 33), (33,), (1, 33), (9, 1), (4, 1, 1), (2, 1, 9, 33), ()]
SCORE_SHAPES += [(2, 4, 9, 33), (1, 4, 9, 33), (2, 1, 1, 33)]


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SCORE_SHAPES, ids=str)
def test_keras_masks_agree(
    shape: tuple[int, ...], is_causal: bool, isa: str, rng: np.random.Generator
) -> None:
    mask = np.asarray(rng.random(shape) < 0.6)
    out = agree(
        *qkv(rng, q_len=9, kv_len=33, layout="bshd"), mask=mask, is_causal=is_causal
    )
    assert np.isfinite(out).all()


@pytest.mark.parametrize("with_mask", [False, True], ids=["bias", "bias+mask"])
@pytest.mark.parametrize("shape", SCORE_SHAPES, ids=str)
def test_keras_biases_agree(
    shape: tuple[int, ...], with_mask: bool, isa: str, rng: np.random.Generator
) -> None:
    options: dict[str, Any] = {
        "bias": np.asarray(rng.standard_normal(shape), np.float32)
    }
    if with_mask:
        options["mask"] = rng.random((9, 33)) < 0.6
    out = agree(*qkv(rng, q_len=9, kv_len=33, layout="bshd"), **options)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "float64", "int64"])
def test_keras_mask_of_any_dtype_means_its_truth(
    dtype: str, isa: str, rng: np.random.Generator
) -> None:
    # Any number but 0 is True, also -1e9, which Keras users often pass by mistake.
    mask = (rng.random((9, 33)) < 0.6).astype(dtype)
    if dtype.startswith("float"):
        mask[mask != 0] = -1e9
    out = agree(*qkv(rng, q_len=9, kv_len=33, layout="bshd"), mask=mask)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("scale", [None, 0, 0.0, -0.4, 2.5, 1])
def test_keras_scales_agree(scale: Any, isa: str, rng: np.random.Generator) -> None:
    out = agree(*qkv(rng, q_len=9, kv_len=33, layout="bshd"), scale=scale)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("q_len", [1, 9, 40])
def test_keras_fully_masked_row_is_the_mean_of_all_values(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=33, layout="bshd")
    mask = np.ones((q_len, 33), bool)
    mask[0] = False
    out = agree(query, key, value, mask=mask)
    np.testing.assert_allclose(out[:, 0], value.mean(1), rtol=1e-4, atol=1e-6)


def test_keras_no_keys_gives_0(isa: str, rng: np.random.Generator) -> None:
    # Keras's NumPy backend raises here, its JAX and torch backends give 0.
    inputs = qkv(rng, q_len=9, kv_len=0, layout="bshd")
    assert not cpuattn.dot_product_attention(*inputs).any()


def test_keras_key_of_batch_1_broadcasts(isa: str, rng: np.random.Generator) -> None:
    query = normal(rng, 3, 9, 4, 16)
    key, value = normal(rng, 2, 1, 33, 4, 16)
    out = agree(query, key, value)
    assert out.shape == query.shape


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (6, 3), (8, 4)])
def test_keras_grouped_queries_equal_repeated_keys(
    heads: int, kv_heads: int, is_causal: bool, isa: str, rng: np.random.Generator
) -> None:
    # Keras's NumPy backend has no groups between 1 and all heads.
    query, key, value = qkv(
        rng, heads=heads, kv_heads=kv_heads, q_len=9, kv_len=33, layout="bshd"
    )
    out = cpuattn.dot_product_attention(query, key, value, is_causal=is_causal)
    repeated = (x.repeat(heads // kv_heads, 2) for x in (key, value))
    theirs = keras.ops.dot_product_attention(query, *repeated, is_causal=is_causal)
    np.testing.assert_allclose(out, np.asarray(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flash_attention", [None, False, True])
def test_keras_flash_attention_changes_nothing(
    flash_attention: bool | None, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=9, kv_len=33, layout="bshd")
    out = cpuattn.dot_product_attention(*inputs, flash_attention=flash_attention)
    np.testing.assert_array_equal(out, cpuattn.dot_product_attention(*inputs))


def test_keras_arguments_may_be_positional(isa: str, rng: np.random.Generator) -> None:
    inputs = qkv(rng, q_len=9, kv_len=33, layout="bshd")
    bias, mask = normal(rng, 9, 33), rng.random((9, 33)) < 0.6
    by_place = cpuattn.dot_product_attention(*inputs, bias, mask, 0.3, True, None, None)
    by_name = cpuattn.dot_product_attention(
        *inputs, bias=bias, mask=mask, scale=0.3, is_causal=True
    )
    np.testing.assert_array_equal(by_place, by_name)
    theirs = keras.ops.dot_product_attention(*inputs, bias, mask, 0.3, True)
    np.testing.assert_allclose(by_place, np.asarray(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_keras_bias_of_another_dtype_leaves_the_result_float32(
    dtype: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=9, kv_len=33, layout="bshd")
    bias = as_dtype(normal(rng, 9, 33), dtype)
    assert agree(*inputs, bias=bias).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keras_half_precision_agrees(
    dtype: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=9, kv_len=33, layout="bshd")
    query, key, value = (as_dtype(x, dtype) for x in inputs)
    mask = rng.random((9, 33)) < 0.6
    ours = cpuattn.dot_product_attention(query, key, value, mask=mask)
    theirs = keras.ops.dot_product_attention(query, key, value, mask=mask)
    assert ours.dtype == theirs.dtype == query.dtype
    exact = cpuattn.dot_product_attention(
        *(x.astype(np.float64) for x in (query, key, value)), mask=mask
    )
    error, allowed = (
        np.abs(np.asarray(x).astype(np.float64) - exact).max() for x in (ours, theirs)
    )
    assert error <= 2 * allowed


def test_keras_masked_nan_key_and_value_are_ignored(
    isa: str, rng: np.random.Generator
) -> None:
    # Keras ignores the key but spreads the value: 0 * NaN.
    query, key, value = qkv(rng, q_len=9, kv_len=33, layout="bshd")
    key[:, 20:], value[:, 20:] = np.nan, np.nan
    mask = np.arange(33) < 20
    out = cpuattn.dot_product_attention(query, key, value, mask=mask)
    clean = cpuattn.dot_product_attention(query, key[:, :20], value[:, :20])
    np.testing.assert_allclose(out, clean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cap", [0.5, 5.0])
def test_keras_soft_cap_is_the_tanh_of_attention(
    cap: float, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=9, kv_len=33, layout="bshd")
    out = cpuattn.dot_product_attention(*inputs, attn_logits_soft_cap=cap)
    expected = cpuattn.attention(*inputs, layout="bshd", softcap=cap)
    np.testing.assert_array_equal(out, expected)
