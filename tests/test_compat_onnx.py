# SPDX-License-Identifier: MIT
"""compat.onnx against ONNX's own operator, in two forms, and against ONNX Runtime.

The reference implementation and the function body that the operator's schema holds are
both evaluated in float64. They differ where the reference departs from the text of the
operator; there the body is right.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

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
# A weight of bfloat16 is rounded before it multiplies a value, by as much as this.
HALF_BIT = float(ml_dtypes.finfo(BFLOAT16).eps) / 2
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

    In float64 the scale is put into the query: the body has its root in float32. The
    reference gets a mask with all its rows: it takes q_len from a causal call's mask.
    """
    inputs, attributes, opset = split(arguments)
    if form == "reference" and "attn_mask" in inputs:
        mask = inputs["attn_mask"]
        rows = inputs["Q"].shape[1 if "q_num_heads" in arguments else 2]
        shape = (*mask.shape[:-2], rows, mask.shape[-1])
        inputs["attn_mask"] = np.broadcast_to(mask, shape)
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
    floor = HALF_BIT * largest if dtype == BFLOAT16 else 0.0
    with np.errstate(over="ignore"):
        return allowance(exact, [naive.astype(dtype)], dtype, largest, floor)


def compare(arguments: Arguments, isas: Iterable[Any] = ("default",)) -> None:
    """Assert that ours agrees with ONNX, while each ISA is in force."""
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
    for _ in isas:
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
    q_len = draw(st.sampled_from([1, 2, 3, 5, 17]))
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
    compare(arguments, every_isa())


def small(**changes: Any) -> Arguments:
    """Return the arguments of a small call, with some changed or (None) left out."""
    rng = np.random.default_rng(SEED)
    arguments = {
        "Q": normal(rng, 2, 4, 3, 8),
        "K": normal(rng, 2, 2, 5, 8),
        "V": normal(rng, 2, 2, 5, 6),
    } | changes
    return {name: x for name, x in arguments.items() if x is not None}


def past(length: int = 2) -> Arguments:
    rng = np.random.default_rng(SEED + 1)
    return {
        "past_key": normal(rng, 2, 2, length, 8),
        "past_value": normal(rng, 2, 2, length, 6),
    }


@pytest.mark.parametrize("opset", [23, 24, 25])
def test_onnx_signature_is_the_schema(opset: int) -> None:
    schema = onnx.defs.get_schema("Attention", opset)
    parameters = inspect.signature(attention).parameters
    positional = [
        name for name, x in parameters.items() if x.kind is x.POSITIONAL_OR_KEYWORD
    ]
    assert positional[: len(schema.inputs)] == [x.name for x in schema.inputs]
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    for each in schema.inputs:
        default = inspect.Parameter.empty if each.option == required else None
        assert parameters[each.name].default is default
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        value = helper.get_attribute_value(default) if default.type else None
        assert parameters[name].default == value
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert [x.name for x in schema.outputs] == OUTPUTS


def test_onnx_has_no_other_parameters() -> None:
    schema = onnx.defs.get_schema("Attention", 25)
    known = {x.name for x in schema.inputs} | {*schema.attributes}
    assert {*inspect.signature(attention).parameters} == known | {"opset", "outputs"}


SOME_ROWS = np.array([[True] * 5, [False] * 5, [True] * 5])
FULLY_MASKED = {
    "bool": small(attn_mask=SOME_ROWS),
    "minus_infinity": small(
        attn_mask=np.where(SOME_ROWS, 0, -np.inf).astype(np.float32)
    ),
    "bool_and_causal": small(attn_mask=np.arange(5) > 1, is_causal=1),
    "no_key_counts": small(nonpad_kv_seqlen=np.array([0, 3])),
    "fewer_keys_than_rows": small(nonpad_kv_seqlen=np.array([1, 2]), is_causal=1),
    "window_beyond_keys": small(
        Q=np.ones((2, 4, 12, 8), np.float32), left_window_size=2, opset=25
    ),
    "with_past": small(**past(), attn_mask=np.zeros((3, 7), bool)),
}


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("arguments", FULLY_MASKED.values(), ids=FULLY_MASKED)
def test_onnx_row_that_sees_no_key_is_zero(arguments: Arguments, mode: int) -> None:
    arguments = arguments | {"qk_matmul_output_mode": mode, "outputs": OUTPUTS}
    compare(arguments)
    if mode == 3:
        result = attention(**arguments)
        empty = result.qk_matmul_output.sum(-1) == 0
        assert empty.any()
        assert (result.Y[empty] == 0).all()


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "kv_len": ((2, 4, 3, 8), (2, 2, 0, 8)),
    "q_len": ((2, 4, 0, 8), (2, 2, 5, 8)),
    "batch": ((0, 4, 3, 8), (0, 2, 5, 8)),
    "heads": ((2, 0, 3, 8), (2, 0, 5, 8)),
    "head_dim": ((2, 4, 3, 0), (2, 2, 5, 0)),
}


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_onnx_empty_sizes_give_arrays_of_their_shape(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], mode: int
) -> None:
    query, key = (np.ones(shape, np.float32) for shape in shapes)
    value = np.ones((*key.shape[:3], 6), np.float32)
    result = attention(
        query, key, value, is_causal=1, qk_matmul_output_mode=mode, outputs=OUTPUTS
    )
    assert result.Y.shape == (*query.shape[:3], 6)
    assert result.qk_matmul_output.shape == (*query.shape[:3], key.shape[2])
    expected = np.full_like(result.Y, min(key.shape[2], 1))
    assert_same(result.Y, expected)


