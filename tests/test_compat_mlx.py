# SPDX-License-Identifier: MIT
"""compat.mlx against MLX's own function on the CPU, in its dtype and in float64.

What MLX gives at the edges is also written down, so that it is tested without MLX.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cpuattn.compat.mlx as ours
from cpuattn import reference
from cpuattn.compat.mlx import scaled_dot_product_attention as sdpa
from dtypes import BFLOAT16
from support import SEED, Array, allowance, assert_within, normal
from test_random_combinations import broadcast, every_isa, strided

try:
    import mlx.core as mx
except ImportError:
    mx = None

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
needs_mlx = pytest.mark.skipif(mx is None, reason="mlx is not installed")

FLOATS = [np.dtype(x) for x in ("f4", "f2", BFLOAT16, "f8")]
# A weight of bfloat16 is rounded before it multiplies a value, by as much as this.
HALF_BIT = float(ml_dtypes.finfo(BFLOAT16).eps) / 2
SCALES = [0.0, -0.3125, 0.25, 0.6875]  # MLX rounds its scale to float32
Call = tuple[tuple[Array, Array, Array], dict[str, Any]]


def theirs(call: Call, dtype: Any = None) -> Array:
    """Return what MLX computes, with floating inputs in `dtype` where it is given."""

    def converted(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        kind = x.dtype
        if dtype is not None and (kind.kind == "f" or kind == BFLOAT16):
            kind = np.dtype(dtype)
        return mx.array(np.ascontiguousarray(x), dtype=getattr(mx, mlx_name(kind)))

    inputs, options = call
    with mx.stream(mx.cpu):
        out = mx.fast.scaled_dot_product_attention(
            *map(converted, inputs), **{n: converted(x) for n, x in options.items()}
        )
        name = str(out.dtype).removeprefix("mlx.core.")
        wide = out if name in ("float32", "float64") else out.astype(mx.float32)
        return np.array(wide).astype(BFLOAT16 if name == "bfloat16" else name)


def mlx_name(dtype: Any) -> str:
    return "bool_" if dtype.kind == "b" else str(dtype)


def oracle(call: Call, dtype: Any = np.float64) -> Array:
    """Return what MLX should compute: its float64 has a softmax of about 1e-8."""
    inputs, options = call
    mask, sinks = options.get("mask"), options.get("sinks")
    chosen: dict[str, Any] = {"scale": options["scale"], "sinks": sinks}
    if isinstance(mask, str):
        chosen["causal"] = "bottom_right"
    elif mask is not None:
        chosen["mask" if mask.dtype == np.bool_ else "bias"] = mask
    exact: Array = reference.attention(
        *inputs, **chosen, fully_masked="mean", dtype=dtype
    )
    return exact


def compare(call: Call, isas: Iterable[Any] = ("default",)) -> None:
    """Assert that ours is as good as MLX while each ISA is in force."""
    exact, naive = oracle(call), theirs(call)
    np.testing.assert_allclose(theirs(call, np.float64), exact, rtol=1e-6, atol=1e-7)
    # MLX sums 16-bit inputs in 16 bits: float32, rounded at the end, is the measure.
    if naive.dtype == np.float16:
        naive = theirs(call, np.float32).astype(np.float16)
    inputs, options = call
    value = np.abs(inputs[2].astype(np.float64)).max(initial=1.0)
    for _ in isas:
        mine = sdpa(*inputs, **options)
        assert mine.dtype == naive.dtype
        assert mine.shape == naive.shape
        allowed = 1e-13 * float(value)
        if mine.dtype != np.float64:
            floor = HALF_BIT * float(value) if mine.dtype == BFLOAT16 else 0.0
            # MLX is right by luck now and then.
            plain = oracle(call, np.float32).astype(mine.dtype)
            allowed = allowance(exact, [naive, plain], mine.dtype, float(value), floor)
        assert_within(mine, exact, allowed)


@st.composite
def calls(draw: Any) -> Call:
    """Draw the arguments of one valid call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * group
    q_len = draw(st.sampled_from([1, 2, 3, 7, 17, 0]))
    kv_len = draw(st.sampled_from([1, 2, 5, 9, 16, 33, 0]))
    width, width_v = (draw(st.sampled_from([1, 3, 8, 16, 33])) for _ in range(2))
    dtype = draw(st.sampled_from(FLOATS))
    mixed = draw(st.sampled_from([False, False, False, True]))
    kinds = [*FLOATS, np.dtype(np.int32)] if mixed else [dtype]

    def drawn(*shape: int) -> Array:
        kind = draw(st.sampled_from(kinds))
        array = normal(rng, *shape) * (2 if kind.kind == "i" else 1)
        return draw(strided(array.astype(kind)))

    inputs = (
        normal(rng, batch, heads, q_len, width, dtype=dtype),
        drawn(batch, kv_heads, kv_len, width),
        drawn(batch, kv_heads, kv_len, width_v),
    )
    options: dict[str, Any] = {"scale": draw(st.sampled_from(SCALES))}
    common = ours._common(*inputs)[0].dtype
    narrower = [x for x in FLOATS if x == common or str(common) in ours._WIDER[str(x)]]
    floats = st.sampled_from(narrower)
    mask = draw(st.sampled_from([None, "causal", "bool", "float", "holes", "int"]))
    if mask == "causal":
        options["mask"] = mask
    elif mask is not None:
        shape = draw(broadcast((batch, heads, q_len, kv_len)))
        density = draw(st.sampled_from([0.2, 0.7, 1.0]))
        visible = np.asarray(rng.random(shape) < density)
        numbers = np.asarray(normal(rng, *shape, dtype=np.float32)).astype(draw(floats))
        options["mask"] = draw(
            strided(
                {
                    "bool": visible,
                    "float": numbers,
                    "holes": np.where(visible, numbers, numbers.dtype.type(-np.inf)),
                    "int": np.asarray(rng.integers(-3, 4, shape, np.int32)),
                }[mask]
            )
        )
    if draw(st.booleans()):
        kind = draw(st.sampled_from([*narrower, np.dtype(np.int32)]))
        options["sinks"] = draw(strided((2 * normal(rng, heads)).astype(kind)))
    return inputs, options


