# SPDX-License-Identifier: MIT
"""``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._core import attention
from .._arrays import is_boolean
from . import _checks, backends, bias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[Any]  # NumPy has no type for bfloat16


def scaled_dot_product_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    strict: bool = False,
) -> FloatArray:
    """Compute attention as ``torch.nn.functional.scaled_dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (..., num_heads, q_len, head_dim)
        float32, float16, bfloat16 or float64; at least 2 axes. Leading axes, the heads
        included, broadcast as in torch.
    key : ndarray, shape (..., num_heads, kv_len, head_dim), dtype of query
        With `enable_gqa` its number of heads may be a divisor of num_heads.
    value : ndarray, shape (..., num_heads, kv_len, head_dim_v), dtype of query
        With `enable_gqa` its number of heads may be a divisor of num_heads, and another
        one than that of `key` (copies the one with fewer heads).
    attn_mask : ndarray, bool, float32 or dtype of query, or CausalBias, optional
        True = attend, or values added to the scores. Broadcasts to
        (..., num_heads, q_len, kv_len), the leading axes being those of query and key.
    dropout_p : float
        From 0 to 1, applied whenever it is greater than 0, whatever the mode, as torch
        does. The seed comes from the global generator of the library that query
        belongs to: `numpy.random.seed` or ``torch.manual_seed``.
    is_causal : bool
        Top-left causal mask: row i sees keys j <= i. Combines with `attn_mask`.
    scale : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default.
    enable_gqa : bool
        Let query head h read key head h // (num_heads / num_key_heads).
    strict : bool
        Refuse a mask together with `is_causal`, as the documentation of torch says.

    Returns
    -------
    ndarray, shape (..., num_heads, q_len, head_dim_v), dtype of query
        A row with no visible key is 0. In memory the axes have the order of those of
        query where torch's fused kernel would keep it (4 axes, head_dim_v equal to
        head_dim, no dropout), so that heads can be joined without a copy.

    Raises
    ------
    TypeError
        An argument has the wrong type; a tensor is not on the CPU or requires grad.
    RuntimeError
        Dtypes or shapes do not fit together; `dropout_p` is not between 0 and 1; a mask
        meets `is_causal` with `strict`; no backend that `sdpa_kernel` allows can run
        (NotImplementedError, a RuntimeError: the dtype is complex or float8).
    IndexError
        `enable_gqa` without a heads axis; a mask of less than 2 axes where torch would
        use its fused kernel.
    ValueError
        A CausalBias meets `is_causal`.

    Notes
    -----
    Differences from torch:

    - A mask together with `is_causal` works everywhere (AND), not on one path only.
    - A masked key reaches nothing even if it or its value holds NaN, and NaN in live
      data or `scale` is never lost.
    - Key and value must have one length: torch reads beyond a value that is too short
      or too long for its key. Sizes of 0 do not switch the checks off.
    - A negative or NaN `dropout_p` is always an error, not on one path only, and
      dropout draws other numbers.
    - Nothing of size (q_len, kv_len) is ever made, unless
      ``sdpa_kernel(SDPBackend.MATH)`` asks for it; it computes as torch does then, NaN
      of masked keys included.
    - NumPy arrays are taken, and there is no gradient.

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
    if not (scale is None or type(scale) is float):
        scale = _checks.real("scale", scale)
    if type(dropout_p) is not float:
        dropout_p = _checks.real("dropout_p", dropout_p)
    if type(is_causal) is not bool or type(enable_gqa) is not bool:
        is_causal = _checks.boolean("is_causal", is_causal)
        enable_gqa = _checks.boolean("enable_gqa", enable_gqa)
    causal: bias.Causal = "top_left" if is_causal else False
    if attn_mask is not None:
        attn_mask, causal = _mask(query, key, value, attn_mask, causal, strict)
    try:
        plain = (
            query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
            and query.ndim > 2
            and query.dtype == key.dtype == value.dtype
        )
    except AttributeError:
        plain = False
    if not plain:
        _checks.inputs(query, key, value)

    options: dict[str, Any] = {} if dropout_p == 0.0 else _dropout(dropout_p, query)
    allowed = backends.enabled.get()
    unsure = allowed is not None or (attn_mask is not None and attn_mask.ndim < 2)
    if unsure and backends.uses_math(
        allowed, query, key, value, attn_mask, dropout_p, enable_gqa
    ):
        from ._math import attention as compute
    else:
        compute = _native if plain else _broadcast
        if plain and not options and query.ndim == 4:
            options["out"] = _out(query, value)
    out: FloatArray = compute(
        query, key, value, attn_mask, causal, scale, enable_gqa, **options
    )
    return out


