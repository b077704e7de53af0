# SPDX-License-Identifier: MIT
"""compat.jax against jax.nn.dot_product_attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpuattn
from cpuattn.compat import jax as ours
from support import SEED, Array, expect_success, normal, qkv

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

from dtypes import BFLOAT16  # noqa: E402
from jax_support import (  # noqa: E402, F401
    assert_agree,
    assert_same_parameters,
    float64,
    force_isa,
    problems,
    settings,
    widened,
)

jax = pytest.importorskip("jax", reason="jax is not installed")

BATCHES: list[tuple[int, ...]] = [(), (1,), (2,), (2,), (3,), (0,)]
HIDDEN = -0.7 * float(np.finfo(np.float32).max)


def visible(
    shape: tuple[int, ...],
    *,
    mask: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: Any = None,
) -> Array:
    """Return what JAX's masks leave of scores of shape (..., heads, q_len, kv_len)."""
    i, j = np.ix_(range(shape[-2]), range(shape[-1]))
    seen = np.ones(shape, bool)
    if mask is not None:
        seen &= mask
    if is_causal:
        seen &= j <= i
    if local_window_size is not None:
        size = local_window_size
        left, right = (size, size) if isinstance(size, int) else size
        seen &= (i - left <= j) & (j <= i + right)
    lengths = ((query_seq_lengths, i), (key_value_seq_lengths, j))
    for length, index in lengths:
        if length is not None:
            ends = np.asarray(length).reshape(*shape[:-3], 1, 1, 1)
            seen &= index < ends
    return seen


@st.composite
def calls(draw: Any) -> tuple[list[Array], dict[str, Any]]:
    """Draw the arguments of one call."""
    problem = draw(
        problems(BATCHES, groups=(1, 2, 4), any_value_dim=False, mixed=False)
    )
    inputs, rng = problem["inputs"], problem["rng"]
    options = {name: problem[name] for name in ("bias", "mask")}
    if draw(st.booleans(), label="scale"):
        options["scale"] = draw(st.sampled_from([0, 0.3, -0.7, np.float32(2), True]))
    options["is_causal"] = draw(st.booleans(), label="is_causal")
    batch = inputs[0].shape[0] if inputs[0].ndim == 4 else 1
    for n, name in enumerate(("query_seq_lengths", "key_value_seq_lengths")):
        if draw(st.booleans(), label=name):
            lengths = rng.integers(-1, inputs[n].shape[-3] + 3, batch)
            kind = draw(st.sampled_from([np.int32, np.int64]))
            options[name] = lengths.astype(kind)
    side = st.sampled_from([-2, -1, 0, 1, 3, 17, 10**6])
    if draw(st.booleans(), label="local_window_size"):
        both = st.tuples(side, side)
        options["local_window_size"] = draw(st.one_of(side, both))
    options["implementation"] = draw(st.sampled_from([None, "xla"]))
    return inputs, options


@hypothesis.seed(SEED)
@hypothesis.settings(settings, max_examples=60)
@hypothesis.given(data=st.data())
def test_jax_random_calls_agree(data: Any) -> None:
    inputs, options = data.draw(calls())
    query, key, _ = inputs
    cpuattn._core.set_isa(force_isa(data.draw))
    try:
        asked = options | {"return_residual": True}
        out, residual = ours.dot_product_attention(*inputs, **asked)
        alone = ours.dot_product_attention(*inputs, **options)
        theirs, wanted = jax.nn.dot_product_attention(*inputs, **asked)
        oracle = {"bias": widened(options.pop("bias")), "layout": "bshd"}
        oracle["scale"] = options.pop("scale", None)
        options.pop("implementation")
        scores = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
        oracle["mask"] = visible(scores, **options)
        lengths = options.get("query_seq_lengths")
        if lengths is not None:
            lengths = np.clip(lengths, 0, query.shape[-3]).reshape(query.shape[:-3])
            oracle["q_lengths"] = lengths
        assert_agree(out, theirs, *inputs, fully_masked="mean", **oracle)
    finally:
        cpuattn._core.set_isa(None)
    np.testing.assert_array_equal(alone, out)
    wanted = np.asarray(wanted)
    assert (residual.dtype, residual.shape) == (wanted.dtype, wanted.shape)
    if key.shape[-1]:  # JAX divides by 0 otherwise
        epsilon = float(jax.numpy.finfo(wanted.dtype).eps)
        np.testing.assert_allclose(
            residual.astype(np.float64),
            wanted.astype(np.float64),
            rtol=2 * epsilon,
            atol=8 * epsilon,
        )


def test_jax_parameters_are_the_same() -> None:
    assert_same_parameters(ours.dot_product_attention, jax.nn.dot_product_attention)


def both(*inputs: Any, **options: Any) -> tuple[Any, Any]:
    """Return our result and JAX's."""
    mine = ours.dot_product_attention(*inputs, **options)
    theirs = jax.nn.dot_product_attention(*inputs, **options)
    if options.get("return_residual"):
        return tuple(map(np.asarray, mine)), tuple(map(np.asarray, theirs))
    return np.asarray(mine), np.asarray(theirs)


