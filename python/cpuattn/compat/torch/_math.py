# SPDX-License-Identifier: MIT
"""Torch's MATH backend in plain NumPy: every score in memory, no native code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..._draws import kept_weights
from ..._interop import capsule, in_kind
from .._arrays import dtype_name, is_boolean
from . import _checks


@np.errstate(all="ignore")
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    causal: Any,
    scale: float | None,
    enable_gqa: bool,
    dropout: dict[str, Any],
) -> Any:
    """Return what torch's MATH backend computes, in the dtype of query.

    float16 and bfloat16 are computed in float32. NaN reaches every row that it has a
    score or a weight in, masked or not. `dropout` holds dropout_p and dropout_seed.
    """
    if (error := _checks.not_floating(query)) is not None:
        raise error
    if enable_gqa:
        _checks.groups(query, key, value)
    shape = _checks.scores(query, key, value, enable_gqa)
    if attn_mask is not None:
        _checks.mask_shape(attn_mask, shape)
    dtype = np.float64 if dtype_name(query.dtype) == "float64" else np.float32
    arrays = {"query": query, "key": key, "value": value}
    q, k, v = (_numpy(name, array).astype(dtype) for name, array in arrays.items())
    if enable_gqa:
        k, v = (x.repeat(shape[-3] // max(x.shape[-3], 1), -3) for x in (k, v))

    factor = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    root = dtype(math.sqrt(abs(factor)))  # of both, so that neither overflows
    score = (q * np.copysign(root, dtype(factor))) @ (k * root).swapaxes(-1, -2)
    if attn_mask is not None:
        mask = _numpy("attn_mask", attn_mask)
        hidden = np.where(mask, dtype(0), dtype(-np.inf)) if is_boolean(mask) else mask
        score += hidden.astype(dtype)
    if causal:
        offset = shape[-1] - shape[-2] if causal == "bottom_right" else 0
        visible = np.tri(shape[-2], shape[-1], offset, dtype=np.bool_)
        score += np.where(visible, dtype(0), dtype(-np.inf))
    weights = _softmax(score)
    if dropout:
        weights *= _dropout(weights.shape, **dropout)
    return _in_kind(weights @ v, query)


def _softmax(score: Any) -> Any:
    """Return the weights of each row: 0 where every score is -inf."""
    top = score.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(score - np.where(top == -np.inf, 0, top))
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    return weights


def _dropout(shape: tuple[int, ...], dropout_p: float, dropout_seed: int) -> Any:
    """Return the factors of the weights: 0 or 1 / (1 - dropout_p)."""
    if dropout_p == 1:
        return 0
    lead = (math.prod(shape[:-3]), math.prod(shape[-3:-2]))
    draws = (*lead, *shape[-2:])
    kept = kept_weights(draws, dropout_p, dropout_seed, (), "philox").reshape(shape)
    return np.where(kept, 1 / (1 - dropout_p), 0).astype(np.float32)


def _numpy(name: str, array: Any) -> Any:
    """Return an array or a tensor for NumPy, which does not know torch's bfloat16."""
    if isinstance(array, np.ndarray):
        return array
    capsule(name, array)  # refuses what the native function refuses
    array = array.detach() if hasattr(array, "detach") else array
    is_torch_bfloat16 = str(array.dtype) == "torch.bfloat16"
    return np.asarray(array.float() if is_torch_bfloat16 else array)


def _in_kind(result: Any, query: Any) -> Any:
    """Return a result in the dtype and the library of query."""
    if isinstance(query, np.ndarray):
        return result.astype(query.dtype, copy=False)
    result = in_kind(result, query)
    convert = result.to if hasattr(result, "detach") else result.astype
    return convert(query.dtype)
