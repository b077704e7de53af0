# SPDX-License-Identifier: MIT
"""compat.onnx against ONNX's own operator, in two forms, and against ONNX Runtime.

The reference implementation and the function body that the operator's schema holds are
both evaluated in float64. They differ where the reference departs from the text of the
operator; there the body is right.
"""

from __future__ import annotations

import doctest
import functools
import inspect
import warnings
from typing import Any

import numpy as np
import pytest

import cpuattn.compat.onnx as ours
from cpuattn.compat.onnx import AttentionOutputs, attention
from dtypes import BFLOAT16
from support import SEED, Array, allowance, assert_same, assert_within, normal
from test_random_combinations import broadcast, every_isa, strided

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
if onnx.defs.onnx_opset_version() < 25:
    pytest.skip("onnx has no opset 25", allow_module_level=True)

from onnx import helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

INPUTS = [
    "Q",
    "K",
    "V",
    "attn_mask",
    "past_key",
    "past_value",
    "nonpad_kv_seqlen",
]
OUTPUTS = list(AttentionOutputs._fields)
FLOATS = [np.dtype(x) for x in ("f4", "f2", "f8", BFLOAT16)]
Arguments = dict[str, Any]


def split(arguments: Arguments) -> tuple[dict[str, Array], Arguments, int]:
    """Return the operator's inputs and attributes, and the opset."""
    inputs = {n: np.asarray(x) for n, x in arguments.items() if n in INPUTS}
    attributes = {n: x for n, x in arguments.items() if n not in INPUTS}
    for name in ("outputs", "opset"):
        attributes.pop(name, None)
    return inputs, attributes, arguments.get("opset", 24)


def node_model(
    inputs: dict[str, Array], attributes: Arguments, opset: int, outputs: list[str]
) -> Any:
    names = [name if name in inputs else "" for name in INPUTS]
    wanted = [name if name in outputs else "" for name in OUTPUTS]
    while not names[-1]:
        names.pop()
    while not wanted[-1]:
        wanted.pop()
    node = helper.make_node("Attention", names, wanted, **attributes)
    return model([node], inputs, outputs, opset)


