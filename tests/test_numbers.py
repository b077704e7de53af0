# SPDX-License-Identifier: MIT
"""Hostile numbers: great and tiny scores, denormals, rising maxima, -inf everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from options import Sizes
from support import compare, qkv

Q_LENS = pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])


@Q_LENS
@pytest.mark.parametrize("size", [1e1, 1e2, 1e3, 1e4])
def test_numbers_great_scores_match_oracle(
    size: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=150)
    query *= np.float32(size / np.abs(query @ key.swapaxes(-1, -2) / 4).max())
    out, lse = compare(query, key, value, return_lse=True)
    assert np.isfinite(out).all()
    assert np.abs(lse).max() > size / 3


@Q_LENS
@pytest.mark.parametrize("size", [-1e4, 1e4, 3e30, -3e30])
def test_numbers_great_bias_matches_oracle(
    size: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=90)
    bias = np.where(rng.random((q_len, 90)) < 0.5, np.float32(size), np.float32(0))
    (out,) = compare(query, key, value, bias=bias)
    assert np.isfinite(out).all()


@Q_LENS
def test_numbers_row_of_most_negative_floats_is_not_masked(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # torch and Keras give the mean of the values here: every score is the same.
    query, key, value = qkv(rng, q_len=q_len, kv_len=33)
    bias = np.full((q_len, 33), np.finfo(np.float32).min)
    out = cpuattn.attention(query * 0, key, value, bias=bias)
    expected = np.broadcast_to(value.mean(-2, keepdims=True), out.shape)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@Q_LENS
@pytest.mark.parametrize("direction", [1, -1], ids=["rising", "falling"])
def test_numbers_sorted_scores_match_oracle(
    direction: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # Rising scores raise the running maximum in every block, falling ones never.
    query, key, value = qkv(rng, q_len=q_len, kv_len=700, head_dim=1)
    query[...] = np.abs(query) + 0.5
    key[..., 0] = np.linspace(-40, 40, 700, dtype=np.float32)[::direction]
    out, lse = compare(query, key, value, return_lse=True)
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()


@Q_LENS
def test_numbers_one_key_far_above_the_rest_gives_its_value(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=300)
    bias = np.zeros(300, np.float32)
    bias[211] = 1000
    out = cpuattn.attention(query, key, value, bias=bias)
    expected = np.broadcast_to(value[:, :, 211:212], out.shape)
    np.testing.assert_array_equal(out, expected)


@Q_LENS
def test_numbers_equal_keys_give_the_value_itself(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=64)
    value[...] = value[:, :, :1]
    out = cpuattn.attention(query, key, value)
    np.testing.assert_allclose(
        out, np.broadcast_to(value[:, :, :1], out.shape), rtol=1e-6
    )


@Q_LENS
@pytest.mark.parametrize("index", [0, 1, 2], ids=["query", "key", "value"])
def test_numbers_denormals_match_oracle(
    index: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = list(qkv(rng, q_len=q_len, kv_len=70))
    inputs[index] = inputs[index] * np.float32(1e-41)
    assert (np.abs(inputs[index]) < np.finfo(np.float32).tiny).all()
    (out,) = compare(*inputs)
    assert index != 2 or np.abs(out).max() > 0


@Q_LENS
def test_numbers_great_values_do_not_overflow(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=70)
    (out,) = compare(query, key, value * np.float32(1e34))
    assert np.isfinite(out).all()


@Q_LENS
def test_numbers_infinite_value_reaches_its_column(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=70)
    value[0, 1, 13, 5] = np.inf
    value[1, 2, 69, 0] = -np.inf
    (out,) = compare(query, key, value)
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
def test_numbers_extreme_options_match_oracle(
    options: dict[str, Any], q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90)
    (out,) = compare(*inputs, **options)
    assert np.isfinite(out).all()


@Q_LENS
@pytest.mark.parametrize("sink", [-np.inf, -1e4, -200.0, 0.0, 200.0, 1e4])
def test_numbers_extreme_sinks_match_oracle(
    sink: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90)
    mask = np.ones((q_len, 90), bool)
    mask[0] = False
    out, lse, weights = compare(
        *inputs,
        sinks=np.full(4, sink, np.float32),
        mask=mask,
        return_lse=True,
        return_weights=True,
    )
    assert not out[..., 0, :].any()
    assert not weights[..., 0, :].any()
    assert (lse[..., 0] == np.float32(sink)).all()


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


def test_numbers_error_of_a_long_row_stays_small(
    isa: str, rng: np.random.Generator
) -> None:
    # Not relative to a naive computation: the figure that users see.
    query, key, value = qkv(
        rng, batch=(1,), heads=2, q_len=3, kv_len=20000, head_dim=64
    )
    out = cpuattn.attention(query, key, value)
    exact = reference.attention(query, key, value)
    assert np.abs(out - exact).max() < 1e-7
