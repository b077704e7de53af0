# SPDX-License-Identifier: MIT
"""Hostile numbers: great and tiny scores, denormals, rising maxima, -inf everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, every_dtype
from options import Sizes
from support import as_multiplied, assert_same, compare, qkv

Q_LENS = pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])


@Q_LENS
@pytest.mark.parametrize("size", [1e1, 1e2, 1e3, 1e4])
@every_dtype
def test_numbers_great_scores_match_oracle(
    dtypes: Dtypes, size: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=150, dtypes=dtypes)
    wide, wide_key = query.astype(np.float64), key.astype(np.float64)
    greatest = np.abs(wide @ wide_key.swapaxes(-1, -2) / 4).max()
    query = (wide * (size / greatest)).astype(dtypes.query)
    out, lse = compare(query, key, value, return_lse=True, **dtypes.options)
    assert np.isfinite(out).all()
    assert np.abs(lse).max() > size / 3


@Q_LENS
@pytest.mark.parametrize("size", [-1e4, 1e4, 3e30, -3e30])
@every_dtype
def test_numbers_great_bias_matches_oracle(
    dtypes: Dtypes, size: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90, dtypes=dtypes)
    bias = np.where(rng.random((q_len, 90)) < 0.5, np.float32(size), np.float32(0))
    (out,) = compare(*inputs, bias=bias, **dtypes.options)
    assert np.isfinite(out).all()


@Q_LENS
@every_dtype
def test_numbers_row_of_most_negative_floats_is_not_masked(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # torch and Keras give the mean of the values here: every score is the same.
    query, key, value = qkv(rng, q_len=q_len, kv_len=33, dtypes=dtypes)
    query[...] = 0
    bias = np.full((q_len, 33), np.finfo(np.float32).min)
    (out,) = compare(query, key, value, bias=bias, **dtypes.options)
    assert np.abs(out).max() > 0


@Q_LENS
@pytest.mark.parametrize("direction", [1, -1], ids=["rising", "falling"])
@every_dtype
def test_numbers_sorted_scores_match_oracle(
    dtypes: Dtypes, direction: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # Rising scores raise the running maximum in every block, falling ones never.
    query, key, value = qkv(rng, q_len=q_len, kv_len=700, head_dim=1, dtypes=dtypes)
    query[...] = np.abs(query)
    query[query < 0.5] = 0.5
    key[..., 0] = np.linspace(-40, 40, 700)[::direction]
    out, lse = compare(query, key, value, return_lse=True, **dtypes.options)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


@Q_LENS
@every_dtype
def test_numbers_one_key_far_above_the_rest_gives_its_value(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=300, dtypes=dtypes)
    bias = np.zeros(300, np.float32)
    bias[211] = 1000
    out = cpuattn.attention(query, key, value, bias=bias, **dtypes.options)
    held = as_multiplied(value[:, :, 211:212], query, key, value, **dtypes.options)
    assert_same(out, np.broadcast_to(held.astype(dtypes.query), out.shape))


@Q_LENS
@every_dtype
def test_numbers_equal_keys_give_the_value_itself(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=64, dtypes=dtypes)
    value[...] = value[:, :, :1]
    out = cpuattn.attention(query, key, value, **dtypes.options)
    products = cpuattn.explain(query, key, value, **dtypes.options)["products"]
    # Weights of bfloat16 do not add up to their exact sum.
    limit = {"float64": 2e-15, "float32": 1e-6}.get(products, 2**-8)
    held = as_multiplied(value[:, :, :1], query, key, value, **dtypes.options)
    expected = np.broadcast_to(held, out.shape)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=limit)


@Q_LENS
@every_dtype
def test_numbers_infinite_value_reaches_its_column(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=70, dtypes=dtypes)
    value[0, 1, 13, 5] = np.inf
    value[1, 2, 69, 0] = -np.inf
    (out,) = compare(query, key, value, **dtypes.options)
    assert np.isposinf(out[0, 1, :, 5]).all()
    assert np.isneginf(out[1, 2, :, 0]).all()


@Q_LENS
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"softcap": 1e-3}, id="softcap-tiny"),
        pytest.param({"softcap": 1e6}, id="softcap-great"),
        pytest.param({"softcap": 30.0, "scale": 1e3}, id="softcap-saturated"),
        pytest.param({"scale": 1e-30}, id="scale-tiny"),
        pytest.param({"scale": 0.0}, id="scale-0"),
        pytest.param({"scale": -3.0}, id="scale-negative"),
        pytest.param({"scale": 3}, id="scale-int"),
        pytest.param({"scale": np.float32(0.5)}, id="scale-float32"),
    ],
)
@every_dtype
def test_numbers_extreme_options_match_oracle(
    dtypes: Dtypes,
    options: dict[str, Any],
    q_len: int,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90, dtypes=dtypes)
    (out,) = compare(*inputs, **options, **dtypes.options)
    assert np.isfinite(out).all()


@Q_LENS
@pytest.mark.parametrize("sink", [-np.inf, -1e4, -200.0, 0.0, 200.0, 1e4])
@every_dtype
def test_numbers_extreme_sinks_match_oracle(
    dtypes: Dtypes, sink: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90, dtypes=dtypes)
    mask = np.ones((q_len, 90), bool)
    mask[0] = False
    out, lse, weights = compare(
        *inputs,
        **dtypes.options,
        sinks=np.full(4, sink, np.float32),
        mask=mask,
        return_lse=True,
        return_weights=True,
    )
    assert not out[..., 0, :].any()
    assert not weights[..., 0, :].any()
    np.testing.assert_allclose(lse[..., 0], sink, rtol=1e-15)


@pytest.mark.parametrize(
    "far", [2**31, 2**62, 2**63 - 1], ids=["2**31", "2**62", "max"]
)
@pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])
@pytest.mark.parametrize("form", ["int", "array"])
@Q_LENS
def test_numbers_far_offsets_see_all_or_nothing(
    q_len: int, form: str, sign: int, far: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=40)
    offset = sign * far
    causal = np.array([offset, offset]) if form == "array" else offset
    out = cpuattn.attention(*inputs, causal=causal)
    expected = cpuattn.attention(*inputs) if sign > 0 else np.zeros_like(out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "window",
    [(2**62, 2**62), (2**63 - 1, 0), (0, 2**63 - 1), (2**63 - 1, 2**63 - 1)],
    ids=str,
)
@Q_LENS
def test_numbers_far_windows_match_oracle(
    q_len: int, window: tuple[int, int], isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=40)
    (out,) = compare(*inputs, window=window)
    assert np.isfinite(out).all()


def test_numbers_negative_ids_are_ids_like_others(
    isa: str, rng: np.random.Generator
) -> None:
    ids = np.array([-1, -1, 2**40, 2**40 + 2**32, -(2**63), 2**63 - 1])
    sizes = Sizes(q_len=6, kv_len=6)
    (out,) = compare(*sizes.qkv(rng), q_segment_ids=ids, kv_segment_ids=ids)
    assert np.isfinite(out).all()


def test_numbers_slopes_may_be_negative_or_0(
    isa: str, rng: np.random.Generator
) -> None:
    slopes = np.array([-0.1, 0.0, 0.1, -0.0], np.float32)
    (out,) = compare(*qkv(rng, q_len=30, kv_len=50), alibi_slopes=slopes)
    assert np.isfinite(out).all()


def test_numbers_lists_are_read_as_float32_or_integers(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng)
    listed = cpuattn.attention(
        *inputs, alibi_slopes=[0.5, 1, 0.25, 0], sinks=[0, 1, 2, 3], kv_lengths=[3, 4]
    )
    arrays = cpuattn.attention(
        *inputs,
        alibi_slopes=np.array([0.5, 1, 0.25, 0], np.float32),
        sinks=np.arange(4, dtype=np.float32),
        kv_lengths=np.array([3, 4]),
    )
    np.testing.assert_array_equal(listed, arrays)