@needs_mlx
@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=500,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(call=calls())
def test_mlx_random_combination_agrees(call: Call) -> None:
    compare(call, every_isa())


@needs_mlx
def test_mlx_signature_agrees() -> None:
    text = mx.fast.scaled_dot_product_attention.__doc__.partition("->")[0]
    names, defaults = zip(
        *re.findall(r"(\w+): [\w| ]+(?: = (\w+))?(?=[,)])", text), strict=True
    )
    parameters = inspect.signature(sdpa).parameters
    assert tuple(parameters) == names
    assert names[:4] == ("q", "k", "v", "scale")
    for name, default in zip(names, defaults, strict=True):
        wanted = {"": inspect.Parameter.empty, "None": None, "False": False}[default]
        assert parameters[name].default is wanted
        positional = text.index(f"{name}:") < text.index("*,")
        kind = parameters[name].kind
        assert (kind is inspect.Parameter.POSITIONAL_OR_KEYWORD) == positional


INF = np.float32(np.inf)
LOW = np.iinfo(np.int32).min
NEVER, SOME = np.zeros((3, 5), bool), np.arange(5) < 4
NO_SINK, SINK = np.array([-INF]), np.array([0], np.float32)
ONE = np.ones(1, np.float32)
NAN = np.float32(np.nan)

