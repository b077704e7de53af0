# SPDX-License-Identifier: MIT
"""Random combinations of all options, shapes, strides and layouts, on every ISA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cpuattn
from dtypes import BFLOAT16, DTYPES
from support import (
    SEED,
    SLOWER,
    Array,
    as_tuple,
    assert_same,
    compare,
    normal,
    sees,
)

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies

# Sizes of 0 are rarer than they would be by themselves: they hide the rest.
FLOATS = [np.dtype(x) for x in ("f2", "f4", "f8", BFLOAT16)]
PRECISIONS = ["highest", "highest", "high", "medium"]

LENGTHS = st.one_of(
    st.integers(1, 20),
    st.integers(0, 20),
    st.sampled_from([31, 33, 63, 64, 65, 96, 127, 129, 200]),
)
HEAD_DIMS = st.one_of(
    st.integers(1, 20), st.integers(0, 20), st.sampled_from([31, 40, 64, 65, 80])
)


@st.composite
def strided(draw: Any, array: Array) -> Array:
    """Return the same values with other strides."""
    kind = draw(st.sampled_from(["as_is", "order", "flip", "gaps", "unaligned"]))
    if array.ndim == 0 or kind == "as_is":
        return array
    if kind == "order":
        axes = draw(st.permutations(range(array.ndim)))
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
    if kind == "flip":
        axes = tuple(draw(st.sets(st.integers(0, array.ndim - 1))))
        return np.flip(np.ascontiguousarray(np.flip(array, axes)), axes)
    if kind == "gaps":
        steps = [draw(st.integers(1, 2)) for _ in array.shape]
        shape = [n * step for n, step in zip(array.shape, steps, strict=True)]
        wide = np.zeros(shape, array.dtype)
        view = wide[tuple(slice(None, None, step) for step in steps)]
    else:
        raw = np.zeros(array.nbytes + 1, np.uint8)
        view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@st.composite
def broadcast(draw: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape that broadcasts to `shape`: axes of 1, leading axes left out."""
    ones = [draw(st.booleans()) for _ in shape]
    reduced = tuple(1 if one else n for n, one in zip(shape, ones, strict=True))
    return reduced[draw(st.integers(0, len(shape))) :]


