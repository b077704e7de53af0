# SPDX-License-Identifier: MIT
"""return_lse: the natural log-sum-exp, its edge values, and merging with it."""

from __future__ import annotations

import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, every_dtype, sampled
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


@pytest.mark.parametrize(
    ("name", "sizes", "layout", "dtypes"),
    sampled(CHANGE_SCORES, SIZES, ["bhsd", "bshd"]),
)
def test_lse_matches_oracle(
    name: str,
    sizes: Sizes,
    layout: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    options = OPTIONS[name](rng, sizes) | dtypes.options
    inputs = sizes.qkv(rng, layout, dtypes)
    _, lse = compare(*inputs, **options, layout=layout, return_lse=True)
    assert lse.shape == sizes.scores[:-1]


@pytest.mark.parametrize("policy", ["zero", "mean", "nan"])
@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_lse_of_a_fully_masked_row_is_minus_inf(
    dtypes: Dtypes, policy: str, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    mask = np.ones((q_len, 71), bool)
    mask[0] = False
    _, lse = cpuattn.attention(
        *qkv(rng, q_len=q_len, kv_len=71, dtypes=dtypes),
        **dtypes.options,
        mask=mask,
        fully_masked=policy,
        return_lse=True,
    )
    assert np.isneginf(lse[..., 0]).all()
    assert np.isfinite(lse[..., 1:]).all()


@pytest.mark.parametrize("kv_len", [0, 71])
@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_lse_of_a_fully_masked_row_is_the_sink(
    dtypes: Dtypes, q_len: int, kv_len: int, isa: str, rng: np.random.Generator
) -> None:
    sinks = normal(rng, 4)
    out, lse = cpuattn.attention(
        *qkv(rng, q_len=q_len, kv_len=kv_len, dtypes=dtypes),
        **dtypes.options,
        mask=np.zeros((1, 1), bool),
        sinks=sinks,
        fully_masked="nan",
        return_lse=True,
    )
    assert not out.any()
    np.testing.assert_allclose(lse, np.broadcast_to(sinks[:, None], lse.shape), 1e-6)


@every_dtype
def test_lse_of_a_padding_row_is_minus_inf_with_sinks_too(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    _, lse = cpuattn.attention(
        *qkv(rng, q_len=37, kv_len=71, dtypes=dtypes),
        **dtypes.options,
        q_lengths=[30, 0],
        sinks=np.zeros(4, np.float32),
        return_lse=True,
    )
    assert np.isneginf(lse[0, :, 30:]).all()
    assert np.isneginf(lse[1]).all()
    assert np.isfinite(lse[0, :, :30]).all()


@every_dtype
def test_lse_does_not_feel_dropout(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=37, kv_len=71, dtypes=dtypes)
    options = {"return_lse": True, **dtypes.options}
    _, plain = cpuattn.attention(*inputs, **options)
    _, dropped = cpuattn.attention(*inputs, dropout_p=0.7, dropout_seed=1, **options)
    np.testing.assert_array_equal(dropped, plain)


def merged(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Merge (out, lse) of disjoint sets of keys: exact where every lse is exact."""
    lses = np.stack([lse for _, lse in parts]).astype(np.float64)
    parts = [(part.astype(np.float64), lse) for part, lse in parts]
    whole = np.logaddexp.reduce(lses, 0)
    shares = np.exp(lses - np.where(np.isneginf(whole), 0, whole))
    out = sum(
        share[..., None] * part for share, (part, _) in zip(shares, parts, strict=True)
    )
    return np.asarray(out), whole


@pytest.mark.parametrize("cut", [1, 7, 64, 69])
@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_lse_merges_parts_of_the_keys(
    dtypes: Dtypes, q_len: int, cut: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=70, dtypes=dtypes)
    options = {"return_lse": True, **dtypes.options}
    mask = rng.random((q_len, 70)) < 0.5
    mask[0] = False
    parts = [
        cpuattn.attention(
            query, key[:, :, s], value[:, :, s], mask=mask[:, s], **options
        )
        for s in (slice(cut), slice(cut, None))
    ]
    whole = cpuattn.attention(query, key, value, mask=mask, **options)
    out, lse = merged(parts)
    # Each of the three results is rounded, and so are the weights of "medium".
    digit = 2**-8 if dtypes.precision == "medium" else dtypes.epsilon
    limit = max(4 * digit, 1e-6)
    np.testing.assert_allclose(whole[0].astype(np.float64), out, rtol=0, atol=limit)
    np.testing.assert_allclose(whole[1], lse, rtol=1e-5, atol=1e-5)


@every_dtype
def test_lse_is_natural_and_includes_the_scale(dtypes: Dtypes, isa: str) -> None:
    ones = np.ones((1, 1, 1, 4), dtypes.query)
    keys = np.ones((1, 1, 8, 4), dtypes.cache)
    options = {"scale": 0.5, "return_lse": True, **dtypes.options}
    _, lse = cpuattn.attention(ones, keys, keys, **options)
    assert lse.dtype == dtypes.lse
    np.testing.assert_allclose(lse, [[[2 + np.log(8)]]], rtol=1e-6)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@every_dtype
def test_lse_of_everything_matches_oracle(
    dtypes: Dtypes, size: Sizes, isa: str, rng: np.random.Generator
) -> None:
    options = combine(rng, size, *CHANGE_SCORES) | dtypes.options
    options |= {"return_lse": True, "return_weights": True}
    _, lse, _ = compare(*size.qkv(rng, dtypes=dtypes), **options)
    assert not np.isnan(lse).any()


@pytest.mark.parametrize("q_len", [3, 37])
@every_dtype
def test_lse_of_padding_is_minus_inf_even_with_sinks(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=71, dtypes=dtypes)
    out, lse = compare(
        query,
        key,
        value,
        **dtypes.options,
        sinks=normal(rng, query.shape[-3]),
        q_lengths=np.array(2),
        return_lse=True,
    )
    assert np.isneginf(lse[..., 2:]).all()
    assert not out[..., 2:, :].any()
