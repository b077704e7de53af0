# SPDX-License-Identifier: MIT
"""``flax.nnx``'s attention: the functions, without modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import jax
from .._arrays import additive, truth
from ._attention import attend, cast
from ._options import dropout, level, vanish
from .masks import all_of, make_attention_mask, make_causal_mask

__all__ = [
    "combine_masks",
    "dot_product_attention",
    "make_attention_mask",
    "make_causal_mask",
]

FloatArray = NDArray[Any]  # NumPy has no type for bfloat16


def promote_dtype(arrays: tuple[Any, ...], /, *, dtype: Any = None) -> tuple[Any, ...]:
    """Give arrays `dtype`, or their common dtype by JAX's rules."""
    return cast(dtype, *arrays)


def dot_product_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    bias: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Callable[..., tuple[Any, ...]] = promote_dtype,
    is_causal: bool = False,
) -> FloatArray:
    """Compute attention as ``flax.nnx.dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (..., q_len, num_heads, head_dim)
        Any number of leading axes, also none. float32, float16, bfloat16 or float64;
        integers and booleans count as float32.
    key : ndarray, shape (..., kv_len, num_key_heads, head_dim)
        Leading axes as in `query`; num_key_heads divides num_heads. Arrays of other
        dtypes than the common one, by JAX's promotion, are copied.
    value : ndarray, shape (..., kv_len, num_value_heads, head_dim_v)
        Leading axes as in `query`; num_value_heads divides num_heads. Key and value are
        copied where their heads differ.
    bias : ndarray, any real dtype, optional
        Added to the scores; broadcasts to (..., num_heads, q_len, kv_len).
    mask : ndarray, any dtype, optional
        True or non-zero = attend; broadcasts like bias. Copied if it is not boolean.
    broadcast_dropout : bool
        Let all batch elements and heads share one draw.
    dropout_rng : key of JAX, int or numpy.random.Generator, optional
        As in `cpuattn.compat.flax.dot_product_attention`.
    dropout_rate : float
        Share of the weights that become 0. From 1 on all do: the result is NaN at 1,
        where Flax divides 0 by 0, and 0 above.
    deterministic : bool
        Switch dropout off.
    dtype : dtype, optional
        Of computation and result; the common dtype of the inputs by default.
    precision : None, str, jax.lax.Precision or pair of these
        The least accuracy of products, as in linen's function.
    module : object with a method ``sow``, optional
        Gets the weights before dropout as ``("intermediates", "attention_weights")``,
        the name of ``nnx.Intermediate``.
    promote_dtype : callable
        Called with a tuple of query, key and value, and `dtype`; returns what to use.
    is_causal : bool
        Top-left causal mask, combined with `mask` by AND.

    Returns
    -------
    ndarray, shape (..., q_len, num_heads, head_dim_v)
        A row with no visible key is the mean of all value rows, a row whose visible
        biases are all -inf NaN.

    Raises
    ------
    ValueError
        Query, key and value do not fit together; wrong dtype or precision.
    IndexError
        They have less than 3 axes.
    TypeError
        A dtype or dropout_rng that attention does not have; a bias, or without dropout
        and module a mask, that does not broadcast (ValueError for a mask otherwise).
    AssertionError
        Without dropout and module: a bias or mask with another number of heads than 1
        or num_heads.
    NotImplementedError
        `dropout_rng` is a key that is not threefry2x32.

    Notes
    -----
    Differences from Flax: all arguments work together, where Flax's two paths each lack
    some: head_dim_v may differ from head_dim, key and value may differ in heads, a
    mask may have any rank, also with more than 4 axes or `is_causal` and dropout; a
    wrong precision is always an error. The rest as in
    `cpuattn.compat.flax.dot_product_attention`.

    References
    ----------
    Flax 0.12, ``flax.nnx.dot_product_attention``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.flax import nnx
    >>> query = np.ones((2, 8, 4, 16), np.float32)
    >>> key = np.ones((2, 8, 2, 16), np.float32)
    >>> nnx.dot_product_attention(query, key, key, is_causal=True).shape
    (2, 8, 4, 16)
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    q, k, v = query.shape, key.shape, value.shape
    if not (
        len(q) == len(k) == len(v) > 2
        and q[:-3] == k[:-3] == v[:-3]
        and q[-1] == k[-1]
        and k[-3] == v[-3]
        and (q[-2] == k[-2] == v[-2] or _groups(q[-2], k[-2], v[-2]))
    ):
        _refuse(q, k, v)
    if k[-2] != v[-2]:
        key, value = (np.repeat(x, q[-2] // x.shape[-2], -2) for x in (key, value))
    options: dict[str, Any] = {}
    if precision is not None:
        options["precision"] = level(precision)
    if is_causal:
        options["causal"] = "top_left"
    bias, mask = additive(bias), truth(mask)
    if dropout_rate == 0.0 and module is None:
        options |= {"bias": bias, "mask": mask}
        return jax.attend(query, key, value, options)  # type: ignore[no-any-return]
    if dropout_rate > 0.0 and not deterministic:
        options |= dropout(dropout_rate, dropout_rng, broadcast_dropout)
    if module:
        options["return_weights"] = "before_dropout"
    out = attend(query, key, value, bias, mask, options)
    if module:
        out, weights = out
        module.sow("intermediates", "attention_weights", weights)
    if dropout_rate == 1.0 and not deterministic and k[-3]:
        out = vanish(out)
    return out  # type: ignore[no-any-return]


def combine_masks(
    *masks: ArrayLike | None, dtype: DTypeLike = np.float32
) -> NDArray[Any] | None:
    """Combine masks by AND, as ``flax.nnx.combine_masks``.

    Parameters
    ----------
    *masks : array_like or None
        Masks of one rank that broadcast; None counts as no mask.
    dtype : dtype
        Of the result.

    Returns
    -------
    ndarray or None
        None if there is no mask.

    Raises
    ------
    ValueError
        The masks differ in rank or do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.flax import nnx
    >>> nnx.combine_masks(np.array([1, 1, 0]), None, np.array([1, 0, 0]), dtype=bool)
    array([ True, False, False])
    """
    ranks = tuple(np.ndim(mask) for mask in masks if mask is not None)
    if len({*ranks}) > 1:
        raise ValueError(f"masks must have same rank, but got {ranks}.")
    return all_of(masks, dtype)


def _groups(heads: int, *others: int) -> bool:
    """Whether query heads can share each number of key or value heads."""
    return all(other and heads % other == 0 for other in others)


def _refuse(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    """Say what does not fit, in Flax's words where it has some."""
    if not len(q) == len(k) == len(v):
        raise ValueError(
            f"q, k, v must have same rank, but got {len(q)}, {len(k)}, {len(v)}."
        )
    if len(q) < 3:
        raise IndexError(
            "query: must have at least 3 axes (..., length, heads, head_dim); got "
            f"shape {tuple(q)}"
        )
    if not q[:-3] == k[:-3] == v[:-3]:
        raise ValueError(
            f"q, k, v batch dims must match, but got shapes {q}, {k}, {v}."
        )
    if k[-3] != v[-3]:
        raise ValueError(f"k, v lengths must match, but got {k[-3]} and {v[-3]}.")
    if q[-1] != k[-1]:
        raise ValueError(f"q, k depths must match, but got {q[-1]} and {k[-1]}.")
    name, heads = ("Value", v[-2]) if _groups(q[-2], k[-2]) else ("Key", k[-2])
    raise ValueError(
        f"Query heads ({q[-2]}) must be multiple of {name} heads ({heads})"
    )
