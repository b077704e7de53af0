# SPDX-License-Identifier: MIT
"""What is particular to a dtype: rounding, overflow, denormals, precision."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from dtypes import BFLOAT16, DTYPES, Dtypes, every_dtype, pair
from support import Array, as_tuple, assert_same, compare, normal, qkv, rng_for

HALVES = [np.dtype(np.float16), BFLOAT16]
LEVELS = ["highest", "high", "medium"]
# Largest error relative to the largest output, scores of ordinary size (semantics.md).
LEVEL_BOUNDS = {"highest": 1e-6, "high": 2e-5, "medium": 1e-2}


def one_key(value: Array, rows: int = 20) -> tuple[Array, Array, Array]:
    """Return a problem of a single key, whose value every row must return."""
    zeros = np.zeros((1, 1, rows, 8), value.dtype)
    return zeros, zeros[:, :, :1], value[None, None, None, :]


@every_dtype
def test_result_has_the_dtype_of_the_query_on(isa: str, dtypes: Dtypes) -> None:
    inputs = qkv(rng_for("result dtype"), dtypes=dtypes)
    out, lse, weights = cpuattn.attention(
        *inputs, return_lse=True, return_weights=True, **dtypes.options
    )
    assert (out.dtype, weights.dtype) == (dtypes.query, dtypes.query)
    assert lse.dtype == dtypes.lse


@pytest.mark.parametrize("rows", [1, 20, 70])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_single_key_returns_its_value_bit_for_bit_on(
    isa: str, dtype: Any, rows: int
) -> None:
    bits = rng_for("single key").integers(0, 2**16, 900).astype(np.uint16)
    value = bits.view(dtype)
    smallest = ml_dtypes.finfo(dtype).smallest_normal
    keep = np.isfinite(value) & (np.abs(value.astype(np.float64)) >= float(smallest))
    value = value[keep][:600]
    out = cpuattn.attention(*one_key(value, rows))
    assert_same(out, np.broadcast_to(value, out.shape))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_denormals_lose_at_most_the_smallest_normal_number_on(
    isa: str, dtype: Any, rows: int
) -> None:
    denormals = np.arange(1, 120, dtype=np.uint16).view(dtype)
    out = cpuattn.attention(*one_key(denormals, rows))
    lost = np.abs(out.astype(np.float64) - denormals.astype(np.float64))
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    # Products of bfloat16 take denormals as 0; of float16 all are ordinary float32.
    assert lost.max() <= (0.0 if dtype == np.float16 else smallest)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((65504.0, 65504.0), 65504.0),
        ((65504.0, 65472.0), 65472.0),  # 65488 is a tie, to even
        ((65504.0, -65504.0), 0.0),
        ((1.0, 1.0 + 2**-10), 1.0),  # a tie, to even
        ((1.0 + 2**-10, 1.0 + 2**-9), 1.0 + 2**-9),  # a tie, to even
        ((2.0**-24, 0.0), 0.0),  # half of the smallest denormal: a tie, to even
        ((3 * 2.0**-24, 0.0), 2 * 2.0**-24),
    ],
)
def test_float16_outputs_round_to_nearest_even_on(
    isa: str, values: tuple[float, float], expected: float, rows: int
) -> None:
    value = np.array(values, np.float16)[None, None, :, None]
    zeros = np.zeros((1, 1, rows, 8), np.float16)
    out = cpuattn.attention(zeros, zeros[:, :, :1].repeat(2, 2), value)
    assert_same(out, np.full((1, 1, rows, 1), expected, np.float16))


@pytest.mark.parametrize("rows", [1, 20])
def test_float16_outputs_overflow_to_infinity_on(isa: str, rows: int) -> None:
    # Kept weights are doubled: 2 * 65504 is beyond float16, 2 * 30000 is not.
    value = np.array([65504.0, -65504.0, 30000.0], np.float16)
    keep = np.ones((rows, 1), bool)
    options = {"dropout_p": 0.5, "dropout_mask": keep}
    out = cpuattn.attention(*one_key(value, rows), **options)
    expected = np.array([np.inf, -np.inf, 60000.0], np.float16)
    assert_same(out, np.broadcast_to(expected, out.shape))


@pytest.mark.parametrize("q_len", [1, 40])
@every_dtype
def test_large_scores_and_long_rows_on(isa: str, dtypes: Dtypes, q_len: int) -> None:
    rng = rng_for(f"long {dtypes}")
    query, key, value = qkv(
        rng, batch=(), heads=2, q_len=q_len, kv_len=5000, dtypes=dtypes
    )
    compare(query, key, value, return_lse=True, **dtypes.options)
    large = (query.astype(np.float32) * 30).astype(query.dtype)
    out = cpuattn.attention(large, key, value, **dtypes.options)
    assert np.isfinite(out.astype(np.float64)).all()


@pytest.mark.parametrize("head_dim", [1, 2, 7, 31, 33, 40, 72, 80, 127, 129, 256, 576])
@pytest.mark.parametrize("dtypes", [DTYPES["bfloat16"], DTYPES["float16"]], ids=str)
def test_odd_head_dims_and_lengths_on(isa: str, dtypes: Dtypes, head_dim: int) -> None:
    for q_len, kv_len in ((1, 77), (37, 131)):
        rng = rng_for(f"odd {head_dim}")
        inputs = qkv(
            rng,
            kv_heads=2,
            q_len=q_len,
            kv_len=kv_len,
            head_dim=head_dim,
            head_dim_v=head_dim + 3,
            dtypes=dtypes,
        )
        compare(*inputs, causal=True)


@pytest.mark.parametrize("cache", HALVES, ids=str)
def test_float32_query_reads_a_16_bit_cache_as_its_numbers_on(
    isa: str, cache: Any
) -> None:
    query, key, value = qkv(
        rng_for("cache"), heads=8, kv_heads=2, q_len=1, kv_len=3000, head_dim=72,
        dtypes=pair(np.float32, cache),
    )  # fmt: skip
    wide = (x.astype(np.float32) for x in (key, value))
    assert_same(cpuattn.attention(query, key, value), cpuattn.attention(query, *wide))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16)], ids=str)
def test_levels_of_precision_keep_their_bounds_on(
    isa: str, dtype: Any, level: str
) -> None:
    for head_dim, kv_len in ((64, 512), (40, 77), (128, 300)):
        inputs = qkv(
            rng_for(f"level {head_dim}"), q_len=70, kv_len=kv_len, head_dim=head_dim,
            dtypes=pair(dtype),
        )  # fmt: skip
        out = cpuattn.attention(*inputs, precision=level)
        exact = reference.attention(*inputs)
        bound = LEVEL_BOUNDS[level]
        if dtype == np.float16:  # half an ulp of the output beside it
            bound += 2.0**-11
        error = np.abs(out.astype(np.float64) - exact).max() / np.abs(exact).max()
        assert error <= bound


@pytest.mark.parametrize("level", LEVELS)
def test_levels_of_precision_compute_what_explain_says_on(isa: str, level: str) -> None:
    inputs = qkv(rng_for("products"), q_len=70, kv_len=77, head_dim=40)
    products = cpuattn.explain(*inputs, precision=level)["products"]
    same = products == cpuattn.explain(*inputs)["products"]
    for weights in (False, True):
        out = cpuattn.attention(*inputs, precision=level, return_weights=weights)
        highest = cpuattn.attention(*inputs, return_weights=weights)
        for x, y in zip(as_tuple(out), as_tuple(highest), strict=True):
            assert np.array_equal(x, y) == same


@pytest.mark.parametrize("level", LEVELS)
def test_infinite_and_huge_numbers_mean_the_same_at_every_level_on(
    isa: str, level: str
) -> None:
    query, key, value = qkv(rng_for("infinite"), batch=(), heads=1, q_len=40, kv_len=60)
    query[..., 3] = np.abs(query[..., 3]) + 0.1
    key[:, 5, 3] = -np.inf  # a score of -inf for every row
    value[:, 7, 2] = np.inf
    value[:, 9, 4] = 3.4e38  # beyond the largest bfloat16
    out = cpuattn.attention(query, key, value, precision=level).astype(np.float64)
    exact = reference.attention(query, key, value)
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(exact))
    np.testing.assert_array_equal(out[..., 2], exact[..., 2])
    np.testing.assert_allclose(out[..., 4], exact[..., 4], rtol=3e-2)


def test_explain_names_the_products_on(isa: str) -> None:
    has_pairs = isa in ("avx512_bf16", "neon_bf16", "amx_bf16")
    expected = {
        "float64": "float64",
        "float32": "float32",
        "bfloat16": "bfloat16" if has_pairs else "float32",
        "float16": "bfloat16 x3" if isa == "amx_bf16" else "float32",
        "float32-medium": "bfloat16" if has_pairs else "float32",
        "float32+bfloat16": "float32",
    }
    for name, products in expected.items():
        dtypes = DTYPES[name]
        inputs = qkv(rng_for(name), q_len=100, kv_len=64, head_dim=64, dtypes=dtypes)
        plan = cpuattn.explain(*inputs, **dtypes.options)
        assert (plan["isa"], plan["products"]) == (isa, products)


def test_threads_and_batch_change_no_bit_in_any_dtype_on(isa: str) -> None:
    for name, dtypes in DTYPES.items():
        for q_len, kv_len in ((1, 5000), (150, 333)):
            query, key, value = qkv(
                rng_for(name), batch=(3,), kv_heads=2, q_len=q_len, kv_len=kv_len,
                dtypes=dtypes,
            )  # fmt: skip
            whole = cpuattn.attention(query, key, value, **dtypes.options)
            for b in range(3):
                alone = cpuattn.attention(
                    query[b], key[b], value[b], num_threads=1, **dtypes.options
                )
                assert_same(whole[b], alone)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_hidden_garbage_of_16_bits_changes_no_bit_on(isa: str, dtype: Any) -> None:
    rng = rng_for("garbage")
    query, key, value = qkv(rng, q_len=70, kv_len=150, dtypes=pair(dtype))
    mask = rng.random((70, 150)) < 0.7
    mask[:, ::9] = False
    clean = cpuattn.attention(query, key, value, mask=mask)
    for garbage in (np.nan, np.inf, -np.inf):
        dirty = [x.copy() for x in (key, value)]
        for array in dirty:
            array[..., ::9, :] = garbage
        assert_same(cpuattn.attention(query, *dirty, mask=mask), clean)


def test_naive_bfloat16_is_never_more_accurate() -> None:
    """A framework that rounds scores and weights to bfloat16 errs at least as much."""
    query, key, value = qkv(
        rng_for("naive"), q_len=100, kv_len=400, head_dim=64, dtypes=pair(BFLOAT16)
    )
    exact = reference.attention(query, key, value)

    def rounded(x: Array) -> Array:
        return x.astype(BFLOAT16).astype(np.float32)

    q, k, v = (x.astype(np.float32) for x in (query, key, value))
    scores = rounded(rounded(q @ k.swapaxes(-1, -2)) / 8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = rounded(weights / weights.sum(-1, keepdims=True))
    naive = np.abs(rounded(weights @ v) - exact).max()
    ours = np.abs(cpuattn.attention(query, key, value).astype(np.float64) - exact).max()
    assert ours <= 2 * naive


def test_inputs_of_every_dtype_are_left_alone() -> None:
    for name, dtypes in DTYPES.items():
        inputs = qkv(rng_for(name), q_len=30, dtypes=dtypes)
        before = [x.copy() for x in inputs]
        bias = normal(rng_for(name), 30, 9, dtype=dtypes.cache)
        cpuattn.attention(*inputs, bias=bias, **dtypes.options)
        for array, copy in zip(inputs, before, strict=True):
            assert_same(array, copy)
