# SPDX-License-Identifier: MIT
"""compat.lucid against the formula of lucid 2.12, and that against lucid itself."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from cpuattn.compat.lucid import scaled_dot_product_attention
from dtypes import BFLOAT16
from lucid_support import formula, load
from support import (
    SEED,
    Array,
    as_tuple,
    check,
    expect_success,
    naive_results,
    normal,
    qkv,
    rounding_scales,
)
from test_random_combinations import broadcast, strided

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

PARAMETERS = {
    "attn_mask": None,
    "dropout_p": 0.0,
    "is_causal": False,
    "scale": None,
    "output_weight": False,
}


def state() -> Any:
    """Return where NumPy's global generator stands."""
    return np.random.get_state()[1:3]  # noqa: NPY002


def seeded(function: Any, *inputs: Any, **options: Any) -> tuple[Any, Any]:
    """Call with the global generator at a known place; return where it stands then."""
    np.random.seed(SEED)  # noqa: NPY002
    result = function(*inputs, **options)
    return result, state()


def agree(*inputs: Array, **options: Any) -> tuple[Array, Array]:
    """Assert that ours is what the formula gives, and as near to the oracle."""
    (out, weights), ours_at = seeded(
        scaled_dot_product_attention, *inputs, **options, output_weight=True
    )
    alone, alone_at = seeded(scaled_dot_product_attention, *inputs, **options)
    theirs, theirs_at = seeded(formula, *inputs, **options)
    for stand in (ours_at, alone_at):
        np.testing.assert_array_equal(stand[0], theirs_at[0])
        assert stand[1] == theirs_at[1]
    assert (out.dtype, out.shape) == (theirs[0].dtype, theirs[0].shape)
    assert (weights.dtype, weights.shape) == (theirs[1].dtype, theirs[1].shape)
    assert (alone.dtype, alone.shape) == (out.dtype, out.shape)

    exact = seeded(oracle, *inputs, **options)[0]
    of_inputs = max(COARSE[x.dtype.itemsize] for x in (*inputs, theirs[1]))
    for mine, peer, true in zip((out, weights), theirs, exact, strict=True):
        near(peer, true, of_inputs)
        near(mine, true, COARSE[mine.dtype.itemsize])
    near(alone, exact[0], COARSE[alone.dtype.itemsize])
    return out, weights


COARSE = {1: 1e-7, 2: 3e-2, 4: 2e-4, 8: 1e-7}  # shares of the greatest number


def oracle(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Any = None,
    is_causal: bool = False,
    **options: Any,
) -> tuple[Array, Array]:
    """Return out and weights in float64, where hidden scores absorb all others."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    scores = np.zeros((query.shape[-2], key.shape[-2]))
    if is_causal:
        scores = np.where(np.tri(*scores.shape, dtype=bool), 0, -1e30)
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = scores + np.where(attn_mask, 0, -1e30)
    elif attn_mask is not None:
        scores = scores + attn_mask.astype(np.float64)
    return formula(query, key, value, scores, **options)


def near(array: Array, exact: Array, share: float) -> None:
    """Assert an error of at most a share of the greatest number."""
    array = array.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(array), np.isnan(exact))
    size = np.nan_to_num(np.abs(exact)).max(initial=1.0)
    error = np.abs(np.nan_to_num(array) - np.nan_to_num(exact)).max(initial=0.0)
    assert error <= share * size


FLOATS = ["f4", "f4", "f2", "f8", "i4"]
SIZES = st.one_of(st.integers(1, 20), st.sampled_from([31, 64, 65]))


@st.composite
def calls(draw: Any) -> tuple[list[Array], dict[str, Any]]:
    """Draw the arguments of one call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = tuple(draw(st.lists(st.sampled_from([1, 2, 2, 3, 0]), max_size=3)))
    q_len, kv_len, head_dim = draw(SIZES), draw(SIZES), draw(SIZES)
    dtype = draw(st.sampled_from(FLOATS[:4]))
    tails = ((q_len, head_dim), (kv_len, head_dim), (kv_len, draw(SIZES)))
    inputs = []
    for n, tail in enumerate(tails):
        lead = batch if n == 0 else draw(broadcast(batch))
        kind = draw(st.sampled_from([dtype, dtype, *FLOATS]))
        numbers = np.asarray(normal(rng, *lead, *tail)).astype(kind)
        inputs.append(draw(strided(numbers)))
    options: dict[str, Any] = {"is_causal": draw(st.booleans(), label="is_causal")}
    kind = draw(st.sampled_from([None, "?", "f4", "f2", "f8", "i8"]), label="mask")
    if kind is not None:
        shape = draw(broadcast((*batch, q_len, kv_len)))
        mask = np.asarray(normal(rng, *shape) * 3)
        if kind == "?":
            mask = np.asarray(mask > -3)
            # lucid 3 ranks keys by what hides them in rows that see nothing.
            mask[(..., 0) if mask.ndim else ...] = True
        elif kind != "i8" and draw(st.booleans(), label="holes"):
            mask = np.where(rng.random(shape) < 0.3, np.float32(-np.inf), mask)
        options["attn_mask"] = draw(strided(np.asarray(mask).astype(kind)))
    if draw(st.booleans(), label="dropout"):
        options["dropout_p"] = draw(st.sampled_from([1e-9, 0.1, 0.5, 0.9]))
    if draw(st.booleans(), label="scale"):
        options["scale"] = draw(st.sampled_from([0, 2, -0.3, np.float32(0.5), True]))
    product = np.result_type(*inputs[:2])
    scores = np.result_type(product, *masks(options))
    if product == np.float16 or (scores != np.float32 and holes(options)):
        options["is_causal"] = False  # -1e12 is -inf in float16, and little in float64
    return inputs, options


