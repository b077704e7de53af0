# SPDX-License-Identifier: MIT
"""CausalBias of compat.torch: what it hides and refuses, and that it takes no room."""

from __future__ import annotations

import inspect
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest

from cpuattn.compat.torch import (
    CausalBias,
    CausalVariant,
    SDPBackend,
    attention,
    causal_lower_right,
    causal_upper_left,
    scaled_dot_product_attention,
    sdpa_kernel,
)
from support import Array, normal

torch = pytest.importorskip("torch", reason="torch is not installed")
theirs = torch.nn.functional.scaled_dot_product_attention
their_bias = pytest.importorskip("torch.nn.attention.bias")

FACTORIES = ["causal_upper_left", "causal_lower_right"]
OURS = {"causal_upper_left": causal_upper_left}
OURS["causal_lower_right"] = causal_lower_right


def pair(factory: str, *size: int) -> tuple[Any, Any]:
    """Return our bias and that of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OURS[factory](*size), getattr(their_bias, factory)(*size)


def test_compat_torch_causal_variants_are_those_of_torch() -> None:
    assert {v.name: int(v) for v in CausalVariant} == {
        v.name: int(v) for v in their_bias.CausalVariant
    }


def test_compat_torch_bias_signatures_are_those_of_torch() -> None:
    for ours in (CausalBias, causal_upper_left, causal_lower_right):
        other = getattr(their_bias, ours.__name__)
        kinds = [
            [
                (p.name, p.kind, p.default)
                for p in inspect.signature(f).parameters.values()
            ]
            for f in (ours, other)
        ]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (4, 4), (1, 5), (5, 1), (0, 3)])
def test_compat_torch_bias_materializes_as_torch(
    factory: str, size: tuple[int, int]
) -> None:
    ours, other = pair(factory, *size)
    mask = ours._materialize()
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, other._materialize().numpy())
    np.testing.assert_array_equal(mask, np.asarray(ours))
    np.testing.assert_array_equal(mask, np.array(ours, dtype=np.float32))
    assert ours.variant == other.variant
    assert (ours.seq_len_q, ours.seq_len_kv) == size
    assert repr(size[0]) in repr(ours)


def test_compat_torch_bias_cannot_be_read_without_a_copy() -> None:
    with pytest.raises(ValueError, match="copy: must not be False"):
        np.array(causal_upper_left(2, 3), copy=False)


# Sizes of the bias beside 5 rows and 7 keys.
SIZES = [(5, 7), (3, 9), (9, 9), (1, 7), (5, 1), (1, 1), (7, 5), (5, 6), (6, 7)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "dropout_of_1": {"dropout_p": 1.0},
    "gqa": {"enable_gqa": True},
}


def inputs(rng: np.random.Generator, kind: str) -> list[Array]:
    kv_heads = 2 if kind == "gqa" else 4
    query = normal(rng, 2, 4, 5, 8)
    key, value = normal(rng, 2, 2, kv_heads, 7, 8)
    if kind.startswith("rank"):
        key, value, query = (x[(0,) * (4 - int(kind[-1]))] for x in (key, value, query))
    return [query, key, value[..., :3] if kind == "value_dim" else value]


@pytest.mark.parametrize("whose", ["ours", "torch"])
@pytest.mark.parametrize("kind", [*OPTIONS, "rank_3", "rank_2", "value_dim"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("factory", FACTORIES)
def test_compat_torch_bias_agrees_with_torch(
    factory: str,
    size: tuple[int, int],
    kind: str,
    whose: str,
    rng: np.random.Generator,
) -> None:
    ours, other = pair(factory, *size)
    arrays, options = inputs(rng, kind), OPTIONS.get(kind, {})
    tensors = map(torch.from_numpy, arrays)
    given = ours if whose == "ours" else other
    try:
        expected = theirs(*tensors, other, **options)
    except RuntimeError:
        text = r"^attn_mask: CausalBias must have the lengths of query and key \(5, 7\)"
        with pytest.raises(RuntimeError, match=text):
            scaled_dot_product_attention(*arrays, given, **options)
        return
    out = scaled_dot_product_attention(*arrays, given, **options)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-4, atol=1e-5)
    if kind != "dropout_of_1":
        with sdpa_kernel(SDPBackend.MATH):
            plain = scaled_dot_product_attention(*arrays, given, **options)
        np.testing.assert_allclose(out, plain, rtol=1e-4, atol=1e-5)


BAD: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "dtype": {"key": np.ones((2, 4, 7, 8), np.float64)},
    "rank_1": {"query": np.ones(8, np.float32)},
    "head_dim": {"key": np.ones((2, 4, 7, 3), np.float32)},
    "scale": {"scale": "x"},
    "dropout": {"dropout_p": 1.5},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
@pytest.mark.parametrize("factory", FACTORIES)
def test_compat_torch_bias_raises_as_torch(
    factory: str, change: dict[str, Any]
) -> None:
    ours, other = pair(factory, 5, 7)
    good = {
        "query": np.ones((2, 4, 5, 8), np.float32),
        "key": np.ones((2, 4, 7, 8), np.float32),
        "value": np.ones((2, 4, 7, 8), np.float32),
    }
    arguments = good | change
    tensors = {
        name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        for name, x in arguments.items()
    }
    with pytest.raises((RuntimeError, TypeError, ValueError)) as expected:
        theirs(**tensors, attn_mask=other)
    with pytest.raises(expected.type) as caught:
        scaled_dot_product_attention(**arguments, attn_mask=ours)
    assert caught.type is expected.type
    if change.get("is_causal"):
        assert str(caught.value) == str(expected.value)


def test_compat_torch_bias_of_no_variant_is_a_value_error() -> None:
    bias = causal_lower_right(5, 7)
    bias.variant = 3
    x = np.ones((2, 7, 8), np.float32)
    with pytest.raises(ValueError, match=r"^CausalBias\.variant must be a CausalVari"):
        scaled_dot_product_attention(x, x, x, bias)


@pytest.mark.parametrize("size", [(), (3,), (3, 4, 5), ("a", "b"), (3.5, 4), (-1, 2)])
@pytest.mark.parametrize("factory", FACTORIES)
def test_compat_torch_bias_refuses_sizes_as_torch(
    factory: str, size: tuple[Any, ...]
) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError)) as expected:
        getattr(their_bias, factory)(*size)
    with pytest.raises(expected.type) as caught:
        OURS[factory](*size)
    if expected.type is AssertionError:
        assert str(caught.value) == str(expected.value)


def test_compat_torch_bias_refuses_another_variant_as_torch() -> None:
    raised = []
    for kind in (CausalBias, their_bias.CausalBias):
        with pytest.raises(AssertionError) as caught:
            kind(1, 3, 4)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]


def test_compat_torch_bias_warns_of_rows_that_see_nothing() -> None:
    with pytest.warns(UserWarning, match="the first 2 of 5 rows see no key"):
        bias = causal_lower_right(5, 3)
    x = np.ones((1, 5, 8), np.float32)
    out = scaled_dot_product_attention(x, x[:, :3], x[:, :3], bias)
    np.testing.assert_array_equal(out[0].any(-1), [False, False, True, True, True])


@pytest.mark.parametrize("whose", ["ours", "torch"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_compat_torch_bias_takes_no_memory(factory: str, whose: str) -> None:
    lengths = 3000, 4000
    bias = pair(factory, *lengths)[whose == "torch"]
    query, key = (np.ones((1, n, 8), np.float32) for n in lengths)
    tracemalloc.start()
    try:
        scaled_dot_product_attention(query, key, key, bias)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_compat_torch_bias_goes_to_the_native_function_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []

    def recorded(*arrays: Array, **options: Any) -> Array:
        seen.append(options)
        return arrays[0]

    monkeypatch.setattr(attention, "attention", recorded)
    query, key = np.ones((2, 5, 8), np.float32), np.ones((2, 7, 8), np.float32)
    for bias in (causal_upper_left(5, 7), causal_lower_right(5, 7)):
        scaled_dot_product_attention(query, key, key, bias)
    assert [options["causal"] for options in seen] == ["top_left", "bottom_right"]
    assert all(not {"mask", "bias"} & {*options} for options in seen)
