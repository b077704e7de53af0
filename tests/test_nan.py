# SPDX-License-Identifier: MIT
"""Promise 4: NaN in live data comes out as NaN, for every shape and ISA."""

from __future__ import annotations

import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, every_dtype, sampled
from support import Array, assert_same, compare, normal, qkv

SIZES = pytest.mark.parametrize(
    ("kv_len", "q_len", "dtypes"), sampled(range(1, 41), [1, 3, 20])
)
Q_LENS = pytest.mark.parametrize("q_len", [1, 3, 20])


def nan_places(out: Array) -> Array:
    """Rows (..., q_len) in which some column is NaN."""
    return np.isnan(out).any(-1)


def problem(
    rng: np.random.Generator, batch: int, q_len: int, kv_len: int, dtypes: Dtypes
) -> tuple[Array, Array, Array]:
    """Return inputs of two heads."""
    return qkv(rng, batch=(batch,), heads=2, q_len=q_len, kv_len=kv_len, dtypes=dtypes)


@SIZES
def test_nan_in_query_row_fills_the_row(
    kv_len: int, q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    # Batch element r has NaN in row r: every row is tried, in the first or last column.
    query, key, value = problem(rng, q_len, q_len, kv_len, dtypes)
    rows = np.arange(q_len)
    query[rows, 1, rows, rng.choice([0, 15], q_len)] = np.nan
    out, lse = compare(query, key, value, return_lse=True, **dtypes.options)
    expected = np.zeros(out.shape, bool)
    expected[rows, 1, rows] = True
    np.testing.assert_array_equal(np.isnan(out), expected)
    np.testing.assert_array_equal(np.isnan(lse), expected[..., 0])


@SIZES
def test_nan_in_key_fills_every_row(
    kv_len: int, q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    # Batch element j has NaN in key j: every place in a vector and its tail is tried.
    query, key, value = problem(rng, kv_len, q_len, kv_len, dtypes)
    keys = np.arange(kv_len)
    key[keys, 1, keys, rng.choice([0, 15], kv_len)] = np.nan
    out, lse = cpuattn.attention(query, key, value, return_lse=True, **dtypes.options)
    assert np.isnan(out[:, 1]).all()
    assert np.isnan(lse[:, 1]).all()
    assert np.isfinite(out[:, 0]).all()
    assert np.isfinite(lse[:, 0]).all()


@SIZES
@pytest.mark.parametrize(
    "number", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"]
)
def test_nan_in_value_fills_its_column(
    number: float,
    kv_len: int,
    q_len: int,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    query, key, value = problem(rng, kv_len, q_len, kv_len, dtypes)
    value = np.ascontiguousarray(value[..., :9])
    keys = np.arange(kv_len)
    value[keys, 1, keys, keys % 9] = number
    out = cpuattn.attention(query, key, value, **dtypes.options)
    expected = np.zeros(out.shape, bool)
    expected[keys, 1, :, keys % 9] = True
    np.testing.assert_array_equal(~np.isfinite(out), expected)
    assert_same(out[expected], np.full(expected.sum(), number, out.dtype))


@pytest.mark.parametrize(
    ("kv_len", "low", "q_len", "dtypes"),
    sampled([2, 7, 16, 17, 65, 200, 3000], [-100.0, -1e4, -1e30], [1, 3, 20]),
)
def test_nan_in_value_of_a_vanishing_weight_is_kept(
    kv_len: int,
    low: float,
    q_len: int,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    # The key is visible, so its value counts, though exp(score) underflows: 0 * NaN.
    query, key, value = problem(rng, 2, q_len, kv_len, dtypes)
    bias = np.zeros(kv_len, np.float32)
    bias[kv_len // 2] = low
    value[0, 1, kv_len // 2, 3] = np.nan
    out = cpuattn.attention(query, key, value, bias=bias, **dtypes.options)
    expected = np.zeros(out.shape, bool)
    expected[0, 1, :, 3] = True
    np.testing.assert_array_equal(np.isnan(out), expected)


@SIZES
def test_nan_in_bias_fills_its_row(
    kv_len: int, q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = problem(rng, kv_len, q_len, kv_len, dtypes)
    bias = normal(rng, kv_len, 2, q_len, kv_len)
    keys = np.arange(kv_len)
    rows = keys % q_len
    bias[keys, 1, rows, keys] = np.nan
    out = cpuattn.attention(query, key, value, bias=bias, **dtypes.options)
    expected = np.zeros(out.shape, bool)
    expected[keys, 1, rows] = True
    np.testing.assert_array_equal(np.isnan(out), expected)


@SIZES
def test_nan_reaches_the_rows_that_see_it_under_causal(
    kv_len: int, q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = problem(rng, kv_len, q_len, kv_len, dtypes)
    keys = np.arange(kv_len)
    key[keys, 0, keys, 3] = np.nan
    out = cpuattn.attention(query, key, value, causal=True, **dtypes.options)
    seen = keys[:, None] <= np.arange(q_len) + kv_len - q_len
    np.testing.assert_array_equal(nan_places(out)[:, 0], seen)
    assert not nan_places(out)[:, 1].any()


@pytest.mark.parametrize(
    "name", ["scale", "alibi_slopes", "sinks", "scale_with_softcap"]
)
@pytest.mark.parametrize("kv_len", [1, 8, 17, 70])
@Q_LENS
@every_dtype
def test_nan_in_a_small_argument_is_kept(
    dtypes: Dtypes,
    q_len: int,
    kv_len: int,
    name: str,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = problem(rng, 2, q_len, kv_len, dtypes)
    one_head = np.array([0.0, np.nan], np.float32)
    options = {
        "scale": {"scale": np.nan},
        "alibi_slopes": {"alibi_slopes": one_head},
        "sinks": {"sinks": one_head},
        "scale_with_softcap": {"scale": np.nan, "softcap": 2.0},
    }[name]
    out = cpuattn.attention(*inputs, **options, **dtypes.options)
    assert np.isnan(out[:, 1]).all()
    assert np.isfinite(out[:, 0]).all() or name.startswith("scale")


SURVIVED = {
    "softcap": {"softcap": 3.0},
    "lengths": {"kv_lengths": "all"},
    "window": {"window": (200, 200)},
    "mask": {"mask": "ones"},
    "segments": {"segments": "one"},
    "dropout": {"dropout_p": 1e-9, "dropout_seed": 0},
    "sinks": {"sinks": "zeros"},
    "mean": {"fully_masked": "mean"},
}


@pytest.mark.parametrize(
    ("options", "kv_len", "q_len", "dtypes"),
    sampled(SURVIVED, [1, 5, 8, 15, 16, 17, 31, 33, 64, 65, 130], [1, 3, 20]),
)
def test_nan_survives_every_option(
    options: dict[str, object],
    kv_len: int,
    q_len: int,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    options = options | dtypes.options
    if "kv_lengths" in options:
        options["kv_lengths"] = kv_len
    if "mask" in options:
        options["mask"] = np.ones((q_len, kv_len), bool)
    if "sinks" in options:
        options["sinks"] = np.zeros(2, np.float32)
    if options.pop("segments", None):
        options["q_segment_ids"] = np.zeros(q_len, int)
        options["kv_segment_ids"] = np.zeros(kv_len, int)
    query, key, value = problem(rng, kv_len, q_len, kv_len, dtypes)
    keys = np.arange(kv_len)
    key[keys, 1, keys, 5] = np.nan
    out, lse = cpuattn.attention(query, key, value, **options, return_lse=True)
    assert np.isnan(out[:, 1]).all()
    assert np.isnan(lse[:, 1]).all()
    assert np.isfinite(out[:, 0]).all()


@pytest.mark.parametrize(
    ("position", "q_len", "number", "dtypes"),
    sampled([0, 2047, 2048, 4999], [1, 4], {"nan": np.nan, "inf-inf": np.inf}),
)
def test_nan_survives_split_keys(
    position: int,
    q_len: int,
    number: float,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    sizes = {"heads": 4, "kv_heads": 2, "q_len": q_len, "kv_len": 5000}
    query, key, value = qkv(rng, **sizes, dtypes=dtypes)
    query[...] = np.abs(query)
    key[:, 1, position, :] = number
    out, lse = cpuattn.attention(query, key, value, return_lse=True, **dtypes.options)
    assert np.isnan(out[:, 2:]).all()
    assert np.isnan(lse[:, 2:]).all() or number == np.inf
    assert np.isfinite(out[:, :2]).all()


@every_dtype
def test_nan_row_has_nan_weights_where_it_sees(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = qkv(rng, q_len=20, kv_len=45, dtypes=dtypes)
    query[0, 0, 7, 0] = np.nan
    options = {"causal": True, "return_weights": True, **dtypes.options}
    _, weights = cpuattn.attention(query, key, value, **options)
    seen = np.arange(45) <= 7 + 25
    assert np.isnan(weights[0, 0, 7, seen]).all()
    assert np.isfinite(weights[0, 0, 8:]).all()
