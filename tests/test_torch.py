# SPDX-License-Identifier: MIT
"""scaled_dot_product_attention against torch's own, over its parameters and edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from support import Array, check, normal

torch = pytest.importorskip("torch", reason="torch is not installed")
sdpa = cpuattn.scaled_dot_product_attention


def theirs(
    query: Array, key: Array, value: Array, *, dtype: Any, **options: Any
) -> Array:
    """Return what torch's math backend computes in `dtype`."""
    backend = torch.nn.attention.SDPBackend.MATH
    mask = options.pop("attn_mask", None)
    causal = options.pop("is_causal", False)
    if mask is not None:
        mask = torch.from_numpy(np.ascontiguousarray(mask))
        mask = mask if mask.dtype == torch.bool else mask.to(dtype)
    if causal and mask is not None:  # torch's math backend refuses both
        tril = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        mask = mask & tril if mask.dtype == torch.bool else mask.where(tril, -torch.inf)
        causal = False
    arrays = [torch.from_numpy(np.ascontiguousarray(x)) for x in (query, key, value)]
    with torch.nn.attention.sdpa_kernel(backend):
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.to(dtype) for x in arrays), attn_mask=mask, is_causal=causal, **options
        )
    return np.asarray(out)


def agree(query: Array, key: Array, value: Array, **options: Any) -> Array:
    """Assert that ours agrees with float64 torch as well as float32 torch does."""
    ours = sdpa(query, key, value, **options)
    assert ours.dtype == np.float32
    exact = theirs(query, key, value, dtype=torch.float64, **options)
    naive = theirs(query, key, value, dtype=torch.float32, **options)
    largest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
    check(ours, exact, naive, scale=largest)
    return ours


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "rank_4": ((2, 4, 17, 16), (2, 4, 33, 16), (2, 4, 33, 16)),
    "rank_3": ((4, 17, 16), (4, 33, 16), (4, 33, 16)),
    "rank_2": ((17, 16), (33, 16), (33, 16)),
    "rank_5": ((2, 3, 4, 7, 16), (2, 3, 4, 9, 16), (2, 3, 4, 9, 16)),
    "value_dim": ((2, 4, 17, 16), (2, 4, 33, 16), (2, 4, 33, 7)),
    "one_row": ((2, 4, 1, 64), (2, 4, 100, 64), (2, 4, 100, 64)),
    "more_rows_than_keys": ((2, 4, 33, 16), (2, 4, 17, 16), (2, 4, 17, 16)),
    "one_key": ((2, 4, 17, 16), (2, 4, 1, 16), (2, 4, 1, 16)),
    "batch_of_1_keys": ((3, 4, 17, 16), (1, 4, 33, 16), (1, 4, 33, 16)),
    "batch_of_1_query": ((1, 4, 17, 16), (3, 4, 33, 16), (3, 4, 33, 16)),
    "one_kv_head": ((2, 4, 17, 16), (2, 1, 33, 16), (2, 1, 33, 16)),
    "one_query_head": ((2, 1, 17, 16), (2, 4, 33, 16), (2, 4, 33, 16)),
    "one_value_head": ((2, 4, 17, 16), (2, 4, 33, 16), (2, 1, 33, 16)),
    "rank_3_keys": ((2, 4, 17, 16), (4, 33, 16), (4, 33, 16)),
    "rank_2_keys": ((2, 4, 17, 16), (33, 16), (33, 16)),
    "odd_dims": ((1, 3, 65, 59), (1, 3, 127, 59), (1, 3, 127, 61)),
}


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_torch_shapes_agree(
    shapes: tuple[tuple[int, ...], ...],
    is_causal: bool,
    isa: str,
    rng: np.random.Generator,
) -> None:
    inputs = [normal(rng, *shape) for shape in shapes]
    out = agree(*inputs, is_causal=is_causal)
    assert out.shape[-2:] == (shapes[0][-2], shapes[2][-1])


