# SPDX-License-Identifier: MIT
"""Promise 1: a masked key is ignored truly; garbage in its rows reaches nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from options import OPTIONS, Sizes, combine
from support import Array, as_tuple, qkv, sees

GARBAGE = {
    "nan": np.float32(np.nan),
    "inf": np.float32(np.inf),
    "-inf": np.float32(-np.inf),
    "max": np.finfo(np.float32).max,
    # A signalling NaN with every payload bit set.
    "signalling": np.array(0x7FBFFFFF, np.uint32).view(np.float32)[()],
}

# Kinds of masks, each of which hides some keys from every row.
KINDS: dict[str, tuple[str, ...]] = {
    "mask_padding": ("mask_padding",),
    "mask_blocks": ("mask_blocks",),
    "bias_minus_inf": ("bias_columns",),
    "causal_top_left": ("causal_top_left",),
    "causal_negative": ("causal_negative_offset",),
    "causal_offsets": ("causal_offsets",),
    "window": ("window",),
    "window_right": ("causal_top_left", "window_left"),
    "kv_lengths": ("kv_lengths",),
    "segments": ("segments",),
    "mask_and_causal": ("mask_columns", "causal"),
    "all": ("mask_columns", "bias_columns", "kv_lengths", "segments", "softcap"),
    "alibi_sinks": ("mask_columns", "alibi_slopes", "sinks"),
    "dropout": ("mask_columns", "dropout"),
    "lse_weights": ("mask_columns", "return_lse", "return_weights"),
    "nan_rows": ("kv_lengths", "fully_masked_nan"),
}


def options_of(kind: str, rng: np.random.Generator, s: Sizes) -> dict[str, Any]:
    """Return the options of a kind; `columns` are masks that hide whole keys."""
    options: dict[str, Any] = {}
    for name in KINDS[kind]:
        seen = rng.random((*s.batch, 1, 1, s.kv_len)) < 0.6
        if name == "mask_columns":
            options["mask"] = seen
        elif name == "bias_columns":
            options["bias"] = np.where(
                seen, rng.random(seen.shape, np.float32), -np.inf
            )
        else:
            options |= OPTIONS[name](rng, s)
    if "bias" in options:
        options["bias"] = options["bias"].astype(np.float32)
    return options


def unseen_keys(inputs: tuple[Array, ...], options: dict[str, Any]) -> Array:
    """Keys of each (batch, kv head) that no row of the group sees: (..., kv_len)."""
    seen = sees(*inputs, **options)
    kv_heads = inputs[1].shape[-3]
    *batch, heads, q_len, kv_len = seen.shape
    grouped = seen.reshape(*batch, kv_heads, heads // kv_heads * q_len, kv_len)
    return ~grouped.any(-2)


SIZES = {
    "tiny": Sizes(q_len=3, kv_len=11, head_dim=5, head_dim_v=3),
    "decode": Sizes(q_len=1, kv_len=150, heads=6),
    "prefill": Sizes(q_len=40, kv_len=150, head_dim=24),
    "one_head": Sizes(q_len=70, kv_len=70, heads=1, kv_heads=1, head_dim=64),
    "split": Sizes(q_len=2, kv_len=4500, heads=2, kv_heads=1, head_dim=8, head_dim_v=8),
}


@pytest.mark.parametrize("where", ["key", "value", "both"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_key_garbage_changes_no_bit(
    kind: str,
    sizes: Sizes,
    garbage: np.float32,
    where: str,
    isa: str,
    rng: np.random.Generator,
) -> None:
    options = options_of(kind, rng, sizes)
    query, key, value = sizes.qkv(rng)
    hidden = unseen_keys((query, key, value), options)[..., None]
    zero_key, zero_value = (np.where(hidden, np.float32(0), x) for x in (key, value))
    if where != "value":
        key = np.where(hidden, garbage, key)
    if where != "key":
        value = np.where(hidden, garbage, value)
    clean = as_tuple(cpuattn.attention(query, zero_key, zero_value, **options))
    dirty = as_tuple(cpuattn.attention(query, key, value, **options))
    for mine, expected in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(mine, expected)
        assert np.isfinite(mine).all() or kind in ("nan_rows", "lse_weights")


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_masked_key_kinds_do_hide_keys(sizes: Sizes, rng: np.random.Generator) -> None:
    # Guards the test above: without hidden keys it would show nothing.
    inputs = sizes.qkv(rng)
    counts = {
        kind: int(unseen_keys(inputs, options_of(kind, rng, sizes)).sum())
        for kind in ("mask_padding", "bias_minus_inf", "kv_lengths", "mask_and_causal")
    }
    assert all(counts.values()), counts


@pytest.mark.parametrize("where", ["key", "value", "both"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("q_len", [2, 5, 33, 90])
def test_masked_key_last_of_causal_reaches_the_last_row_only(
    q_len: int, garbage: np.float32, where: str, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=q_len)
    clean = cpuattn.attention(query, key, value, causal=True)
    if where != "value":
        key[..., -1, :] = garbage
    if where != "key":
        value[..., -1, :] = garbage
    dirty = cpuattn.attention(query, key, value, causal=True)
    np.testing.assert_array_equal(dirty[..., :-1, :], clean[..., :-1, :])


@pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])
@pytest.mark.parametrize("kv_len", [7, 64, 65, 200])
def test_masked_key_seen_by_one_row_reaches_that_row(
    kv_len: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=kv_len, heads=4, kv_heads=2)
    mask = np.ones((4, q_len, kv_len), bool)
    mask[:, :, kv_len // 2] = False
    mask[3, q_len - 1, kv_len // 2] = True
    clean = cpuattn.attention(query, key, value, mask=mask)
    value[:, :, kv_len // 2, 2] = np.nan
    key[:, :, kv_len // 2, 0] = np.nan
    dirty = cpuattn.attention(query, key, value, mask=mask)
    rest = np.ones(clean.shape, bool)
    rest[:, 3, q_len - 1] = False
    np.testing.assert_array_equal(dirty[rest], clean[rest])
    assert np.isnan(dirty[:, 3, q_len - 1]).any(-1).all()


@pytest.mark.parametrize("policy", ["zero", "nan"])
@pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])
def test_masked_key_all_of_them_garbage_follows_policy(
    policy: str, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=50)
    key[...], value[...] = np.nan, np.inf
    mask = np.zeros((1, 1), bool)
    out = cpuattn.attention(query, key, value, mask=mask, fully_masked=policy)
    expected = np.full_like(out, 0 if policy == "zero" else np.nan)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("q_len", [5, 40])
def test_masked_padding_row_of_garbage_is_0(
    index: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # Padding rows see nothing, and what they hold reaches nothing.
    sizes = Sizes(q_len=q_len, kv_len=60)
    inputs = list(sizes.qkv(rng))
    options = {"q_lengths": [q_len - 2, 0], "fully_masked": "nan"}
    options |= {"return_lse": True, "return_weights": True}
    clean = cpuattn.attention(*inputs, **options)[0]
    inputs[0][0, :, q_len - 2 :], inputs[0][1] = np.nan, np.nan
    if index:
        inputs[index][1] = np.nan
    out, lse, weights = cpuattn.attention(*inputs, **options)
    np.testing.assert_array_equal(out, clean)
    assert not out[1].any()
    assert np.isneginf(lse[1]).all()
    assert not weights[1].any()


def test_masked_garbage_in_unread_inputs_does_not_matter(
    isa: str, rng: np.random.Generator
) -> None:
    # A bias that is NaN where the mask hides the key is hidden with it.
    inputs = qkv(rng, q_len=20, kv_len=50)
    mask = rng.random((20, 50)) < 0.5
    bias = np.where(mask, np.float32(0.25), np.float32(np.nan))
    np.testing.assert_array_equal(
        cpuattn.attention(*inputs, mask=mask, bias=bias),
        cpuattn.attention(*inputs, mask=mask, bias=np.full((20, 50), 0.25, np.float32)),
    )


def test_masked_combination_of_all_kinds_is_finite(
    isa: str, rng: np.random.Generator
) -> None:
    sizes = SIZES["prefill"]
    options = combine(rng, sizes, "mask_blocks", "bias_minus_inf", "causal", "segments")
    query, key, value = sizes.qkv(rng)
    hidden = unseen_keys((query, key, value), options)[..., None]
    key, value = (np.where(hidden, np.float32(np.nan), x) for x in (key, value))
    assert np.isfinite(cpuattn.attention(query, key, value, **options)).all()