def masks(*hidden_rows: int) -> Array:
    mask = np.ones((5, 9), bool)
    mask[list(hidden_rows)] = False
    return mask


def bias_with(value: float, rows: Any = slice(None), columns: Any = slice(None)) -> Any:
    bias = np.zeros((5, 9), np.float32)
    bias[rows, columns] = value
    return bias


EDGES: dict[str, dict[str, Any]] = {
    "hidden_row": {"mask": masks(2)},
    "all_hidden": {"mask": np.zeros((5, 9), bool)},
    "infinite_row": {"bias": bias_with(-np.inf, 1)},
    "infinite_and_hidden": {
        "bias": bias_with(-np.inf, 1, slice(3)),
        "mask": masks() & (np.arange(9) < 3),
    },
    "infinite_beside_hidden_row": {"bias": bias_with(-np.inf, 1), "mask": masks(2)},
    "least_row": {"bias": bias_with(float(np.finfo(np.float32).min), 1)},
    "nan_bias": {"bias": bias_with(np.nan, 1, 3)},
    "nan_bias_masked": {
        "bias": bias_with(np.nan, 1, 3),
        "mask": np.arange(9) != 3,
    },
    "no_keys_left": {"key_value_seq_lengths": [0, 3]},
    "no_rows_left": {"query_seq_lengths": [0, 3]},
    "window_of_nothing": {"local_window_size": (-2, 1)},
    "window_of_nothing_and_mask": {"local_window_size": (-2, 1), "mask": masks(1)},
    "window_past_the_end": {"local_window_size": (-7, 8)},
    "window_ahead_causal": {"local_window_size": (-1, 8), "is_causal": True},
    "nan_scale": {"scale": float("nan")},
}


@pytest.mark.parametrize("name", EDGES)
def test_jax_edge_results_agree(name: str, rng: np.random.Generator) -> None:
    options = EDGES[name] | {"return_residual": True}
    inputs = qkv(rng, layout="bshd")
    (out, residual), (theirs, wanted) = both(*inputs, **options)
    np.testing.assert_allclose(out, theirs, rtol=1e-5, atol=1e-6)
    if name != "least_row":  # the native sum of scores beyond 2.36e38 is that number
        np.testing.assert_allclose(residual, wanted, rtol=1e-5, atol=1e-6)
    if "hidden" in name or "no_keys" in name:
        assert (residual == np.float32(HIDDEN)).any()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
def test_jax_residual_of_hidden_rows_is_in_the_key_dtype(
    dtype: Any, rng: np.random.Generator
) -> None:
    inputs = (x.astype(dtype) for x in qkv(rng, layout="bshd"))
    options = {"mask": masks(0, 4), "return_residual": True}
    (_, residual), (_, wanted) = both(*inputs, **options)
    assert residual.dtype == wanted.dtype
    np.testing.assert_allclose(
        residual.astype(np.float32), wanted.astype(np.float32), rtol=2e-2
    )


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_jax_no_keys_gives_0_and_no_sum(
    is_causal: bool, rng: np.random.Generator
) -> None:
    inputs = qkv(rng, kv_len=0, layout="bshd")
    options = {"is_causal": is_causal, "return_residual": True}
    (out, residual), (theirs, wanted) = both(*inputs, **options)
    np.testing.assert_array_equal(out, theirs)
    np.testing.assert_array_equal(residual, wanted)


def test_jax_nan_in_a_hidden_key_is_ignored(rng: np.random.Generator) -> None:
    query, key, value = qkv(rng, layout="bshd")
    key[:, 4] = np.nan
    out, theirs = both(query, key, value, mask=np.arange(9) != 4)
    np.testing.assert_allclose(out, theirs, rtol=1e-5, atol=1e-6)


def test_jax_nan_in_a_hidden_value_is_ignored_where_jax_spreads_it(
    rng: np.random.Generator,
) -> None:
    query, key, value = qkv(rng, layout="bshd")
    value[:, 4] = np.nan
    out, theirs = both(query, key, value, mask=np.arange(9) != 4)
    assert np.isfinite(out).all()
    assert np.isnan(theirs).all()


@pytest.mark.usefixtures("float64")
def test_jax_float64_is_computed_in_float64(rng: np.random.Generator) -> None:
    inputs = [x.astype(np.float64) for x in qkv(rng, layout="bshd")]
    (out, residual), (theirs, wanted) = both(*inputs, return_residual=True)
    assert out.dtype == theirs.dtype == residual.dtype == wanted.dtype == np.float64
    np.testing.assert_allclose(out, theirs, rtol=1e-5, atol=1e-6)
    exact = cpuattn.reference.attention(*inputs, layout="bshd")
    assert np.abs(out - exact).max() < 1e-14 < np.abs(theirs - exact).max()


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 1, 1), (4, 3, 3), (3, 4, 3)], ids=str)
def test_jax_missing_axes_count_as_1(
    ranks: tuple[int, ...], rng: np.random.Generator
) -> None:
    inputs = [normal(rng, *(1, 3, 1, 8)[4 - rank :]) for rank in ranks]
    out, theirs = both(*inputs)
    assert out.shape == theirs.shape
    np.testing.assert_allclose(out, theirs, rtol=1e-5, atol=1e-6)
    assert both(*inputs, return_residual=True)[0][1].shape == theirs.shape[:-1]


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


