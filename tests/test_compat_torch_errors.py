# SPDX-License-Identifier: MIT
"""Bad arguments of compat.torch: the exception types of torch, and our texts."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from cpuattn.compat.torch import SDPBackend, scaled_dot_product_attention, sdpa_kernel
from dtypes import BFLOAT16

torch = pytest.importorskip("torch", reason="torch is not installed")
theirs = torch.nn.functional.scaled_dot_product_attention


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


def tensor(array: Any) -> Any:
    """Return a NumPy array as a tensor, and anything else as it is."""
    if not isinstance(array, np.ndarray):
        return array
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


QUERY, KEY = ones(2, 4, 5, 8), ones(2, 4, 7, 8)
GOOD = {"query": QUERY, "key": KEY, "value": KEY}


def same(array: Any) -> dict[str, Any]:
    return {"query": array, "key": array, "value": array}


# What changes in a good call, and what our text says first.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "query_is_none": ({"query": None}, "query: must be a NumPy array"),
    "key_is_a_list": ({"key": [[1.0]]}, "key: must be a NumPy array"),
    "value_is_a_number": ({"value": 1.0}, "value: must be a NumPy array"),
    "query_is_none_with_a_mask": (
        {"query": None, "attn_mask": ones(5, 7)},
        "query: must be a NumPy array",
    ),
    "mask_is_a_list": ({"attn_mask": [1.0]}, "attn_mask: must be a NumPy array"),
    "mask_is_a_bool": ({"attn_mask": True}, "attn_mask: must be a NumPy array"),
    "query_of_1_axis": ({"query": ones(8)}, "query: must have at least 2 axes; got sh"),
    "key_of_1_axis": ({"key": ones(8)}, "key: must have at least 2 axes; got shape (8"),
    "all_of_1_axis": (same(ones(8)), "query: must have at least 2 axes"),
    "scalars": (same(ones()), "query: must have at least 2 axes; got shape ()"),
    "key_dtype": (
        {"key": KEY.astype(np.float64)},
        "key: dtype must be that of query float32; got float64",
    ),
    "value_dtype": (
        {"value": KEY.astype(np.float16)},
        "value: dtype must be that of query float32; got float16",
    ),
    "narrow_cache": (
        {"key": KEY.astype(BFLOAT16), "value": KEY.astype(BFLOAT16)},
        "key: dtype must be that of query float32; got bfloat16",
    ),
    "int32": (same(QUERY.astype(np.int32)), "query: dtype must be float16"),
    "bool": (same(QUERY.astype(np.bool_)), "query: dtype must be float16"),
    "uint8_of_rank_3": (same(ones(4, 5, 8, dtype="u1")), "query: dtype must be float1"),
    "complex64": (same(QUERY.astype(np.complex64)), "query: dtype must be float16"),
    "head_dim": ({"key": ones(2, 4, 7, 9)}, "key: head_dim must equal query head_dim"),
    "kv_len": (
        {"key": ones(4, 7, 8), "value": ones(4, 9, 8), "query": ones(4, 5, 8)},
        "value: length must equal key length 7; got 9",
    ),
    "heads": (
        {"key": ones(2, 2, 7, 8), "value": ones(2, 2, 7, 8)},
        "key: number of heads must equal that of query 4 or be 1",
    ),
    "value_heads": (
        {"value": ones(2, 2, 7, 8)},
        "value: number of heads must equal that of query 4 or be 1",
    ),
    "value_heads_unlike_key": (
        {"query": ones(2, 1, 5, 8), "value": ones(2, 3, 7, 8)},
        "value: number of heads must equal that of key 4 or be 1",
    ),
    "batch": (
        {"key": ones(3, 4, 7, 8), "value": ones(3, 4, 7, 8)},
        "key: leading axes must broadcast with those of query",
    ),
    "gqa_heads": (
        {"key": ones(2, 3, 7, 8), "value": ones(2, 3, 7, 8), "enable_gqa": True},
        "key: number of heads must divide query num_heads 4; got 3",
    ),
    "gqa_value_heads": (
        {"key": ones(2, 2, 7, 8), "value": ones(2, 3, 7, 8), "enable_gqa": True},
        "value: number of heads must divide that of query 4; got 3",
    ),
    "gqa_more_kv_heads": (
        {"key": ones(2, 8, 7, 8), "value": ones(2, 8, 7, 8), "enable_gqa": True},
        "key: number of heads must divide query num_heads 4; got 8",
    ),
    "gqa_matrices": (
        {**same(ones(5, 8)), "enable_gqa": True},
        "query: must have a heads axis with enable_gqa=True; got shape (5, 8)",
    ),
    "gqa_key_matrix": (
        {"key": ones(7, 8), "value": ones(7, 8), "enable_gqa": True},
        "key: must have a heads axis with enable_gqa=True; got shape (7, 8)",
    ),
    "gqa_is_a_number": ({"enable_gqa": 1}, "enable_gqa: must be a bool; got int"),
    "gqa_is_none": ({"enable_gqa": None}, "enable_gqa: must be a bool; got NoneType"),
    "causal_is_a_number": ({"is_causal": 1}, "is_causal: must be a bool; got int"),
    "causal_is_none": ({"is_causal": None}, "is_causal: must be a bool; got NoneType"),
    "scale_is_a_str": ({"scale": "x"}, "scale: must be a real number; got str"),
    "scale_is_complex": ({"scale": 1j}, "scale: must be a real number; got complex"),
    "scale_is_a_list": ({"scale": [1.0]}, "scale: must be a real number; got list"),
    "scale_is_an_array": ({"scale": ones(1)}, "scale: must be a real number; got ndar"),
    "dropout_is_a_str": ({"dropout_p": "0"}, "dropout_p: must be a real number; got"),
    "dropout_is_none": ({"dropout_p": None}, "dropout_p: must be a real number; got"),
    "dropout_is_complex": ({"dropout_p": 0j}, "dropout_p: must be a real number; got"),
    "dropout_above_1": (
        {"dropout_p": 1.1},
        "dropout_p: must be between 0 and 1; got 1",
    ),
    "dropout_below_0": ({"dropout_p": -0.5}, "dropout_p: must be between 0 and 1; got"),
    "dropout_is_inf": (
        {"dropout_p": np.inf},
        "dropout_p: must be between 0 and 1; got",
    ),
    "dropout_is_nan": (
        {"dropout_p": np.nan},
        "dropout_p: must be between 0 and 1; got",
    ),
    "mask_int32": (
        {"attn_mask": ones(5, 7, dtype=np.int32)},
        "attn_mask: dtype must be bool, float32 or that of query float32; got int32",
    ),
    "mask_float64": (
        {"attn_mask": ones(5, 7, dtype=np.float64)},
        "attn_mask: dtype must be bool, float32 or that of query float32; got float64",
    ),
    "mask_float16": (
        {"attn_mask": ones(5, 7, dtype=np.float16)},
        "attn_mask: dtype must be bool, float32 or that of query float32; got float16",
    ),
    "mask_bfloat16_for_float16": (
        {**same(QUERY.astype(np.float16)), "attn_mask": ones(5, 5, dtype=BFLOAT16)},
        "attn_mask: dtype must be bool, float32 or that of query float16; got bfloat16",
    ),
    "mask_keys": ({"attn_mask": ones(5, 6)}, "attn_mask: must broadcast to"),
    "mask_rows": ({"attn_mask": ones(6, 7)}, "attn_mask: must broadcast to"),
    "mask_no_rows": ({"attn_mask": ones(0, 7)}, "attn_mask: must broadcast to"),
    "mask_heads": ({"attn_mask": ones(2, 3, 5, 7)}, "attn_mask: must broadcast to"),
    "mask_batch": ({"attn_mask": ones(3, 1, 5, 7)}, "attn_mask: must broadcast to"),
    "mask_of_5_axes": ({"attn_mask": ones(1, 2, 4, 5, 7)}, "attn_mask: must broadcast"),
    "mask_of_1_axis": ({"attn_mask": ones(7)}, "attn_mask: must have at least 2 axes"),
    "mask_without_axes": (
        {"attn_mask": ones(dtype=np.bool_)},
        "attn_mask: must have at least 2 axes; got shape ()",
    ),
    "mask_of_1_axis_unlike_value": (
        {"attn_mask": ones(7), "value": ones(2, 4, 7, 3)},
        "attn_mask: must have at least 2 axes; got shape (7,)",
    ),
    "mask_enlarges_batch": (
        {
            "query": ones(1, 4, 5, 8),
            "key": ones(1, 4, 7, 8),
            "value": ones(1, 4, 7, 8),
            "attn_mask": ones(2, 1, 5, 7),
        },
        "attn_mask: must broadcast to",
    ),
    "mask_enlarges_batch_like_value": (
        {
            "query": ones(1, 4, 5, 8),
            "key": ones(1, 4, 7, 8),
            "attn_mask": ones(2, 1, 5, 7),
        },
        "attn_mask: must broadcast to (1, 4, 5, 7), the scores of query and key",
    ),
    "mask_enlarges_heads_like_value": (
        {
            "query": ones(2, 1, 5, 8),
            "key": ones(2, 1, 7, 8),
            "attn_mask": ones(2, 4, 5, 7),
        },
        "attn_mask: must broadcast to (2, 1, 5, 7), the scores of query and key",
    ),
    "mask_enlarges_rows": (
        {"query": ones(2, 4, 1, 8), "attn_mask": ones(5, 7)},
        "attn_mask: must broadcast to",
    ),
    "mask_enlarges_keys": (
        {"key": KEY[:, :, :1], "value": KEY[:, :, :1], "attn_mask": ones(5, 7)},
        "attn_mask: must broadcast to",
    ),
    "mask_enlarges_matrices": (
        {**same(ones(5, 8)), "attn_mask": ones(1, 5, 5)},
        "attn_mask: must broadcast to (5, 5), the scores of query and key",
    ),
    "mask_enlarges_rank_3": (
        {**same(ones(4, 5, 8)), "attn_mask": ones(1, 4, 5, 5)},
        "attn_mask: must broadcast to",
    ),
}


@pytest.mark.parametrize(("change", "text"), BAD.values(), ids=BAD)
def test_compat_torch_bad_argument_raises_as_torch(
    change: dict[str, Any], text: str
) -> None:
    arguments = GOOD | change
    with pytest.raises(Exception, match=r".") as expected:
        theirs(**{name: tensor(x) for name, x in arguments.items()})
    with pytest.raises(Exception, match=r".") as ours:
        scaled_dot_product_attention(**arguments)
    assert ours.type is expected.type
    assert str(ours.value).startswith(text)


@pytest.mark.parametrize(("change", "text"), BAD.values(), ids=BAD)
def test_compat_torch_bad_tensor_raises_as_torch(
    change: dict[str, Any], text: str
) -> None:
    arguments = {name: tensor(x) for name, x in (GOOD | change).items()}
    with pytest.raises(Exception, match=r".") as expected:
        theirs(**arguments)
    with pytest.raises(expected.type) as ours:
        scaled_dot_product_attention(**arguments)
    assert ours.type is expected.type
    assert str(ours.value).startswith(text.partition("; got")[0])


# Where torch accepts under MATH what it refuses by default: see the differences.
FOR_MATH = {
    name: case
    for name, case in BAD.items()
    if name
    not in (
        "dropout_below_0",
        "dropout_is_nan",
        "mask_of_1_axis",
        "mask_without_axes",
        "mask_of_1_axis_unlike_value",
    )
}


@pytest.mark.parametrize(("change", "text"), FOR_MATH.values(), ids=FOR_MATH)
def test_compat_torch_bad_argument_raises_as_torch_under_math(
    change: dict[str, Any], text: str
) -> None:
    arguments = GOOD | change
    with (
        pytest.raises(Exception, match=r".") as expected,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        theirs(**{name: tensor(x) for name, x in arguments.items()})
    with (
        pytest.raises(expected.type) as ours,
        sdpa_kernel(SDPBackend.MATH),
    ):
        scaled_dot_product_attention(**arguments)
    assert ours.type is expected.type
    assert str(ours.value).partition(":")[0] == text.partition(":")[0]


def test_compat_torch_float8_is_not_implemented() -> None:
    eight = torch.ones(2, 4, 5, 8).to(torch.float8_e4m3fn)
    for function in (theirs, scaled_dot_product_attention):
        with pytest.raises(NotImplementedError):
            function(eight, eight, eight)


def test_compat_torch_value_of_another_length_is_an_error() -> None:
    # torch's fused kernel reads beyond one of the two.
    for length in (6, 8):
        text = f"^value: length must equal key length 7; got {length}"
        with pytest.raises(RuntimeError, match=text):
            scaled_dot_product_attention(QUERY, KEY, ones(2, 4, length, 8))


EMPTY = {
    "no_keys_unlike_head_dim": {"key": ones(2, 4, 0, 3), "value": ones(2, 4, 0, 8)},
    "no_kv_heads": {"key": ones(2, 0, 7, 8), "value": ones(2, 0, 7, 8)},
    "no_kv_batch": {"key": ones(0, 4, 7, 8), "value": ones(0, 4, 7, 8)},
    "no_rows_of_integers": same(ones(2, 4, 0, 8, dtype=np.int32)),
    "no_keys_and_a_wrong_mask": {
        "key": ones(2, 4, 0, 8),
        "value": ones(2, 4, 0, 8),
        "attn_mask": ones(9, 9),
    },
}


@pytest.mark.parametrize("change", EMPTY.values(), ids=EMPTY)
def test_compat_torch_sizes_of_0_are_checked_where_torch_does_not(
    change: dict[str, Any],
) -> None:
    with pytest.raises(RuntimeError, match=r"^\w+: "):
        scaled_dot_product_attention(**(GOOD | change))


def test_compat_torch_gradients_are_refused() -> None:
    query = torch.ones(2, 4, 5, 8, requires_grad=True)
    with pytest.raises(TypeError, match=r"^query: must not require grad"):
        scaled_dot_product_attention(query, query, query)
    with (
        pytest.raises(TypeError, match=r"^query: must not require grad"),
        sdpa_kernel(SDPBackend.MATH),
    ):
        scaled_dot_product_attention(query, query, query)
    with torch.no_grad():
        scaled_dot_product_attention(query, query, query)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_compat_torch_strict_refuses_a_mask_with_is_causal(kind: str) -> None:
    mask = ones(5, 7, dtype=np.bool_ if kind == "bool" else np.float32)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        pytest.raises(RuntimeError) as expected,
    ):
        theirs(*(tensor(GOOD[name]) for name in GOOD), tensor(mask), is_causal=True)
    with pytest.raises(RuntimeError) as ours:
        scaled_dot_product_attention(*GOOD.values(), mask, is_causal=True, strict=True)
    assert str(ours.value) == str(expected.value)
    scaled_dot_product_attention(*GOOD.values(), mask, strict=True)
    scaled_dot_product_attention(*GOOD.values(), is_causal=True, strict=True)


CALLS = {
    "missing": (lambda f: f(QUERY, KEY), TypeError),
    "seven_by_place": (lambda f: f(QUERY, KEY, KEY, None, 0.0, False, 1.0), TypeError),
    "unknown_name": (lambda f: f(QUERY, KEY, KEY, softcap=1.0), TypeError),
}


@pytest.mark.parametrize(("call", "error"), CALLS.values(), ids=CALLS)
def test_compat_torch_wrong_call_is_a_type_error(call: Any, error: Any) -> None:
    for function in (theirs, scaled_dot_product_attention):
        with pytest.raises(error):
            call(function)


def test_compat_torch_has_every_parameter_of_torch() -> None:
    # torch's function is built in and documents its signature in its docstring.
    text = theirs.__doc__.partition("(")[2].partition(") ->")[0]
    scope: dict[str, Any] = {}
    exec(f"def signature({text}): pass", scope)
    documented = inspect.signature(scope["signature"]).parameters
    ours = dict(inspect.signature(scaled_dot_product_attention).parameters)
    extra = ours.pop("strict")
    assert list(ours) == list(documented)
    for name, parameter in documented.items():
        assert ours[name].default == parameter.default, name
    assert [n for n, p in ours.items() if p.kind is p.KEYWORD_ONLY] == [
        "scale",
        "enable_gqa",
    ]
    assert extra.kind is extra.KEYWORD_ONLY
    assert extra.default is False
