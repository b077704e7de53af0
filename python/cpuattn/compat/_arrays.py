# SPDX-License-Identifier: MIT
"""What the drop-ins do to arrays before the native function sees them."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np

from .._interop import in_kind

# From narrow to wide. The two 16-bit ones meet in float32, as in JAX and Keras.
FLOATS = ("float16", "bfloat16", "float32", "float64")


def is_boolean(array: Any) -> bool:
    """Whether a NumPy array or a tensor of another library is boolean."""
    return dtype_name(getattr(array, "dtype", None)) == "bool"


def is_native(dtype: Any) -> bool:
    """Whether attention computes in this dtype of NumPy or of another library."""
    return dtype_name(dtype) in FLOATS


def truth(mask: Any) -> Any:
    """Return a mask as booleans: True where it is not 0. Copies other dtypes."""
    if mask is None or (is_boolean(mask) and not isinstance(mask, np.generic)):
        return mask
    return np.asarray(mask).astype(np.bool_)


def additive(bias: Any) -> Any:
    """Return a bias as floating numbers. Copies integers and booleans."""
    if bias is None or dtype_name(getattr(bias, "dtype", None)) in FLOATS:
        return bias
    bias = np.asarray(bias)
    return bias.astype(np.float64) if bias.dtype.kind in "biu" else bias


def promoted(*arrays: Any) -> tuple[Any, ...]:
    """Give arrays their common floating dtype, by the rules of JAX and Keras.

    Integers and booleans are float32 where nothing else is. Only arrays of another
    dtype are copied. Where one has a dtype that attention does not have, all stay.

    Parameters
    ----------
    *arrays : ndarray, or tensor that NumPy can read

    Returns
    -------
    tuple of ndarray
        The same objects where they have one floating dtype already.
    """
    first = arrays[0].dtype
    if all(array.dtype == first for array in arrays) and dtype_name(first) in FLOATS:
        return arrays
    arrays = tuple(a if hasattr(a, "astype") else np.asarray(a) for a in arrays)
    names = {dtype_name(a.dtype) for a in arrays if a.dtype.kind not in "biu"}
    if not names <= {*FLOATS}:
        return arrays
    if not names or names == {"float16", "bfloat16"}:
        names = {"float32"}
    common = max(names, key=FLOATS.index)
    dtype = next((a.dtype for a in arrays if dtype_name(a.dtype) == common), common)
    return tuple(a if a.dtype == dtype else a.astype(dtype) for a in arrays)


def of_kind(array: Any, like: Any) -> Any:
    """Hand a NumPy array to the library that `like` comes from."""
    jax = sys.modules.get("jax.numpy")
    if jax is not None and isinstance(like, jax.ndarray):
        return jax.asarray(array)  # DLPack of NumPy has no bfloat16
    return array if isinstance(like, np.ndarray) else in_kind(array, like)


@cache
def dtype_name(dtype: Any) -> str:
    """Name a dtype of NumPy or of torch; its own name is slow to make."""
    return str(dtype).removeprefix("torch.")