Q = zeros(2, 5, 4, 8)
K = zeros(2, 9, 2, 8)
WRONG: dict[str, tuple[tuple[Array, ...], dict[str, Any]]] = {
    "rank_5": ((Q[None], K[None], K[None]), {}),
    "batch": ((Q, K[:1], K[:1]), {}),
    "value_batch": ((Q, K, K[:1]), {}),
    "value_length": ((Q, K, K[:, :3]), {}),
    "value_dim": ((Q, K, K[..., :3]), {}),
    "value_heads": ((Q, K, K[:, :, :1]), {}),
    "depth": ((Q, K[..., :3], K[..., :3]), {}),
    "groups": ((Q, zeros(2, 9, 3, 8), zeros(2, 9, 3, 8)), {}),
    "more_kv_heads": ((Q[:, :, :1], K, K), {}),
    "query_dtype": ((Q.astype(np.float16), K, K), {}),
    "value_dtype": ((Q, K, K.astype(np.float16)), {}),
    "mask_dtype": ((Q, K, K), {"mask": zeros(5, 9)}),
    "mask_dtype_int": ((Q, K, K), {"mask": zeros(5, 9, dtype=np.int32)}),
    "mask_rank": ((Q, K, K), {"mask": np.ones((1, 1, 1, 5, 9), bool)}),
    "bias_rank": ((Q, K, K), {"bias": zeros(1, 1, 1, 5, 9)}),
    "mask_length": ((Q, K, K), {"mask": np.ones((5, 8), bool)}),
    "bias_length": ((Q, K, K), {"bias": zeros(4, 9)}),
    "bias_batch": ((Q, K, K), {"bias": zeros(3, 1, 5, 9)}),
    "bias_larger_batch": ((Q[:1], K[:1], K[:1]), {"bias": zeros(3, 1, 5, 9)}),
    "mask_heads": ((Q, K, K), {"mask": np.ones((2, 5, 9), bool)}),
    "bias_heads": ((Q, K, K), {"bias": zeros(2, 5, 9)}),
    "lengths_shape": ((Q, K, K), {"query_seq_lengths": [1, 2, 3]}),
    "lengths_rank": ((Q, K, K), {"key_value_seq_lengths": 3}),
    "lengths_dtype": ((Q, K, K), {"query_seq_lengths": np.ones(2, np.int16)}),
    "lengths_float": ((Q, K, K), {"key_value_seq_lengths": np.ones(2, "f4")}),
    "window_of_3": ((Q, K, K), {"local_window_size": (1, 2, 3)}),
    "window_none": ((Q, K, K), {"local_window_size": (None, 2)}),
    "window_float": ((Q, K, K), {"local_window_size": 1.5}),
    "scale_text": ((Q, K, K), {"scale": "x"}),
    "scale_complex": ((Q, K, K), {"scale": 1j}),
    "cudnn": ((Q, K, K), {"implementation": "cudnn"}),
    "implementation": ((Q, K, K), {"implementation": "mosaic"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_jax_errors_have_the_same_class(name: str) -> None:
    inputs, options = WRONG[name]
    with pytest.raises(Exception) as theirs:
        jax.nn.dot_product_attention(*inputs, **options)
    with pytest.raises(theirs.type) as mine:
        ours.dot_product_attention(*inputs, **options)
    assert mine.type is theirs.type
    text = str(theirs.value)
    if " should be " in text or "implementation" in text:
        assert str(mine.value) == text
    else:
        assert str(mine.value)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64], ids=str)
def test_jax_dtypes_without_attention_are_refused(dtype: Any) -> None:
    x = zeros(1, 3, 1, 8, dtype=dtype)
    with pytest.raises(TypeError, match="query: dtype must be"):
        ours.dot_product_attention(x, x, x)


def test_jax_arrays_come_back_in_kind(rng: np.random.Generator) -> None:
    inputs = qkv(rng, layout="bshd")
    arrays = [jax.numpy.asarray(x) for x in inputs]
    mask = jax.numpy.asarray(masks(2))
    results = ours.dot_product_attention(*arrays, mask=mask, return_residual=True)
    assert all(isinstance(x, jax.Array) for x in results)
    plain = ours.dot_product_attention(*inputs, mask=masks(2), return_residual=True)
    for result, wanted in zip(results, plain, strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_jax_is_not_imported() -> None:
    expect_success(
        "import sys, numpy as np\n"
        "from cpuattn.compat import jax\n"
        "x = np.ones((1, 3, 1, 8), np.float32)\n"
        "jax.dot_product_attention(x, x, x, return_residual=True)\n"
        "assert 'jax' not in sys.modules"
    )
