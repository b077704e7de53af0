# SPDX-License-Identifier: MIT
"""Promise 5: every check has one clear line, and fails before any memory is touched."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import cpuattn
from support import Array

F32 = np.float32


@dataclass(frozen=True)
class Case:
    """A call that must fail: what replaces the valid arguments, and the whole text."""

    error: type[Exception]
    text: str
    change: Callable[[], dict[str, Any]]


def zeros(*shape: int, dtype: Any = F32) -> Array:
    return np.zeros(shape, dtype)


def valid() -> dict[str, Any]:
    """Return a valid call: batch 2, heads 8 and 2, q_len 3, kv_len 5, head_dim 16."""
    return {
        "query": zeros(2, 8, 3, 16),
        "key": zeros(2, 2, 5, 16),
        "value": zeros(2, 2, 5, 12),
    }


def value_error(text: str, **change: Any) -> Case:
    return Case(ValueError, text, lambda: change)


def type_error(text: str, **change: Any) -> Case:
    return Case(TypeError, text, lambda: change)


FLOATS = "dtype must be float16, bfloat16, float32 or float64"
LIKE_FLOAT32 = (
    "dtype must be float32 like query's, or float16 or bfloat16 under a float32 query"
)
ARRAY_RULE = "must be a NumPy array or a CPU tensor that speaks DLPack"
CAUSAL_RULE = (
    "must be False, True, 'top_left', 'bottom_right', an integer or an integer array"
)
SCORES = "must broadcast to (..., num_heads, q_len, kv_len) = (2, 8, 3, 5)"
SEED_RULE = "must be an integer from 0 to 2**64 - 1"
WINDOW_RULE = "must be a pair (left, right) of integers or None"
AXES_RULE = "must be a tuple of names out of 'batch', 'heads', 'q_len', 'kv_len'"
THREADS_RULE = "must be an integer from 1 to 4096"
WEIGHTS_RULE = "must be False, True, 'before_dropout' or 'after_dropout'"

MASKED_ARRAY = np.ma.MaskedArray(zeros(2, 2, 5, 16), mask=False)

TENSORS = {
    "query_list": type_error(f"query: {ARRAY_RULE}; got list", query=[[[1.0]]]),
    "key_none": type_error(f"key: {ARRAY_RULE}; got NoneType", key=None),
    "value_number": type_error(f"value: {ARRAY_RULE}; got float", value=1.0),
    "query_int32": type_error(
        f"query: {FLOATS}; got int32",
        query=zeros(2, 8, 3, 16, dtype="i4"),
    ),
    "query_float16": type_error(
        f"key: {LIKE_FLOAT32.replace('float32', 'float16', 1)}; got float32",
        query=zeros(2, 8, 3, 16, dtype="f2"),
    ),
    "key_float64": type_error(
        f"key: {LIKE_FLOAT32}; got float64", key=zeros(2, 2, 5, 16, dtype="f8")
    ),
    "value_float32_of_a_float16_key": type_error(
        "value: dtype must be float16 like key's; got float32",
        key=zeros(2, 2, 5, 16, dtype="f2"),
    ),
    "value_float16": type_error(
        "value: dtype must be float32 like key's; got float16",
        value=zeros(2, 2, 5, 12, dtype="f2"),
    ),
    "key_int32": type_error(
        f"key: {LIKE_FLOAT32}; got int32", key=zeros(2, 2, 5, 16, dtype="i4")
    ),
    "value_bool": type_error(
        "value: dtype must be float32 like key's; got bool",
        value=zeros(2, 2, 5, 12, dtype="?"),
    ),
    "value_complex": type_error(
        "value: dtype must be float32 like key's; got complex64",
        value=zeros(2, 2, 5, 12, dtype="c8"),
    ),
    "query_byte_swapped": type_error(
        f"query: {FLOATS}; got >f4", query=zeros(2, 8, 3, 16, dtype=">f4")
    ),
    "key_object": type_error(
        f"key: {LIKE_FLOAT32}; got object", key=zeros(2, 2, 5, 16, dtype="O")
    ),
    "key_masked_array": type_error(
        "key: a MaskedArray's own mask would be ignored; got MaskedArray, pass .data "
        "and use mask=",
        key=MASKED_ARRAY,
    ),
    "query_rank_2": value_error(
        "query: must have at least 3 axes (..., heads, length, head_dim); got shape "
        "(3, 16)",
        query=zeros(3, 16),
    ),
    "query_rank_1": value_error(
        "query: must have at least 3 axes (..., heads, length, head_dim); got shape "
        "(16,)",
        query=zeros(16),
    ),
    "query_rank_0": value_error(
        "query: must have at least 3 axes (..., heads, length, head_dim); got shape ()",
        query=zeros(),
    ),
    "key_rank_2_bshd": value_error(
        "key: must have at least 3 axes (..., length, heads, head_dim); got shape "
        "(5, 16)",
        layout="bshd",
        key=zeros(5, 16),
    ),
    "key_head_dim": value_error(
        "key: head_dim must equal query head_dim 16; got 8 (key shape (2, 2, 5, 8))",
        key=zeros(2, 2, 5, 8),
    ),
    "value_longer": value_error(
        "value: length must equal key length 5; got 50 (value shape (2, 2, 50, 12))",
        value=zeros(2, 2, 50, 12),
    ),
    "value_shorter": value_error(
        "value: length must equal key length 5; got 4 (value shape (2, 2, 4, 12))",
        value=zeros(2, 2, 4, 12),
    ),
    "value_heads": value_error(
        "value: number of heads must equal that of key 2; got 4 "
        "(value shape (2, 4, 5, 12))",
        value=zeros(2, 4, 5, 12),
    ),
    "kv_heads_do_not_divide": value_error(
        "key: number of heads must divide query num_heads 8; got 3 "
        "(key shape (2, 3, 5, 16))",
        key=zeros(2, 3, 5, 16),
        value=zeros(2, 3, 5, 12),
    ),
    "more_kv_heads_than_heads": value_error(
        "key: number of heads must divide query num_heads 8; got 16 "
        "(key shape (2, 16, 5, 16))",
        key=zeros(2, 16, 5, 16),
        value=zeros(2, 16, 5, 12),
    ),
    "no_kv_heads": value_error(
        "key: number of heads must divide query num_heads 8; got 0 "
        "(key shape (2, 0, 5, 16))",
        key=zeros(2, 0, 5, 16),
        value=zeros(2, 0, 5, 12),
    ),
    "batch_of_key": value_error(
        "key: leading axes must broadcast with those of query (2, 8, 3, 16); got key "
        "shape (3, 2, 5, 16)",
        key=zeros(3, 2, 5, 16),
    ),
    "batch_of_value": value_error(
        "value: leading axes must broadcast with those of query (2, 8, 3, 16); got "
        "value shape (4, 3, 2, 5, 12)",
        value=zeros(4, 3, 2, 5, 12),
    ),
    "bshd_head_dim": value_error(
        "key: head_dim must equal query head_dim 16; got 8 (key shape (2, 5, 2, 8))",
        layout="bshd",
        key=zeros(2, 5, 2, 8),
    ),
}

MODIFIERS = {
    "mask_list": type_error(f"mask: {ARRAY_RULE}; got list", mask=[True]),
    "mask_float": type_error("mask: dtype must be bool; got float32", mask=zeros(3, 5)),
    "mask_uint8": type_error(
        "mask: dtype must be bool; got uint8", mask=zeros(3, 5, dtype="u1")
    ),
    "mask_shape": value_error(
        f"mask: {SCORES}; got shape (3, 4)", mask=zeros(3, 4, dtype="?")
    ),
    "mask_heads": value_error(
        f"mask: {SCORES}; got shape (2, 1, 1)", mask=zeros(2, 1, 1, dtype="?")
    ),
    "mask_enlarges_batch": value_error(
        f"mask: {SCORES}; got shape (4, 1, 3, 5)", mask=zeros(4, 1, 3, 5, dtype="?")
    ),
    "mask_rank": value_error(
        f"mask: {SCORES}; got shape (1, 2, 8, 3, 5)",
        mask=zeros(1, 2, 8, 3, 5, dtype="?"),
    ),
    "bias_bool": type_error(f"bias: {FLOATS}; got bool", bias=zeros(3, 5, dtype="?")),
    "bias_shape": value_error(f"bias: {SCORES}; got shape (5, 3)", bias=zeros(5, 3)),
    "bias_number": type_error(f"bias: {ARRAY_RULE}; got float", bias=1.0),
    "dropout_mask_float": type_error(
        "dropout_mask: dtype must be bool; got float32", dropout_mask=zeros(3, 5)
    ),
    "dropout_mask_shape": value_error(
        f"dropout_mask: {SCORES}; got shape (3, 6)",
        dropout_mask=zeros(3, 6, dtype="?"),
    ),
    "alibi_int": type_error(
        f"alibi_slopes: {FLOATS}; got int64", alibi_slopes=zeros(8, dtype="i8")
    ),
    "alibi_shape": value_error(
        "alibi_slopes: must have shape (..., num_heads) with num_heads 8; got shape "
        "(2,)",
        alibi_slopes=zeros(2),
    ),
    "alibi_batch": value_error(
        "alibi_slopes: leading axes must broadcast to the batch shape (2,); got shape "
        "(3, 8)",
        alibi_slopes=zeros(3, 8),
    ),
    "alibi_rank_0": value_error(
        "alibi_slopes: must have shape (..., num_heads) with num_heads 8; got shape ()",
        alibi_slopes=zeros(),
    ),
    "alibi_text": type_error(
        "alibi_slopes: must hold real numbers; got 'steep'", alibi_slopes="steep"
    ),
    "sinks_shape": value_error(
        "sinks: must have shape (..., num_heads) with num_heads 8; got shape (1,)",
        sinks=zeros(1),
    ),
    "sinks_rank": value_error(
        "sinks: must have shape (num_heads,) = (8,); got shape (2, 8)",
        sinks=zeros(2, 8),
    ),
    "sinks_int": type_error(f"sinks: {FLOATS}; got int64", sinks=zeros(8, dtype="i8")),
    "sinks_complex_list": type_error(
        "sinks: must hold real numbers; got [1j]", sinks=[1j]
    ),
}

IDS = zeros(2, 5, dtype="i8")

INTEGERS = {
    "causal_float": type_error(f"causal: {CAUSAL_RULE}; got float", causal=1.0),
    "causal_text": value_error(f"causal: {CAUSAL_RULE}; got 'left'", causal="left"),
    "causal_float_array": type_error(
        "causal: dtype must be int32 or int64; got float32", causal=zeros(2)
    ),
    "causal_bool_array": type_error(
        "causal: dtype must be int32 or int64; got bool", causal=zeros(2, dtype="?")
    ),
    "causal_shape": value_error(
        "causal: leading axes must broadcast to the batch shape (2,); got shape (3,)",
        causal=zeros(3, dtype="i8"),
    ),
    "causal_rank": value_error(
        "causal: must broadcast to the batch shape (2,); got shape (1, 2)",
        causal=zeros(1, 2, dtype="i8"),
    ),
    "causal_float_list": type_error(
        "causal: must hold integers; got [1.5, 2.5]", causal=[1.5, 2.5]
    ),
    "causal_too_great": value_error(
        f"causal: must be an offset that fits 64 bits; got {2**64}", causal=2**64
    ),
    "q_lengths_float": type_error(
        "q_lengths: dtype must be int32 or int64; got float32", q_lengths=zeros(2)
    ),
    "q_lengths_uint8": type_error(
        "q_lengths: dtype must be int32 or int64; got uint8",
        q_lengths=zeros(2, dtype="u1"),
    ),
    "q_lengths_shape": value_error(
        "q_lengths: leading axes must broadcast to the batch shape (2,); got shape "
        "(3,)",
        q_lengths=[1, 2, 3],
    ),
    "q_lengths_too_long": value_error(
        "q_lengths: must be between 0 and q_len 3; got 4", q_lengths=[3, 4]
    ),
    "q_lengths_negative": value_error(
        "q_lengths: must be between 0 and q_len 3; got -1", q_lengths=-1
    ),
    "kv_lengths_too_long": value_error(
        "kv_lengths: must be between 0 and kv_len 5; got 6", kv_lengths=[6, 0]
    ),
    "kv_lengths_negative": value_error(
        "kv_lengths: must be between 0 and kv_len 5; got -7",
        kv_lengths=np.array([5, -7], np.int32),
    ),
    "kv_lengths_rank": value_error(
        "kv_lengths: must broadcast to the batch shape (2,); got shape (2, 1)",
        kv_lengths=zeros(2, 1, dtype="i8"),
    ),
    "kv_lengths_float_list": type_error(
        "kv_lengths: must hold integers; got [1.0, 2.0]", kv_lengths=[1.0, 2.0]
    ),
    "q_segment_ids_alone": value_error(
        "kv_segment_ids: must be given together with q_segment_ids; got None",
        q_segment_ids=zeros(3, dtype="i8"),
    ),
    "kv_segment_ids_alone": value_error(
        "q_segment_ids: must be given together with kv_segment_ids; got None",
        kv_segment_ids=IDS,
    ),
    "q_segment_ids_shape": value_error(
        "q_segment_ids: must have shape (..., q_len) with q_len 3; got shape (2, 5)",
        q_segment_ids=IDS,
        kv_segment_ids=IDS,
    ),
    "kv_segment_ids_shape": value_error(
        "kv_segment_ids: must have shape (..., kv_len) with kv_len 5; got shape (3,)",
        q_segment_ids=zeros(3, dtype="i8"),
        kv_segment_ids=zeros(3, dtype="i8"),
    ),
    "kv_segment_ids_batch": value_error(
        "kv_segment_ids: leading axes must broadcast to the batch shape (2,); got "
        "shape (4, 5)",
        q_segment_ids=zeros(3, dtype="i8"),
        kv_segment_ids=zeros(4, 5, dtype="i8"),
    ),
    "q_segment_ids_float": type_error(
        "q_segment_ids: dtype must be int32 or int64; got float32",
        q_segment_ids=zeros(3),
        kv_segment_ids=IDS,
    ),
}

OPTIONS = {
    "layout_type": type_error("layout: must be 'bhsd' or 'bshd'; got int", layout=3),
    "layout_name": value_error(
        "layout: must be 'bhsd' or 'bshd'; got 'bnsh'", layout="bnsh"
    ),
    "fully_masked_name": value_error(
        "fully_masked: must be 'zero', 'mean' or 'nan'; got 'zeros'",
        fully_masked="zeros",
    ),
    "fully_masked_type": type_error(
        "fully_masked: must be 'zero', 'mean' or 'nan'; got float", fully_masked=0.0
    ),
    "precision_name": value_error(
        "precision: must be 'highest', 'high' or 'medium'; got 'low'", precision="low"
    ),
    "precision_type": type_error(
        "precision: must be 'highest', 'high' or 'medium'; got int", precision=32
    ),
    "scale_complex": type_error("scale: must be a real number; got complex", scale=1j),
    "scale_text": type_error("scale: must be a real number; got str", scale="1"),
    "scale_list": type_error("scale: must be a real number; got list", scale=[1.0]),
    "softcap_text": type_error("softcap: must be a real number; got str", softcap="a"),
    "softcap_0": value_error(
        "softcap: must be a positive finite number; got 0", softcap=0.0
    ),
    "softcap_negative": value_error(
        "softcap: must be a positive finite number; got -2.5", softcap=-2.5
    ),
    "softcap_nan": value_error(
        "softcap: must be a positive finite number; got nan", softcap=np.nan
    ),
    "softcap_inf": value_error(
        "softcap: must be a positive finite number; got inf", softcap=np.inf
    ),
    "window_int": type_error(f"window: {WINDOW_RULE}; got int", window=4),
    "window_length": value_error(
        f"window: {WINDOW_RULE}; got (1, 2, 3)", window=(1, 2, 3)
    ),
    "window_float": type_error(f"window: {WINDOW_RULE}; got float", window=(1.0, 2)),
    "window_negative": value_error(
        "window: sides must be None, -1 or at least 0; got (-2, -1)", window=(-2, -1)
    ),
    "dropout_p_negative": value_error(
        "dropout_p: must be between 0 and 1; got -0.1", dropout_p=-0.1
    ),
    "dropout_p_above_1": value_error(
        "dropout_p: must be between 0 and 1; got 1.1", dropout_p=1.1
    ),
    "dropout_p_nan": value_error(
        "dropout_p: must be between 0 and 1; got nan", dropout_p=np.nan
    ),
    "dropout_p_text": type_error(
        "dropout_p: must be a real number; got str", dropout_p="half"
    ),
    "dropout_seed_missing": value_error(
        "dropout_seed: must be given when dropout_p is 0.5 and there is no "
        "dropout_mask; got None",
        dropout_p=0.5,
    ),
    "dropout_seed_negative": value_error(
        f"dropout_seed: {SEED_RULE}; got -1", dropout_seed=-1
    ),
    "dropout_seed_too_great": value_error(
        f"dropout_seed: {SEED_RULE}; got {2**64}", dropout_seed=2**64
    ),
    "dropout_seed_float": type_error(
        f"dropout_seed: {SEED_RULE}; got float", dropout_seed=1.0
    ),
    "dropout_broadcast_name": value_error(
        f"dropout_broadcast: {AXES_RULE}; got 'rows'", dropout_broadcast=("rows",)
    ),
    "dropout_broadcast_text": type_error(
        f"dropout_broadcast: {AXES_RULE}; got str", dropout_broadcast="heads"
    ),
    "dropout_broadcast_index": type_error(
        f"dropout_broadcast: {AXES_RULE}; got int", dropout_broadcast=(1,)
    ),
    "dropout_generator_name": value_error(
        "dropout_generator: must be 'philox' or 'threefry'; got 'jax'",
        dropout_generator="jax",
    ),
    "dropout_generator_type": type_error(
        "dropout_generator: must be 'philox' or 'threefry'; got int",
        dropout_generator=1,
    ),
    "return_weights_name": value_error(
        f"return_weights: {WEIGHTS_RULE}; got 'before'", return_weights="before"
    ),
    "return_weights_number": type_error(
        f"return_weights: {WEIGHTS_RULE}; got int", return_weights=1
    ),
    "num_threads_0": value_error(f"num_threads: {THREADS_RULE}; got 0", num_threads=0),
    "num_threads_negative": value_error(
        f"num_threads: {THREADS_RULE}; got -2", num_threads=-2
    ),
    "num_threads_float": type_error(
        f"num_threads: {THREADS_RULE}; got float", num_threads=2.0
    ),
    "num_threads_too_many": value_error(
        f"num_threads: {THREADS_RULE}; got 100000", num_threads=100000
    ),
}


def frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def out_inside(name: str) -> dict[str, Any]:
    """Arguments whose out is a part of one of the inputs."""
    arguments = valid() | {"value": zeros(2, 2, 5, 16)}
    if name == "query":
        return arguments | {"out": arguments["query"]}
    if name == "bias":
        bias = zeros(2, 8, 3, 5)
        raw = bias.reshape(-1)[:192].reshape(2, 8, 3, 4)
        return arguments | {"value": zeros(2, 2, 5, 4), "bias": bias, "out": raw}
    buffer = zeros(2 * 8 * 3 * 16 + 4)
    arguments[name] = buffer[4 : 4 + 160 * 2].reshape(2, 2, 5, 16)
    return arguments | {"out": buffer[:768].reshape(2, 8, 3, 16)}


def overlap(name: str) -> Case:
    text = f"out: must not share memory with an input; got an overlap with {name}"
    return Case(ValueError, text, lambda: out_inside(name))


OUT_RULE = "must have shape (..., num_heads, q_len, head_dim_v) = (2, 8, 3, 12)"

OUTPUTS = {
    "out_shape": value_error(
        f"out: {OUT_RULE}; got shape (2, 8, 3, 16)", out=zeros(2, 8, 3, 16)
    ),
    "out_rank": value_error(
        f"out: {OUT_RULE}; got shape (8, 3, 12)", out=zeros(8, 3, 12)
    ),
    "out_bshd": value_error(
        "out: must have shape (..., q_len, num_heads, head_dim_v) = (2, 8, 3, 12); got "
        "shape (2, 3, 8, 12)",
        layout="bshd",
        key=zeros(2, 5, 3, 16),
        value=zeros(2, 5, 3, 12),
        out=zeros(2, 3, 8, 12),
    ),
    "out_dtype": type_error(
        "out: dtype must be float32 like query's; got float64",
        out=zeros(2, 8, 3, 12, dtype="f8"),
    ),
    "out_half_size": type_error(
        "out: dtype must be float32 like query's; got float16",
        out=zeros(2, 8, 3, 12, dtype="f2"),
    ),
    "out_list": type_error(f"out: {ARRAY_RULE}; got list", out=[0.0]),
    "out_read_only": value_error(
        "out: must be writeable; got a read-only array", out=frozen(zeros(2, 8, 3, 12))
    ),
    "out_stride_0": Case(
        ValueError,
        "out: elements must not overlap; got stride 0 on axis 1",
        lambda: {
            "out": np.lib.stride_tricks.as_strided(
                zeros(2, 8, 3, 12), (2, 8, 3, 12), (1152, 0, 48, 4)
            )
        },
    ),
    "out_is_query": overlap("query"),
    "out_over_key": overlap("key"),
    "out_over_value": overlap("value"),
    "out_over_bias": overlap("bias"),
}

CASES = TENSORS | MODIFIERS | INTEGERS | OPTIONS | OUTPUTS


@pytest.mark.parametrize("function", ["attention", "explain"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errors_wrong_argument_gives_its_line(case: Case, function: str) -> None:
    call = getattr(cpuattn, function)
    with pytest.raises(case.error, match=f"^{re.escape(case.text)}$"):
        call(**(valid() | case.change()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errors_texts_follow_the_style(case: Case) -> None:
    # <argument>: <rule>; got <values>, one line, no full stop.
    assert re.match(r"^[a-z_]+: .+; got .*[^.]$", case.text)
    assert "\n" not in case.text


CALLS = {
    "no_arguments": ((), {}, "missing required argument 'query'"),
    "no_value": ((zeros(1, 1, 1),) * 2, {}, "missing required argument 'value'"),
    "four_positional": (
        (zeros(1, 1, 1),) * 4,
        {},
        "takes 3 positional arguments .* but 4 were given",
    ),
    "unknown_keyword": (
        (zeros(1, 1, 1),) * 3,
        {"attn_mask": None},
        "unexpected keyword argument 'attn_mask'",
    ),
    "given_twice": (
        (zeros(1, 1, 1),) * 3,
        {"query": zeros(1, 1, 1)},
        "multiple values for argument 'query'",
    ),
}


@pytest.mark.parametrize("function", ["attention", "explain"])
@pytest.mark.parametrize(("args", "kwargs", "text"), CALLS.values(), ids=CALLS)
def test_errors_wrong_call_is_a_type_error(
    args: tuple[Any, ...], kwargs: dict[str, Any], text: str, function: str
) -> None:
    with pytest.raises(TypeError, match=rf"^{function}\(\).*{text}"):
        getattr(cpuattn, function)(*args, **kwargs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errors_leave_out_untouched(case: Case) -> None:
    arguments = valid() | case.change()
    out = arguments.setdefault("out", np.full((2, 8, 3, 12), -7, F32))
    before = np.array(out, copy=True)
    with pytest.raises((TypeError, ValueError)):
        cpuattn.attention(**arguments)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    ("name", "size"),
    [("value_longer", 2**40), ("value_shorter", 1), ("key_head_dim", 2**20)],
)
def test_errors_come_before_any_read(name: str, size: int) -> None:
    # Views of one element with strides that would leave the array: a single read past
    # the checks would be a crash.
    def far(*shape: int) -> Array:
        return np.lib.stride_tricks.as_strided(
            np.zeros(1, F32), shape, (2**40,) * len(shape)
        )

    change = {
        "value_longer": {"value": far(2, 2, size, 12)},
        "value_shorter": {"value": far(2, 2, size, 12)},
        "key_head_dim": {"key": far(2, 2, 5, size)},
    }[name]
    with pytest.raises(ValueError, match=r"must equal"):
        cpuattn.attention(**(valid() | change))


THREADS = {
    "float": (2.0, TypeError, f"num_threads: {THREADS_RULE}; got float"),
    "bool": (True, TypeError, f"num_threads: {THREADS_RULE}; got bool"),
    "zero": (0, ValueError, f"num_threads: {THREADS_RULE}; got 0"),
    "too_many": (5000, ValueError, f"num_threads: {THREADS_RULE}; got 5000"),
}


@pytest.mark.parametrize(("number", "error", "text"), THREADS.values(), ids=THREADS)
def test_errors_set_num_threads_gives_its_line(
    number: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        cpuattn.set_num_threads(number)


@pytest.mark.parametrize(("number", "error", "text"), THREADS.values(), ids=THREADS)
def test_errors_threads_context_gives_its_line(
    number: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"), cpuattn.threads(number):
        pass


def test_errors_set_isa_lists_the_usable_ones() -> None:
    text = f"must be one of {', '.join(cpuattn.available_isas())} on this machine"
    with pytest.raises(RuntimeError, match=rf"^CPUATTN_ISA: {text}; got sse9$"):
        cpuattn._core.set_isa("sse9")


KERAS = {
    "rank_3": ({"query": zeros(3, 8, 16)}, "only supports 4D inputs"),
    "rank_5": ({"value": zeros(1, 2, 5, 2, 12)}, "only supports 4D inputs"),
}


@pytest.mark.parametrize(("change", "text"), KERAS.values(), ids=KERAS)
def test_errors_dot_product_attention_wants_rank_4(
    change: dict[str, Any], text: str
) -> None:
    arguments = {
        "query": zeros(2, 3, 8, 16),
        "key": zeros(2, 5, 2, 16),
        "value": zeros(2, 5, 2, 12),
    }
    with pytest.raises(ValueError, match=text):
        cpuattn.dot_product_attention(**(arguments | change))


TORCH = {
    "rank_1": (
        {"query": zeros(16)},
        "query: must have at least 2 axes; got shape (16,)",
    ),
    "heads_without_gqa": (
        {"query": zeros(2, 8, 3, 16)},
        "key: number of heads must equal that of query 8 or be 1, unless "
        "enable_gqa=True groups them; got 2 (key shape (2, 2, 5, 16))",
    ),
    "heads_that_do_not_divide": (
        {"query": zeros(2, 3, 3, 16), "enable_gqa": True},
        "key: number of heads must divide query num_heads 3; got 2 "
        "(key shape (2, 2, 5, 16))",
    ),
    "rank_3_leading": (
        {"query": zeros(3, 3, 16), "key": zeros(2, 5, 16), "value": zeros(2, 5, 12)},
        "key: number of heads must equal that of query 3 or be 1, unless "
        "enable_gqa=True groups them; got 2 (key shape (2, 5, 16))",
    ),
    "lengths_of_key_and_value": (
        {"query": zeros(2, 2, 3, 16), "value": zeros(2, 2, 9, 12)},
        "value: length must equal key length 5; got 9 (value shape (2, 2, 9, 12))",
    ),
    "mask_enlarges_batch": (
        {"query": zeros(2, 2, 3, 16), "attn_mask": zeros(4, 1, 3, 5, dtype="?")},
        "attn_mask: must broadcast to (..., num_heads, q_len, kv_len) = (2, 2, 3, 5); "
        "got shape (4, 1, 3, 5)",
    ),
    "dropout_p": (
        {"query": zeros(2, 2, 3, 16), "dropout_p": 1.1},
        "dropout_p: must be between 0 and 1; got 1.1",
    ),
}


@pytest.mark.parametrize(("change", "text"), TORCH.values(), ids=TORCH)
def test_errors_scaled_dot_product_attention_gives_its_line(
    change: dict[str, Any], text: str
) -> None:
    arguments = {"key": zeros(2, 2, 5, 16), "value": zeros(2, 2, 5, 12)}
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        cpuattn.scaled_dot_product_attention(**(arguments | change))


@pytest.mark.parametrize("dtype", ["i4", "u1", "c8", "i8"])
def test_errors_attn_mask_of_another_dtype_is_a_runtime_error(dtype: str) -> None:
    query = zeros(2, 2, 3, 16)
    text = "^attn_mask: dtype must be bool, float32 or that of query float32; got"
    with pytest.raises(RuntimeError, match=text):
        cpuattn.scaled_dot_product_attention(
            query, query, query, attn_mask=zeros(3, 3, dtype=dtype)
        )


def test_errors_sdpa_takes_at_most_six_positional() -> None:
    query = zeros(2, 2, 3, 16)
    with pytest.raises(TypeError, match="takes from 3 to 6 positional"):
        cpuattn.scaled_dot_product_attention(query, query, query, None, 0.0, False, 1.0)
