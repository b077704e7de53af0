# SPDX-License-Identifier: MIT
"""Every size: lengths and head dims across blocks and lanes, groups, 0, ranks."""

from __future__ import annotations

import numpy as np
import pytest

import cpuattn
from dtypes import Dtypes, every_dtype, sampled
from options import Sizes, combine
from support import assert_same, compare, normal, qkv

LENGTHS = [1, 2, 7, 15, 16, 17, 63, 64, 65, 127, 129, 1025]

HEAD_DIMS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 48, 59, 63, 64]
HEAD_DIMS += [65, 72, 80, 96, 100, 112, 127, 128, 129, 160, 192, 255, 256, 257, 320]
HEAD_DIMS += [512, 575, 576, 577]


@pytest.mark.parametrize(
    ("q_len", "kv_len", "causal", "dtypes"),
    sampled(LENGTHS, LENGTHS, {"full": False, "causal": True}),
)
def test_shapes_lengths_match_oracle(
    q_len: int,
    kv_len: int,
    causal: bool,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    sizes = Sizes((1,), heads=2, kv_heads=1, q_len=q_len, kv_len=kv_len)
    (out,) = compare(*sizes.qkv(rng, dtypes=dtypes), causal=causal, **dtypes.options)
    assert out.shape == (1, 2, q_len, 16)


@pytest.mark.parametrize(
    ("q_len", "kv_len", "dtypes"),
    sampled({"decode": 1, "prefill": 20}, range(1, 131)),
)
def test_shapes_every_kv_len_matches_oracle(
    q_len: int, kv_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes((1,), 1, 1, q_len, kv_len, head_dim=8, head_dim_v=8)
    (out,) = compare(*sizes.qkv(rng, dtypes=dtypes), **dtypes.options)
    assert out.shape == (1, 1, q_len, 8)


@pytest.mark.parametrize(("q_len", "dtypes"), sampled(range(1, 70)))
def test_shapes_every_q_len_matches_oracle(
    q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes((1,), heads=3, kv_heads=1, q_len=q_len, kv_len=33)
    (out,) = compare(*sizes.qkv(rng, dtypes=dtypes), causal=True, **dtypes.options)
    assert out.shape == (1, 3, q_len, 16)


@pytest.mark.parametrize(
    ("head_dim", "q_len", "dtypes"), sampled(HEAD_DIMS, [1, 3, 40])
)
def test_shapes_head_dim_matches_oracle(
    head_dim: int, q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes((1,), 2, 2, q_len, 50, head_dim=head_dim, head_dim_v=head_dim)
    (out,) = compare(*sizes.qkv(rng, dtypes=dtypes), **dtypes.options)
    assert out.shape == (1, 2, q_len, head_dim)


@pytest.mark.parametrize(
    ("widths", "q_len", "dtypes"),
    sampled(
        {f"{a}-{b}": (a, b) for a, b in zip(HEAD_DIMS, HEAD_DIMS[::-1], strict=True)},
        [1, 3, 40],
    ),
)
def test_shapes_head_dim_v_may_differ(
    widths: tuple[int, int],
    q_len: int,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    head_dim, head_dim_v = widths
    sizes = Sizes(
        heads=2, q_len=q_len, kv_len=37, head_dim=head_dim, head_dim_v=head_dim_v
    )
    (out,) = compare(*sizes.qkv(rng, dtypes=dtypes), causal=True, **dtypes.options)
    assert out.shape == (2, 2, q_len, head_dim_v)


GROUPS = [(1, 1), (4, 1), (6, 2), (7, 7), (12, 3), (32, 8), (5, 1), (17, 1), (71, 1)]


@pytest.mark.parametrize(
    ("group", "q_len", "dtypes"),
    sampled({f"{a}-{b}": (a, b) for a, b in GROUPS}, [1, 2, 5, 40]),
)
def test_shapes_groups_match_oracle(
    group: tuple[int, int],
    q_len: int,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    heads, kv_heads = group
    sizes = Sizes(heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=70)
    options = combine(rng, sizes, "causal", "alibi_slopes", "sinks", "bias")
    (out,) = compare(*sizes.qkv(rng, dtypes=dtypes), **options, **dtypes.options)
    assert out.shape == (2, heads, q_len, 16)


@pytest.mark.parametrize(
    ("kv_len", "q_len", "causal", "dtypes"),
    sampled(
        [512, 2047, 2048, 2049, 5000, 9001],
        [1, 4, 9],
        {"full": False, "causal": True},
    ),
)
def test_shapes_long_cache_matches_oracle(
    kv_len: int,
    q_len: int,
    causal: bool,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    sizes = Sizes((1,), 4, 1, q_len, kv_len, head_dim=24, head_dim_v=24)
    options = {"causal": causal, "return_lse": True, **dtypes.options}
    out, lse = compare(*sizes.qkv(rng, dtypes=dtypes), **options)
    assert out.shape == (1, 4, q_len, 24)
    assert lse.shape == (1, 4, q_len)


ZEROS = {
    "batch": Sizes(batch=(0,)),
    "outer_batch": Sizes(batch=(0, 3)),
    "heads": Sizes(heads=0, kv_heads=2),
    "heads_and_kv_heads": Sizes(heads=0, kv_heads=0),
    "q_len": Sizes(q_len=0),
    "kv_len": Sizes(kv_len=0),
    "q_len_and_kv_len": Sizes(q_len=0, kv_len=0),
    "head_dim": Sizes(head_dim=0),
    "head_dim_v": Sizes(head_dim_v=0),
    "both_head_dims": Sizes(head_dim=0, head_dim_v=0),
    "all": Sizes(
        batch=(0,), heads=0, kv_heads=0, q_len=0, kv_len=0, head_dim=0, head_dim_v=0
    ),
}


@pytest.mark.parametrize(
    ("sizes", "policy", "layout", "dtypes"),
    sampled(ZEROS, ["zero", "mean", "nan"], ["bhsd", "bshd"]),
)
def test_shapes_size_of_0_matches_oracle(
    sizes: Sizes,
    policy: str,
    layout: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    out, lse, weights = compare(
        *sizes.qkv(rng, layout, dtypes),
        **dtypes.options,
        layout=layout,
        fully_masked=policy,
        causal=True,
        return_lse=True,
        return_weights=True,
    )
    tail = (sizes.heads, sizes.q_len)
    tail = tail[::-1] if layout == "bshd" else tail
    assert out.shape == (*sizes.batch, *tail, sizes.head_dim_v)
    assert lse.shape == sizes.scores[:-1]
    assert weights.shape == sizes.scores


@every_dtype
@pytest.mark.parametrize("sizes", ZEROS.values(), ids=ZEROS)
def test_shapes_size_of_0_takes_every_option(
    sizes: Sizes, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    names = ("mask", "bias", "causal", "window", "softcap", "alibi_slopes", "sinks")
    names += ("q_lengths", "kv_lengths", "segments", "dropout", "return_lse")
    options = combine(rng, sizes, *names) | dtypes.options
    out, lse = compare(*sizes.qkv(rng, dtypes=dtypes), **options)
    assert out.shape == (*sizes.batch, sizes.heads, sizes.q_len, sizes.head_dim_v)
    assert lse.shape == sizes.scores[:-1]


@pytest.mark.parametrize(
    ("batch", "layout", "dtypes"),
    sampled(
        [(), (1,), (3,), (2, 3), (2, 1, 3), (1, 2, 1, 2, 1)],
        ["bhsd", "bshd"],
    ),
)
def test_shapes_any_number_of_leading_axes(
    batch: tuple[int, ...],
    layout: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    sizes = Sizes(batch=batch, q_len=6, kv_len=21)
    names = ("mask", "bias", "causal_offsets", "kv_lengths", "alibi_slopes_per_batch")
    options = combine(rng, sizes, *names, "dropout", "return_lse") | dtypes.options
    out, lse = compare(*sizes.qkv(rng, layout, dtypes), layout=layout, **options)
    assert out.shape[:-3] == batch
    assert lse.shape == (*batch, 4, 6)


LEADING = {
    "one_key_for_all": ((3,), (1,), (1,)),
    "one_query_for_all": ((1,), (3,), (3,)),
    "value_alone": ((1,), (1,), (3,)),
    "missing_axes": ((2, 3), (3,), ()),
    "crossed": ((2, 1), (1, 3), (1, 1)),
    "rank_5_and_3": ((2, 2), (), (2, 1)),
}


@pytest.mark.parametrize(
    ("leading", "layout", "dtypes"), sampled(LEADING, ["bhsd", "bshd"])
)
def test_shapes_leading_axes_broadcast(
    leading: tuple[tuple[int, ...], ...],
    layout: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    batch = np.broadcast_shapes(*leading)
    shapes = ((4, 6, 8), (2, 19, 8), (2, 19, 5))
    kinds = (dtypes.query, dtypes.cache, dtypes.cache)
    inputs = [
        normal(rng, *lead, *tail, dtype=kind)
        for lead, tail, kind in zip(leading, shapes, kinds, strict=True)
    ]
    if layout == "bshd":
        inputs = [x.swapaxes(-2, -3) for x in inputs]
    options = combine(rng, Sizes(batch=batch, q_len=6, kv_len=19), "mask", "kv_lengths")
    (out,) = compare(*inputs, layout=layout, **options, **dtypes.options)
    assert out.shape[: len(batch)] == batch


PER_BATCH = {
    "scalar": (),
    "last_axis": (3,),
    "first_axis": (2, 1),
    "full": (2, 3),
}


@pytest.mark.parametrize(("shape", "dtypes"), sampled(PER_BATCH))
def test_shapes_per_batch_arguments_broadcast(
    shape: tuple[int, ...], dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(batch=(2, 3), q_len=6, kv_len=19)
    (out,) = compare(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        q_lengths=rng.integers(0, 7, shape),
        kv_lengths=rng.integers(0, 20, shape),
        causal=rng.integers(-3, 15, shape),
        q_segment_ids=rng.integers(0, 2, (*shape, 6)),
        kv_segment_ids=rng.integers(0, 2, (*shape, 19)),
        alibi_slopes=rng.random((*shape, 4), np.float32),
    )
    assert out.shape == (2, 3, 4, 6, 16)


@every_dtype
def test_shapes_rank_3_equals_a_batch_of_one(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, batch=(), dtypes=dtypes)
    whole = cpuattn.attention(*(x[None] for x in inputs), **dtypes.options)
    assert_same(cpuattn.attention(*inputs, **dtypes.options), whole[0])
