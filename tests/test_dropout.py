# SPDX-License-Identifier: MIT
"""Dropout: bit-exact draws, their statistics, broadcasts, masks, and p of 0 and 1."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import _draws, reference
from dtypes import FLOAT32, Dtypes, every_dtype, sampled
from options import Sizes
from support import COMPILED_ISAS, Array, assert_same, compare, normal, qkv

AXES = ("batch", "heads", "q_len", "kv_len")


def kept(sizes: Sizes, dtypes: Dtypes = FLOAT32, **options: object) -> Array:
    """Which weights the native function keeps: bool, the shape of the scores."""
    query = np.zeros((*sizes.batch, sizes.heads, sizes.q_len, 4), dtypes.query)
    key = np.zeros((*sizes.batch, sizes.kv_heads, sizes.kv_len, 4), dtypes.cache)
    _, weights = cpuattn.attention(
        query, key, key, return_weights="after_dropout", **options
    )
    return np.asarray(weights != 0)


def expected(sizes: Sizes, **options: object) -> Array:
    """Which weights docs/semantics.md keeps."""
    query = np.zeros((*sizes.batch, sizes.heads, sizes.q_len, 4))
    key = np.zeros((*sizes.batch, sizes.kv_heads, sizes.kv_len, 4))
    _, weights = reference.attention(
        query, key, key, return_weights="after_dropout", **options
    )
    return np.asarray(weights != 0)


SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 0x299F31D0A4093822, 2**64 - 1]

SIZES = {
    "small": Sizes(q_len=3, kv_len=5),
    "odd": Sizes(batch=(2, 3), heads=6, q_len=37, kv_len=71),
    "one_row": Sizes(heads=8, q_len=1, kv_len=130),
    "long": Sizes(batch=(1,), heads=2, q_len=2, kv_len=5001),
    "no_batch": Sizes(batch=(), heads=2, q_len=65, kv_len=65),
}


@pytest.mark.parametrize(
    ("sizes", "p", "seed", "dtypes"), sampled(SIZES, [0.1, 0.5, 0.9], SEEDS)
)
def test_dropout_draws_match_oracle_to_the_bit(
    sizes: Sizes, p: float, seed: int, dtypes: Dtypes, isa: str
) -> None:
    options = {"dropout_p": p, "dropout_seed": seed}
    ours = kept(sizes, dtypes, **options, **dtypes.options)
    np.testing.assert_array_equal(ours, expected(sizes, **options))


@pytest.mark.parametrize("column", range(4))
def test_dropout_first_draws_are_the_published_words(column: int, isa: str) -> None:
    # Counter 0 and key 0 in the known-answer vectors of Random123: a weight is kept up
    # to p = word / 2**32 and dropped from the next p on.
    word = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)[column]
    sizes = Sizes(batch=(), heads=1, kv_heads=1, q_len=1, kv_len=4)
    at = kept(sizes, dropout_p=word / 2**32, dropout_seed=0)
    above = kept(sizes, dropout_p=(word + 1) / 2**32, dropout_seed=0)
    assert at[0, 0, column]
    assert not above[0, 0, column]


@pytest.mark.parametrize(("fraction", "is_kept"), [(0.5, True), (1.5, False)])
def test_dropout_threshold_rounds_to_even(
    fraction: float, is_kept: bool, isa: str
) -> None:
    # Word 0 of counter 0 is odd: half above it rounds up to even, half below it down.
    word = 0x6627E8D5
    sizes = Sizes(batch=(), heads=1, kv_heads=1, q_len=1, kv_len=1)
    p = (word - 1 + fraction) / 2**32
    assert kept(sizes, dropout_p=p, dropout_seed=0)[0, 0, 0] == is_kept


@pytest.mark.parametrize("q_len", [1, 37])
@pytest.mark.parametrize("p", [1e-12, 0.25, 0.75, 1 - 2**-10, 1 - 2**-33, 1.0])
@every_dtype
def test_dropout_output_matches_oracle(
    dtypes: Dtypes, p: float, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=q_len, kv_len=90)
    out, weights = compare(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        dropout_p=p,
        dropout_seed=7,
        return_weights="after_dropout",
    )
    assert np.isfinite(out).all()
    assert p < 1 or not weights.any()


@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_dropout_of_0_changes_no_bit(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90, dtypes=dtypes)
    assert_same(
        cpuattn.attention(*inputs, dropout_p=0.0, dropout_seed=3, **dtypes.options),
        cpuattn.attention(*inputs, **dtypes.options),
    )


@pytest.mark.parametrize("with_mask", [False, True], ids=["draws", "mask"])
@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_dropout_of_1_gives_0_and_keeps_lse(
    dtypes: Dtypes, q_len: int, with_mask: bool, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, q_len=q_len, kv_len=90, dtypes=dtypes)
    options: dict[str, Any] = {"return_lse": True, **dtypes.options}
    plain = cpuattn.attention(*inputs, **options)[1]
    options |= {"dropout_mask": np.ones((1, 1), bool)} if with_mask else {}
    out, lse = cpuattn.attention(*inputs, dropout_p=1.0, **options)
    assert not out.any()
    np.testing.assert_array_equal(lse, plain)


def axis_subsets() -> list[tuple[str, ...]]:
    return [axes for n in range(5) for axes in itertools.combinations(AXES, n)]


@pytest.mark.parametrize(
    ("axes", "dtypes"), sampled({"+".join(x) or "none": x for x in axis_subsets()})
)
def test_dropout_broadcast_shares_draws_along_axes(
    axes: tuple[str, ...], dtypes: Dtypes, isa: str
) -> None:
    sizes = Sizes(batch=(2, 2), heads=4, q_len=19, kv_len=35)
    options = {"dropout_p": 0.5, "dropout_seed": 11, "dropout_broadcast": axes}
    keep = kept(sizes, dtypes, **options, **dtypes.options)
    np.testing.assert_array_equal(keep, expected(sizes, **options))
    flat = keep.reshape(4, 4, 19, 35)
    shared = [(flat == np.take(flat, [0], axis)).all() for axis in range(4)]
    assert all(same for same, name in zip(shared, AXES, strict=True) if name in axes)


@pytest.mark.parametrize(
    ("axes", "p", "seed", "dtypes"),
    sampled(
        {"+".join(x) or "none": x for x in axis_subsets()}, [0.1, 0.7, 1e-8], SEEDS[::3]
    ),
)
def test_dropout_threefry_draws_are_those_of_jax(
    axes: tuple[str, ...], p: float, seed: int, dtypes: Dtypes, isa: str
) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    sizes = Sizes(batch=(2, 2), heads=4, q_len=19, kv_len=35)
    keep = kept(
        sizes,
        dtypes,
        dropout_p=p,
        dropout_seed=seed,
        dropout_broadcast=axes,
        dropout_generator="threefry",
        **dtypes.options,
    )
    shape = [
        1 if name in axes else size
        for name, size in zip(AXES, (4, 4, 19, 35), strict=True)
    ]
    key = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    wanted = np.asarray(jax.random.bernoulli(key, 1 - p, shape))
    wanted = np.broadcast_to(wanted, (4, 4, 19, 35))
    np.testing.assert_array_equal(keep.reshape(wanted.shape), wanted)


def test_dropout_threefry_counts_beyond_32_bits(isa: str) -> None:
    # 2**32 weights lie before the last batch element, which strides of 0 make cheap.
    q_len, kv_len = 2**12, 2**18
    query = np.broadcast_to(np.float32(0), (5, 1, q_len, 4))
    key = np.broadcast_to(np.float32(0), (5, 1, kv_len, 4))
    lengths = np.array([0, 0, 0, 0, 1])
    value = np.zeros((5, 1, kv_len, 1), np.float32)
    value[4, 0, 1] = kv_len
    out = cpuattn.attention(
        query,
        key,
        value,
        q_lengths=lengths,
        dropout_p=0.5,
        dropout_seed=77,
        dropout_generator="threefry",
    )
    index = np.array([4 * q_len * kv_len + 1], np.uint64)
    is_kept = int(_draws.threefry(77, index)[0]) >> 31 == 0
    assert index[0] > 2**32 - 1
    np.testing.assert_allclose(out[4, 0, 0, 0], 2.0 if is_kept else 0.0, rtol=1e-4)


@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_dropout_broadcast_output_matches_oracle(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(batch=(3,), heads=6, q_len=q_len, kv_len=90)
    (out,) = compare(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        dropout_p=0.4,
        dropout_seed=2**40 + 1,
        dropout_broadcast=["heads", "q_len"],
    )
    assert np.isfinite(out).all()


@pytest.mark.parametrize("p", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_dropout_mask_replaces_draws(
    dtypes: Dtypes, q_len: int, p: float, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=q_len, kv_len=90)
    mask = rng.random(sizes.scores) < 0.5
    inputs = sizes.qkv(rng, dtypes=dtypes)
    options = {"dropout_p": p, "dropout_mask": mask, **dtypes.options}
    _, weights = compare(*inputs, **options, return_weights="after_dropout")
    assert not weights[~mask].any()
    assert weights[mask].all()
    assert_same(
        cpuattn.attention(*inputs, **options, dropout_seed=9),
        cpuattn.attention(*inputs, **options),
    )


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@every_dtype
def test_dropout_does_not_depend_on_threads(
    dtypes: Dtypes, sizes: Sizes, threads: int, isa: str, rng: np.random.Generator
) -> None:
    inputs = sizes.qkv(rng, dtypes=dtypes)
    options = {"dropout_p": 0.5, "dropout_seed": 99, **dtypes.options}
    assert_same(
        cpuattn.attention(*inputs, **options, num_threads=threads),
        cpuattn.attention(*inputs, **options, num_threads=1),
    )


def test_dropout_does_not_depend_on_isa() -> None:
    sizes = Sizes(heads=6, q_len=37, kv_len=71)
    results = []
    for row in COMPILED_ISAS:
        if row["usable"]:
            cpuattn._core.set_isa(row["name"])
            results.append(kept(sizes, dropout_p=0.5, dropout_seed=4).tobytes())
    cpuattn._core.set_isa(None)
    assert len(set(results)) == 1
    assert results


@pytest.mark.parametrize("masks", ["causal", "window", "kv_lengths", "bias"])
def test_dropout_draw_of_a_weight_does_not_depend_on_masks(
    masks: str, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    bias = np.where(rng.random((37, 71)) < 0.5, 0, -np.inf).astype(np.float32)
    options = {
        "causal": {"causal": True},
        "window": {"window": (5, 3)},
        "kv_lengths": {"kv_lengths": 40},
        "bias": {"bias": bias},
    }[masks]
    draws = {"dropout_p": 0.5, "dropout_seed": 21}
    seen = kept(sizes, **options)
    np.testing.assert_array_equal(
        kept(sizes, **options, **draws), kept(sizes, **draws) & seen
    )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_rate_and_independence_are_those_of_fair_draws(
    p: float, isa: str
) -> None:
    sizes = Sizes(batch=(2,), heads=4, kv_heads=4, q_len=128, kv_len=256)
    keep = kept(sizes, dropout_p=p, dropout_seed=2024)
    n = keep.size
    sigma = np.sqrt(p * (1 - p) / n)
    assert abs(keep.mean() - (1 - p)) < 5 * sigma
    centred = keep - keep.mean()
    for axis in range(4):
        neighbours = centred * np.roll(centred, 1, axis)
        assert abs(neighbours.mean()) < 5 * p * (1 - p) / np.sqrt(n)


def test_dropout_mean_over_seeds_is_the_plain_result(
    isa: str, rng: np.random.Generator
) -> None:
    query, key = normal(rng, 2, 9, 4), normal(rng, 2, 9, 4)
    value = np.ones((2, 9, 1), np.float32)
    outs = [
        cpuattn.attention(query, key, value, dropout_p=0.5, dropout_seed=seed)
        for seed in range(400)
    ]
    np.testing.assert_allclose(np.mean(outs), 1.0, atol=0.05)


def test_dropout_other_seed_gives_other_draws(isa: str) -> None:
    sizes = Sizes(q_len=37, kv_len=71)
    first, second, high = (
        kept(sizes, dropout_p=0.5, dropout_seed=seed) for seed in (1, 2, 1 + 2**32)
    )
    assert (first != second).mean() > 0.4
    assert (first != high).mean() > 0.4


@pytest.mark.parametrize("policy", ["mean", "nan"])
@pytest.mark.parametrize("p", [0.5, 1.0])
@every_dtype
def test_dropout_leaves_fully_masked_rows_to_their_policy(
    dtypes: Dtypes, p: float, policy: str, isa: str, rng: np.random.Generator
) -> None:
    mask = np.ones((20, 30), bool)
    mask[7] = False
    out, weights = compare(
        *qkv(rng, q_len=20, kv_len=30, dtypes=dtypes),
        **dtypes.options,
        mask=mask,
        dropout_p=p,
        dropout_seed=1,
        fully_masked=policy,
        return_weights="after_dropout",
    )
    number = 1 / 30 if policy == "mean" else np.nan
    assert_same(weights[:, :, 7], np.full((2, 4, 30), number, dtypes.query))
    assert np.isnan(out[:, :, 7]).all() == (policy == "nan")
