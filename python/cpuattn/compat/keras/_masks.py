# SPDX-License-Identifier: MIT
"""The masks of a layer as options of `attention`, without a (q_len, kv_len) array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import truth


def bands(
    use_causal_mask: bool, sliding_window: int | None, q_len: int, kv_len: int
) -> dict[str, Any]:
    """Return the options of the causal mask and of the sliding window.

    Both count from the top left. The window hides key j from row i unless
    ``abs(i - j) < sliding_window``.
    """
    options: dict[str, Any] = {}
    if sliding_window is None:
        return {"causal": "top_left"} if use_causal_mask else {}
    reach = min(sliding_window, max(q_len, kv_len)) - 1 if max(q_len, kv_len) else 0
    if use_causal_mask:
        options["causal"], options["window"] = "top_left", (reach, None)
    else:
        # The right edge is a diagonal of its own, which the left one is counted from:
        # without `causal` both would count from the bottom right.
        options["causal"], options["window"] = reach, (2 * reach, None)
    return options


def visibility(
    lengths: tuple[int, int],
    attention_mask: Any,
    query_mask: Any,
    value_mask: Any,
    key_mask: Any,
    *,
    banded: bool,
) -> dict[str, Any]:
    """Return the options that hide what any of the masks hides.

    At least one is given.

    Parameters
    ----------
    lengths : tuple of int
        q_len and kv_len.
    attention_mask : array-like, broadcasts to (batch, [num_heads,] q_len, kv_len)
    query_mask : array-like, shape (batch, q_len)
    value_mask, key_mask : array-like, shape (batch, kv_len)
    banded : bool
        Whether there is a causal mask or a window as well.

    Notes
    -----
    One array goes in as the mask. Where there are more, rows and keys that a mask of
    theirs hides get segments of their own: their product is never made.
    """
    q_len, kv_len = lengths
    q_seen = None if query_mask is None else _vector(query_mask, q_len)
    kv_seen = None if value_mask is None else _vector(value_mask, kv_len)
    if key_mask is not None:
        seen = _vector(key_mask, kv_len)
        kv_seen = seen if kv_seen is None else kv_seen & seen
    if attention_mask is not None:
        alone = q_seen is None and kv_seen is None and not banded
        mask = _matrix(attention_mask, alone)
    elif kv_seen is not None:
        mask, kv_seen = kv_seen[..., None, None, :], None
    elif q_seen is not None:
        mask, q_seen = q_seen[..., None, :, None], None
    if q_seen is None and kv_seen is None:
        return {"mask": mask}
    return {
        "mask": mask,
        "q_segment_ids": _segments(q_seen, q_len, 1),
        "kv_segment_ids": _segments(kv_seen, kv_len, 2),
    }


def _vector(mask: Any, length: int) -> NDArray[np.bool_]:
    array: NDArray[np.bool_] = truth(np.asarray(mask))
    if array.shape[-1:] == (length,):
        return array
    return np.broadcast_to(array, (*array.shape[:-1], length))


def _matrix(mask: Any, alone: bool) -> NDArray[np.bool_]:
    array: NDArray[np.bool_] = truth(np.asarray(mask))
    if array.ndim < 2 and alone:
        raise np.exceptions.AxisError(
            f"attention_mask: must have at least 2 axes; got shape {array.shape}"
        )
    return array[:, None] if array.ndim == 3 else array


def _segments(
    seen: NDArray[np.bool_] | None, length: int, hidden: int
) -> NDArray[np.int32]:
    """Return 0 for what is seen: `hidden` has to differ on the two sides."""
    if seen is None:
        return np.zeros(length, np.int32)
    return np.where(seen, np.int32(0), np.int32(hidden))
