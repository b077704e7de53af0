# SPDX-License-Identifier: MIT
"""dot_product_attention against Keras's own on its NumPy backend."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from support import Array, assert_same, assert_within, check, normal, qkv

os.environ["KERAS_BACKEND"] = "numpy"
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
keras = pytest.importorskip(
    "keras", reason="keras cannot be imported (its NumPy backend needs SciPy and JAX)"
)
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies


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


def test_keras_signature_is_that_of_keras() -> None:
    ours, theirs = (
        inspect.signature(f).parameters.values()
        for f in (cpuattn.dot_product_attention, keras.ops.dot_product_attention)
    )
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]


MASKS = {
    "none": {},
    "all_hidden": {"mask": np.zeros((5, 7), bool)},
    "scalar": {"mask": False},
    "list": {"mask": [[True] * 3 + [False] * 4] * 5},
    "causal": {"is_causal": True},
    "three": {"mask": np.arange(7) < 3},
    "causal_three": {"is_causal": True, "mask": np.arange(7) < 3},
}
BIASES = {
    "inf": np.full((5, 7), -np.inf, np.float32),
    "inf_first": np.where(np.arange(7) < 3, -np.inf, 0.0),
    "lowest": np.full((5, 7), np.finfo(np.float32).min),
    "far_apart": np.where(np.arange(7) < 3, -1e9, -2e9).astype(np.float32),
    "plus_inf": np.where(np.arange(7) < 3, np.inf, 0.0).astype(np.float32),
    "nan": np.where(np.arange(7) < 5, 0.0, np.nan).astype(np.float32),
    "integers": np.arange(35).reshape(5, 7),
    "booleans": np.arange(7) < 3,
    "list": [[0.5] * 4 + [-1.0] * 3] * 5,
    "number": 2.0,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_keras_edges_of_bias_and_mask_agree(
    bias: Any, mask: dict[str, Any], isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=5, kv_len=7, layout="bshd")
    if bias is BIASES["lowest"] and np.any(mask.get("mask", mask)):
        # Keras hides with -2.4e38: hidden keys win over those of a lower bias.
        bias = bias / 2
    ours = cpuattn.dot_product_attention(*inputs, bias=bias, **mask)
    with np.errstate(invalid="ignore"):
        theirs = keras.ops.dot_product_attention(*inputs, bias=bias, **mask)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scale", [np.nan, np.inf, True, np.float16(0.3), np.array(0.3)]
)
def test_keras_scales_of_other_kinds_agree(
    scale: Any, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=5, kv_len=7, layout="bshd")
    ours = cpuattn.dot_product_attention(*inputs, scale=scale)
    with np.errstate(invalid="ignore"):
        theirs = keras.ops.dot_product_attention(*inputs, scale=scale)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "error"),
    [("x", ValueError), (1j, TypeError), (2 + 0j, TypeError)],
    ids=str,
)
def test_keras_scale_that_is_no_real_number_is_an_error(
    scale: Any, error: type[Exception], rng: np.random.Generator
) -> None:
    inputs = qkv(rng, layout="bshd")
    for function in (cpuattn.dot_product_attention, keras.ops.dot_product_attention):
        with pytest.raises(error):
            function(*inputs, scale=scale)


BAD_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "rank_3": ((5, 4, 8), (7, 4, 8), (7, 4, 8)),
    "key_rank_3": ((2, 5, 4, 8), (7, 4, 8), (2, 7, 4, 8)),
    "value_longer": ((2, 5, 4, 8), (2, 7, 4, 8), (2, 9, 4, 8)),
    "value_shorter": ((2, 5, 4, 8), (2, 7, 4, 8), (2, 3, 4, 8)),
    "heads": ((2, 5, 4, 8), (2, 7, 3, 8), (2, 7, 3, 8)),
    "head_dim": ((2, 5, 4, 8), (2, 7, 4, 6), (2, 7, 4, 8)),
    "batch": ((2, 5, 4, 8), (3, 7, 4, 8), (3, 7, 4, 8)),
}


@pytest.mark.parametrize("shapes", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_keras_shapes_that_do_not_fit_are_errors(shapes: Any) -> None:
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    for function in (cpuattn.dot_product_attention, keras.ops.dot_product_attention):
        with pytest.raises(ValueError):
            function(*arrays)


def test_keras_rank_error_has_the_text_of_keras() -> None:
    array = np.ones((5, 4, 8), np.float32)
    with pytest.raises(ValueError) as theirs:
        keras.ops.dot_product_attention(array, array, array)
    with pytest.raises(ValueError) as ours:
        cpuattn.dot_product_attention(array, array, array)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("shape", [(6, 7), (3, 5, 7), (1, 2, 4, 5, 7)], ids=str)
@pytest.mark.parametrize("name", ["mask", "bias"])
def test_keras_masks_and_biases_that_do_not_fit_are_errors(
    name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=5, kv_len=7, layout="bshd")
    for function in (cpuattn.dot_product_attention, keras.ops.dot_product_attention):
        with pytest.raises(ValueError):
            function(*inputs, **{name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("place", range(4), ids=["query", "key", "value", "bias"])
def test_keras_complex_numbers_are_errors(place: int, rng: np.random.Generator) -> None:
    # Keras discards the imaginary part of some, and returns complex arrays for others.
    arguments: list[Any] = [*qkv(rng, layout="bshd"), np.ones((5, 9))]
    arguments[place] = arguments[place] + 1j
    with pytest.raises(TypeError, match=r"dtype .*complex"):
        cpuattn.dot_product_attention(*arguments)


DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int64", "bool"]


@pytest.mark.parametrize("key", DTYPES)
@pytest.mark.parametrize("query", DTYPES)
def test_keras_dtypes_are_promoted_as_in_keras(
    query: str, key: str, rng: np.random.Generator
) -> None:
    arrays = [
        as_dtype(2 * x, y)
        for x, y in zip(
            qkv(rng, q_len=5, kv_len=7, layout="bshd"),
            (query, key, "float16"),
            strict=True,
        )
    ]
    ours = cpuattn.dot_product_attention(*arrays)
    theirs = keras.ops.dot_product_attention(*arrays)
    exact = reference.attention(*(x.astype(float) for x in arrays), layout="bshd")
    if "float64" in (query, key):
        assert ours.dtype == np.float64
    else:
        assert ours.dtype == theirs.dtype
    # What counts is the dtype: the others are further away than this.
    allowed = (
        16 * float(ml_dtypes.finfo(ours.dtype).eps) * float(np.abs(arrays[2]).max())
    )
    np.testing.assert_allclose(ours.astype(float), exact, rtol=0, atol=allowed)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_keras_integers_alone_are_computed_in_float32(
    dtype: str, rng: np.random.Generator
) -> None:
    # Keras's NumPy backend rounds the weights to integers, so to 0.
    arrays = [(3 * x).astype(dtype) for x in qkv(rng, layout="bshd")]
    out = cpuattn.dot_product_attention(*arrays)
    expected = cpuattn.dot_product_attention(*(x.astype(np.float32) for x in arrays))
    assert_same(out, expected)


@st.composite
def ops_calls(draw: Any) -> tuple[list[Array], dict[str, Any], int]:
    """Draw arrays, options, and how often Keras must repeat the key heads."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 33, 65]))
    batch, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    q_len, kv_len, head_dim, head_dim_v = (draw(sizes) for _ in range(4))
    dtype = draw(st.sampled_from(["float32", "float32", "float16", "bfloat16"]))
    kv_batch = draw(st.sampled_from([1, batch]))
    shapes = [(batch, q_len, kv_heads * group, head_dim)]
    shapes += [(kv_batch, kv_len, kv_heads, n) for n in (head_dim, head_dim_v)]
    arrays = [as_dtype(normal(rng, *shape), dtype) for shape in shapes]
    order = draw(st.permutations(range(4)))
    arrays = [
        np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        for x in arrays
    ]

    def scores_shape() -> tuple[int, ...]:
        full = (batch, kv_heads * group, q_len, kv_len)
        shape = tuple(draw(st.sampled_from([1, n])) for n in full)
        return shape[draw(st.integers(0, 4)) :]

    options: dict[str, Any] = {"is_causal": draw(st.booleans())}
    if draw(st.booleans()):
        mask = rng.random(scores_shape()) < draw(st.sampled_from([0.2, 0.7]))
        options["mask"] = np.asarray(mask).astype(
            draw(st.sampled_from(["?", "u1", "f4"]))
        )
    if draw(st.booleans()):
        bias = np.asarray(normal(rng, *scores_shape()))
        if draw(st.booleans()):
            bias = np.where(rng.random(bias.shape) < 0.5, -np.inf, bias)
        options["bias"] = as_dtype(np.asarray(bias, np.float32), dtype)
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0, -0.5, 0.3, 2]))
    return arrays, options, group


