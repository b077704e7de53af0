# SPDX-License-Identifier: MIT
"""``mlx.core.fast.scaled_dot_product_attention``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import attention
from ._arrays import dtype_name, is_boolean, promoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[Any]  # NumPy has no type for bfloat16

__all__ = ["scaled_dot_product_attention"]

# The wider ones that each floating dtype promotes to.
_WIDER = {
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
    "float64": (),
}


def scaled_dot_product_attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    *,
    scale: float,
    mask: str | NDArray[Any] | None = None,
    sinks: NDArray[Any] | None = None,
    force_fused: bool = False,
    stream: Any = None,
) -> FloatArray:
    """Compute attention as ``mlx.core.fast.scaled_dot_product_attention``.

    Parameters
    ----------
    q : ndarray, shape (batch, num_heads, q_len, head_dim)
        float32, float16, bfloat16 or float64.
    k : ndarray, shape (batch, num_kv_heads, kv_len, head_dim)
        num_kv_heads divides num_heads. q, k and v are promoted to their common dtype,
        which copies those of another one.
    v : ndarray, shape (batch, num_kv_heads, kv_len, head_dim_v)
        Values.
    scale : float
        Factor of the scores.
    mask : "causal" or ndarray, optional
        "causal": row i sees keys j <= i + kv_len - q_len. bool: True = attend. Other
        numbers are added to the scores; integers are copied. Broadcasts to
        (batch, num_heads, q_len, kv_len).
    sinks : ndarray, shape (num_heads,), optional
        Scores that join the denominator of the softmax.
    force_fused : bool
        Accepted for compatibility: every call runs the fused kernel.
    stream : optional
        Accepted for compatibility: calls run at once, on the CPU.

    Returns
    -------
    ndarray, shape (batch, num_heads, q_len, head_dim_v), common dtype of q, k and v
        A row that sees no key, by a boolean or the causal mask, is the mean of all
        value rows; one whose added mask is -inf everywhere is NaN; with `sinks` both
        are 0.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    ValueError
        An array has the wrong shape or dtype, or `mask` is another string.

    Notes
    -----
    Differences from MLX: 16-bit inputs are computed in float32; a masked value row
    reaches nothing even if it holds NaN; a key whose score is -inf by itself counts as
    hidden; `force_fused` is no error on the CPU; lengths of k and v that differ are an
    error at once; num_kv_heads 0 gives an empty array (MLX ends the process).

    References
    ----------
    MLX 0.32, ``mlx.core.fast.scaled_dot_product_attention``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.mlx import scaled_dot_product_attention
    >>> q, k = np.ones((1, 4, 3, 8), np.float32), np.ones((1, 2, 5, 8), np.float32)
    >>> scaled_dot_product_attention(q, k, k, scale=8**-0.5, mask="causal").shape
    (1, 4, 3, 8)
    """
    if not q.ndim == k.ndim == v.ndim == 4:
        raise _shape_error("q, k and v must have 4 axes", q, k, v)
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise _shape_error("q, k and v must have the same batch", q, k, v)
    if scale is None:
        raise TypeError("scale: must be a real number; got NoneType")
    if not (q.dtype == k.dtype == v.dtype and dtype_name(q.dtype) in _WIDER):
        q, k, v = _common(q, k, v)
    options: dict[str, Any] = {}
    if mask is not None:
        options = _mask_options(mask, q.dtype)
    if sinks is not None:
        if tuple(sinks.shape) != (q.shape[1],):
            raise ValueError(
                f"sinks: must have shape (num_heads,) = ({q.shape[1]},); "
                f"got {tuple(sinks.shape)}"
            )
        options["sinks"] = _added("sinks", sinks, q.dtype)
    return attention(  # type: ignore[no-any-return]
        q, k, v, scale=scale, fully_masked="mean", **options
    )


def _shape_error(rule: str, q: Any, k: Any, v: Any) -> ValueError:
    shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
    return ValueError(f"q: {rule}; got shapes {shapes}")


def _mask_options(mask: Any, dtype: Any) -> dict[str, Any]:
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f"mask: must be 'causal' or an array; got {mask!r}")
        return {"causal": "bottom_right"}
    if not hasattr(mask, "ndim"):
        raise TypeError(
            f"mask: must be 'causal' or an array; got {type(mask).__name__}"
        )
    if is_boolean(mask):
        return {"mask": mask}
    return {"bias": _added("mask", mask, dtype)}


def _added(name: str, array: Any, dtype: Any) -> Any:
    """Return what is added to scores, which must not be wider than they are.

    Integers become numbers of that dtype, beyond float16 infinite ones.
    """
    if array.dtype == dtype or dtype_name(dtype) in _WIDER.get(
        dtype_name(array.dtype), ()
    ):
        return array
    if array.dtype.kind in "iub":
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    raise ValueError(
        f"{name}: dtype must promote to the output's, {dtype}; got {array.dtype}"
    )


def _common(*arrays: Any) -> tuple[Any, ...]:
    """Promote to the common floating dtype; integers take that of the others."""
    floats = [x for x in arrays if dtype_name(x.dtype) in _WIDER]
    integers = [x for x in arrays if getattr(x.dtype, "kind", "") in ("i", "u", "b")]
    if not floats or len(floats) + len(integers) < len(arrays):
        dtypes = ", ".join(str(x.dtype) for x in arrays)
        raise ValueError(
            "q: q, k and v must promote to float16, bfloat16, float32 or float64; "
            f"got {dtypes}"
        )
    dtype = promoted(*(x[:0] for x in floats))[0].dtype
    return tuple(x.astype(dtype, copy=False) for x in arrays)