MASK_SHAPES = [(17, 33), (1, 33), (17, 1), (1, 1), (4, 17, 33), (2, 1, 17, 33)]
MASK_SHAPES += [(2, 4, 1, 33), (1, 4, 17, 33), (2, 4, 17, 33)]


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_torch_masks_agree(
    shape: tuple[int, ...],
    is_causal: bool,
    kind: str,
    isa: str,
    rng: np.random.Generator,
) -> None:
    mask = np.asarray(rng.random(shape) < 0.7)
    if kind == "float":
        drawn = np.asarray(rng.standard_normal(shape), np.float32)
        mask = np.asarray(np.where(mask, drawn, np.float32(-np.inf)))
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    out = agree(*inputs, attn_mask=mask, is_causal=is_causal)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "scale", [None, 0.0, 1.0, -0.5, 1e10, 3, True, np.float32(0.2)]
)
def test_torch_scales_agree(scale: Any, isa: str, rng: np.random.Generator) -> None:
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    if scale == 1e10:
        # One key wins every row; torch splits the factor, so compare with its values.
        out = sdpa(*inputs, scale=scale)
        winner = (inputs[0] @ inputs[1].swapaxes(-1, -2)).argmax(-1)
        expected = np.take_along_axis(inputs[2], winner[..., None], -2)
        np.testing.assert_allclose(out, expected, rtol=1e-5)
        return
    factor = scale if scale is None else float(scale)
    exact = theirs(*inputs, dtype=torch.float64, scale=factor)
    np.testing.assert_allclose(sdpa(*inputs, scale=scale), exact, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (8, 8), (6, 3), (5, 1)])
def test_torch_enable_gqa_agrees(
    heads: int, kv_heads: int, is_causal: bool, isa: str, rng: np.random.Generator
) -> None:
    query = normal(rng, 2, heads, 17, 16)
    key, value = normal(rng, 2, 2, kv_heads, 33, 16)
    out = agree(query, key, value, enable_gqa=True, is_causal=is_causal)
    assert out.shape == query.shape


def test_torch_positional_arguments_agree(isa: str, rng: np.random.Generator) -> None:
    query, key, value = (normal(rng, *shape) for shape in SHAPES["rank_4"])
    mask = rng.random((17, 33)) < 0.7
    by_place = sdpa(query, key, value, mask, 0.0, True)
    by_name = sdpa(query=query, key=key, value=value, attn_mask=mask, is_causal=True)
    np.testing.assert_array_equal(by_place, by_name)


@pytest.mark.parametrize("kind", ["bool", "-inf", "causal"])
def test_torch_fully_masked_row_is_0(
    kind: str, isa: str, rng: np.random.Generator
) -> None:
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    mask = np.ones((17, 33), bool)
    mask[3] = False
    if kind == "-inf":
        out = agree(*inputs, attn_mask=np.where(mask, 0, -np.inf).astype(np.float32))
    else:
        out = agree(*inputs, attn_mask=mask, is_causal=kind == "causal")
    assert not out[:, :, 3].any()
    assert out[:, :, 4].any()


def test_torch_row_of_most_negative_floats_is_the_mean(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    mask = np.full((17, 33), np.finfo(np.float32).min)
    out = sdpa(*inputs, attn_mask=mask)
    expected = np.broadcast_to(inputs[2].mean(-2, keepdims=True), out.shape)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("kv_len", [1, 3, 8, 15, 16, 17, 40])
def test_torch_nan_query_row_is_nan_as_in_the_math_backend(
    kv_len: int, isa: str, rng: np.random.Generator
) -> None:
    # torch's own fused kernel gives 0 here below 16 keys.
    query, key, value = normal(rng, 3, 2, 4, kv_len, 16)
    query[0, 0, 0, 0] = np.nan
    out = agree(query, key, value)
    assert np.isnan(out[0, 0, 0]).all()


SIZES_OF_0: dict[str, tuple[tuple[int, ...], ...]] = {
    "keys": ((2, 4, 17, 16), (2, 4, 0, 16), (2, 4, 0, 16)),
    "rows": ((2, 4, 0, 16), (2, 4, 33, 16), (2, 4, 33, 16)),
    "batch": ((0, 4, 17, 16), (0, 4, 33, 16), (0, 4, 33, 16)),
    "heads": ((2, 0, 17, 16), (2, 0, 33, 16), (2, 0, 33, 16)),
    "value_dim": ((2, 4, 17, 16), (2, 4, 33, 16), (2, 4, 33, 0)),
}


@pytest.mark.parametrize("shapes", SIZES_OF_0.values(), ids=SIZES_OF_0)
def test_torch_sizes_of_0_agree(
    shapes: tuple[tuple[int, ...], ...], isa: str, rng: np.random.Generator
) -> None:
    inputs = [normal(rng, *shape) for shape in shapes]
    out = agree(*inputs)
    assert not out.any()


def test_torch_dropout_of_1_is_0(isa: str, rng: np.random.Generator) -> None:
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    assert not sdpa(*inputs, dropout_p=1.0).any()


def test_torch_dropout_is_applied_whatever_the_mode(
    isa: str, rng: np.random.Generator
) -> None:
    query, key = normal(rng, 2, 4, 64, 16), normal(rng, 2, 4, 64, 16)
    ones = np.ones((2, 4, 64, 1), np.float32)
    out = sdpa(query, key, ones, dropout_p=0.5)
    assert (out != 1).any()
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.05)
    assert not np.array_equal(out, sdpa(query, key, ones, dropout_p=0.5))


