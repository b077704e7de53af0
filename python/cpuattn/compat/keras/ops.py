# SPDX-License-Identifier: MIT
"""``keras.ops.dot_product_attention``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._core import attention
from .._arrays import additive, promoted, truth

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
        Queries; float32, float16, bfloat16 or float64. Of several dtypes, the arrays
        are copied to the common one by Keras's rules.
    key : ndarray, shape (batch, kv_len, num_kv_heads, head_dim)
        Keys; num_kv_heads divides num_heads, and batch may be 1.
    value : ndarray, shape (batch, kv_len, num_kv_heads, head_dim_v)
        Values.
    bias : ndarray, optional
        Added to the scores; broadcasts to (batch, num_heads, q_len, kv_len). Copied if
        it is not floating.
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
    ndarray, shape (batch, q_len, num_heads, head_dim_v), common dtype
        A row with no visible key is the mean of all value rows. Where a bias of -inf
        hides what no mask does, the mean is that of the masked keys, NaN if there are
        none.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        An array is not 4-D, shapes do not fit together, or `scale` is a string.

    Notes
    -----
    Differences from Keras's NumPy backend: grouped queries work for every number of key
    heads; a masked key reaches nothing even if its value row holds NaN, and never wins
    over one with a bias below -2.4e38; kv_len 0 gives 0, head_dim 0 equal weights;
    `flash_attention` and `attn_logits_soft_cap` work; float64 is computed and returned
    in float64; integers alone are computed in float32; mask and bias may not enlarge
    the batch, and value has the heads of key; complex arrays are an error.

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
    try:
        return attention(  # type: ignore[no-any-return]
            query,
            key,
            value,
            layout="bshd",
            mask=truth(mask),
            bias=additive(bias),
            causal="top_left" if is_causal else False,
            scale=scale,
            softcap=attn_logits_soft_cap,
            fully_masked="mean",
        )
    except TypeError:
        if isinstance(scale, str):
            raise ValueError(f"scale: must be a real number; got {scale!r}") from None
        raise