def model(
    nodes: list[Any], inputs: dict[str, Array], outputs: list[str], opset: int
) -> Any:
    def info(name: str, dtype: Any, shape: Any) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "attention",
        [info(name, x.dtype, x.shape) for name, x in inputs.items()],
        [
            info(n, inputs["V" if n == "present_value" else "Q"].dtype, None)
            for n in outputs
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


@functools.lru_cache(maxsize=64)
def body_of(serialized: bytes) -> tuple[Any, ...]:
    """Return the nodes that the schema says a model's only node stands for."""
    whole = onnx.ModelProto.FromString(serialized)
    node, opset = whole.graph.node[0], whole.opset_import[0].version
    types = {x.name: x.type.SerializeToString() for x in whole.graph.input}
    absent = onnx.TypeProto().SerializeToString()
    schema = onnx.defs.get_schema("Attention", opset)
    body = schema.get_context_dependent_function(
        node.SerializeToString(), [types.get(name, absent) for name in node.input]
    )
    given = {x.name: helper.get_attribute_value(x) for x in node.attribute}
    defaults = {
        name: helper.get_attribute_value(x.default_value)
        for name, x in schema.attributes.items()
        if x.default_value.type
    }
    nodes = onnx.FunctionProto.FromString(body).node
    for each in nodes:
        for attribute in list(each.attribute):
            name = attribute.ref_attr_name
            if name:
                each.attribute.remove(attribute)
            if name in defaults or name in given:
                value = (defaults | given)[name]
                each.attribute.append(helper.make_attribute(attribute.name, value))
    return tuple(nodes)


def evaluated(arguments: Arguments, dtype: Any, form: str) -> dict[str, Array]:
    """Return every output of the operator, computed by ONNX in one dtype.

    In float64 the scale is put into the query: the body has its root in float32.
    """
    inputs, attributes, opset = split(arguments)
    for name, x in inputs.items():
        if name == "nonpad_kv_seqlen":
            inputs[name] = x.astype(np.int64)
        elif x.dtype != bool:
            inputs[name] = x.astype(dtype)
    if dtype == np.float64:
        heads = arguments.get("q_num_heads", 1)
        default = (inputs["Q"].shape[-1] / heads) ** -0.5
        inputs["Q"] *= attributes.pop("scale", default)
        attributes |= {"scale": 1.0, "softmax_precision": onnx.TensorProto.DOUBLE}
    names = OUTPUTS
    if form == "body" and "past_key" not in inputs:  # opset 25 may refuse these
        names = ["Y", "qk_matmul_output"]
    whole = node_model(inputs, attributes, opset, names)
    if form == "body":
        whole = model(list(body_of(whole.SerializeToString())), inputs, names, opset)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        results = ReferenceEvaluator(whole).run(names, inputs)
    return dict(zip(names, results, strict=True))


def departs(arguments: Arguments) -> bool:
    """Whether ONNX's reference departs from the text of the operator."""
    mode = arguments.get("qk_matmul_output_mode", 0)
    mask = arguments.get("attn_mask")
    softcapped = mode == 0 and bool(arguments.get("softcap"))
    one_column = mask is not None and mask.shape[-1] == 1
    return softcapped or (one_column and arguments.get("opset") == 23)


def dtype_of(name: str, arguments: Arguments) -> Any:
    return arguments["V" if name == "present_value" else "Q"].dtype


def limit(exact: Array, naive: Array, dtype: Any, largest: float) -> float:
    """Return the greatest error that an output may have."""
    if dtype == np.float64:
        return 1e-13 * largest
    with np.errstate(over="ignore"):
        return allowance(exact, [naive.astype(dtype)], dtype, scale=largest)


def compare(arguments: Arguments) -> None:
    """Assert that ours agrees with ONNX, on every ISA."""
    exact = evaluated(arguments, np.float64, "body")
    reference = evaluated(arguments, np.float64, "reference")
    if not departs(arguments):
        for name in exact:
            np.testing.assert_allclose(
                reference[name], exact[name], rtol=1e-9, atol=1e-9
            )
    narrow = arguments["Q"].dtype
    naive = evaluated(arguments, np.float32, "body")
    if narrow == BFLOAT16:  # whose weights are rounded before they are multiplied
        naive = evaluated(arguments, BFLOAT16, "body")
    names = arguments.get("outputs")
    for _ in every_isa():
        result = attention(**arguments)
        if names is None:
            result = AttentionOutputs(result)
        for name, mine in zip(OUTPUTS, result, strict=True):
            if name != "Y" and (names is None or name not in names):
                assert mine is None
                continue
            dtype = dtype_of(name, arguments)
            assert mine.dtype == dtype
            if name.startswith("present"):
                assert_same(mine, reference[name].astype(dtype))
                continue
            value = np.abs(reference["present_value"]).max(initial=0.0)
            finite = np.abs(exact[name][np.isfinite(exact[name])])
            largest = max(finite.max(initial=1.0), value if name == "Y" else 0.0)
            allowed = limit(exact[name], naive[name], dtype, float(largest))
            assert_within(mine, exact[name], allowed)


@st.composite
def problems(draw: Any) -> Arguments:
    """Draw the arguments of one valid call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    opset = draw(st.sampled_from([23, 24, 25]))
    batch, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * group
    q_len = draw(st.sampled_from([1, 2, 3, 5, 17, 0]))
    kv_len = draw(st.sampled_from([1, 2, 5, 9, 16, 33]))
    width, width_v = (draw(st.sampled_from([1, 3, 8, 16, 33])) for _ in range(2))
    dtype = draw(st.sampled_from(FLOATS))
    value_dtype = draw(st.sampled_from([dtype, dtype, dtype, *FLOATS]))
    packed = draw(st.booleans())

    def drawn(number: int, length: int, depth: int, kind: Any) -> Array:
        array = normal(rng, batch, number, length, depth, dtype=kind)
        if packed:
            array = array.swapaxes(1, 2).reshape(batch, length, number * depth)
        return draw(strided(np.ascontiguousarray(array)))

    arguments: Arguments = {
        "Q": drawn(heads, q_len, width, dtype),
        "K": drawn(kv_heads, kv_len, width, dtype),
        "V": drawn(kv_heads, kv_len, width_v, value_dtype),
        "opset": opset,
        "is_causal": draw(st.sampled_from([0, 1])),
    }
    if packed:
        arguments |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    total = kv_len
    cache = draw(st.sampled_from(["none", "past", "nonpad"]))
    if cache == "past":
        past = draw(st.sampled_from([0, 1, 4, 20]))
        total += past
        for name, depth, kind in (
            ("past_key", width, dtype),
            ("past_value", width_v, value_dtype),
        ):
            array = normal(rng, batch, kv_heads, past, depth, dtype=kind)
            arguments[name] = draw(strided(array))
    columns = total
    mask = draw(st.sampled_from([None, "bool", "float", "holes", "int"]))
    if mask is not None:
        shape = draw(broadcast((batch, heads, q_len, total))) or (1,)
        if opset > 23:
            columns = draw(st.sampled_from([total, total, max(total - 2, 1), 1]))
            shape = (*shape[:-1], columns)
        visible = rng.random(shape) < draw(st.sampled_from([0.1, 0.6, 1.0]))
        numbers = normal(rng, *shape, dtype=draw(st.sampled_from([dtype, np.float32])))
        arguments["attn_mask"] = draw(
            strided(
                {
                    "bool": visible,
                    "float": numbers,
                    "holes": np.where(visible, numbers, numbers.dtype.type(-np.inf)),
                    "int": rng.integers(-3, 4, shape),
                }[mask]
            )
        )
    if cache == "nonpad" and opset > 23:
        kind = draw(st.sampled_from([np.int64, np.int32]))
        arguments["nonpad_kv_seqlen"] = rng.integers(0, columns + 1, batch, kind)
    if opset > 24:
        side = st.sampled_from([-1, 0, 1, 3, 10**6])
        arguments["left_window_size"] = draw(side)
        arguments["right_window_size"] = draw(side)
    if draw(st.booleans()):  # numbers that the operator's float32 holds exactly
        arguments["scale"] = draw(st.sampled_from([0.0, 0.25, 0.8125]))
    if draw(st.booleans()):
        arguments["softcap"] = draw(st.sampled_from([0.0, 0.5, 2.0]))
    if draw(st.booleans()):
        arguments["softmax_precision"] = draw(st.sampled_from([1, 11]))
    arguments["qk_matmul_output_mode"] = draw(st.integers(0, 3))
    names = draw(st.one_of(st.none(), st.sets(st.sampled_from(OUTPUTS))))
    if names is not None:
        arguments["outputs"] = draw(st.permutations(sorted(names)))
    return arguments


@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(arguments=problems())
def test_onnx_random_combination_matches_the_operator(arguments: Arguments) -> None:
    compare(arguments)
