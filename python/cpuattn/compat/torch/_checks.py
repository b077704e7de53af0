# SPDX-License-Identifier: MIT
"""The rules of torch for the arguments, and its exception types."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import FLOATS, dtype_name

_NUMBERS = (int, float, np.integer, np.floating, np.bool_)


def real(name: str, number: Any) -> float:
    """Return a number, or an array of one number without axes, as a float."""
    shape = getattr(number, "shape", None)
    item = number.item() if shape == () else number
    if not isinstance(item, _NUMBERS):
        raise TypeError(f"{name}: must be a real number; got {type(number).__name__}")
    return float(item)


def boolean(name: str, flag: Any) -> bool:
    """Return a bool of Python or NumPy as one of Python."""
    if not isinstance(flag, bool | np.bool_):
        raise TypeError(f"{name}: must be a bool; got {type(flag).__name__}")
    return bool(flag)


def inputs(
    query: Any, key: Any, value: Any, error: type[Exception] = RuntimeError
) -> None:
    """Check that query, key and value are arrays of one dtype and enough axes."""
    arrays = {"query": query, "key": key, "value": value}
    for name, array in arrays.items():
        is_array(name, array)
    for name, array in arrays.items():
        if array.ndim < 2:
            raise error(
                f"{name}: must have at least 2 axes; got shape {tuple(array.shape)}"
            )
        if dtype_name(array.dtype) != dtype_name(query.dtype):
            raise error(
                f"{name}: dtype must be that of query {dtype_name(query.dtype)}; "
                f"got {dtype_name(array.dtype)}"
            )


def is_array(name: str, array: Any) -> None:
    """Check that an argument is an array or a tensor."""
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise TypeError(
            f"{name}: must be a NumPy array or a CPU tensor; got {type(array).__name__}"
        )


def mask_dtype(attn_mask: Any, query: Any) -> None:
    """Check that a mask is boolean, float32 or of the dtype of query."""
    try:
        name, other = dtype_name(attn_mask.dtype), dtype_name(query.dtype)
    except AttributeError:
        is_array("query", query)
        is_array("attn_mask", attn_mask)
        raise
    if name not in ("bool", "float32", other):
        raise RuntimeError(
            f"attn_mask: dtype must be bool, float32 or that of query {other}; "
            f"got {name}"
        )


def scores(query: Any, key: Any, value: Any, enable_gqa: bool) -> tuple[int, ...]:
    """Check that three shapes fit together, and return that of the scores."""
    if query.shape[-1] != key.shape[-1]:
        raise RuntimeError(
            f"key: head_dim must equal query head_dim {query.shape[-1]}; "
            f"got {key.shape[-1]} (key shape {tuple(key.shape)})"
        )
    if key.shape[-2] != value.shape[-2]:
        raise RuntimeError(
            f"value: length must equal key length {key.shape[-2]}; "
            f"got {value.shape[-2]} (value shape {tuple(value.shape)})"
        )
    heads = query.shape[-3:-2] if enable_gqa else None
    shapes = [tuple(query.shape[:-2])]
    for name, array in (("key", key), ("value", value)):
        lead = tuple(array.shape[:-2])
        shapes.append(lead if heads is None else (*lead[:-1], *heads))
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise RuntimeError(
                f"{name}: leading axes must broadcast with those of query and key "
                f"{np.broadcast_shapes(*shapes[:-1])}; got shape {tuple(array.shape)}"
            ) from None
    lead = np.broadcast_shapes(*shapes[:2])
    return (*lead, query.shape[-2], key.shape[-2])


def mask_shape(attn_mask: Any, shape: tuple[int, ...]) -> None:
    """Check that a mask broadcasts to the shape of the scores."""
    found = tuple(attn_mask.shape)
    try:
        fits = np.broadcast_shapes(found, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise RuntimeError(
            f"attn_mask: must broadcast to {shape}, the scores of query and key; "
            f"got shape {found}"
        )


def heads(query: Any, key: Any, value: Any) -> int:
    """Check that numbers of heads are equal or 1, and return what they come to."""
    owner, common = "query", query.shape[-3]
    for name, array in (("key", key), ("value", value)):
        found = array.shape[-3]
        if common == 1:
            owner, common = name, found
        if found not in (1, common):
            raise RuntimeError(
                f"{name}: number of heads must equal that of {owner} {common} or be 1, "
                "unless enable_gqa=True groups them; "
                f"got {found} ({name} shape {tuple(array.shape)})"
            )
    return int(common)


def groups(query: Any, key: Any, value: Any) -> None:
    """Check that heads of key and value can be shared by groups of query heads."""
    arrays = {"query": query, "key": key, "value": value}
    for name, array in arrays.items():
        if array.ndim < 3:
            raise IndexError(
                f"{name}: must have a heads axis with enable_gqa=True; "
                f"got shape {tuple(array.shape)}"
            )
    heads = query.shape[-3]
    for name, array in arrays.items():
        if array.shape[-3] != heads and (
            array.shape[-3] == 0 or heads % array.shape[-3] != 0
        ):
            raise RuntimeError(
                f"{name}: number of heads must divide that of query {heads}; "
                f"got {array.shape[-3]} ({name} shape {tuple(array.shape)})"
            )


def as_torch(error: Exception, query: Any) -> Exception:
    """Translate an error of the native function to the type that torch raises."""
    text = str(error)
    for native in ("mask:", "bias:"):
        if text.startswith(native):
            text = "attn_mask:" + text.removeprefix(native)
    if isinstance(error, ValueError):
        return RuntimeError(text)
    unsupported = not_floating(query)
    return TypeError(text) if unsupported is None else unsupported


def not_floating(query: Any) -> Exception | None:
    """Return the error of torch for a dtype that attention is not computed in."""
    name = dtype_name(getattr(query, "dtype", None))
    if name in FLOATS:
        return None
    known = not name.startswith(("complex", "float8"))
    return (RuntimeError if known else NotImplementedError)(
        f"query: dtype must be float16, bfloat16, float32 or float64; got {name}"
    )
