# SPDX-License-Identifier: MIT
"""Any strides in, any strides out; mask and bias broadcast over any axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

import cpuattn
from dtypes import FLOAT32, Dtypes, every_dtype, sampled, uniform_dtype
from options import Sizes
from support import Array, assert_same, compare, normal, qkv

SIZES = Sizes(batch=(2, 3), q_len=21, kv_len=70, head_dim=24, head_dim_v=20)
DECODE = Sizes(batch=(2, 3), q_len=1, kv_len=70, head_dim=24, head_dim_v=20)


def in_order(array: Array, *axes: int) -> Array:
    """Return the same values, contiguous in another order of the axes."""
    copy = np.ascontiguousarray(array.transpose(axes))
    return copy.transpose(np.argsort(axes))


def every_other(array: Array) -> Array:
    """Return the same values with a gap of one element after each."""
    wide = np.full((*array.shape, 2), np.nan, array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def spread(array: Array) -> Array:
    """Return the same values in the middle of a larger array."""
    wide = np.full(tuple(n + 3 for n in array.shape), np.nan, array.dtype)
    view = wide[tuple(slice(1, n + 1) for n in array.shape)]
    view[...] = array
    return view


def unaligned(array: Array) -> Array:
    """Return the same values one byte off the alignment of their type."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def reversed_in_memory(array: Array, axis: int) -> Array:
    """Return the same values with a negative stride."""
    return np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)


def read_only(array: Array) -> Array:
    """Return the same array without the right to write."""
    array.flags.writeable = False
    return array