def test_torch_dropout_follows_numpy_seed(isa: str, rng: np.random.Generator) -> None:
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    outs = []
    for seed in (5, 5, 6):
        np.random.seed(seed)  # noqa: NPY002
        outs.append(sdpa(*inputs, dropout_p=0.5))
    np.testing.assert_array_equal(outs[0], outs[1])
    assert not np.array_equal(outs[0], outs[2])


def test_torch_mask_and_causal_combine_by_and(
    isa: str, rng: np.random.Generator
) -> None:
    inputs = [normal(rng, *shape) for shape in SHAPES["rank_4"]]
    mask = rng.random((2, 1, 17, 33)) < 0.7
    both = sdpa(*inputs, attn_mask=mask, is_causal=True)
    tril = np.tril(np.ones((17, 33), bool))
    np.testing.assert_allclose(both, sdpa(*inputs, attn_mask=mask & tril), atol=2e-6)


def test_torch_tensors_are_answered_in_kind(isa: str, rng: np.random.Generator) -> None:
    query, key, value = (torch.from_numpy(normal(rng, *s)) for s in SHAPES["rank_4"])
    mask = torch.from_numpy(rng.random((17, 33)) < 0.7)
    ours = sdpa(query, key, value, attn_mask=mask)
    assert isinstance(ours, torch.Tensor)
    reference = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask
    )
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["rank_2", "rank_3_keys", "rank_2_keys", "one_kv_head", "one_query_head"]
)
def test_torch_tensors_of_other_ranks_are_answered_in_kind(
    name: str, isa: str, rng: np.random.Generator
) -> None:
    query, key, value = (torch.from_numpy(normal(rng, *s)) for s in SHAPES[name])
    ours = sdpa(query, key, value)
    reference = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert isinstance(ours, torch.Tensor)
    assert ours.shape == reference.shape
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_dtype", [None, "bool", "float32", "same"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_torch_dtypes_agree(
    dtype: str, mask_dtype: str | None, isa: str, rng: np.random.Generator
) -> None:
    tensors = [
        torch.from_numpy(normal(rng, *shape)).to(getattr(torch, dtype))
        for shape in SHAPES["rank_4"]
    ]
    mask = None
    if mask_dtype == "bool":
        mask = torch.from_numpy(rng.random((17, 33)) < 0.7)
    elif mask_dtype is not None:
        name = dtype if mask_dtype == "same" else mask_dtype
        mask = torch.from_numpy(normal(rng, 17, 33)).to(getattr(torch, name))
    ours = sdpa(*tensors, attn_mask=mask)
    assert ours.dtype == tensors[0].dtype
    naive, exact = (
        torch.nn.functional.scaled_dot_product_attention(
            *(x.to(kind) for x in tensors),
            attn_mask=mask if mask is None or mask_dtype == "bool" else mask.to(kind),
        )
        for kind in (tensors[0].dtype, torch.float64)
    )
    error, allowed = ((x.double() - exact).abs().max() for x in (ours, naive))
    assert error <= 2 * allowed + 4 * torch.finfo(ours.dtype).eps * exact.abs().max()


def test_torch_masked_nan_is_ignored_where_torch_spreads_it(
    isa: str, rng: np.random.Generator
) -> None:
    query, key, value = normal(rng, 3, 2, 4, 20, 16)
    key[:, :, 15:], value[:, :, 15:] = np.nan, np.nan
    mask = np.arange(20) < 15
    out = sdpa(query, key, value, attn_mask=mask[None])
    clean = sdpa(query, key[:, :, :15], value[:, :, :15])
    np.testing.assert_allclose(out, clean, rtol=1e-4, atol=1e-6)
