# SPDX-License-Identifier: MIT
"""What the ONNX operator `Attention` shows of its scores, where asked for."""

from __future__ import annotations

from typing import Any

import numpy as np


def padded(weights: Any, total_len: int) -> Any:
    """Add the weights of the keys beyond a short mask, which are 0."""
    missing = total_len - weights.shape[-1]
    return np.pad(weights, [(0, 0)] * 3 + [(0, missing)]) if missing else weights


def scores(query: Any, key: Any, options: dict[str, Any], mode: int, width: int) -> Any:
    """Return the scores of mode 0, 1 or 2; only `width` keys meet the mask.

    Grouped heads are rows of one product: (batch, kv_heads, group * q_len, kv_len).
    """
    dtype = np.float64 if query.dtype == np.float64 else np.float32
    batch, heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    rows = heads // max(kv_heads, 1) * q_len
    grouped = query.astype(dtype, copy=False).reshape(batch, kv_heads, rows, head_dim)
    product = grouped @ key.astype(dtype, copy=False).swapaxes(2, 3)
    product = product.reshape(batch, heads, q_len, kv_len)
    product *= options.get("scale", max(head_dim, 1) ** -0.5)
    if mode > 0 and "softcap" in options:
        softcap = options["softcap"]
        product = np.tanh(product / softcap) * softcap
    if mode == 2:
        _hide(product, options, width)
    with np.errstate(over="ignore"):
        return product.astype(query.dtype, copy=False)


def _hide(scores: Any, options: dict[str, Any], width: int) -> None:
    """Add the bias to the scores, and set those of hidden keys to -inf."""
    masked = scores[..., :width]
    mask = options.get("mask")
    if "bias" in options:
        bias = options["bias"]
        masked += bias
        mask = bias != -np.inf
    if mask is not None:
        np.copyto(masked, -np.inf, where=~mask)
    columns = np.arange(scores.shape[3])
    hidden = columns >= width
    if "causal" in options:
        diagonal = np.reshape(options["causal"], (-1, 1, 1, 1))
        diagonal = diagonal + np.arange(scores.shape[2])[:, None]
        hidden = hidden | (columns > diagonal)
        if "window" in options:
            hidden |= columns < diagonal - options["window"][0]
    if "kv_lengths" in options:
        hidden = hidden | (columns >= np.reshape(options["kv_lengths"], (-1, 1, 1, 1)))
    np.copyto(scores, -np.inf, where=hidden)
