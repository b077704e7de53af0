# SPDX-License-Identifier: MIT
"""What Flax does around attention: dtypes, and masks that enlarge the result."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _hidden_rows
from .._arrays import of_kind, promoted


def cast(dtype: Any, *arrays: Any) -> tuple[Any, ...]:
    """Give arrays the dtype asked for, or their common one. Copies other dtypes.

    Raises
    ------
    ValueError
        `dtype` is not inexact, in Flax's words.
    """
    if dtype is None:
        return promoted(*arrays)
    wanted = np.dtype(dtype)
    if wanted.kind in "biu":
        raise ValueError(f"Dtype must be inexact: {dtype}")
    arrays = tuple(a if hasattr(a, "astype") else np.asarray(a) for a in arrays)
    return tuple(as_dtype(array, wanted) for array in arrays)


def as_dtype(array: Any, dtype: Any) -> Any:
    """Return an array in a dtype. Copies those of another one."""
    return array if array.dtype == dtype else array.astype(dtype)


def attend(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, options: dict[str, Any]
) -> Any:
    """Call the native function; a bias or mask may enlarge the result.

    Returns
    -------
    out, or a tuple of out and weights if the options ask for them

    Raises
    ------
    TypeError
        A bias of the scores' rank does not broadcast, as JAX's addition says it.
    ValueError
        Shapes do not fit together otherwise.
    """
    options |= {"bias": bias, "mask": mask, "fully_masked": "mean", "layout": "bshd"}
    try:
        return _hidden_rows.attend(query, key, value, options)
    except ValueError as error:
        shape = query.shape
        scores = (*shape[:-3], shape[-2], shape[-3], key.shape[-3])
        full = _broadcast(scores, bias, mask)
        if full == scores:
            raise
        like, reason = query, error
    query, key, value = _enlarged(full, query, key, value)
    try:
        result = _hidden_rows.attend(query, key, value, options)
    except ValueError:
        raise reason from None
    if isinstance(result, tuple):
        return tuple(of_kind(array, like) for array in result)
    return of_kind(result, like)


def _broadcast(scores: tuple[int, ...], bias: Any, mask: Any) -> tuple[int, ...]:
    """Return the shape of the scores after bias and mask."""
    full = scores
    for name, array in (("bias", bias), ("mask", mask)):
        if array is None:
            continue
        try:
            full = np.broadcast_shapes(full, array.shape)
        except ValueError:
            added = name == "bias" and array.ndim == len(scores)
            kind = TypeError if added else ValueError
            raise kind(
                f"{name}: must broadcast with the scores' shape {full}; "
                f"got shape {tuple(array.shape)}"
            ) from None
    return full


def _enlarged(
    full: tuple[int, ...], query: Any, key: Any, value: Any
) -> tuple[Any, Any, Any]:
    """Repeat arrays by stride, so that their scores have the shape `full`."""
    *batch, heads, q_len, kv_len = full
    query = np.broadcast_to(query, (*batch, q_len, heads, query.shape[-1]))
    key, value = (
        np.broadcast_to(array, (*batch, kv_len, *array.shape[-2:]))
        for array in (key, value)
    )
    return query, key, value