def test_onnx_empty_sizes_work_with_three_axes() -> None:
    query = np.ones((2, 0, 32), np.float32)
    key = np.ones((2, 5, 16), np.float32)
    assert attention(query, key, key, q_num_heads=4, kv_num_heads=2).shape == (2, 0, 32)


def test_onnx_masked_nan_reaches_nothing() -> None:
    arguments = small(nonpad_kv_seqlen=np.array([3, 4]), is_causal=1)
    clean = attention(**arguments)
    for name in ("K", "V"):
        arguments[name] = arguments[name].copy()
        arguments[name][0, :, 3:] = np.nan
    assert_same(attention(**arguments), clean)
    scores = attention(
        **arguments, qk_matmul_output_mode=2, outputs=["qk_matmul_output"]
    ).qk_matmul_output
    assert not np.isnan(scores).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_onnx_live_nan_comes_out(dtype: Any) -> None:
    arguments = {name: x.astype(dtype) for name, x in small().items()}
    arguments["Q"][0, 1, 2, 3] = np.nan
    out = attention(**arguments).astype(np.float32)
    assert np.isnan(out[0, 1, 2]).all()
    assert np.isnan(out).sum() == 6


def test_onnx_negative_scale_turns_the_scores_around() -> None:
    arguments = small(scale=-0.5)
    turned = arguments | {"Q": -arguments["Q"], "scale": 0.5}
    assert_same(attention(**arguments), attention(**turned))


def test_onnx_outputs_without_a_past_are_the_inputs() -> None:
    arguments = small(outputs=["present_value", "present_key"])
    result = attention(**arguments)
    assert result.present_key is arguments["K"]
    assert result.present_value is arguments["V"]
    assert result.qk_matmul_output is None


def test_onnx_three_axes_are_views() -> None:
    key = np.ones((2, 5, 16), np.float32)
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    result = attention(
        np.ones((2, 3, 32), np.float32), key, key, **heads, outputs=["present_key"]
    )
    assert np.shares_memory(result.present_key, key)
    assert result.present_key.shape == (2, 2, 5, 8)


def test_onnx_outputs_may_be_a_name_or_an_iterator() -> None:
    arguments = small()
    for names in ("present_key", iter(["present_key"]), ("Y", "present_key")):
        result = attention(**arguments, outputs=names)
        assert result.present_key is arguments["K"]
        assert result.present_value is None


def test_onnx_decoding_step_by_step_is_one_causal_call() -> None:
    rng = np.random.default_rng(SEED)
    query, key = normal(rng, 2, 4, 6, 8), normal(rng, 2, 2, 6, 8)
    whole = attention(query, key, key, is_causal=1)
    empty = np.zeros((2, 2, 0, 8), np.float32)
    cache = AttentionOutputs(whole, empty, empty)
    for n in range(6):
        step = query[:, :, n : n + 1], *[key[:, :, n : n + 1]] * 2
        cache = attention(*step, None, *cache[1:3], is_causal=1, outputs=OUTPUTS[1:3])
        np.testing.assert_allclose(cache.Y[:, :, 0], whole[:, :, n], atol=1e-6)
    assert_same(cache.present_key, key)


