# SPDX-License-Identifier: MIT
"""``torch.nn.attention.bias``: causal masks that are named instead of stored."""

from __future__ import annotations

import operator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal
from warnings import warn

import numpy as np

from . import _checks

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    Causal = Literal[False, "top_left", "bottom_right"]


class CausalVariant(IntEnum):
    """Name the corner of the scores where the diagonal of a causal mask is.

    Examples
    --------
    >>> from cpuattn.compat.torch import CausalVariant
    >>> [variant.name for variant in CausalVariant]
    ['UPPER_LEFT', 'LOWER_RIGHT']
    """

    UPPER_LEFT = 1  # row i sees keys j <= i
    LOWER_RIGHT = 2  # row i sees keys j <= i + seq_len_kv - seq_len_q


class CausalBias:
    """Stand for a causal mask as `attn_mask`, without its memory.

    Parameters
    ----------
    variant : CausalVariant
        The corner of the diagonal.
    seq_len_q, seq_len_kv : int
        Numbers of rows and keys. As in torch they matter for LOWER_RIGHT alone, and
        only where they differ.

    Raises
    ------
    AssertionError
        `variant` is not a CausalVariant.
    TypeError
        A length is not an integer.
    RuntimeError
        A length is negative.

    Warns
    -----
    UserWarning
        LOWER_RIGHT with more rows than keys: the first rows see no key.

    Notes
    -----
    Differences from torch: rows that see no key come out as 0, which torch gives too
    but warns that they are NaN; this is no tensor and has no shape, but NumPy reads it
    as the boolean mask.

    References
    ----------
    PyTorch 2.13, ``torch.nn.attention.bias.CausalBias``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.torch import causal_lower_right
    >>> np.asarray(causal_lower_right(2, 3)).astype(int)
    array([[1, 1, 0],
           [1, 1, 1]])
    """

    def __init__(self, variant: CausalVariant, seq_len_q: int, seq_len_kv: int) -> None:
        if not isinstance(variant, CausalVariant):
            raise AssertionError(
                f"variant must be a CausalVariant, got {type(variant).__name__}"
            )
        self.variant = variant
        self.seq_len_q = _length("seq_len_q", seq_len_q)
        self.seq_len_kv = _length("seq_len_kv", seq_len_kv)
        unseeing = self.seq_len_q - self.seq_len_kv
        if unseeing > 0 and variant is CausalVariant.LOWER_RIGHT:
            warn(
                f"lower right causal bias: the first {unseeing} of {self.seq_len_q} "
                "rows see no key, their output is 0",
                stacklevel=2,
            )

    def _materialize(self, device: Any = None) -> NDArray[np.bool_]:
        """Return the mask, True = attend: bool, shape (seq_len_q, seq_len_kv)."""
        return materialized(self)

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        """Return the mask for NumPy."""
        if copy is False:
            raise ValueError("copy: must not be False, the mask is not stored")
        return materialized(self).astype(np.bool_ if dtype is None else dtype)

    def __repr__(self) -> str:
        return (
            f"CausalBias({self.variant!s}, seq_len_q={self.seq_len_q}, "
            f"seq_len_kv={self.seq_len_kv})"
        )


def causal_upper_left(*size: int) -> CausalBias:
    """Return the causal mask whose diagonal starts in the upper left corner.

    Parameters
    ----------
    *size : int
        seq_len_q and seq_len_kv.

    Returns
    -------
    CausalBias

    Raises
    ------
    AssertionError
        There are not two sizes.

    Examples
    --------
    >>> from cpuattn.compat.torch import causal_upper_left
    >>> causal_upper_left(2, 3)._materialize().astype(int)
    array([[1, 0, 0],
           [1, 1, 0]])
    """
    if len(size) != 2:
        raise AssertionError("causal_upper_left only supports 2D tensors")
    return CausalBias(CausalVariant.UPPER_LEFT, *size)


def causal_lower_right(*size: int) -> CausalBias:
    """Return the causal mask whose diagonal ends in the lower right corner.

    Parameters
    ----------
    *size : int
        seq_len_q and seq_len_kv.

    Returns
    -------
    CausalBias

    Raises
    ------
    AssertionError
        There are not two sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.torch import causal_lower_right
    >>> from cpuattn.compat.torch import scaled_dot_product_attention
    >>> query, key = np.ones((2, 3, 8), np.float32), np.ones((2, 5, 8), np.float32)
    >>> scaled_dot_product_attention(query, key, key, causal_lower_right(3, 5)).shape
    (2, 3, 8)
    """
    if len(size) != 2:
        raise AssertionError("causal_lower_right only supports 2D tensors")
    return CausalBias(CausalVariant.LOWER_RIGHT, *size)


def is_causal_bias(attn_mask: Any) -> bool:
    """Whether a mask is a CausalBias, of this module or of torch."""
    return hasattr(attn_mask, "seq_len_kv")


def resolved(
    bias: Any, query: Any, key: Any, value: Any
) -> tuple[NDArray[np.bool_] | None, Causal]:
    """Return the mask and the kind of causality that a CausalBias comes to.

    The mask is None, but where the bias has another size and broadcasts.
    """
    sizes = (bias.seq_len_q, bias.seq_len_kv)
    if bias.variant == CausalVariant.UPPER_LEFT or sizes[0] == sizes[1]:
        return None, "top_left"
    if bias.variant != CausalVariant.LOWER_RIGHT:
        raise ValueError(
            "CausalBias.variant must be a CausalVariant type, "
            f"but found: {bias.variant}"
        )
    _checks.inputs(query, key, value, ValueError)  # torch raises these from Python
    lengths = (query.shape[-2], key.shape[-2])
    if sizes == lengths:
        return None, "bottom_right"
    if any(n not in (1, length) for n, length in zip(sizes, lengths, strict=True)):
        raise RuntimeError(
            f"attn_mask: CausalBias must have the lengths of query and key {lengths}; "
            f"got {sizes}"
        )
    return materialized(bias), False


def materialized(bias: Any) -> NDArray[np.bool_]:
    """Return the boolean mask of a CausalBias, of this module or of torch."""
    rows, keys = bias.seq_len_q, bias.seq_len_kv
    offset = 0 if bias.variant == CausalVariant.UPPER_LEFT else keys - rows
    return np.tri(rows, keys, offset, dtype=np.bool_)


def _length(name: str, length: Any) -> int:
    if not hasattr(length, "__index__"):
        raise TypeError(f"{name}: must be an integer; got {type(length).__name__}")
    if length < 0:
        raise RuntimeError(f"{name}: must not be negative; got {length}")
    return operator.index(length)