def masks(options: dict[str, Any]) -> list[Array]:
    """Return the mask that is added, if there is one."""
    mask = options.get("attn_mask")
    return [] if mask is None or mask.dtype == bool else [mask]


def holes(options: dict[str, Any]) -> bool:
    return any(np.isneginf(mask).any() for mask in masks(options))


@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=600,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(call=calls(), isa=st.sampled_from(cpuattn.available_isas()))
def test_lucid_random_calls_agree(
    call: tuple[list[Array], dict[str, Any]], isa: str
) -> None:
    inputs, options = call
    cpuattn._core.set_isa(isa)
    try:
        agree(*inputs, **options)
    finally:
        cpuattn._core.set_isa(None)


@pytest.mark.parametrize(
    ("dtype", "is_causal"),
    [(x, y) for x in ("float32", "float64") for y in (False, True)]
    + [("float16", False)],
)
def test_lucid_is_as_near_to_the_oracle_as_the_formula(
    dtype: str, is_causal: bool, isa: str, rng: np.random.Generator
) -> None:
    inputs = [x.astype(dtype) for x in qkv(rng, q_len=17, kv_len=65)]
    bias = normal(rng, 17, 65).astype(dtype)
    out = scaled_dot_product_attention(*inputs, bias, 0.0, is_causal)
    theirs, _ = formula(*inputs, bias, 0.0, is_causal)
    options = {"bias": bias, "causal": "top_left" if is_causal else False}
    exact = as_tuple(reference.attention(*inputs, **options))[0]
    products = cpuattn.explain(*inputs, **options)["products"]
    naive = naive_results(*inputs, count=3, products=products, **options)
    scale = rounding_scales(*inputs, **options)["out"]
    check(out, exact, [theirs, *(x[0] for x in naive)], scale)


def test_lucid_has_the_documented_parameters() -> None:
    parameters = inspect.signature(scaled_dot_product_attention).parameters
    assert list(parameters) == ["query", "key", "value", *PARAMETERS]
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    assert defaults == PARAMETERS
    assert {p.kind for p in parameters.values()} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD
    }


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1), (70000, 2, 3)], ids=str)
def test_lucid_dropout_draws_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    # The last shape takes several rounds of draws.
    query = np.zeros((*shape[:-1], 4), np.float32)
    key = np.zeros((*shape[:-2], shape[-1], 4), np.float32)
    options = {"dropout_p": 0.3, "output_weight": True}
    (_, weights), ours_at = seeded(
        scaled_dot_product_attention, query, key, key, **options
    )
    drawn, theirs_at = seeded(np.random.rand, *shape)
    np.testing.assert_array_equal(weights != 0, drawn > 0.3)
    np.testing.assert_array_equal(ours_at[0], theirs_at[0])
    assert ours_at[1] == theirs_at[1]


