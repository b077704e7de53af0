# SPDX-License-Identifier: MIT
"""return_lse: the natural log-sum-exp, its edge values, and merging with it."""

from __future__ import annotations

import numpy as np
import pytest

import cpuattn
from options import OPTIONS, Sizes, combine
from support import Array, compare, normal, qkv

SIZES = {
    "small": Sizes(),
    "odd": Sizes(heads=6, q_len=37, kv_len=71, head_dim=24, head_dim_v=20),
    "decode": Sizes(heads=8, q_len=1, kv_len=300),
    "split": Sizes(batch=(1,), heads=2, q_len=2, kv_len=5000),
}

CHANGE_SCORES = [
    "mask",
    "bias_minus_inf",
    "causal",
    "window",
    "scale_negative",
    "softcap",
    "alibi_slopes",
    "sinks",
    "q_lengths",
    "kv_lengths",
    "segments",
]


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", CHANGE_SCORES)
def test_lse_matches_oracle(
    name: str, sizes: Sizes, layout: str, isa: str, rng: np.random.Generator
) -> None:
    options = OPTIONS[name](rng, sizes)
    inputs = sizes.qkv(rng, layout)
    _, lse = compare(*inputs, **options, layout=layout, return_lse=True)
    assert lse.shape == sizes.scores[:-1]


@pytest.mark.parametrize("policy", ["zero", "mean", "nan"])
@pytest.mark.parametrize("q_len", [1, 37])
def test_lse_of_a_fully_masked_row_is_minus_inf(
    policy: str, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    mask = np.ones((q_len, 71), bool)
    mask[0] = False
    _, lse = cpuattn.attention(
        *qkv(rng, q_len=q_len, kv_len=71),
        mask=mask,
        fully_masked=policy,
        return_lse=True,
    )
    assert np.isneginf(lse[..., 0]).all()
    assert np.isfinite(lse[..., 1:]).all()


@pytest.mark.parametrize("kv_len", [0, 71])
@pytest.mark.parametrize("q_len", [1, 37])
def test_lse_of_a_fully_masked_row_is_the_sink(
    q_len: int, kv_len: int, isa: str, rng: np.random.Generator
) -> None:
    sinks = normal(rng, 4)
    out, lse = cpuattn.attention(
        *qkv(rng, q_len=q_len, kv_len=kv_len),
        mask=np.zeros((1, 1), bool),
        sinks=sinks,
        fully_masked="nan",
        return_lse=True,
    )
    assert not out.any()
    np.testing.assert_allclose(lse, np.broadcast_to(sinks[:, None], lse.shape), 1e-6)


def test_lse_of_a_padding_row_is_minus_inf_with_sinks_too(
    isa: str, rng: np.random.Generator
) -> None:
    _, lse = cpuattn.attention(
        *qkv(rng, q_len=37, kv_len=71),
        q_lengths=[30, 0],
        sinks=np.zeros(4, np.float32),
        return_lse=True,
    )
    assert np.isneginf(lse[0, :, 30:]).all()
    assert np.isneginf(lse[1]).all()
    assert np.isfinite(lse[0, :, :30]).all()


def test_lse_does_not_feel_dropout(isa: str, rng: np.random.Generator) -> None:
    inputs = qkv(rng, q_len=37, kv_len=71)
    _, plain = cpuattn.attention(*inputs, return_lse=True)
    _, dropped = cpuattn.attention(
        *inputs, dropout_p=0.7, dropout_seed=1, return_lse=True
    )
    np.testing.assert_array_equal(dropped, plain)


def merged(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Merge (out, lse) of disjoint sets of keys: exact where every lse is exact."""
    lses = np.stack([lse for _, lse in parts]).astype(np.float64)
    whole = np.logaddexp.reduce(lses, 0)
    shares = np.exp(lses - np.where(np.isneginf(whole), 0, whole))
    out = sum(
        share[..., None] * part for share, (part, _) in zip(shares, parts, strict=True)
    )
    return np.asarray(out), whole


@pytest.mark.parametrize("cut", [1, 7, 64, 69])
@pytest.mark.parametrize("q_len", [1, 37])
def test_lse_merges_parts_of_the_keys(
    q_len: int, cut: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=70)
    mask = rng.random((q_len, 70)) < 0.5
    mask[0] = False
    parts = [
        cpuattn.attention(
            query, key[:, :, s], value[:, :, s], mask=mask[:, s], return_lse=True
        )
        for s in (slice(cut), slice(cut, None))
    ]
    whole = cpuattn.attention(query, key, value, mask=mask, return_lse=True)
    out, lse = merged(parts)
    np.testing.assert_allclose(whole[0], out, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole[1], lse, rtol=1e-5, atol=1e-5)


def test_lse_is_natural_and_includes_the_scale(isa: str) -> None:
    ones = np.ones((1, 1, 1, 4), np.float32)
    keys = np.ones((1, 1, 8, 4), np.float32)
    _, lse = cpuattn.attention(ones, keys, keys, scale=0.5, return_lse=True)
    np.testing.assert_allclose(lse, [[[2 + np.log(8)]]], rtol=1e-6)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_lse_of_everything_matches_oracle(
    size: Sizes, isa: str, rng: np.random.Generator
) -> None:
    options = combine(rng, size, *CHANGE_SCORES)
    _, lse, _ = compare(*size.qkv(rng), **options, return_lse=True, return_weights=True)
    assert not np.isnan(lse).any()


@pytest.mark.parametrize("q_len", [3, 37])
def test_lse_of_padding_is_minus_inf_even_with_sinks(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=71)
    out, lse = compare(
        query,
        key,
        value,
        sinks=normal(rng, query.shape[-3]),
        q_lengths=np.array(2),
        return_lse=True,
    )
    assert np.isneginf(lse[..., 2:]).all()
    assert not out[..., 2:, :].any()