# What every row of the output is: values are 0 to 4, all scores are equal.
EDGES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "nothing": ({}, [2, 2, 2]),
    "hidden_by_bool": ({"mask": NEVER}, [2, 2, 2]),
    "hidden_by_infinity": ({"mask": np.full((3, 5), -INF)}, [NAN] * 3),
    "hidden_by_large_number": ({"mask": np.full((3, 5), np.float32(-3e38))}, [2] * 3),
    "hidden_by_integer": ({"mask": np.full((3, 5), LOW)}, [2, 2, 2]),
    "hidden_by_bool_and_sink": ({"mask": NEVER, "sinks": SINK}, [0, 0, 0]),
    "hidden_by_infinity_and_sink": (
        {"mask": np.full((3, 5), -INF), "sinks": SINK},
        [0, 0, 0],
    ),
    "hidden_by_bool_and_no_sink": ({"mask": NEVER, "sinks": NO_SINK}, [2, 2, 2]),
    "hidden_by_infinity_and_no_sink": (
        {"mask": np.full((3, 5), -INF), "sinks": NO_SINK},
        [NAN] * 3,
    ),
    "infinite_sink": ({"sinks": np.array([INF])}, [NAN] * 3),
    "nan_sink": ({"sinks": np.array([NAN])}, [NAN] * 3),
    "nan_scale": ({"scale": NAN}, [NAN] * 3),
    "nan_mask": ({"mask": np.where(SOME, 0, NAN)}, [NAN] * 3),
    "causal": ({"mask": "causal"}, [1, 1.5, 2]),
    "some": ({"mask": SOME}, [1.5] * 3),
    "scalar_bool": ({"mask": np.array(False)}, [2, 2, 2]),
    "scalar_number": ({"mask": np.array(-3, np.float32)}, [2, 2, 2]),
    "integer_sink": ({"sinks": np.array([1])}, [10 / 6] * 3),
    "bool_sink": ({"sinks": np.array([True])}, [10 / 6] * 3),
}


def edge_call(changes: dict[str, Any]) -> Call:
    query, key = np.ones((1, 1, 3, 1), np.float32), np.ones((1, 1, 5, 1), np.float32)
    value = np.arange(5, dtype=np.float32).reshape(1, 1, 5, 1)
    return (query, key, value), {"scale": 1.0} | changes


@pytest.mark.parametrize(("changes", "rows"), EDGES.values(), ids=EDGES)
def test_mlx_edge_is_as_published(
    changes: dict[str, Any], rows: list[float], isa: str
) -> None:
    call = edge_call(changes)
    out = sdpa(*call[0], **call[1])
    np.testing.assert_allclose(out[0, 0, :, 0], rows, rtol=1e-6)
    if mx is not None:
        np.testing.assert_allclose(theirs(call)[0, 0, :, 0], rows, rtol=1e-6)


def test_mlx_integer_mask_is_infinite_beyond_float16() -> None:
    inputs, options = edge_call({"mask": np.full((3, 5), LOW)})
    call = tuple(x.astype(np.float16) for x in inputs), options
    assert np.isnan(sdpa(*call[0], **call[1])).all()
    if mx is not None:
        assert np.isnan(theirs(call)).all()


@pytest.mark.parametrize(
    ("sinks", "rows"), [(None, [2.0, 2.0, 0.0]), (SINK, [0, 0, 0])], ids=["", "sink"]
)
def test_mlx_causal_rows_before_the_first_key(
    sinks: Array | None, rows: list[float]
) -> None:
    (_, key, value), options = edge_call({"mask": "causal", "sinks": sinks})
    call = (np.ones((1, 1, 7, 1), np.float32), key, value), options
    np.testing.assert_allclose(sdpa(*call[0], **options)[0, 0, :3, 0], rows)
    if mx is not None:
        compare(call)


