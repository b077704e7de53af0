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
    from collections.abc import Callable

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
    plain = _is_plain(query, key, value, enable_gqa)
    options: dict[str, Any] = {} if dropout_p == 0.0 else _dropout(dropout_p, query)
    allowed = backends.enabled.get()
    unsure = allowed is not None or (attn_mask is not None and attn_mask.ndim < 2)
    if unsure and backends.uses_math(
        allowed, query, key, value, attn_mask, dropout_p, enable_gqa
    ):
        from . import _math

        compute: Callable[..., FloatArray] = _math.attention
    elif plain:
        compute = _native
        if query.ndim == 4 and not options:
            options["out"] = _out(query, value)
    else:
        compute = _broadcast
    return compute(query, key, value, attn_mask, causal, scale, enable_gqa, options)


def _is_plain(query: Any, key: Any, value: Any, enable_gqa: bool) -> bool:
    """Check the arrays, and say whether the native function takes their shapes."""
    try:
        q, k, v = query.shape, key.shape, value.shape
        alike = query.dtype == key.dtype == value.dtype
    except AttributeError:
        _checks.inputs(query, key, value)
        raise
    axes = len(q)
    if alike and axes > 2 and k[:-2] == v[:-2]:
        if q[:-2] == k[:-2]:
            return True
        if enable_gqa and axes == len(k) and q[:-3] == k[:-3]:
            return True
    if not alike or axes < 2 or len(k) < 2 or len(v) < 2:
        _checks.inputs(query, key, value)
    return False


def _mask(
    query: Any, key: Any, value: Any, attn_mask: Any, causal: bias.Causal, strict: bool
) -> tuple[Any, bias.Causal]:
    """Return the mask that is left when a CausalBias is named, and the causality."""
    if bias.is_causal_bias(attn_mask):
        if causal:
            raise ValueError("CausalBias should not be used with causal=True")
        return bias.resolved(attn_mask, query, key, value)
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
    if (torch := _torch_of(query)) is not None:
        seed = int(torch.randint(2**63 - 1, ()))
    else:
        seed = int(np.random.randint(0, 2**63))  # noqa: NPY002
    return {"dropout_p": dropout_p, "dropout_seed": seed}


def _out(query: Any, value: Any) -> Any:
    """Return memory for the result with the axes in the order of those of query.

    None, which is C order, where torch has it too.
    """
    if isinstance(query, np.ndarray):
        if query.flags.c_contiguous:
            return None
        last, least = query.strides[-1] // query.itemsize, min(query.strides)
    else:
        torch = _torch_of(query)
        if torch is None or query.is_contiguous():
            return None
        last, least = query.stride(-1), min(query.stride())
    if last != 1 or least <= 0 or query.shape[-1] != value.shape[-1]:
        return None
    if isinstance(query, np.ndarray):
        return np.empty_like(query, subok=False)
    return torch.empty_like(query, requires_grad=False)


def _torch_of(array: Any) -> Any:
    """Return the module torch for its tensors, None for arrays of others."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else None


def _native(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    causal: bias.Causal,
    scale: float | None,
    enable_gqa: bool,
    options: dict[str, Any],
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
    options: dict[str, Any],
) -> Any:
    """Give all three a heads axis, and torch's broadcasting of it."""
    if enable_gqa:
        _checks.groups(query, key, value)
    if attn_mask is not None:
        scores = _checks.scores(query, key, value, enable_gqa)
        _checks.mask_shape(attn_mask, scores)
    matrices = query.ndim == key.ndim == value.ndim == 2
    query, key, value = (x if x.ndim > 2 else x[None] for x in (query, key, value))
    kv_heads = {key.shape[-3], value.shape[-3]}
    if enable_gqa:
        shared = math.lcm(*kv_heads)
    else:
        heads = _checks.heads(query, key, value)
        shared = kv_heads.pop() if len(kv_heads) == 1 else heads
        query = _repeated(query, heads)
    key, value = _repeated(key, shared), _repeated(value, shared)
    out = _native(query, key, value, attn_mask, causal, scale, enable_gqa, options)
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