@st.composite
def problems(draw: Any) -> tuple[tuple[Array, Array, Array], dict[str, Any]]:
    """Draw inputs and options of one valid call."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = tuple(draw(st.lists(st.sampled_from([1, 2, 2, 3, 3, 3, 0]), max_size=2)))
    kv_heads = draw(st.sampled_from([1, 1, 1, 2, 2, 2, 3, 3, 0]))
    group = draw(st.integers(1, 4))
    heads = kv_heads * group
    q_len, kv_len = draw(LENGTHS), draw(LENGTHS)
    head_dim, head_dim_v = draw(HEAD_DIMS), draw(HEAD_DIMS)
    layout = draw(st.sampled_from(["bhsd", "bshd"]))
    scores = (*batch, heads, q_len, kv_len)
    dtypes = draw(st.sampled_from(list(DTYPES.values())))
    floats = st.sampled_from(FLOATS)

    inputs = []
    whole = draw(st.integers(0, 2))  # the one whose batch shape is not reduced
    tails = ((heads, q_len, head_dim), (kv_heads, kv_len, head_dim))
    for n, tail in enumerate((*tails, (kv_heads, kv_len, head_dim_v))):
        lead = batch if n == whole else draw(broadcast(batch))
        dtype = dtypes.cache if n else dtypes.query
        array = normal(rng, *lead, *tail, dtype=dtype)
        if layout == "bshd":
            array = np.ascontiguousarray(array.swapaxes(-2, -3))
        inputs.append(draw(strided(array)))

    def any_of(name: str) -> bool:
        return bool(draw(st.booleans(), label=name))

    options: dict[str, Any] = {"layout": layout}
    options["precision"] = draw(st.sampled_from(PRECISIONS))
    if any_of("mask"):
        density = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
        mask = np.asarray(rng.random(draw(broadcast(scores))) < density)
        options["mask"] = draw(strided(mask))
    if any_of("bias"):
        shape = draw(broadcast(scores))
        bias = np.asarray(normal(rng, *shape, dtype=draw(floats)))
        if any_of("holes"):
            bias = np.where(rng.random(shape) < 0.3, bias.dtype.type(-np.inf), bias)
        options["bias"] = draw(strided(np.asarray(bias)))
    causal = draw(st.sampled_from([False, True, "top_left", "int", "array"]))
    if causal == "int":
        causal = draw(st.integers(-5, kv_len + 5))
    elif causal == "array":
        causal = np.asarray(rng.integers(-5, kv_len + 5, draw(broadcast(batch))))
    options["causal"] = causal
    if any_of("window"):
        side = st.sampled_from([None, -1, 0, 1, 3, 17, 10**6])
        options["window"] = (draw(side), draw(side))
    if any_of("scale"):
        options["scale"] = draw(st.sampled_from([0.0, -0.3, 0.05, 0.7]))
    if any_of("softcap"):
        options["softcap"] = draw(st.sampled_from([0.3, 2.0, 30.0]))
    if any_of("alibi_slopes"):
        shape = (*draw(broadcast(batch)), heads)
        slopes = (rng.random(shape) / 4).astype(draw(floats))
        options["alibi_slopes"] = draw(strided(slopes))
    if any_of("sinks"):
        options["sinks"] = draw(strided(normal(rng, heads, dtype=draw(floats))))
    integers = draw(st.sampled_from([np.int32, np.int64]))
    for name, length in (("q_lengths", q_len), ("kv_lengths", kv_len)):
        if any_of(name):
            drawn = rng.integers(0, length + 1, draw(broadcast(batch)))
            options[name] = np.asarray(drawn, integers)
    if any_of("segments"):
        for name, length in (("q_segment_ids", q_len), ("kv_segment_ids", kv_len)):
            shape = (*draw(broadcast(batch)), length)
            options[name] = draw(strided(rng.integers(0, 3, shape).astype(integers)))
    if any_of("dropout"):
        options["dropout_p"] = draw(st.sampled_from([1e-9, 0.2, 0.5, 0.95, 1.0]))
        options["dropout_seed"] = draw(st.integers(0, 2**64 - 1))
        axes = st.sets(st.sampled_from(["batch", "heads", "q_len", "kv_len"]))
        options["dropout_broadcast"] = tuple(draw(axes))
        generator = st.sampled_from(["philox", "threefry"])
        options["dropout_generator"] = draw(generator)
    if any_of("dropout_mask"):
        keep = np.asarray(rng.random(draw(broadcast(scores))) < 0.7)
        options["dropout_mask"] = draw(strided(keep))
    options["fully_masked"] = draw(st.sampled_from(["zero", "mean", "nan"]))
    options["return_lse"] = any_of("return_lse")
    options["return_weights"] = draw(
        st.sampled_from([False, True, "before_dropout", "after_dropout"])
    )
    if any_of("num_threads"):
        options["num_threads"] = draw(st.integers(1, 4))
    if any_of("out"):
        tail = (q_len, heads) if layout == "bshd" else (heads, q_len)
        out = np.full((*batch, *tail, head_dim_v), -7, dtypes.query)
        options["out"] = draw(strided(out))
    return tuple(inputs), options


def poisoned(
    inputs: tuple[Array, Array, Array], options: dict[str, Any]
) -> tuple[Array, Array, Array]:
    """Return the same inputs with NaN in the key and value rows that no row sees."""
    query, key, value = inputs
    asked = {name: x for name, x in options.items() if name != "num_threads"}
    seen = sees(query, key, value, **asked)
    head_axis = -2 if options["layout"] == "bshd" else -3
    kv_heads = key.shape[head_axis]
    grouped = seen.reshape(*seen.shape[:-3], kv_heads, -1, seen.shape[-1])
    hidden = ~grouped.any(-2)
    if options["layout"] == "bshd":
        hidden = hidden.swapaxes(-1, -2)
    if options["fully_masked"] == "mean":
        return inputs
    batch = seen.shape[:-3]
    key, value = (
        np.where(hidden[..., None], x.dtype.type(np.nan), x) for x in (key, value)
    )
    assert key.shape[: len(batch)] == batch
    return query, key, value


def every_isa() -> Iterator[str]:
    """Force one ISA after the other, and note it for the report of a failure."""
    for name in cpuattn.available_isas():
        hypothesis.note(f"ISA: {name}")
        cpuattn._core.set_isa(name)
        try:
            yield name
        finally:
            cpuattn._core.set_isa(None)


@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=500 // SLOWER,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(problem=problems())
def test_random_combination_matches_oracle_on_every_isa(
    problem: tuple[tuple[Array, Array, Array], dict[str, Any]],
) -> None:
    inputs, options = problem
    for _ in every_isa():
        returned = compare(*inputs, **options)
        if "out" in options:
            assert returned[0] is options["out"]


@hypothesis.seed(SEED + 1)
@hypothesis.settings(
    max_examples=250 // SLOWER,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(problem=problems())
def test_random_combination_ignores_unseen_keys_and_threads_on_every_isa(
    problem: tuple[tuple[Array, Array, Array], dict[str, Any]],
) -> None:
    inputs, options = problem
    options.pop("out", None)
    hypothesis.assume(all(x.size > 0 for x in inputs))
    dirty = poisoned(inputs, options)
    clean = tuple(np.where(np.isnan(x), x.dtype.type(0), x) for x in dirty)
    for _ in every_isa():
        expected = as_tuple(cpuattn.attention(*clean, **options | {"num_threads": 1}))
        ours = as_tuple(cpuattn.attention(*dirty, **options | {"num_threads": 3}))
        for mine, other in zip(ours, expected, strict=True):
            assert_same(mine, other)
