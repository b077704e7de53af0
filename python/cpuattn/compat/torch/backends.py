# SPDX-License-Identifier: MIT
"""``torch.nn.attention``: which of the two implementations computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any
from warnings import warn

import numpy as np

from .._arrays import FLOATS, dtype_name


class SDPBackend(Enum):
    """Name an implementation of attention, as ``torch.nn.attention.SDPBackend``.

    FLASH_ATTENTION is the native function, MATH plain NumPy that holds all scores. As
    with torch on a CPU, the others cannot run. The values are those of torch.

    Examples
    --------
    >>> from cpuattn.compat.torch import SDPBackend
    >>> SDPBackend.FLASH_ATTENTION, int(SDPBackend.MATH)
    (<SDPBackend.FLASH_ATTENTION: 1>, 0)
    """

    ERROR = -1
    MATH = 0
    FLASH_ATTENTION = 1
    EFFICIENT_ATTENTION = 2
    CUDNN_ATTENTION = 3
    OVERRIDEABLE = 4

    def __index__(self) -> int:
        return int(self.value)

    __int__ = __index__


_RUNNABLE = frozenset((SDPBackend.MATH, SDPBackend.FLASH_ATTENTION))

# None: both may run, and the native function does.
enabled: ContextVar[frozenset[SDPBackend] | None] = ContextVar(
    "cpuattn.compat.torch.sdpa_kernel", default=None
)


@contextmanager
def sdpa_kernel(
    backends: list[SDPBackend] | SDPBackend, set_priority: bool = False
) -> Iterator[dict[str, Any]]:
    """Choose what computes attention, as ``torch.nn.attention.sdpa_kernel``.

    Parameters
    ----------
    backends : SDPBackend or list of SDPBackend
        Those that may run, of this module or of torch. An inner choice replaces an
        outer one. The native function runs wherever FLASH_ATTENTION is among them.
    set_priority : bool
        Does nothing, as in torch on a CPU: FLASH_ATTENTION comes before MATH.

    Yields
    ------
    dict
        Empty.

    Raises
    ------
    AssertionError
        `backends` is neither an SDPBackend nor a list.

    Notes
    -----
    Works as a context manager and as a decorator. In its scope
    `scaled_dot_product_attention` raises RuntimeError if no backend given can run here,
    and, if FLASH_ATTENTION may run without MATH, for what torch's own fused kernel does
    not take (dropout, other than 4 axes, a head_dim of value unlike that of query, a
    last axis that is not contiguous, broadcasting of batch and heads), with the reason
    as UserWarning.

    Differences from torch: other threads and asyncio tasks are not affected.

    References
    ----------
    PyTorch 2.13, ``torch.nn.attention.sdpa_kernel``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.torch import (
    ...     SDPBackend, scaled_dot_product_attention, sdpa_kernel)
    >>> x = np.ones((1, 2, 4, 8), np.float32)
    >>> with sdpa_kernel(SDPBackend.MATH):
    ...     scaled_dot_product_attention(x, x, x, is_causal=True).shape
    (1, 2, 4, 8)
    """
    known = _backend(backends)
    if known is None and not isinstance(backends, list):
        raise AssertionError(
            "Backend must be an instance of SDPBackend or a list of SDPBackend "
            f"instances, got {type(backends).__name__}"
        )
    chosen = map(_backend, set(backends)) if isinstance(backends, list) else (known,)
    token = enabled.set(_RUNNABLE.intersection(chosen))
    try:
        yield {}
    finally:
        enabled.reset(token)


def _backend(value: Any) -> SDPBackend | None:
    """Return a backend of this module or of torch as one of this module."""
    if isinstance(value, SDPBackend):
        return value
    if type(value).__name__ in ("SDPBackend", "_SDPBackend"):
        return SDPBackend(int(value))
    return None


def uses_math(
    allowed: frozenset[SDPBackend] | None,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: float,
    enable_gqa: bool,
) -> bool:
    """Whether MATH computes a call, where `allowed` may run; raise if none may."""
    if 0 in value.shape or query.shape[-2] == 0:  # torch answers before it chooses
        return allowed == frozenset((SDPBackend.MATH,))
    allowed = _RUNNABLE if allowed is None else allowed
    if not allowed:
        raise RuntimeError(
            "No viable backend for scaled_dot_product_attention was found. This is "
            "likely due to turning off both the math kernel and the fused kernels."
        )
    if SDPBackend.FLASH_ATTENTION not in allowed:
        return True
    reason = _refusal(query, key, value, attn_mask, dropout_p, enable_gqa)
    if reason is not None and SDPBackend.MATH not in allowed:
        warn(f"Flash attention kernel not used because: {reason}", stacklevel=3)
        raise RuntimeError(f"No available kernel.  Aborting execution. {reason}")
    return False


def _refusal(
    query: Any, key: Any, value: Any, attn_mask: Any, dropout_p: float, enable_gqa: bool
) -> str | None:
    """Return why the fused kernel of torch would not take a call, if it would not.

    It raises IndexError, as torch does, for a mask of less than 2 axes.
    """
    arrays = {"query": query, "key": key, "value": value}
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if dropout_p > 0:
        return f"dropout_p: must be 0; got {dropout_p}"
    for name, shape in shapes.items():
        if len(shape) != 4:
            return f"{name}: must have 4 axes; got shape {shape}"
    batch, heads, q_len, head_dim = shapes["query"]
    kv_heads, kv_len = shapes["key"][1:3]
    if not enable_gqa or kv_heads == 0 or heads % kv_heads != 0:
        kv_heads = heads
    for name in ("key", "value"):
        if shapes[name][:2] != (batch, kv_heads):
            return (
                f"{name}: must have batch and heads {(batch, kv_heads)}; "
                f"got shape {shapes[name]}"
            )
    if attn_mask is not None:
        reason = _mask_refusal(tuple(attn_mask.shape), (batch, heads, q_len, kv_len))
        if reason is not None:
            return reason
    for name, shape in shapes.items():
        if shape[-1] != head_dim:
            return f"{name}: last axis must be that of query {head_dim}; got {shape}"
    for name, array in arrays.items():
        if not _is_contiguous_in_rows(array):
            return f"{name}: last axis must be contiguous; got other strides"
    name = dtype_name(query.dtype)
    if name not in FLOATS:
        return f"query: dtype must be a floating one; got {name}"
    return None


def _mask_refusal(shape: tuple[int, ...], scores: tuple[int, ...]) -> str | None:
    if len(shape) < 2:
        raise IndexError(f"attn_mask: must have at least 2 axes; got shape {shape}")
    sizes = zip(shape[::-1], scores[::-1], strict=False)
    if len(shape) in (2, 4) and all(n in (1, size) for n, size in sizes):
        return None
    return f"attn_mask: must have 2 or 4 axes that broadcast to {scores}; got {shape}"


def _is_contiguous_in_rows(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return array.strides[-1] == array.itemsize
    return not hasattr(array, "stride") or array.stride(-1) == 1