@pytest.mark.parametrize("value", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_onnx_value_may_have_its_own_dtype(dtype: Any, value: Any) -> None:
    arguments = small(outputs=OUTPUTS, qk_matmul_output_mode=3)
    for name in ("Q", "K", "V"):
        kind = value if name == "V" else dtype
        arguments[name] = arguments[name].astype(kind)
    result = attention(**arguments)
    assert result.Y.dtype == result.qk_matmul_output.dtype == dtype
    assert result.present_value.dtype == value
    compare(arguments)


def test_onnx_double_softmax_is_computed_in_float64() -> None:
    rng = np.random.default_rng(SEED)
    inputs = [normal(rng, 1, 2, 40, 16) for _ in range(3)]
    wide = attention(*(x.astype(np.float64) for x in inputs)).astype(np.float32)
    double = attention(*inputs, softmax_precision=onnx.TensorProto.DOUBLE)
    assert_same(double, wide)
    assert not np.array_equal(attention(*inputs), wide)


THREE = small(
    Q=np.ones((2, 3, 32), np.float32),
    K=np.ones((2, 5, 16), np.float32),
    V=np.ones((2, 5, 12), np.float32),
)
NONPAD = np.array([3, 4])
ERRORS: dict[str, tuple[Arguments, type[Exception], str]] = {
    "rank": (small(Q=np.ones((3, 8), np.float32)), ValueError, "Q: Q, K and V must"),
    "ranks": (small(Q=THREE["Q"], q_num_heads=4), ValueError, "Q: Q, K and V must"),
    "no_q_num_heads": (THREE | {"kv_num_heads": 2}, ValueError, "q_num_heads: must be"),
    "no_kv_num_heads": (THREE | {"q_num_heads": 4}, ValueError, "kv_num_heads: must"),
    "q_num_heads": (
        THREE | {"q_num_heads": 3, "kv_num_heads": 2},
        ValueError,
        r"Q: last axis must be a multiple of q_num_heads 3; got shape \(2, 3, 32\)",
    ),
    "kv_num_heads": (
        THREE | {"q_num_heads": 4, "kv_num_heads": 5},
        ValueError,
        "K: last axis must be a multiple of kv_num_heads 5",
    ),
    "negative_heads": (
        THREE | {"q_num_heads": -4, "kv_num_heads": 2},
        ValueError,
        "Q: last axis",
    ),
    "heads_opset_25": (small(q_num_heads=4, opset=25), ValueError, "q_num_heads: must"),
    "other_heads": (small(kv_num_heads=4), ValueError, "kv_num_heads: must be 2; got"),
    "opset": (small(opset=22), ValueError, "opset: must be 23, 24 or 25; got 22"),
    "nonpad_opset": (
        small(nonpad_kv_seqlen=NONPAD, opset=23),
        ValueError,
        "nonpad_kv_seqlen: needs opset 24; got opset 23",
    ),
    "window_opset": (
        small(left_window_size=2),
        ValueError,
        "left_window_size: needs opset 25; got opset 24",
    ),
    "window": (
        small(right_window_size=-2, opset=25),
        ValueError,
        "right_window_size: must be at least -1; got -2",
    ),
    "mode": (
        small(qk_matmul_output_mode=4),
        ValueError,
        "qk_matmul_output_mode: must be 0, 1, 2 or 3; got 4",
    ),
    "outputs": (small(outputs=["Z"]), ValueError, "outputs: must be out of"),
    "precision": (
        small(softmax_precision=7),
        ValueError,
        r"softmax_precision: must be out of \(1, 10, 11, 16\); got 7",
    ),
    "softcap": (small(softcap=-1.0), ValueError, "softcap: must be a positive"),
    "past_and_nonpad": (
        small(**past(), nonpad_kv_seqlen=NONPAD),
        ValueError,
        "nonpad_kv_seqlen: must not come with past_key or past_value; got both",
    ),
    "no_past_value": (
        small(past_key=past()["past_key"]),
        ValueError,
        "past_value: must come with past_key; got None",
    ),
    "no_past_key": (
        small(past_value=past()["past_value"]),
        ValueError,
        "past_key: must come with past_value; got None",
    ),
    "past_shape": (
        small(**past() | {"past_key": np.ones((2, 4, 2, 8), np.float32)}),
        ValueError,
        r"past_key: must have shape .* got \(2, 4, 2, 8\)",
    ),
    "past_dtype": (
        small(**past() | {"past_value": np.ones((2, 2, 2, 6))}),
        TypeError,
        "past_value: dtype must be float32; got float64",
    ),
    "past_lengths": (
        small(**past() | {"past_value": np.ones((2, 2, 3, 6), np.float32)}),
        ValueError,
        "V: length must equal key length 7; got 8",
    ),
    "too_many_keys": (
        small(nonpad_kv_seqlen=np.array([3, 6])),
        ValueError,
        "nonpad_kv_seqlen: must be between 0 and kv_len 5; got 6",
    ),
    "nonpad_beyond_mask": (
        small(nonpad_kv_seqlen=NONPAD, attn_mask=np.ones((3, 3), bool)),
        ValueError,
        "nonpad_kv_seqlen: must be between 0 and kv_len 3; got 4",
    ),
    "nonpad_dtype": (
        small(nonpad_kv_seqlen=np.array([3.0, 4.0]), is_causal=1),
        TypeError,
        "nonpad_kv_seqlen: ",
    ),
    "nonpad_shape": (
        small(nonpad_kv_seqlen=np.array([3, 4, 5])),
        ValueError,
        "nonpad_kv_seqlen: ",
    ),
    "short_mask_opset_23": (
        small(attn_mask=np.ones((3, 4), bool), opset=23),
        ValueError,
        "attn_mask: must broadcast",
    ),
    "long_mask": (
        small(attn_mask=np.ones((3, 6), np.float32)),
        ValueError,
        "attn_mask: must broadcast",
    ),
    "mask_batch": (
        small(attn_mask=np.ones((3, 1, 3, 5), bool)),
        ValueError,
        "attn_mask: must broadcast",
    ),
    "mask_dtype": (
        small(attn_mask=np.ones((3, 5), complex)),
        TypeError,
        "attn_mask: dtype must be",
    ),
    "head_dim": (
        small(K=np.ones((2, 2, 5, 7), np.float32)),
        ValueError,
        "K: head_dim must equal query head_dim 8; got 7",
    ),
    "lengths": (
        small(V=np.ones((2, 2, 4, 6), np.float32)),
        ValueError,
        "V: length must equal key length 5; got 4",
    ),
    "heads": (
        small(Q=np.ones((2, 3, 3, 8), np.float32)),
        ValueError,
        "K: number of heads must divide query num_heads 3; got 2",
    ),
    "key_dtype": (small(K=np.ones((2, 2, 5, 8))), TypeError, "K: dtype must"),
    "integers": (
        {name: x.astype(int) for name, x in small().items()},
        TypeError,
        "Q: dtype must be float16, bfloat16, float32 or float64; got int64",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "text"), ERRORS.values(), ids=ERRORS)
def test_onnx_wrong_arguments_are_named(
    arguments: Arguments, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=f"^{text}"):
        attention(**arguments)


@st.composite
def runtime_problems(draw: Any) -> Arguments:
    """Draw the arguments of a call that ONNX Runtime takes too."""
    arguments = draw(problems())
    for name in ("left_window_size", "right_window_size", "softmax_precision"):
        arguments.pop(name, None)
    arguments["opset"] = min(arguments["opset"], 24)
    if arguments.get("scale") == 0:
        del arguments["scale"]
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    for name in {*arguments} & {*INPUTS} - {"attn_mask", "nonpad_kv_seqlen"}:
        arguments[name] = arguments[name].astype(dtype)
    if "nonpad_kv_seqlen" in arguments:
        arguments["nonpad_kv_seqlen"] = arguments["nonpad_kv_seqlen"].astype(np.int64)
    if "attn_mask" in arguments:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        cut = {n: x for n, x in arguments.items() if n != "attn_mask"}
        cut |= {"outputs": ["qk_matmul_output"], "qk_matmul_output_mode": 0}
        batch, heads, *scores = attention(**cut).qk_matmul_output.shape
        shape = draw(st.sampled_from([(), (heads,), (batch, 1), (batch, heads)]))
        mask = rng.random((*shape, *scores)) < 0.7
        numbers = normal(rng, *mask.shape, dtype=dtype)
        arguments["attn_mask"] = mask if draw(st.booleans()) else numbers
    return arguments | {"outputs": OUTPUTS}


@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(arguments=runtime_problems())
def test_onnx_random_combination_matches_the_runtime(arguments: Arguments) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    inputs, attributes, opset = split(arguments)
    whole = node_model(inputs, attributes, opset, OUTPUTS).SerializeToString()
    session = runtime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    theirs = session.run(OUTPUTS, inputs)
    exact = evaluated(arguments, np.float64, "body")
    mine = attention(**arguments)
    assert_same(mine.present_key, theirs[1])
    assert_same(mine.present_value, theirs[2])
    largest = float(np.abs(mine.present_value).max(initial=1.0))
    for name, n in (("Y", 0), ("qk_matmul_output", 3)):
        assert mine[n].shape == theirs[n].shape
        assert mine[n].dtype == theirs[n].dtype
        # Where it hides a key, mode 2 has -inf, ONNX Runtime the lowest number or -inf.
        finite = np.isfinite(exact[name]) & (theirs[n] > np.finfo(theirs[n].dtype).min)
        ours_, exact_, theirs_ = (
            np.where(finite, x, 0) for x in (mine[n], exact[name], theirs[n])
        )
        allowed = allowance(exact_, [theirs_], mine[n].dtype, scale=largest)
        assert_within(ours_, exact_, allowed)
