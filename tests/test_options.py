# SPDX-License-Identifier: MIT
"""Every option alone, every pair of options, and the combinations that models use."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, sampled
from options import OPTIONS, REPRESENTATIVES, Sizes, combine
from support import assert_within, compare, normal, qkv, rng_for

SIZES = {
    "small": Sizes(),
    "odd": Sizes(heads=6, q_len=37, kv_len=53, head_dim=24, head_dim_v=20),
    "prefill": Sizes(heads=2, kv_heads=1, q_len=70, kv_len=150, head_dim=32),
    "decode": Sizes(heads=8, q_len=1, kv_len=300, head_dim=64, head_dim_v=64),
    "few_rows": Sizes(heads=2, kv_heads=2, q_len=3, kv_len=2100, head_dim=8),
    "no_batch": Sizes(batch=(), q_len=20, kv_len=33),
}


@pytest.mark.parametrize(("name", "sizes", "dtypes"), sampled(list(OPTIONS), SIZES))
def test_options_one_alone_matches_oracle(
    name: str, sizes: Sizes, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    options = OPTIONS[name](rng, sizes) | dtypes.options
    inputs = sizes.qkv(rng, options.get("layout", "bhsd"), dtypes)
    assert len(compare(*inputs, **options)) >= 1


PAIRS = {
    "+".join(pair): pair
    for pair in itertools.combinations(REPRESENTATIVES, 2)
    if not set.intersection(
        *(set(combine(rng_for(""), SIZES["small"], name)) for name in pair)
    )
}


@pytest.mark.parametrize(("pair", "dtypes"), sampled(PAIRS))
def test_options_two_together_match_oracle(
    pair: tuple[str, str], dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = SIZES["odd"]
    options = combine(rng, sizes, *pair) | dtypes.options
    inputs = sizes.qkv(rng, options.get("layout", "bhsd"), dtypes)
    assert len(compare(*inputs, **options)) >= 1


COMBINATIONS = {
    "gemma": ("causal", "window_left", "softcap", "scale"),
    "gpt_oss": ("causal", "window_left", "sinks"),
    "t5": ("bias", "mask_padding"),
    "bloom": ("causal", "alibi_slopes", "mask_padding"),
    "mpt": ("causal", "alibi_slopes", "segments", "softcap"),
    "packed_training": ("causal", "segments", "dropout", "return_lse"),
    "padded_batch": ("q_lengths", "kv_lengths", "causal", "return_lse"),
    "padded_decode": ("kv_lengths", "causal", "sinks", "return_lse"),
    "mask_bias_causal_window": ("mask", "bias_minus_inf", "causal_top_left", "window"),
    "offsets_window_lengths": ("causal_offsets", "window", "q_lengths", "kv_lengths"),
    "weights_of_all_masks": (
        "mask_blocks",
        "causal",
        "kv_lengths",
        "segments",
        "return_weights",
        "return_lse",
    ),
    "mean_of_masked": ("mask_none_visible", "fully_masked_mean", "return_weights"),
    "nan_of_masked": ("bias_minus_inf", "mask", "fully_masked_nan", "return_lse"),
    "everything": (
        "mask",
        "bias_minus_inf",
        "causal_offsets",
        "window",
        "scale",
        "softcap",
        "alibi_slopes_per_batch",
        "sinks",
        "q_lengths",
        "kv_lengths",
        "segments",
        "dropout_broadcast",
        "return_lse",
        "return_weights_after",
        "layout",
        "num_threads",
    ),
    "everything_but_sinks": (
        "mask",
        "bias_row",
        "causal_negative_offset",
        "window_right",
        "softcap",
        "alibi_slopes",
        "q_lengths",
        "kv_lengths_int32",
        "segments_shared",
        "dropout_mask",
        "fully_masked_mean",
        "return_lse",
        "return_weights",
        "layout",
    ),
}


@pytest.mark.parametrize(("names", "sizes", "dtypes"), sampled(COMBINATIONS, SIZES))
def test_options_combined_match_oracle(
    names: tuple[str, ...],
    sizes: Sizes,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    options = combine(rng, sizes, *names) | dtypes.options
    inputs = sizes.qkv(rng, options.get("layout", "bhsd"), dtypes)
    assert len(compare(*inputs, **options)) >= 1


SAME = {
    "true_is_bottom_right": ({"causal": True}, {"causal": "bottom_right"}),
    "bottom_right_is_offset": ({"causal": True}, {"causal": 9 - 5}),
    "top_left_is_offset_0": ({"causal": "top_left"}, {"causal": 0}),
    "offset_array": ({"causal": 2}, {"causal": np.array([2, 2])}),
    "causal_is_window": ({"causal": True}, {"window": (None, 0)}),
    "window_minus_1_is_none": ({"window": (-1, 2)}, {"window": (None, 2)}),
    "open_window_is_no_window": ({"window": (None, None)}, {}),
    "full_lengths": ({"kv_lengths": 9, "q_lengths": [5, 5]}, {}),
    "scale_default": ({"scale": 0.25}, {}),
    "dropout_0": ({"dropout_p": 0.0, "dropout_seed": 3}, {}),
    "threads": ({"num_threads": 1}, {"num_threads": 2}),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_options_two_spellings_agree_to_the_bit(
    one: dict[str, Any], other: dict[str, Any], isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=5, kv_len=9, head_dim=16)
    np.testing.assert_array_equal(
        cpuattn.attention(*inputs, **one), cpuattn.attention(*inputs, **other)
    )


DIFFERENT = {
    "true_is_not_one": ({"causal": True}, {"causal": 1}),
    "false_is_not_zero": ({"causal": False}, {"causal": 0}),
    "window_0_is_not_none": ({"window": (0, 0)}, {"window": (None, None)}),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_options_two_meanings_differ(
    one: dict[str, Any], other: dict[str, Any], isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=5, kv_len=9, head_dim=16)
    first, second = (cpuattn.attention(*inputs, **x) for x in (one, other))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("policy", ["zero", "mean", "nan"])
@pytest.mark.parametrize("q_len", [1, 40])
def test_options_fully_masked_row_follows_policy(
    policy: str, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=50, heads=2)
    mask = np.ones((q_len, 50), bool)
    mask[-1] = False
    out, lse = cpuattn.attention(
        query, key, value, mask=mask, fully_masked=policy, return_lse=True
    )
    row = {"zero": 0.0, "mean": value.astype(np.float64).mean(-2), "nan": np.nan}[
        policy
    ]
    np.testing.assert_allclose(
        out[..., -1, :], np.broadcast_to(row, out[..., -1, :].shape), atol=1e-6
    )
    assert np.isneginf(lse[..., -1]).all()
    assert np.isfinite(out[..., :-1, :]).all()


@pytest.mark.parametrize("q_len", [1, 40])
def test_options_mean_follows_what_hid_the_keys(
    q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # What softmax gives where a hidden score is a large negative number: mean of all
    # values, of the keys that a mask hides beside a bias of -inf, or NaN without any.
    query, key, value = qkv(rng, batch=(3,), q_len=q_len, kv_len=50, heads=2)
    mask = np.ones((3, 1, 1, 50), bool)
    mask[0] = False
    mask[1, ..., 10:20] = False
    bias = np.full((3, 1, 1, 50), -np.inf, np.float32)
    out, weights = cpuattn.attention(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        fully_masked="mean",
        return_weights=True,
    )
    exact = value.astype(np.float64)
    for n, keys in ((0, slice(None)), (1, slice(10, 20))):
        row = exact[n, :, keys].mean(-2)[:, None]
        np.testing.assert_allclose(out[n], np.broadcast_to(row, out[n].shape), 1e-5)
        share = np.zeros(50)
        share[keys] = 1 / len(range(50)[keys])
        assert_within(weights[n], np.broadcast_to(share, weights[n].shape), 1e-8)
    assert np.isnan(out[2]).all()
    assert np.isnan(weights[2]).all()


def test_options_lengths_give_the_result_of_the_short_problem(
    isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, batch=(2,), q_len=40, kv_len=60)
    out = cpuattn.attention(
        query, key, value, q_lengths=[30, 40], kv_lengths=[45, 60], causal=True
    )
    short = cpuattn.attention(
        query[:1, :, :30], key[:1, :, :45], value[:1, :, :45], causal=True
    )
    np.testing.assert_allclose(out[:1, :, :30], short, rtol=2e-5, atol=1e-6)
    assert not out[0, :, 30:].any()


def test_options_packed_documents_give_the_result_of_each(
    isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, batch=(), q_len=50, kv_len=50)
    ids = np.repeat([7, -1, 3], [11, 20, 19])
    out = cpuattn.attention(
        query, key, value, q_segment_ids=ids, kv_segment_ids=ids, causal=True
    )
    part = slice(11, 31)
    alone = cpuattn.attention(query[:, part], key[:, part], value[:, part], causal=True)
    np.testing.assert_allclose(out[:, part], alone, rtol=2e-5, atol=1e-6)


def test_options_defaults_are_the_documented_ones(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng)
    explicit = cpuattn.attention(
        *inputs,
        layout="bhsd",
        mask=None,
        bias=None,
        causal=False,
        window=None,
        scale=None,
        softcap=None,
        alibi_slopes=None,
        sinks=None,
        q_lengths=None,
        kv_lengths=None,
        q_segment_ids=None,
        kv_segment_ids=None,
        dropout_p=0.0,
        dropout_seed=None,
        dropout_mask=None,
        dropout_broadcast=(),
        fully_masked="zero",
        precision="highest",
        return_lse=False,
        return_weights=False,
        out=None,
        num_threads=None,
    )
    np.testing.assert_array_equal(explicit, cpuattn.attention(*inputs))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_options_precision_is_accepted_by_every_isa(
    precision: str, isa: str, rng: np.random.Generator
) -> None:
    # Less precision is a permission: an ISA without bf16 products computes in float32.
    sizes = SIZES["odd"]
    tolerance = {"highest": 1e-5, "high": 1e-4, "medium": 5e-2}[precision]
    inputs = sizes.qkv(rng)
    exact = cpuattn.attention(*inputs)
    out = cpuattn.attention(*inputs, precision=precision)
    np.testing.assert_allclose(out, exact, atol=tolerance)


def test_options_alibi_is_the_bias_it_stands_for(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=30, kv_len=45)
    slopes = normal(rng, 4)
    distance = np.abs(np.arange(30)[:, None] + 15 - np.arange(45))
    bias = (-slopes[:, None, None] * distance).astype(np.float32)
    np.testing.assert_allclose(
        cpuattn.attention(*inputs, alibi_slopes=slopes),
        cpuattn.attention(*inputs, bias=bias),
        rtol=2e-4,
        atol=1e-5,
    )