def _mask(
    query: Any, key: Any, value: Any, attn_mask: Any, causal: bias.Causal, strict: bool
) -> tuple[Any, bias.Causal]:
    """Return the mask that is left when a CausalBias is named, and the causality."""
    if bias.is_causal_bias(attn_mask):
        if causal:
            raise ValueError("CausalBias should not be used with causal=True")
        return bias.resolved(attn_mask, query, key, value)
    _checks.is_array("query", query)
    _checks.mask_dtype(attn_mask, query)
    if causal and strict:
        raise RuntimeError(
            "_scaled_dot_product_attention: Explicit attn_mask should not be set when "
            "is_causal=True"
        )
    return attn_mask, causal


def _dropout(dropout_p: float, query: Any) -> dict[str, Any]:
    """Return the options of dropout, and a seed of the library of query."""
    if not 0 < dropout_p <= 1:
        raise RuntimeError(f"dropout_p: must be between 0 and 1; got {dropout_p}")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(query, torch.Tensor):
        seed = int(torch.randint(2**63 - 1, ()))
    else:
        seed = int(np.random.randint(0, 2**63))  # noqa: NPY002
    return {"dropout_p": dropout_p, "dropout_seed": seed}


def _out(query: Any, value: Any) -> Any:
    """Return memory for the result with the axes in the order of those of query.

    None, which is C order, where torch has it too.
    """
    if query.shape[-1] != value.shape[-1]:
        return None
    if isinstance(query, np.ndarray):
        if query.flags.c_contiguous or query.strides[-1] != query.itemsize:
            return None
        overlapping = min(query.strides) <= 0
        return None if overlapping else np.empty_like(query, subok=False)
    if not hasattr(query, "is_contiguous") or query.is_contiguous():
        return None
    if query.stride(-1) != 1 or 0 in query.stride():
        return None
    return sys.modules["torch"].empty_like(query, requires_grad=False)


def _native(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    causal: bias.Causal,
    scale: float | None,
    enable_gqa: bool,
    **options: Any,
) -> Any:
    """Call the native function, and raise what torch raises."""
    if attn_mask is not None:
        options["mask" if is_boolean(attn_mask) else "bias"] = attn_mask
    try:
        return attention(query, key, value, causal=causal, scale=scale, **options)
    except (TypeError, ValueError) as error:
        raise _checks.as_torch(error, query) from None


def _broadcast(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    causal: bias.Causal,
    scale: float | None,
    enable_gqa: bool,
    **options: Any,
) -> Any:
    """Give all three a heads axis, and torch's broadcasting of it."""
    if enable_gqa:
        _checks.groups(query, key, value)
    if attn_mask is not None:
        scores = _checks.scores(query, key, value, enable_gqa)
        _checks.mask_shape(attn_mask, scores)
    matrices = query.ndim == key.ndim == value.ndim == 2
    query, key, value = (x if x.ndim > 2 else x[None] for x in (query, key, value))
    heads, *kv_heads = (x.shape[-3] for x in (query, key, value))
    if enable_gqa:
        shared = math.lcm(*kv_heads)
    else:
        _checks.heads(query, key, value)
        shared = max(kv_heads)
        query = _repeated(query, max(heads, shared))
    key, value = _repeated(key, shared), _repeated(value, shared)
    out = _native(query, key, value, attn_mask, causal, scale, enable_gqa, **options)
    return out[0] if matrices else out


def _repeated(array: Any, heads: int) -> Any:
    """Repeat heads; a single one by stride, without a copy."""
    found = array.shape[-3]
    if found == heads:
        return array
    if found == 1:
        shape = (*array.shape[:-3], heads, *array.shape[-2:])
        if hasattr(array, "broadcast_to"):
            return array.broadcast_to(shape)
        return np.broadcast_to(np.asarray(array), shape)
    if hasattr(array, "repeat_interleave"):
        return array.repeat_interleave(heads // found, -3)
    return array.repeat(heads // found, -3)
