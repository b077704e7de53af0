# SPDX-License-Identifier: MIT
"""Results of compat.torch: groups of heads, numbers, memory order, seeds, kinds."""

from __future__ import annotations

import inspect
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn.compat import torch as compat
from cpuattn.compat.torch import SDPBackend, scaled_dot_product_attention, sdpa_kernel
from support import Array, normal

torch = pytest.importorskip("torch", reason="torch is not installed")
theirs = torch.nn.functional.scaled_dot_product_attention

GUIDE = Path(__file__).parents[1] / "docs" / "from-torch.md"


def close(ours: Any, expected: Any) -> None:
    np.testing.assert_allclose(
        np.asarray(ours), np.asarray(expected), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("heads", [(2, 2), (2, 4), (4, 2), (1, 6), (3, 1), (2, 3)])
def test_compat_torch_gqa_takes_two_numbers_of_heads(
    heads: tuple[int, int], kind: str, rng: np.random.Generator
) -> None:
    arrays = [normal(rng, 2, 12, 17, 16)]
    arrays += [normal(rng, 2, n, 33, 16) for n in heads]
    tensors = [torch.from_numpy(x) for x in arrays]
    given = arrays if kind == "array" else tensors
    mask = rng.random((2, 12, 17, 33)) < 0.7
    for attn_mask in (None, mask):
        out = scaled_dot_product_attention(*given, attn_mask, enable_gqa=True)
        other = None if attn_mask is None else torch.from_numpy(attn_mask)
        close(out, theirs(*tensors, other, enable_gqa=True))


NUMBERS: dict[str, Any] = {
    "int": 2,
    "bool": True,
    "float64": np.float64(0.5),
    "float16": np.float16(0.5),
    "int64": np.int64(2),
    "bool_": np.bool_(True),
    "tensor": torch.tensor(0.5),
    "integer_tensor": torch.tensor(2),
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_compat_torch_scale_takes_the_numbers_of_torch(
    number: Any, rng: np.random.Generator
) -> None:
    x = normal(rng, 2, 4, 5, 8)
    out = scaled_dot_product_attention(x, x, x, scale=number)
    close(out, theirs(*[torch.from_numpy(x)] * 3, scale=number))


def test_compat_torch_numbers_may_be_arrays_without_axes(
    rng: np.random.Generator,
) -> None:
    x = normal(rng, 2, 4, 5, 8)
    out = scaled_dot_product_attention(x, x, x, scale=np.array(0.5))
    close(out, theirs(*[torch.from_numpy(x)] * 3, scale=0.5))
    assert not scaled_dot_product_attention(x, x, x, dropout_p=np.array(1)).any()
    assert not scaled_dot_product_attention(x, x, x, dropout_p=True).any()


@pytest.mark.parametrize("causal", [False, True])
def test_compat_torch_flags_may_be_booleans_of_numpy(
    causal: bool, rng: np.random.Generator
) -> None:
    x = normal(rng, 2, 4, 5, 8)
    out = scaled_dot_product_attention(
        x, x, x, is_causal=np.bool_(causal), enable_gqa=np.bool_(True)
    )
    close(out, theirs(*[torch.from_numpy(x)] * 3, is_causal=causal))


# Axes of the memory of query, and what else is asked.
ORDERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "contiguous": ((0, 1, 2, 3), {}),
    "bshd": ((0, 2, 1, 3), {}),
    "sbhd": ((2, 0, 1, 3), {}),
    "bshd_causal": ((0, 2, 1, 3), {"is_causal": True}),
    "bshd_mask": ((0, 2, 1, 3), {"attn_mask": np.tri(5, 7, dtype=bool)}),
    "bshd_gqa": ((0, 2, 1, 3), {"enable_gqa": True}),
    "bshd_dropout": ((0, 2, 1, 3), {"dropout_p": 1.0}),
    "bshd_value_dim": ((0, 2, 1, 3), {"width": 3}),
    "last_axis_strided": ((0, 1, 3, 2), {}),
}


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize(("axes", "options"), ORDERS.values(), ids=ORDERS)
def test_compat_torch_result_has_the_memory_order_of_torch(
    axes: tuple[int, ...],
    options: dict[str, Any],
    kind: str,
    rng: np.random.Generator,
) -> None:
    options = dict(options)
    width, kv_heads = options.pop("width", 8), 2 if "enable_gqa" in options else 4
    query = normal(rng, 2, 4, 5, 8).transpose(axes)
    query = np.ascontiguousarray(query).transpose(np.argsort(axes))
    arrays = [query, normal(rng, 2, kv_heads, 7, 8), normal(rng, 2, kv_heads, 7, width)]
    tensors = [torch.from_numpy(x) for x in arrays]
    out = scaled_dot_product_attention(
        *(arrays if kind == "array" else tensors), **options
    )
    if "attn_mask" in options:
        options["attn_mask"] = torch.from_numpy(options["attn_mask"])
    expected = theirs(*tensors, **options)
    close(out, expected)
    strides = np.asarray(out).strides
    assert [n // 4 for n in strides] == list(expected.stride())


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_compat_torch_result_is_contiguous_beside_rank_4(
    rank: int, rng: np.random.Generator
) -> None:
    x = normal(rng, *(2, 3, 4, 5, 6)[-rank:]).swapaxes(-1, -2).copy().swapaxes(-1, -2)
    assert scaled_dot_product_attention(x, x, x).flags.c_contiguous


def test_compat_torch_result_of_an_expanded_query_has_its_own_memory(
    rng: np.random.Generator,
) -> None:
    x = np.broadcast_to(normal(rng, 1, 4, 5, 8), (2, 4, 5, 8))
    out = scaled_dot_product_attention(x, x, x)
    assert out.flags.c_contiguous
    close(out, theirs(*[torch.from_numpy(x.copy())] * 3))


def test_compat_torch_result_of_a_subclass_is_an_ndarray(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 5, 4, 8)).swapaxes(1, 2)
    assert type(scaled_dot_product_attention(x, x, x)) is np.ndarray


def test_compat_torch_tensors_and_arrays_mix(rng: np.random.Generator) -> None:
    x, mask = normal(rng, 2, 4, 5, 8), rng.random((5, 5)) < 0.7
    tensor = torch.from_numpy(x)
    expected = theirs(tensor, tensor, tensor, torch.from_numpy(mask))
    for query, key, masked in (
        (x, tensor, mask),
        (tensor, x, mask),
        (x, x, torch.from_numpy(mask)),
    ):
        out = scaled_dot_product_attention(query, key, key, masked)
        assert type(out) is type(query)
        close(out, expected)


def test_compat_torch_dropout_of_tensors_follows_the_seed_of_torch(
    rng: np.random.Generator,
) -> None:
    x = torch.from_numpy(normal(rng, 2, 4, 5, 8))
    outs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs.append(scaled_dot_product_attention(x, x, x, dropout_p=0.5))
    state = np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_compat_torch_dropout_keeps_its_share_and_scales_it(
    rng: np.random.Generator,
) -> None:
    query = normal(rng, 1, 1, 64, 8) * 0
    value = np.eye(256, dtype=np.float32)[None, None]
    key = normal(rng, 1, 1, 256, 8)
    for backend in (SDPBackend.MATH, list(SDPBackend)):
        with sdpa_kernel(backend):
            weights = scaled_dot_product_attention(query, key, value, dropout_p=0.25)
        kept = weights != 0
        np.testing.assert_allclose(weights[kept], 1 / 256 / 0.75, rtol=1e-5)
        np.testing.assert_allclose(kept.mean(), 0.75, atol=0.02)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": np.ones((1, 4000), bool)},
    "dropout": {"dropout_p": 0.3},
    "gqa": {"enable_gqa": True},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_compat_torch_makes_no_scores(options: dict[str, Any]) -> None:
    query, key = (np.ones((1, 1, n, 8), np.float32) for n in (3000, 4000))
    tracemalloc.start()
    try:
        scaled_dot_product_attention(query, key, key, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_compat_torch_is_exported_at_the_top() -> None:
    assert cpuattn.scaled_dot_product_attention is scaled_dot_product_attention
    assert {*compat.__all__} == {
        "CausalBias",
        "CausalVariant",
        "SDPBackend",
        "causal_lower_right",
        "causal_upper_left",
        "scaled_dot_product_attention",
        "sdpa_kernel",
    }


@pytest.mark.parametrize("name", compat.__all__)
def test_compat_torch_docstrings_name_their_parameters(name: str) -> None:
    thing = getattr(compat, name)
    text = inspect.getdoc(thing) or ""
    if name in ("SDPBackend", "CausalVariant"):
        return
    for parameter in inspect.signature(thing).parameters:
        assert parameter in text.partition("Parameters")[2], parameter


def test_compat_torch_guide_names_every_parameter() -> None:
    if not GUIDE.exists():
        pytest.skip("the documentation is not here")
    text = GUIDE.read_text(encoding="utf-8")
    names = [*inspect.signature(scaled_dot_product_attention).parameters]
    for name in [*names, *compat.__all__]:
        assert name in text, name


def test_compat_torch_views_are_read_in_place(rng: np.random.Generator) -> None:
    packed: Array = normal(rng, 2, 50, 3, 4, 8)
    query, key, value = packed.transpose(2, 0, 3, 1, 4)
    out = scaled_dot_product_attention(query, key, value)
    close(out, theirs(*(torch.from_numpy(x.copy()) for x in (query, key, value))))
    joined = out.swapaxes(1, 2).reshape(2, 50, 32)
    assert np.shares_memory(joined, out)
