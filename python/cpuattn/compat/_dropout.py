# SPDX-License-Identifier: MIT
"""Dropout of rows that hide every key, where hidden scores are finite numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._core import attention
from ._arrays import of_kind

_OF_SCORES = ("bias", "causal", "scale")


def attend(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Any:
    """Call the native function; draws count for rows that hide every key too.

    With ``fully_masked="mean"`` the native function gives such a row the mean of the
    keys that stand in, whatever dropout says. Where a softmax made the mean, dropout
    applies to it: a second call, in which the hidden keys have equal scores, gives
    these rows.

    Parameters
    ----------
    query, key, value, options
        As in `cpuattn.attention`, without `return_lse`; causal may be "top_left".

    Returns
    -------
    ndarray or tuple of ndarray
        As `cpuattn.attention`.
    """
    if "dropout_p" not in options:
        return attention(query, key, value, **options)
    out, lse, *weights = attention(query, key, value, **options, return_lse=True)
    empty = np.isneginf(np.asarray(lse))
    if empty.any():
        out, *weights = _dropped_rows(query, key, value, options, empty, out, *weights)
    return (out, *weights) if weights else out


def _dropped_rows(
    query: Any, key: Any, value: Any, options: dict[str, Any], empty: Any, *first: Any
) -> tuple[Any, ...]:
    """Replace the rows that see nothing by a mean that dropout applies to.

    Parameters
    ----------
    query, key, value, options
        As in `attend`.
    empty : ndarray, shape (..., num_heads, q_len), bool
        These rows.
    *first
        out, and weights if there are any.
    """
    is_bshd = options.get("layout") == "bshd"
    kv_len = key.shape[-3 if is_bshd else -2]
    mask, causal = options.get("mask"), options.get("causal")
    if not kv_len or (mask is None and not causal):
        return first
    visible = np.True_ if mask is None else np.asarray(mask)
    if causal:
        visible = visible & np.tri(empty.shape[-1], kv_len, dtype=bool)
    kept = {name: x for name, x in options.items() if name not in _OF_SCORES}
    kept |= {"mask": ~visible, "fully_masked": "nan"}
    again = attention(query[..., :0], key[..., :0], value, **kept)
    rows = empty.swapaxes(-1, -2) if is_bshd else empty
    if len(first) == 1:
        return (_chosen(rows, again, first[0]),)
    out, weights = first
    if options["return_weights"] == "after_dropout":
        weights = _chosen(empty, again[1], weights)
    return _chosen(rows, again[0], out), weights


def _chosen(rows: Any, first: Any, second: Any) -> Any:
    """Take some rows of the first array, the others of the second."""
    return of_kind(np.where(rows[..., None], first, second), second)
