# SPDX-License-Identifier: MIT
"""``keras.ops.dot_product_attention``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._core import attention
from .._arrays import promoted, truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[Any]  # NumPy has no type for bfloat16


def dot_product_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    bias: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    flash_attention: bool | None = None,
    attn_logits_soft_cap: float | None = None,
) -> FloatArray:
    """Compute attention as ``keras.ops.dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (batch, q_len, num_heads, head_dim)
        Queries; float32, float16, bfloat16 or float64.
    key : ndarray, shape (batch, kv_len, num_kv_heads, head_dim), dtype of query
        Keys; num_kv_heads divides num_heads.
    value : ndarray, shape (batch, kv_len, num_kv_heads, head_dim_v), dtype of key
        Values.
    bias : ndarray, any dtype of query, optional
        Added to the scores; broadcasts to (batch, num_heads, q_len, kv_len).
    mask : ndarray, optional
        True or non-zero = attend; broadcasts like bias. Copied if it is not boolean.
    scale : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default.
    is_causal : bool
        Top-left causal mask, combined with `mask` by AND.
    flash_attention : bool, optional
        Accepted for compatibility: every value runs the same fused kernel.
    attn_logits_soft_cap : float, optional
        Scores become cap * tanh(score / cap).

    Returns
    -------
    ndarray, shape (batch, q_len, num_heads, head_dim_v), dtype of query
        A row with no visible key is the mean of all value rows, as in Keras.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        An array is not 4-D or shapes do not fit together.

    Notes
    -----
    Differences from Keras: grouped queries work for every number of key heads; bias
    and mask work together under every backend's name; a masked key reaches nothing
    even if its value row holds NaN; a row whose bias is -inf everywhere counts as a
    row with no visible key; kv_len 0 gives 0; `attn_logits_soft_cap` works; float64 is
    computed in float64; query, key and value are not promoted to a common dtype, only
    a float32 query may have a float16 or bfloat16 key and value.

    References
    ----------
    Keras 3.15, ``keras.ops.dot_product_attention``.

    Examples
    --------
    >>> import numpy as np, cpuattn
    >>> query = np.ones((2, 8, 4, 16), np.float32)
    >>> key = np.ones((2, 8, 2, 16), np.float32)
    >>> cpuattn.dot_product_attention(query, key, key).shape
    (2, 8, 4, 16)
    """
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        raise ValueError(
            "`dot_product_attention` only supports 4D inputs. Received: "
            f"query.shape={query.shape}, key.shape={key.shape}, "
            f"value.shape={value.shape}."
        )
    query, key, value = promoted(query, key, value)
    return attention(  # type: ignore[no-any-return]
        query,
        key,
        value,
        layout="bshd",
        mask=truth(mask),
        bias=bias,
        causal="top_left" if is_causal else False,
        scale=scale,
        softcap=attn_logits_soft_cap,
        fully_masked="mean",
    )