def test_lucid_without_dropout_draws_nothing(rng: np.random.Generator) -> None:
    before = state()
    scaled_dot_product_attention(*qkv(rng))
    np.testing.assert_array_equal(before[0], state()[0])
    assert before[1] == state()[1]


def test_lucid_dropout_makes_no_array_of_all_numbers() -> None:
    expect_success(
        "import numpy as np, resource\n"
        "from cpuattn.compat.lucid import scaled_dot_product_attention as sdpa\n"
        "x = np.ones((1, 6000, 8), np.float32)\n"
        "sdpa(x[:, :9], x[:, :9], x[:, :9], dropout_p=0.5)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "sdpa(x, x, x, dropout_p=0.5)\n"
        "grown = peak() - before\n"
        "assert grown < 3 * 36, f'{grown} MB where the mask has 36'"
    )


def seen(*hidden: int) -> Array:
    mask = np.ones((5, 9), bool)
    mask[list(hidden)] = False
    return mask


def bias_with(value: float, rows: Any = slice(None), columns: Any = slice(None)) -> Any:
    bias = np.zeros((5, 9), np.float32)
    bias[rows, columns] = value
    return bias


EDGES: dict[str, dict[str, Any]] = {
    "hidden_row": {"attn_mask": seen(2)},
    "all_hidden": {"attn_mask": np.zeros((5, 9), bool)},
    "hidden_row_dropout": {"attn_mask": seen(2), "dropout_p": 0.5},
    "infinite_row": {"attn_mask": bias_with(-np.inf, 1)},
    "infinite_row_dropout": {"attn_mask": bias_with(-np.inf, 1), "dropout_p": 0.5},
    "infinite_beside_future": {
        "attn_mask": bias_with(-np.inf, slice(None), slice(2)),
        "is_causal": True,
    },
    "infinite_beside_future_dropout": {
        "attn_mask": bias_with(-np.inf, slice(None), slice(2)),
        "is_causal": True,
        "dropout_p": 0.5,
    },
    "nan": {"attn_mask": bias_with(np.nan, 1, 3)},
    "rank_0": {"attn_mask": np.array(3.0, np.float32)},
    "scale_0": {"scale": 0},
}


@pytest.mark.parametrize("name", EDGES)
def test_lucid_edge_results_agree(name: str, rng: np.random.Generator) -> None:
    agree(*qkv(rng), **EDGES[name])


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("value", [-1e9, -1e12, float(np.finfo(np.float32).min)])
def test_lucid_large_negative_rows_agree(
    value: float, is_causal: bool, rng: np.random.Generator
) -> None:
    # The formula in float64 is no oracle here: float32 absorbs the other scores.
    inputs = qkv(rng)
    mask = bias_with(value, slice(None), slice(2))
    mask[1] = value
    if is_causal:
        value = max(value, -1e9)  # below that lucid's hidden keys join in
        mask = np.maximum(mask, np.float32(value))
    out = scaled_dot_product_attention(*inputs, mask, is_causal=is_causal)
    theirs, _ = formula(*inputs, mask, is_causal=is_causal)
    np.testing.assert_allclose(out, theirs, rtol=1e-5, atol=1e-5)


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "matrices": [(5, 8), (9, 8), (9, 7)],
    "no_rows": [(2, 0, 8), (2, 9, 8), (2, 9, 8)],
    "no_batch": [(0, 5, 8), (0, 9, 8), (0, 9, 8)],
    "one_batch_of_keys": [(3, 4, 5, 8), (1, 4, 9, 8), (1, 4, 9, 8)],
    "one_head_of_keys": [(3, 4, 5, 8), (3, 1, 9, 8), (3, 1, 9, 8)],
    "one_head_of_queries": [(3, 1, 5, 8), (3, 4, 9, 8), (3, 4, 9, 8)],
    "more_values": [(5, 8), (9, 8), (3, 4, 9, 8)],
    "ranks": [(4, 5, 8), (3, 4, 9, 8), (9, 8)],
    "no_value_dim": [(2, 5, 8), (2, 9, 8), (2, 9, 0)],
}


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("name", SHAPES)
def test_lucid_shapes_agree(name: str, p: float, rng: np.random.Generator) -> None:
    agree(*(normal(rng, *shape) for shape in SHAPES[name]), dropout_p=p)


