# SPDX-License-Identifier: MIT
"""Rows that see nothing, where a hidden score is a finite number, not -inf."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._core import attention
from ._arrays import of_kind

_OF_SCORES = ("bias", "causal", "scale")


def attend(
    query: Any, key: Any, value: Any, options: dict[str, Any], adds: bool = False
) -> Any:
    """Call the native function; rows that see nothing are a softmax of hidden scores.

    With ``fully_masked="mean"`` the native function gives such a row the mean of the
    hidden keys, whatever dropout says. Where a softmax makes the mean, dropout applies
    to it, and a hidden key whose bias is -inf has no part in it if the two are added. A
    second call, in which the hidden keys have equal scores, gives these rows.

    Parameters
    ----------
    query, key, value, options
        As in `cpuattn.attention`, without `return_lse`; causal may be "top_left".
    adds : bool
        Whether hiding a key adds to its score. Otherwise it replaces the score.

    Returns
    -------
    ndarray or tuple of ndarray
        As `cpuattn.attention`.
    """
    adds = adds and "bias" in options and "causal" in options
    if not (adds or "dropout_p" in options):
        return attention(query, key, value, **options)
    out, lse, *weights = attention(query, key, value, **options, return_lse=True)
    empty = np.isneginf(np.asarray(lse))
    if empty.any():
        kept = {name: x for name, x in options.items() if name not in _OF_SCORES}
        if adds:
            infinite = np.isneginf(np.asarray(options["bias"]))
            kept["bias"] = np.where(infinite, np.float32(-np.inf), np.float32(0))
        hidden = _hidden(options, empty.shape[-1], key)
        if hidden is not None:
            kept |= {"mask": hidden, "fully_masked": "nan"}
            again = attention(query[..., :0], key[..., :0], value, **kept)
            is_bshd = options.get("layout") == "bshd"
            return _replaced(empty, again, (out, *weights), kept, is_bshd)
    return (out, *weights) if weights else out


def _hidden(options: dict[str, Any], q_len: int, key: Any) -> Any:
    """Return which keys mask and causal hide, or None if there are none at all."""
    kv_len = key.shape[-3 if options.get("layout") == "bshd" else -2]
    mask, causal = options.get("mask"), options.get("causal")
    if not kv_len or (mask is None and not causal):
        return None
    visible = np.True_ if mask is None else np.asarray(mask)
    if causal:
        visible = visible & np.tri(q_len, kv_len, dtype=bool)
    return ~visible


def _replaced(
    empty: Any, again: Any, first: Any, options: dict[str, Any], is_bshd: bool
) -> Any:
    """Take the rows that see nothing, (..., num_heads, q_len), from the second call."""
    rows = empty.swapaxes(-1, -2) if is_bshd else empty
    if len(first) == 1:
        return _chosen(rows, again, first[0])
    out, weights = first
    if options["return_weights"] == "after_dropout":
        weights = _chosen(empty, again[1], weights)
    return _chosen(rows, again[0], out), weights


def _chosen(rows: Any, first: Any, second: Any) -> Any:
    """Take some rows of the first array, the others of the second."""
    return of_kind(np.where(rows[..., None], first, second), second)