SIZES = {
    "q_len": ((1, 2, 0, 4), (1, 2, 5, 4), 3),
    "kv_len": ((1, 2, 3, 4), (1, 2, 0, 4), 3),
    "batch": ((0, 2, 3, 4), (0, 2, 5, 4), 3),
    "head_dim": ((1, 2, 3, 0), (1, 2, 5, 0), 3),
    "head_dim_v": ((1, 2, 3, 4), (1, 2, 5, 4), 0),
    "query_heads": ((1, 0, 3, 4), (1, 1, 5, 4), 3),
}


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize(("query", "key", "width"), SIZES.values(), ids=SIZES)
def test_mlx_empty_sizes_agree(
    query: tuple[int, ...], key: tuple[int, ...], width: int, mask: str | None
) -> None:
    value = np.ones((*key[:3], width), np.float32)
    inputs = np.ones(query, np.float32), np.ones(key, np.float32), value
    out = sdpa(*inputs, scale=1.0, mask=mask)
    assert out.shape == (*query[:3], width)
    assert np.array_equal(out, np.full_like(out, 0 if key[2] == 0 else 1))
    if mx is not None:
        np.testing.assert_array_equal(
            out, theirs((inputs, {"scale": 1.0, "mask": mask}))
        )


def test_mlx_without_heads_is_empty() -> None:  # MLX ends the process
    nothing = np.ones((1, 0, 3, 4), np.float32)
    assert sdpa(nothing, nothing, nothing, scale=1.0).shape == (1, 0, 3, 4)


@pytest.mark.parametrize("name", ["k", "v"])
def test_mlx_masked_nan_reaches_nothing(name: str) -> None:  # in MLX that of v does
    inputs, options = edge_call({"mask": SOME})
    clean = sdpa(*inputs, **options)
    inputs["qkv".index(name)][0, 0, 4] = np.nan
    np.testing.assert_array_equal(sdpa(*inputs, **options), clean)


def test_mlx_force_fused_and_stream_change_nothing() -> None:
    inputs, options = edge_call({"mask": "causal"})
    same = sdpa(*inputs, **options, force_fused=True, stream="cpu")
    np.testing.assert_array_equal(same, sdpa(*inputs, **options))


def test_mlx_inputs_of_one_dtype_are_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(ours, "attention", lambda *inputs, **_: seen.extend(inputs))
    inputs, options = edge_call({})
    sdpa(*inputs, **options)
    assert all(x is y for x, y in zip(seen, inputs, strict=True))


@pytest.mark.parametrize("v", [*FLOATS, np.dtype(np.int8), np.dtype(bool)], ids=str)
@pytest.mark.parametrize("k", FLOATS, ids=str)
@pytest.mark.parametrize("q", [*FLOATS, np.dtype(np.int64)], ids=str)
def test_mlx_dtypes_promote(q: Any, k: Any, v: Any) -> None:
    inputs = tuple(np.ones((1, 1, 2, 4)).astype(dtype) for dtype in (q, k, v))
    out = sdpa(*inputs, scale=1.0)
    floats = [x for x in (q, k, v) if x in FLOATS]
    widths = {ml_dtypes.finfo(x).bits for x in floats}
    if widths == {16} and len({*floats}) > 1:
        assert out.dtype == np.float32
    else:
        assert ml_dtypes.finfo(out.dtype).bits == max(widths)
    if mx is not None:
        assert out.dtype == theirs((inputs, {"scale": 1.0})).dtype


