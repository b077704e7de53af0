# SPDX-License-Identifier: MIT
"""What the drop-ins do to arrays before the native function sees them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

# From narrow to wide. The two 16-bit ones meet in float32, as in JAX and Keras.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def is_boolean(array: Any) -> bool:
    """Whether a NumPy array or a tensor of another library is boolean."""
    return _name(getattr(array, "dtype", None)) == "bool"


def truth(mask: Any) -> Any:
    """Return a mask as booleans: True where it is not 0. Copies other dtypes."""
    if mask is None or (is_boolean(mask) and not isinstance(mask, np.generic)):
        return mask
    return np.asarray(mask).astype(np.bool_)


def additive(bias: Any) -> Any:
    """Return a bias in a floating dtype. Copies other dtypes, as float64."""
    if bias is None or _name(getattr(bias, "dtype", None)) in _FLOATS:
        return bias if not isinstance(bias, np.generic) else np.asarray(bias)
    array = np.asarray(bias)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"bias: must be real numbers; got dtype {array.dtype}")
    return array.astype(np.float64)


def promoted(*arrays: Any) -> tuple[Any, ...]:
    """Give arrays their common floating dtype, by the rules of JAX and Keras.

    Integers and booleans take the dtype of the others, float32 if all are such. Only
    arrays of another dtype are copied.

    Parameters
    ----------
    *arrays : ndarray, or tensor that NumPy can read

    Returns
    -------
    tuple of ndarray
        The same objects where they have one floating dtype already.

    Raises
    ------
    TypeError
        An array holds something else than real numbers.
    """
    first = arrays[0].dtype
    if all(array.dtype == first for array in arrays) and _name(first) in _FLOATS:
        return arrays
    arrays = tuple(np.asarray(array) for array in arrays)
    for array in arrays:
        if array.dtype.kind not in "biuf" and _name(array.dtype) not in _FLOATS:
            raise TypeError(f"arrays must hold real numbers; got dtype {array.dtype}")
    names = {name for name in _names(arrays) if name in _FLOATS} or {"float32"}
    if names == {"float16", "bfloat16"}:
        names = {"float32"}
    common = max(names, key=_FLOATS.index)
    dtype = next((a.dtype for a in arrays if _name(a.dtype) == common), common)
    return tuple(a if a.dtype == dtype else a.astype(dtype) for a in arrays)


def _names(arrays: tuple[Any, ...]) -> list[str]:
    return [_name(array.dtype) for array in arrays]


@cache
def _name(dtype: Any) -> str:
    """Name a dtype of NumPy or of torch; its own name is slow to make."""
    return str(dtype).removeprefix("torch.")
