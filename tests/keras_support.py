# SPDX-License-Identifier: MIT
"""What the tests of the Keras layer share. Import it after KERAS_BACKEND is set."""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes
import numpy as np

from cpuattn import reference
from cpuattn.compat.keras import GroupQueryAttention
from support import Array, assert_within, normal

THEIRS = keras.layers.GroupQueryAttention
HEADS = {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2}
POLICIES = ["float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]


def as_dtype(array: Array, dtype: str) -> Array:
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def pair(rng: np.random.Generator, *features: int, **config: Any) -> tuple[Any, Any]:
    """Return our layer and Keras's, built for the features, with the same weights."""
    ours, theirs = GroupQueryAttention(**config), THEIRS(**config)
    for built in (ours, theirs):
        built.build(*((None, None, n) for n in features))
    ours.set_weights([normal(rng, *w.shape) / 2 for w in theirs.weights])
    theirs.set_weights(ours.get_weights())
    return ours, theirs


def inputs(
    rng: np.random.Generator, batch: int = 2, q_len: int = 5, kv_len: int = 7
) -> list[Array]:
    """Return query, value and key of 6, 5 and 4 features."""
    return [
        normal(rng, batch, length, n)
        for length, n in ((q_len, 6), (kv_len, 5), (kv_len, 4))
    ]


def visible(
    ours: Any, q_len: int, kv_len: int, options: dict[str, Any]
) -> Array | None:
    """Return all masks of a call as one of 4 axes."""
    row, column = np.arange(q_len)[:, None], np.arange(kv_len)
    masks = []
    if options.get("use_causal_mask"):
        masks.append(column <= row)
    if ours.sliding_window is not None:
        masks.append(abs(row - column) < ours.sliding_window)
    for name, axis in (("query", -1), ("value", -2), ("key", -2)):
        if (mask := options.get(f"{name}_mask")) is not None:
            masks.append(np.expand_dims(mask, (1, axis)).astype(bool))
    if (mask := options.get("attention_mask")) is not None:
        masks.append((mask[:, None] if mask.ndim == 3 else mask).astype(bool))
    together: Any = True
    for mask in masks:
        together = together & mask
    return together if masks else None


def exact(
    ours: Any, query: Array, value: Array, key: Array, options: dict[str, Any]
) -> tuple[Array, Array, float]:
    """Return output and scores in float64, and the scale of the sums of the output."""

    def wide(array: Array) -> Array:
        return as_dtype(array, ours.compute_dtype).astype(np.float64)

    weights = {w.path.split("/", 1)[1]: wide(w.value) for w in ours.weights}

    def project(name: str, equation: str, x: Array) -> Array:
        bias = weights.get(f"{name}/bias", 0.0)
        return np.asarray(np.einsum(equation, x, weights[f"{name}/kernel"]) + bias)

    query, value, key = wide(query), wide(value), wide(key)
    drops: dict[str, Any] = {}
    if ours.dropout and options.get("training"):
        shape = (len(query), ours.num_query_heads, query.shape[1], value.shape[1])
        draws = np.random.default_rng(np.array([ours.seed, 0], np.uint32))
        drops["dropout_p"] = ours.dropout
        drops["dropout_mask"] = draws.uniform(size=shape) < 1 - ours.dropout
    scored = bool(options.get("return_attention_scores"))
    heads, scores = reference.attention(
        project("query", "btm,muh->btuh", query),
        project("key", "bsm,mvh->bsvh", key),
        project("value", "bsm,mvh->bsvh", value),
        layout="bshd",
        mask=visible(ours, query.shape[1], value.shape[1], options),
        fully_masked="zero" if scored or ours.dropout else "mean",
        return_weights=True,
        dtype=np.float64,
        **drops,
    )
    if ours.use_gate:
        heads = heads / (1 + np.exp(-project("gate", "btm,muh->btuh", query)))
    out = project("attention_output", "btuh,uhm->btm", heads)
    kernel = abs(weights["attention_output/kernel"])
    scale = np.einsum("btuh,uhm->btm", abs(heads), kernel).max(initial=1.0)
    return out, scores, float(scale)


def agree(ours: Any, theirs: Any, arrays: list[Array], **options: Any) -> Any:
    """Assert that ours has Keras's shapes and dtypes, and at most twice its error."""
    query, value, *key = arrays
    mine = ours(query, value, *key, **options)
    other = theirs(query, value, *key, **options)
    assert isinstance(mine, tuple) == isinstance(other, tuple)
    *results, scale = exact(ours, query, value, key[0] if key else value, options)
    pairs = zip(
        *((x if isinstance(x, tuple) else (x,)) for x in (mine, other)),
        results,
        strict=False,
    )
    epsilon = float(
        ml_dtypes.finfo(as_dtype(np.zeros(()), ours.compute_dtype).dtype).eps
    )
    for x, y, oracle in pairs:
        assert x.shape == y.shape
        if ours.compute_dtype != "float64":  # Keras returns float32
            assert x.dtype == y.dtype
        error = np.abs(np.asarray(y, np.float64) - oracle).max(initial=0.0)
        if ours.compute_dtype == "float64":
            error = 0.0
        # The same sums in another order are a few roundings apart.
        assert_within(x, oracle, 2 * error + 4 * epsilon * scale)
    return mine