@pytest.mark.parametrize("kind", ["bool", "float32"])
@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(3, 2, 5, 9), (3, 1, 1, 9), (2, 7, 9)], ids=str)
def test_lucid_mask_may_enlarge_the_result(
    shape: tuple[int, ...], p: float, kind: str, rng: np.random.Generator
) -> None:
    rows = 1 if shape[-2] == 7 else 5
    inputs = qkv(rng, batch=(), heads=2, q_len=rows)
    agree(*inputs, attn_mask=(rng.random(shape) < 0.8).astype(kind), dropout_p=p)


DTYPES = ["float16", "float32", "float64", "int32", "int64", "bool"]


@pytest.mark.parametrize("mask", [None, "bool", "float16", "float64", "int16"])
@pytest.mark.parametrize("value", DTYPES)
@pytest.mark.parametrize("query", DTYPES)
def test_lucid_dtypes_are_promoted_as_in_numpy(
    query: str, value: str, mask: str | None, rng: np.random.Generator
) -> None:
    q, k, v = qkv(rng)
    options: dict[str, Any] = {}
    if mask is not None:
        options["attn_mask"] = seen(1).astype(mask)
    if query == "bool":
        q, k = q > 0, k > 0
        if mask is None:
            options["scale"] = 0.5  # a product of booleans is one
    out, weights = agree_on_dtypes(
        q.astype(query), k.astype(query), v.astype(value), **options
    )
    assert np.isfinite(out).all()
    assert np.isfinite(weights).all()