def wrong(shapes: str = "", **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs with some other shapes, as in "k=1,2,5,7", and options."""
    arrays = {"q": (2, 4, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 6)}
    for part in shapes.split():
        name, _, shape = part.partition("=")
        arrays[name] = tuple(int(x) for x in shape.split(","))
    inputs = {name: np.ones(shape, np.float32) for name, shape in arrays.items()}
    return inputs, {"scale": 1.0} | options


MASK_32 = np.zeros((3, 5), np.float32)
ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "rank": (wrong("q=4,3,8"), ValueError, "q: q, k and v must have 4 axes"),
    "rank_v": (wrong("v=2,5,6"), ValueError, "q: q, k and v must have 4 axes"),
    "batch": (wrong("k=1,2,5,8 v=1,2,5,6"), ValueError, "q: q, k and v must have the"),
    "batch_v": (wrong("v=1,2,5,6"), ValueError, "q: q, k and v must have the same"),
    "head_dim": (wrong("k=2,2,5,7"), ValueError, "key: head_dim must equal query"),
    "heads": (wrong("q=2,3,3,8"), ValueError, "key: number of heads must divide"),
    "heads_v": (wrong("v=2,1,5,6"), ValueError, "value: "),
    "length": (wrong("v=2,2,4,6"), ValueError, "value: length must equal key length"),
    "scale": (wrong(scale=None), TypeError, "scale: must be a real number"),
    "complex_scale": (wrong(scale=1j), TypeError, "scale: must be a real number"),
    "text_scale": (wrong(scale="x"), TypeError, "scale: must be a real number"),
    "text": (wrong(mask="full"), ValueError, "mask: must be 'causal' or an array"),
    "no_text": (wrong(mask=""), ValueError, "mask: must be 'causal' or an array"),
    "list": (wrong(mask=[True]), TypeError, "mask: must be 'causal' or an array"),
    "number": (wrong(mask=0.5), TypeError, "mask: must be 'causal' or an array"),
    "mask_shape": (wrong(mask=np.ones((4, 3), bool)), ValueError, "mask: must broad"),
    "mask_batch": (wrong(mask=np.ones((3, 1, 3, 5), bool)), ValueError, "mask: must"),
    "mask_rank": (wrong(mask=np.ones((1, 2, 4, 3, 5), bool)), ValueError, "mask: must"),
    "mask_dtype": (
        wrong(mask=np.zeros((3, 5))),
        ValueError,
        "mask: dtype must promote to the output's, float32; got float64",
    ),
    "complex_mask": (wrong(mask=np.zeros((3, 5), "c8")), ValueError, "mask: dtype"),
    "sinks_shape": (
        wrong(sinks=np.zeros(2, np.float32)),
        ValueError,
        r"sinks: must have shape \(num_heads,\) = \(4,\); got \(2,\)",
    ),
    "sinks_rank": (wrong(sinks=np.zeros((1, 4), "f4")), ValueError, "sinks: must have"),
    "sinks_dtype": (wrong(sinks=np.zeros(4)), ValueError, "sinks: dtype must promote"),
}


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS.values(), ids=ERRORS)
def test_mlx_wrong_arguments_raise_its_exceptions(
    call: tuple[dict[str, Any], dict[str, Any]], kind: type[Exception], text: str
) -> None:
    inputs, options = call
    with pytest.raises(kind, match=f"^{text}"):
        sdpa(**inputs, **options)
    if mx is not None:
        with pytest.raises(kind):
            theirs(((*inputs.values(),), options))


@pytest.mark.parametrize(("mask", "q"), [("f4", "f2"), ("f2", "bf"), ("bf", "f2")])
def test_mlx_mask_wider_than_the_output_is_refused(mask: str, q: str) -> None:
    kinds = {"f4": np.float32, "f2": np.float16, "bf": BFLOAT16}
    inputs, options = wrong(mask=MASK_32.astype(kinds[mask]))
    inputs = {name: x.astype(kinds[q]) for name, x in inputs.items()}
    with pytest.raises(ValueError, match=r"^mask: dtype must promote"):
        sdpa(**inputs, **options)
    if mx is not None:
        with pytest.raises(ValueError, match="Mask type must promote"):
            theirs(((*inputs.values(),), options))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_mlx_inputs_without_a_floating_dtype_are_refused(dtype: str) -> None:
    inputs, options = wrong()
    inputs = {name: x.astype(dtype) for name, x in inputs.items()}
    with pytest.raises(ValueError, match=f"^q: q, k and v must promote .* got {dtype}"):
        sdpa(**inputs, **options)
    if mx is not None:
        with pytest.raises(ValueError, match="unsupported type"):
            theirs(((*inputs.values(),), options))
