# SPDX-License-Identifier: MIT
"""What the tests against JAX and Flax share: problems, and the comparison."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

import cpuattn
from cpuattn import reference
from dtypes import BFLOAT16
from support import Array, as_tuple, check, naive_results, normal, rounding_scales
from test_random_combinations import broadcast, strided

FLOATS = [np.dtype(name) for name in ("f4", "f4", "f2", BFLOAT16)]

# XLA compiles for every new shape: shrinking an example would take minutes.
settings = hypothesis.settings(
    phases=[hypothesis.Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture
def float64() -> Iterator[None]:
    """Let JAX keep float64."""
    jax = pytest.importorskip("jax", reason="jax is not installed")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def assert_same_parameters(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    """Assert equal names, order, kinds and defaults, functions and dtypes aside."""
    rows = [
        [(p.name, p.kind, plain(p.default)) for p in signature.parameters.values()]
        for signature in (inspect.signature(ours), inspect.signature(theirs))
    ]
    assert rows[0] == rows[1]


def plain(default: Any) -> Any:
    """Name a default that is a function or a dtype: each library has its own."""
    return getattr(default, "__name__", default)


def assert_agree(
    ours: Any, theirs: Any, *inputs: Array, result: int = 0, **options: Any
) -> None:
    """Assert that ours is what theirs is, and no further from the oracle.

    Parameters
    ----------
    ours, theirs
        Results of one call. `result` is its place among what `attention` returns.
    *inputs, **options
        Arrays of one problem and the options of `cpuattn.reference.attention`.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    scale = rounding_scales(*inputs, **options)["weights" if result else "out"]
    known = {k: x for k, x in options.items() if not k.startswith("dropout")}
    products = cpuattn.explain(*inputs, **known)["products"]
    if "dropout_mask" in options:
        options = filled(options, inputs)
    exact = as_tuple(reference.attention(*inputs, **options))[result]
    epsilon = max(float(ml_dtypes.finfo(x.dtype).eps) for x in (*inputs, theirs))
    factor = 1 / (1 - options.get("dropout_p", 0.0))
    size = np.abs(np.nan_to_num(exact)).max(initial=factor)
    near(theirs, exact, 32 * epsilon * size)
    naive = naive_results(*inputs, count=8, products=products, **options)
    several = [x[result].astype(ours.dtype) for x in naive]
    check(ours, exact, [theirs, *several], scale)


def filled(options: dict[str, Any], inputs: tuple[Array, ...]) -> dict[str, Any]:
    """Hide keys by a finite score, as JAX does, so that dropout applies to the mean."""
    q_len, kv_len = inputs[0].shape[-3], inputs[1].shape[-3]
    mask, bias = options.pop("mask"), options.pop("bias")
    visible = np.ones((q_len, kv_len), bool) if mask is None else mask
    if options.pop("causal", False):
        visible = visible & np.tri(q_len, kv_len, dtype=bool)
    bias = 0.0 if bias is None else bias.astype(np.float64)
    return options | {"bias": np.where(visible, bias, -1e30)}


def near(theirs: Array, exact: Array, coarse: float) -> None:
    """Assert that the oracle computes what the peer does, up to `coarse`."""
    wide = theirs.astype(exact.dtype)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(exact))
    error = np.abs(np.nan_to_num(wide) - np.nan_to_num(exact)).max(initial=0.0)
    assert error <= coarse


def force_isa(draw: Any) -> str:
    """Draw an ISA for one example."""
    return str(draw(st.sampled_from(cpuattn.available_isas()), label="isa"))


# Few sizes, so that XLA compiles few programs.
LENGTHS = st.sampled_from([1, 5, 17, 17, 33, 33, 64, 0])
HEAD_DIMS = st.sampled_from([1, 8, 8, 13, 13, 0])


@st.composite
def problems(
    draw: Any,
    batches: list[tuple[int, ...]],
    *,
    groups: tuple[int, ...] = (1,),
    any_value_dim: bool = True,
    mixed: bool = True,
) -> dict[str, Any]:
    """Draw query, key, value, bias and mask of one call, batch first, heads third."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.sampled_from(batches))
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from(groups))
    q_len, kv_len, head_dim = draw(LENGTHS), draw(LENGTHS), draw(HEAD_DIMS)
    head_dim_v = draw(HEAD_DIMS) if any_value_dim else head_dim
    dtype = draw(st.sampled_from(FLOATS))
    dtypes = [
        draw(st.sampled_from([dtype, dtype, *FLOATS])) if mixed else dtype
        for _ in range(3)
    ]
    tails = ((q_len, heads, head_dim), (kv_len, kv_heads, head_dim))
    tails = (*tails, (kv_len, kv_heads, head_dim_v))
    inputs = [
        draw(strided(normal(rng, *batch, *tail, dtype=x)))
        for tail, x in zip(tails, dtypes, strict=True)
    ]
    scores = (*batch, heads, q_len, kv_len)
    bias = mask = None
    if draw(st.booleans(), label="bias"):
        bias = np.asarray(normal(rng, *draw(broadcast(scores))))
        if draw(st.booleans(), label="holes"):
            bias = np.where(rng.random(bias.shape) < 0.3, np.float32(-np.inf), bias)
        kind = draw(st.sampled_from([*FLOATS, np.dtype("i4"), np.dtype("?")]))
        with np.errstate(invalid="ignore"):
            bias = draw(strided(np.asarray(bias).astype(kind)))
    if draw(st.booleans(), label="mask"):
        density = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
        mask = np.asarray(rng.random(draw(broadcast(scores))) < density)
        mask = draw(strided(mask))
    return {"inputs": inputs, "bias": bias, "mask": mask, "rng": rng}


def widened(bias: Any) -> Any:
    """Return a bias of a dtype that the oracle's comparison has."""
    if bias is None or bias.dtype.kind not in "biu":
        return bias
    return bias.astype(np.float64)


def assert_alike(mine: Any, theirs: Any) -> None:
    """Assert equal dtypes, shapes and nearly equal numbers, NaN included."""
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
    close = 1e-5 if mine.dtype.itemsize > 2 else 0.05
    wide = [x.astype(np.float64) for x in (mine, theirs)]
    np.testing.assert_allclose(*wide, rtol=close, atol=close)