def agree_on_dtypes(*inputs: Array, **options: Any) -> Any:
    """Assert the formula's dtypes alone: NumPy sums booleans and small ints wrongly."""
    results = scaled_dot_product_attention(*inputs, **options, output_weight=True)
    for mine, theirs in zip(results, formula(*inputs, **options), strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    return results


@pytest.mark.parametrize("scale", [np.float64(0.5), np.float32(0.5), 0.5, 1, True])
def test_lucid_scale_takes_part_in_promotion(
    scale: Any, rng: np.random.Generator
) -> None:
    agree(*qkv(rng), scale=scale)


def test_lucid_causal_float16_works_where_lucid_gives_nan(
    rng: np.random.Generator,
) -> None:
    inputs = [x.astype(np.float16) for x in qkv(rng)]
    out = scaled_dot_product_attention(*inputs, is_causal=True)
    assert np.isnan(formula(*inputs, is_causal=True)[0]).all()
    wanted = formula(*(x.astype(np.float32) for x in inputs), is_causal=True)[0]
    np.testing.assert_allclose(out, wanted, rtol=2e-3, atol=2e-3)


def test_lucid_bfloat16_and_float32_give_float32(rng: np.random.Generator) -> None:
    query, key, value = qkv(rng)
    out = scaled_dot_product_attention(
        query, key.astype(BFLOAT16), value.astype(BFLOAT16)
    )
    assert out.dtype == np.float32
    half = [x.astype(BFLOAT16) for x in (query, key, value)]
    assert scaled_dot_product_attention(*half).dtype == BFLOAT16


def test_lucid_bool_mask_hides_keys(rng: np.random.Generator) -> None:
    inputs = qkv(rng)
    mask = rng.random((5, 9)) < 0.6
    mask[2] = False
    out = scaled_dot_product_attention(*inputs, attn_mask=mask)
    added = np.where(mask, 0, np.float32(-1e9))
    np.testing.assert_allclose(out, formula(*inputs, added)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out[:, :, 2], inputs[2].mean(-2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1 + 0j, np.complex64(0.5), complex(-2)], ids=str)
def test_lucid_real_complex_scale_is_its_real_part(
    scale: Any, rng: np.random.Generator
) -> None:
    inputs = qkv(rng)
    out = scaled_dot_product_attention(*inputs, scale=scale)
    assert out.dtype == np.float32
    wanted = scaled_dot_product_attention(*inputs, scale=float(scale.real))
    np.testing.assert_array_equal(out, wanted)


Q = np.zeros((2, 5, 8), np.float32)
K = np.zeros((2, 9, 8), np.float32)
WRONG: dict[str, tuple[tuple[Array, ...], dict[str, Any]]] = {
    "key_rank": ((Q, K[0, 0], K), {}),
    "depth": ((Q, K[..., :3], K), {}),
    "value_length": ((Q, K, K[:, :3]), {}),
    "batch": ((Q, K[[0, 0, 0]], K), {}),
    "heads": ((Q[[0, 1, 0, 1]], K, K), {}),
    "no_keys": ((Q, K[:, :0], K[:, :0]), {}),
    "no_keys_no_rows": ((Q[:, :0], K[:, :0], K[:, :0]), {}),
    "mask": ((Q, K, K), {"attn_mask": np.zeros((5, 8), np.float32)}),
    "mask_batch": ((Q, K, K), {"attn_mask": np.zeros((3, 5, 9), bool)}),
    "depth_dropout": ((Q, K[..., :3], K), {"dropout_p": 0.5}),
    "value_length_dropout": ((Q, K, K[:, :3]), {"dropout_p": 0.5}),
    "scale": ((Q, K, K), {"scale": "x"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_lucid_errors_have_the_class_of_numpy(name: str) -> None:
    inputs, options = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as theirs:
        seeded(formula, *inputs, **options)
    there = state()
    kind = ValueError if issubclass(theirs.type, ValueError) else TypeError
    with pytest.raises(kind) as mine:
        seeded(scaled_dot_product_attention, *inputs, **options)
    assert str(mine.value)
    if "rank" in name:
        assert isinstance(mine.value, np.exceptions.AxisError)
    np.testing.assert_array_equal(there[0], state()[0])
    assert there[1] == state()[1]


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_lucid_dropout_out_of_range_is_an_error(p: float) -> None:
    with pytest.raises(ValueError, match=r"^dropout_p must be in \[0, 1\)\.$"):
        scaled_dot_product_attention(Q, K, K, dropout_p=p)


def test_lucid_complex_scale_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="scale: must be a real number; got"):
        scaled_dot_product_attention(Q, K, K, scale=2 + 1j)


def test_lucid_complex_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="query: dtype must be"):
        scaled_dot_product_attention(Q + 0j, K, K)


def test_lucid_nan_in_a_hidden_key_is_ignored(rng: np.random.Generator) -> None:
    query, key, value = qkv(rng)
    key[:, :, 6:], value[:, :, 6:] = np.nan, np.nan
    out = scaled_dot_product_attention(query, key, value, np.arange(9) < 6)
    clean = scaled_dot_product_attention(query, key[:, :, :6], value[:, :, :6])
    np.testing.assert_allclose(out, clean, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def lucid() -> Any:
    """lucid.nn.functional of release 2.12, whose formula the other tests use."""
    functional = load()
    if functional is None:
        pytest.skip("lucid-dl is not installed")
    return functional


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 2},
    "mask": {"attn_mask": bias_with(-1e9, 1, slice(4))},
    "infinite": {"attn_mask": bias_with(-np.inf, 1)},
    "mask_dtype": {"attn_mask": bias_with(2.5, 1).astype(np.float64)},
    "mask_and_causal": {"attn_mask": bias_with(2.5, 1), "is_causal": True},
    "dropout": {"dropout_p": 0.4},
    "all": {
        "attn_mask": bias_with(-np.inf, slice(None), slice(2)),
        "is_causal": True,
        "dropout_p": 0.4,
        "scale": 0.3,
    },
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_lucid_itself_gives_what_the_formula_gives(
    name: str, dtype: str, lucid: Any, rng: np.random.Generator
) -> None:
    inputs = [x.astype(dtype) for x in qkv(rng)]
    options = dict(CALLS[name])
    tensor = type(lucid.relu(inputs[0]))
    wanted, formula_at = seeded(formula, *inputs, **options)
    if "attn_mask" in options:
        options["attn_mask"] = tensor(options["attn_mask"])
    query, key, value = (tensor(x, requires_grad=True) for x in inputs)
    (out, weights), lucid_at = seeded(
        lucid.scaled_dot_product_attention,
        query,
        key,
        value,
        **options,
        output_weight=True,
    )
    np.testing.assert_array_equal(lucid_at[0], formula_at[0])
    assert lucid_at[1] == formula_at[1]
    for theirs, ours in zip((out.data, weights.data), wanted, strict=True):
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(theirs, ours)