def page_apart(array: Array) -> Array:
    """Return the same values in rows 4096 bytes apart, the worst case for a cache."""
    wide = np.full((*array.shape[:-1], 4096 // array.itemsize), np.nan, array.dtype)
    wide[..., : array.shape[-1]] = array
    return wide[..., : array.shape[-1]]


Stride = Callable[[Array], Array]

STRIDES: dict[str, Stride] = {
    "contiguous": np.ascontiguousarray,
    "transposed_rows": lambda x: in_order(x, 0, 1, 2, 4, 3),
    "length_before_heads": lambda x: in_order(x, 0, 1, 3, 2, 4),
    "batch_last": lambda x: in_order(x, 2, 3, 4, 0, 1),
    "fortran": np.asfortranarray,
    "negative_columns": lambda x: reversed_in_memory(x, -1),
    "negative_rows": lambda x: reversed_in_memory(x, -2),
    "negative_heads": lambda x: reversed_in_memory(x, -3),
    "negative_batch": lambda x: reversed_in_memory(x, 0),
    "column_step_2": every_other,
    "inside_larger": spread,
    "rows_4096_bytes_apart": page_apart,
    "unaligned": unaligned,
    "read_only": read_only,
}

ZERO_STRIDES: dict[str, tuple[int, ...]] = {
    "columns": (4,),
    "rows": (3,),
    "heads": (2,),
    "batch": (0, 1),
    "everything": (0, 1, 2, 3, 4),
}


KERNELS = {"prefill": SIZES, "decode": DECODE}
TENSORS = {"query": 0, "key": 1, "value": 2}


@pytest.mark.parametrize(
    ("index", "stride", "sizes", "dtypes"), sampled(TENSORS, STRIDES, KERNELS)
)
def test_strides_of_each_tensor_match_oracle(
    index: int,
    stride: Stride,
    sizes: Sizes,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = list(sizes.qkv(rng, dtypes=dtypes))
    inputs[index] = stride(inputs[index])
    (out,) = compare(*inputs, causal=True, **dtypes.options)
    assert out.shape == (2, 3, 4, sizes.q_len, 20)


@pytest.mark.parametrize("sizes", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES)
@every_dtype
def test_strides_of_all_inputs_match_oracle(
    dtypes: Dtypes, stride: Stride, sizes: Sizes, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = (stride(x) for x in sizes.qkv(rng, dtypes=dtypes))
    (out,) = compare(
        query,
        key,
        value,
        **dtypes.options,
        mask=stride(rng.random(sizes.scores) < 0.7),
        bias=stride(normal(rng, *sizes.scores)),
        dropout_p=0.4,
        dropout_mask=stride(rng.random(sizes.scores) < 0.6),
    )
    assert out.shape == (2, 3, 4, sizes.q_len, 20)


@pytest.mark.parametrize(("index", "axes", "dtypes"), sampled(TENSORS, ZERO_STRIDES))
def test_strides_of_zero_match_oracle(
    index: int,
    axes: tuple[int, ...],
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = list(SIZES.qkv(rng, dtypes=dtypes))
    shape = inputs[index].shape
    one = inputs[index][tuple(slice(1) if a in axes else slice(None) for a in range(5))]
    inputs[index] = np.broadcast_to(one, shape)
    (out,) = compare(*inputs, **dtypes.options)
    assert out.shape == (2, 3, 4, 21, 20)


@every_dtype
def test_strides_bshd_equals_transposed_bhsd_to_the_bit(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    inputs = SIZES.qkv(rng, dtypes=dtypes)
    bshd = [x.swapaxes(-2, -3) for x in inputs]
    out = cpuattn.attention(*bshd, layout="bshd", causal=True, **dtypes.options)
    assert out.flags.c_contiguous
    expected = cpuattn.attention(*inputs, causal=True, **dtypes.options)
    assert_same(out.swapaxes(-2, -3), expected)


@uniform_dtype
def test_strides_packed_qkv_views_match_oracle(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    packed = normal(rng, 2, 33, 3, 4, 16, dtype=dtypes.query)
    inputs = packed.transpose(2, 0, 1, 3, 4)
    (out,) = compare(*inputs, layout="bshd", causal=True, **dtypes.options)
    assert out.shape == (2, 33, 4, 16)


@pytest.mark.parametrize("q_len", [1, 40], ids=["decode", "prefill"])
@every_dtype
def test_strides_cache_view_is_read_to_its_length_only(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    cache = np.full((2, 2, 512, 16), np.nan, dtypes.cache)
    cache[:, :, :99] = normal(rng, 2, 2, 99, 16, dtype=dtypes.cache)
    view = cache[:, :, :99]
    query = normal(rng, 2, 4, q_len, 16, dtype=dtypes.query)
    (out,) = compare(query, view, view, **dtypes.options)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("head_dim", [1, 7, 8, 15, 16, 17, 33, 40])
@pytest.mark.parametrize("q_len", [1, 3, 40])
@every_dtype
def test_strides_nothing_between_rows_is_read(
    dtypes: Dtypes, q_len: int, head_dim: int, isa: str, rng: np.random.Generator
) -> None:
    # Every row ends before NaN: a vector that reads past it would show.
    sizes = Sizes(q_len=q_len, kv_len=21, head_dim=head_dim, head_dim_v=head_dim)
    inputs = sizes.qkv(rng, dtypes=dtypes)
    spaced = [np.full((*x.shape[:-1], 64), np.nan, x.dtype) for x in inputs]
    for wide, x in zip(spaced, inputs, strict=True):
        wide[..., :head_dim] = x
    assert_same(
        cpuattn.attention(*(x[..., :head_dim] for x in spaced), **dtypes.options),
        cpuattn.attention(*inputs, **dtypes.options),
    )


def axis_subsets() -> list[tuple[int, ...]]:
    return [axes for n in range(5) for axes in itertools.combinations(range(4), n)]


def subset_id(axes: tuple[int, ...]) -> str:
    names = ("batch", "heads", "q_len", "kv_len")
    return "+".join(names[a] for a in axes) or "none"


@pytest.mark.parametrize(
    ("axes", "q_len", "style", "dtypes"),
    sampled(
        {subset_id(axes): axes for axes in axis_subsets()},
        {"decode": 1, "prefill": 21},
        ["size_1", "stride_0"],
    ),
)
def test_strides_mask_and_bias_broadcast_over_axes(
    axes: tuple[int, ...],
    q_len: int,
    style: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    sizes = Sizes(q_len=q_len, kv_len=70)
    shape = tuple(1 if a in axes else n for a, n in enumerate(sizes.scores))
    mask, bias = rng.random(shape) < 0.6, normal(rng, *shape)
    if style == "stride_0":
        mask, bias = (np.broadcast_to(x, sizes.scores) for x in (mask, bias))
    inputs = sizes.qkv(rng, dtypes=dtypes)
    (masked,) = compare(*inputs, mask=mask, **dtypes.options)
    (biased,) = compare(*inputs, bias=bias, **dtypes.options)
    (both,) = compare(*inputs, mask=mask, bias=bias, **dtypes.options)
    assert masked.shape == biased.shape == both.shape == (2, 4, q_len, 16)


@pytest.mark.parametrize(
    ("rank", "q_len", "dtypes"), sampled(range(6), {"decode": 1, "prefill": 21})
)
def test_strides_mask_and_bias_of_every_rank(
    rank: int, q_len: int, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(batch=(2, 3), q_len=q_len, kv_len=70)
    shape = sizes.scores[len(sizes.scores) - rank :]
    (out,) = compare(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        mask=np.asarray(rng.random(shape) < 0.6),
        bias=np.asarray(rng.standard_normal(shape, np.float32)),
    )
    assert out.shape == (2, 3, 4, q_len, 16)


@pytest.mark.parametrize(("stride", "dtypes"), sampled(STRIDES))
def test_strides_mask_alone_match_oracle(
    stride: Stride, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    mask = stride(rng.random(SIZES.scores) < 0.4)
    (out,) = compare(*SIZES.qkv(rng, dtypes=dtypes), mask=mask, **dtypes.options)
    assert out.shape == (2, 3, 4, 21, 20)


@pytest.mark.parametrize(
    ("step", "integer", "dtypes"), sampled([2, -1, 0], ["int32", "int64"])
)
def test_strides_of_integer_arguments(
    step: int, integer: str, dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    def strided(longest: int, *shape: int) -> Array:
        values = rng.integers(0, longest, (*shape[:-1], 2 * shape[-1])).astype(integer)
        if step == 0:
            return np.broadcast_to(values[..., :1], shape)
        return values[..., ::step][..., : shape[-1]]

    sizes = Sizes(batch=(3,), q_len=21, kv_len=70)
    (out,) = compare(
        *sizes.qkv(rng, dtypes=dtypes),
        **dtypes.options,
        q_lengths=strided(22, 3),
        kv_lengths=strided(71, 3),
        causal=strided(50, 3),
        q_segment_ids=strided(2, 3, 21),
        kv_segment_ids=strided(2, 3, 70),
    )
    assert out.shape == (3, 4, 21, 16)


def empty(shape: tuple[int, ...], dtypes: Dtypes = FLOAT32) -> Array:
    return np.full(shape, -7, dtypes.query)


OUTS: dict[str, Callable[[Array], Array]] = {
    name: stride
    for name, stride in STRIDES.items()
    if name not in ("read_only", "contiguous")
}


@pytest.mark.parametrize(
    ("stride", "sizes", "layout", "dtypes"), sampled(OUTS, KERNELS, ["bhsd", "bshd"])
)
def test_strides_of_out_get_the_result_to_the_bit(
    stride: Stride,
    sizes: Sizes,
    layout: str,
    dtypes: Dtypes,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = sizes.qkv(rng, layout, dtypes)
    options = {"layout": layout, **dtypes.options}
    expected = cpuattn.attention(*inputs, **options)
    out = stride(empty(expected.shape, dtypes))
    assert cpuattn.attention(*inputs, **options, out=out) is out
    assert_same(out, expected)


@pytest.mark.parametrize("q_len", [1, 37])
@every_dtype
def test_strides_out_leaves_its_surroundings_alone(
    dtypes: Dtypes, q_len: int, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes(q_len=q_len, kv_len=50, head_dim_v=19)
    wide = empty((2, 6, 40, 25), dtypes)
    out = wide[:, 1:5, 2 : q_len + 2, 3:22]
    inputs = sizes.qkv(rng, dtypes=dtypes)
    returned = cpuattn.attention(*inputs, out=out, **dtypes.options)
    assert returned is out
    assert_same(out, cpuattn.attention(*inputs, **dtypes.options))
    out[...] = -7
    assert (wide == -7).all()


@every_dtype
def test_strides_split_keys_write_to_strided_out(
    dtypes: Dtypes, isa: str, rng: np.random.Generator
) -> None:
    sizes = Sizes((1,), heads=4, kv_heads=1, q_len=2, kv_len=5000)
    inputs = sizes.qkv(rng, dtypes=dtypes)
    expected = cpuattn.attention(*inputs, **dtypes.options)
    out = every_other(empty(expected.shape, dtypes))
    cpuattn.attention(*inputs, out=out, **dtypes.options)
    assert_same(out, expected)


def test_strides_out_with_lse_and_weights_is_first_of_the_tuple(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = SIZES.qkv(rng)
    out = every_other(empty((2, 3, 4, 21, 20)))
    returned = compare(*inputs, out=out, return_lse=True, return_weights=True)
    assert returned[0] is out


def test_strides_memmap_is_read_in_place(
    isa: str, rng: np.random.Generator, tmp_path: object
) -> None:
    query, key, value = qkv(rng)
    path = f"{tmp_path}/key.bin"
    key.tofile(path)
    mapped = np.memmap(path, np.float32, "r", shape=key.shape)
    np.testing.assert_array_equal(
        cpuattn.attention(query, mapped, value), cpuattn.attention(query, key, value)
    )
