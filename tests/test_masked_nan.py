# SPDX-License-Identifier: MIT
"""Promise 1: a masked key is ignored truly; garbage in its rows reaches nothing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, every_dtype, sampled
from options import OPTIONS, Sizes, combine
from support import Array, as_tuple, assert_same, qkv, sees

GARBAGE = ["nan", "inf", "-inf", "max", "signalling"]

# Signalling NaN with every payload bit set.
SIGNALLING = {
    "float16": 0x7DFF,
    "bfloat16": 0x7FBF,
    "float32": 0x7FBFFFFF,
    "float64": 0x7FF7FFFFFFFFFFFF,
}


def garbage_of(name: str, dtype: np.dtype[Any]) -> Any:
    """Return a number that must reach nothing."""
    if name == "max":
        return np.asarray(ml_dtypes.finfo(dtype).max, dtype)[()]
    if name == "signalling":
        bits = np.array(SIGNALLING[dtype.name], f"u{dtype.itemsize}")
        return bits.view(dtype)[()]
    return dtype.type(float(name))


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


@pytest.mark.parametrize(
    ("kind", "sizes", "name", "where", "dtypes"),
    sampled(list(KINDS), SIZES, GARBAGE, ["key", "value", "both"]),
)
def test_masked_key_garbage_changes_no_bit(
    kind: str,
    sizes: Sizes,
    name: str,
    where: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    garbage = garbage_of(name, dtypes.cache)
    options = options_of(kind, rng, sizes) | dtypes.options
    query, key, value = sizes.qkv(rng, dtypes=dtypes)
    hidden = unseen_keys((query, key, value), options)[..., None]
    zero = dtypes.cache.type(0)
    zero_key, zero_value = (np.where(hidden, zero, x) for x in (key, value))
    if where != "value":
        key = np.where(hidden, garbage, key)
    if where != "key":
        value = np.where(hidden, garbage, value)
    clean = as_tuple(cpuattn.attention(query, zero_key, zero_value, **options))
    dirty = as_tuple(cpuattn.attention(query, key, value, **options))
    for mine, expected in zip(dirty, clean, strict=True):
        assert_same(mine, expected)
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


@pytest.mark.parametrize(
    ("q_len", "name", "where", "dtypes"),
    sampled([2, 5, 33, 90], GARBAGE, ["key", "value", "both"]),
)
def test_masked_key_last_of_causal_reaches_the_last_row_only(
    q_len: int,
    name: str,
    where: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    garbage = garbage_of(name, dtypes.cache)
    query, key, value = qkv(rng, q_len=q_len, kv_len=q_len, dtypes=dtypes)
    options = {"causal": True, **dtypes.options}
    clean = cpuattn.attention(query, key, value, **options)
    if where != "value":
        key[..., -1, :] = garbage
    if where != "key":
        value[..., -1, :] = garbage
    dirty = cpuattn.attention(query, key, value, **options)
    assert_same(dirty[..., :-1, :], clean[..., :-1, :])


@pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])
@pytest.mark.parametrize("kv_len", [7, 64, 65, 200])
@every_dtype
def test_masked_key_seen_by_one_row_reaches_that_row(
    dtypes: Dtypes, kv_len: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len)
    query, key, value = sizes.qkv(rng, dtypes=dtypes)
    mask = np.ones((4, q_len, kv_len), bool)
    mask[:, :, kv_len // 2] = False
    mask[3, q_len - 1, kv_len // 2] = True
    clean = cpuattn.attention(query, key, value, mask=mask, **dtypes.options)
    value[:, :, kv_len // 2, 2] = np.nan
    key[:, :, kv_len // 2, 0] = np.nan
    dirty = cpuattn.attention(query, key, value, mask=mask, **dtypes.options)
    rest = np.ones(clean.shape, bool)
    rest[:, 3, q_len - 1] = False
    assert_same(dirty[rest], clean[rest])
    assert np.isnan(dirty[:, 3, q_len - 1]).any(-1).all()


@pytest.mark.parametrize("policy", ["zero", "nan"])
@pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])
@every_dtype
def test_masked_key_all_of_them_garbage_follows_policy(
    dtypes: Dtypes, policy: str, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=q_len, kv_len=50, dtypes=dtypes)
    key[...], value[...] = np.nan, np.inf
    options = {"mask": np.zeros((1, 1), bool), "fully_masked": policy}
    out = cpuattn.attention(query, key, value, **options, **dtypes.options)
    assert_same(out, np.full_like(out, 0 if policy == "zero" else np.nan))


@pytest.mark.parametrize("index", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("q_len", [5, 40])
@every_dtype
def test_masked_padding_row_of_garbage_is_0(
    dtypes: Dtypes, index: int, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    # Padding rows see nothing, and what they hold reaches nothing.
    sizes = Sizes(q_len=q_len, kv_len=60)
    inputs = list(sizes.qkv(rng, dtypes=dtypes))
    options = {"q_lengths": [q_len - 2, 0], "fully_masked": "nan", **dtypes.options}
    options |= {"return_lse": True, "return_weights": True}
    clean = cpuattn.attention(*inputs, **options)[0]
    inputs[0][0, :, q_len - 2 :], inputs[0][1] = np.nan, np.nan
    if index:
        inputs[index][1] = np.nan
    out, lse, weights = cpuattn.attention(*inputs, **options)
    assert_same(out, clean)
    assert not out[1].any()
    assert np.isneginf(lse[1]).all()
    assert not weights[1].any()


@every_dtype
def test_masked_garbage_in_unread_inputs_does_not_matter(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    # A bias that is NaN where the mask hides the key is hidden with it.
    inputs = qkv(rng, q_len=20, kv_len=50, dtypes=dtypes)
    mask = rng.random((20, 50)) < 0.5
    options = {"mask": mask, **dtypes.options}
    bias = np.full((20, 50), 0.25, np.float32)
    assert_same(
        cpuattn.attention(*inputs, bias=np.where(mask, bias, np.nan), **options),
        cpuattn.attention(*inputs, bias=bias, **options),
    )


@every_dtype
def test_masked_combination_of_all_kinds_is_finite(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = SIZES["prefill"]
    options = combine(rng, sizes, "mask_blocks", "bias_minus_inf", "causal", "segments")
    options |= dtypes.options
    query, key, value = sizes.qkv(rng, dtypes=dtypes)
    hidden = unseen_keys((query, key, value), options)[..., None]
    key, value = (np.where(hidden, x.dtype.type(np.nan), x) for x in (key, value))
    assert np.isfinite(cpuattn.attention(query, key, value, **options)).all()
