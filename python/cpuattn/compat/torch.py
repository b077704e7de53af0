# SPDX-License-Identifier: MIT
"""``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import attention
from ._arrays import is_boolean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[Any]  # NumPy has no type for bfloat16


def scaled_dot_product_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    attn_mask: NDArray[Any] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> FloatArray:
    """Compute attention as ``torch.nn.functional.scaled_dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (..., num_heads, q_len, head_dim)
        float32, float16, bfloat16 or float64; at least 2 axes. Leading axes, the heads
        included, broadcast as in torch.
    key : ndarray, shape (..., num_heads, kv_len, head_dim), dtype of query
        With `enable_gqa` its number of heads may be a divisor of num_heads.
    value : ndarray, shape (..., num_heads, kv_len, head_dim_v), dtype of key
        Same number of heads as `key`, or one that broadcasts.
    attn_mask : ndarray, bool or any dtype of query, optional
        True = attend, or values added to the scores. Broadcasts to
        (..., num_heads, q_len, kv_len).
    dropout_p : float
        Applied whenever it is greater than 0, whatever the mode, as torch does. The
        seed comes from NumPy's global generator (`numpy.random.seed`).
    is_causal : bool
        Top-left causal mask: row i sees keys j <= i. Combines with `attn_mask`.
    scale : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default.
    enable_gqa : bool
        Let query head h read key head h // (num_heads / num_key_heads).

    Returns
    -------
    ndarray, shape (..., num_heads, q_len, head_dim_v), dtype of query
        A row with no visible key is 0.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        Shapes do not fit together.

    Notes
    -----
    Differences from torch: a mask together with `is_causal` always works (AND); a
    masked key reaches nothing even if it holds NaN; NaN in live data is never lost;
    lengths of key and value must agree; a float mask may have another dtype than the
    query, and a float32 query a float16 or bfloat16 key and value; errors are
    ValueError or TypeError where torch raises RuntimeError.

    References
    ----------
    PyTorch 2.13, ``torch.nn.functional.scaled_dot_product_attention``.

    Examples
    --------
    >>> import numpy as np, cpuattn
    >>> x = np.ones((2, 4, 8), np.float32)
    >>> cpuattn.scaled_dot_product_attention(x, x, x, is_causal=True).shape
    (2, 4, 8)
    """
    matrices = query.ndim == key.ndim == value.ndim == 2
    if not (2 < query.ndim == key.ndim == value.ndim) or not (
        query.shape[-3] == key.shape[-3] == value.shape[-3]
    ):
        query, key, value = _align_heads(query, key, value, enable_gqa)
    options: dict[str, Any] = {}
    if attn_mask is not None:
        options["mask" if is_boolean(attn_mask) else "bias"] = attn_mask
    if dropout_p != 0.0:
        options["dropout_p"] = dropout_p
        options["dropout_seed"] = int(np.random.randint(0, 2**63))  # noqa: NPY002
    if is_causal:
        options["causal"] = "top_left"
    out: FloatArray = attention(query, key, value, scale=scale, **options)
    return out[0] if matrices else out


def _align_heads(
    query: Any, key: Any, value: Any, enable_gqa: bool
) -> tuple[Any, Any, Any]:
    """Give all three a heads axis, and torch's broadcasting of it."""
    arrays = {"query": query, "key": key, "value": value}
    for name, array in arrays.items():
        if array.ndim < 2:
            raise ValueError(
                f"{name}: must have at least 2 axes; got shape {tuple(array.shape)}"
            )
    query, key, value = (
        array[None] if array.ndim == 2 else array for array in arrays.values()
    )
    if enable_gqa:
        return query, key, value
    sizes = {array.shape[-3] for array in (query, key, value)} - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"key: number of heads must equal that of query {query.shape[-3]} or be 1, "
            "unless enable_gqa=True groups them; "
            f"got {key.shape[-3]} (key shape {tuple(key.shape)})"
        )
    heads = sizes.pop() if sizes else 1
    kv_heads = max(key.shape[-3], value.shape[-3])
    return (
        _with_heads(query, heads),
        _with_heads(key, kv_heads),
        _with_heads(value, kv_heads),
    )


def _with_heads(array: Any, heads: int) -> Any:
    """Repeat a single head by stride, without a copy."""
    if array.shape[-3] == heads:
        return array
    shape = (*array.shape[:-3], heads, *array.shape[-2:])
    if isinstance(array, np.ndarray):
        return np.broadcast_to(array, shape)
    return array.broadcast_to(shape)