@hypothesis.settings(deadline=None, derandomize=True, max_examples=500, database=None)
@hypothesis.given(ops_calls())
def test_keras_random_combinations_agree(call: Any) -> None:
    (query, key, value), options, group = call
    ours = cpuattn.dot_product_attention(query, key, value, **options)
    repeated = [x.repeat(group, 2) for x in (key, value)]
    with np.errstate(invalid="ignore"):
        theirs = keras.ops.dot_product_attention(query, *repeated, **options)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    causal = options.pop("is_causal")
    if "mask" in options:
        options["mask"] = options["mask"].astype(bool)
    exact = reference.attention(
        *(x.astype(np.float64) for x in (query, key, value)),
        layout="bshd",
        causal="top_left" if causal else False,
        fully_masked="mean",
        **options,
    )
    np.testing.assert_array_equal(*(np.isnan(x.astype(float)) for x in (theirs, exact)))
    largest = float(np.abs(value.astype(float)).max())
    naive = np.asarray(theirs).astype(np.float64)
    error = np.nanmax(np.abs(naive - exact), initial=0.0)
    # A weight and an output are each rounded once to the dtype of the inputs, and the
    # terms of a score to float32.
    scale = abs(options.get("scale", query.shape[-1] ** -0.5))
    terms = np.einsum(
        "btnh,bsnh->bnts", *(abs(x.astype(float)) for x in (query, repeated[0]))
    )
    roundings = float(ml_dtypes.finfo(query.dtype).eps)
    roundings += float(np.finfo(np.float32).eps * scale * terms.max(initial=0.0))
    assert_within(ours, exact, 2 * error + 2 * roundings * largest)
