# SPDX-License-Identifier: MIT
"""``flax.linen``'s attention: the functions, without modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .._arrays import additive, truth
from ._attention import as_dtype, attend, cast
from ._options import dropout, level, vanish
from .masks import combine_masks, make_attention_mask, make_causal_mask

__all__ = [
    "combine_masks",
    "dot_product_attention",
    "dot_product_attention_weights",
    "make_attention_mask",
    "make_causal_mask",
]

FloatArray = NDArray[Any]  # NumPy has no type for bfloat16


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
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable[..., Any] | None = None,
    qk_attn_weights_einsum: Callable[..., Any] | None = None,
    attn_weights_value_einsum: Callable[..., Any] | None = None,
) -> FloatArray:
    """Compute attention as ``flax.linen.dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (..., q_len, num_heads, head_dim)
        Any number of leading axes, also none. float32, float16, bfloat16 or float64;
        integers and booleans count as float32.
    key : ndarray, shape (..., kv_len, num_heads, head_dim)
        Leading axes as in `query`. Arrays of other dtypes than the common one, by JAX's
        promotion, are copied.
    value : ndarray, shape (..., kv_len, num_heads, head_dim_v)
        Leading axes as in `query`.
    bias : ndarray, any real dtype, optional
        Added to the scores; broadcasts with (..., num_heads, q_len, kv_len).
    mask : ndarray, any dtype, optional
        True or non-zero = attend; broadcasts like bias. Copied if it is not boolean.
    broadcast_dropout : bool
        Let all batch elements and heads share one draw.
    dropout_rng : key of JAX, int or numpy.random.Generator, optional
        A typed key or uint32 array of shape (2,) gives the draws that JAX makes of it,
        an int those of the key ``jax.random.PRNGKey(dropout_rng)``. A generator gives
        its next 64 bits as key.
    dropout_rate : float
        Share of the weights that become 0. From 1 on all do: the result is NaN at 1,
        where Flax divides 0 by 0, and 0 above.
    deterministic : bool
        Switch dropout off.
    dtype : dtype, optional
        Of computation and result; the common dtype of the inputs by default.
    precision : None, str, jax.lax.Precision or pair of these
        The least accuracy of products; see Notes.
    module : object with a method ``sow``, optional
        Gets the weights before dropout as ``("intermediates", "attention_weights")``.
    force_fp32_for_softmax : bool
        Return float32 for inputs of 16 bits (the softmax is float32 in any case).
    einsum_dot_general : None
        Not supported.
    qk_attn_weights_einsum, attn_weights_value_einsum : callable, optional
        Used for the products instead of the fused ones, with Flax's equations. Both or
        neither.

    Returns
    -------
    ndarray, shape (..., q_len, num_heads, head_dim_v)
        A row with no visible key is the mean of all value rows, a row whose visible
        biases are all -inf NaN.

    Raises
    ------
    AssertionError
        Query, key and value do not fit together, in Flax's words.
    IndexError
        They have less than 3 axes.
    ValueError
        Wrong dtype or precision, or a mask that does not broadcast.
    TypeError
        A dtype or dropout_rng that attention does not have, or a bias that does not
        broadcast.
    NotImplementedError
        `einsum_dot_general` is given, or a key that is not threefry2x32.

    Notes
    -----
    Differences from Flax: the softmax of inputs of 16 bits is float32, their scale and
    dropout factor are not rounded to 16 bits; float64 is computed in float64, whether
    ``jax_enable_x64`` is set or not; complex numbers are refused. A masked key reaches
    nothing even if it holds NaN, and counts as -inf, not as the least number of the
    dtype, beside visible scores of that size. A dropout rate is a Python float, and
    draws are those of ``jax_threefry_partitionable`` without ``jax_enable_x64``, JAX's
    defaults. Results and sown weights are of the kind of `query`: NumPy in, NumPy out.

    On CPUs Flax computes every ``jax.lax.Precision`` in full. Here products of bfloat16
    run where the name asks for no more and they are faster: "high", "bfloat16_3x" and
    "tensorfloat32" are `precision` "high" of `cpuattn.attention`, "bfloat16" and
    "fastest" are "medium", the others "highest".

    References
    ----------
    Flax 0.12, ``flax.linen.dot_product_attention``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat import flax
    >>> query, key, value = np.ones((3, 2, 5, 4, 8), np.float32)
    >>> mask = flax.make_causal_mask(np.ones((2, 5)), dtype=bool)
    >>> flax.dot_product_attention(query, key, value, mask=mask).shape
    (2, 5, 4, 8)
    >>> flax.dot_product_attention(
    ...     query, key, value, dropout_rate=0.1, dropout_rng=0
    ... ).dtype
    dtype('float32')
    """
    if bool(qk_attn_weights_einsum) != bool(attn_weights_value_einsum):
        raise ValueError(
            "qk_attn_weights_einsum and attn_weights_value_einsum must be specified "
            "together."
        )
    if qk_attn_weights_einsum and (precision or einsum_dot_general):
        raise ValueError(
            "precision/einsum_dot_general and "
            "qk_attn_weights_einsum/attn_weights_value_einsum are mutually exclusive. "
            "Please specify only one of them."
        )
    query, key, value = cast(dtype, query, key, value)
    q, k, v = query.shape, key.shape, value.shape
    if not (
        len(q) == len(k) == len(v) > 2
        and q[:-3] == k[:-3] == v[:-3]
        and q[-2:] == k[-2:]
        and k[-3:-1] == v[-3:-1]
    ):
        _refuse(q, k, v)
    if attn_weights_value_einsum:
        weights = dot_product_attention_weights(
            query, key, bias, mask, broadcast_dropout, dropout_rng, dropout_rate,
            deterministic, None, None, module, force_fp32_for_softmax, None,
            qk_attn_weights_einsum,
        )  # fmt: skip
        return attn_weights_value_einsum(  # type: ignore[no-any-return]
            "...hqk,...khd->...qhd", weights, value
        )
    options: dict[str, Any] = {}
    if precision is not None:
        options["precision"] = level(precision)
    if einsum_dot_general:
        _refuse_dot_general()
    if dropout_rate > 0.0 and not deterministic:
        options |= dropout(dropout_rate, dropout_rng, broadcast_dropout)
    if module:
        options["return_weights"] = "before_dropout"
    if force_fp32_for_softmax and query.dtype.itemsize == 2:
        query = query.astype(np.float32)
    out = attend(query, key, value, additive(bias), truth(mask), options)
    if module:
        out, weights = out
        if force_fp32_for_softmax:
            weights = as_dtype(weights, np.float32)
        module.sow("intermediates", "attention_weights", weights)
    if dropout_rate == 1.0 and not deterministic and k[-3]:
        out = vanish(out)
    return out  # type: ignore[no-any-return]


def dot_product_attention_weights(
    query: FloatArray,
    key: FloatArray,
    bias: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Any = None,
    module: Any = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable[..., Any] | None = None,
    einsum: Callable[..., Any] | None = None,
) -> FloatArray:
    """Compute the weights of ``flax.linen.dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (..., q_len, num_heads, head_dim)
        This and all parameters but `einsum` are as in `dot_product_attention`.
    key : ndarray, shape (..., kv_len, num_heads, head_dim)
    bias : ndarray, any real dtype, optional
    mask : ndarray, any dtype, optional
    broadcast_dropout : bool
    dropout_rng : key of JAX, int or numpy.random.Generator, optional
    dropout_rate : float
    deterministic : bool
    dtype : dtype, optional
    precision : None, str, jax.lax.Precision or pair of these
    module : object with a method ``sow``, optional
    force_fp32_for_softmax : bool
        Return float32 weights.
    einsum_dot_general : None
        Not supported.
    einsum : callable, optional
        Used for the product of query and key, with Flax's equation.

    Returns
    -------
    ndarray, shape (..., num_heads, q_len, kv_len)
        Weights after dropout.

    Raises
    ------
    AssertionError, ValueError, TypeError, NotImplementedError
        As `dot_product_attention`.

    Notes
    -----
    Differences from Flax: as in `dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat import flax
    >>> query, key = np.ones((2, 1, 4, 1, 8), np.float32)
    >>> flax.dot_product_attention_weights(query, key)[0, 0, 0]
    array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    if einsum and (precision or einsum_dot_general):
        raise ValueError(
            "precision/einsum_dot_general and einsum are mutually exclusive. Please "
            "specify only one of them."
        )
    query, key = cast(dtype, query, key)
    q, k = query.shape, key.shape
    if not (len(q) == len(k) > 2 and q[:-3] == k[:-3] and q[-2:] == k[-2:]):
        _refuse(q, k)
    options: dict[str, Any] = {"precision": level(precision)}
    if einsum_dot_general:
        _refuse_dot_general()
    bias, mask = additive(bias), truth(mask)
    value = key[..., :0]  # only the weights are wanted
    result = query.dtype
    if force_fp32_for_softmax:
        result = np.dtype(np.float32)
        if query.dtype.itemsize == 2:
            query = query.astype(result)
    if einsum:
        # The native function adds these scores to the product of nothing.
        depth = np.sqrt(q[-1]).astype(query.dtype)
        scores = einsum("...qhd,...khd->...hqk", query / depth, key)
        bias = scores if bias is None else scores + bias
        query, key = query[..., :0], value
    drops = dropout_rate > 0.0 and not deterministic
    if module or not drops:
        options["return_weights"] = "before_dropout"
        weights = as_dtype(attend(query, key, value, bias, mask, options)[1], result)
        if module:
            module.sow("intermediates", "attention_weights", weights)
    if drops:
        options |= dropout(dropout_rate, dropout_rng, broadcast_dropout)
        options["return_weights"] = "after_dropout"
        weights = attend(query, key, value, bias, mask, options)[1]
        if dropout_rate == 1.0:
            weights = vanish(weights)
    return weights  # type: ignore[no-any-return]


def _refuse(*shapes: tuple[int, ...]) -> None:
    """Say what does not fit: shapes of query, key and maybe value."""
    names = "q, k, v"[: 3 * len(shapes) - 2]
    if len({*map(len, shapes)}) > 1:
        raise AssertionError(f"{names} must have same rank.")
    if len(shapes[0]) < 3:
        kind = IndexError if len(shapes) > 2 else ValueError
        raise kind(
            "query: must have at least 3 axes (..., length, heads, head_dim); got "
            f"shape {tuple(shapes[0])}"
        )
    if len({tuple(shape[:-3]) for shape in shapes}) > 1:
        raise AssertionError(f"{names} batch dims must match.")
    if len({shape[-2] for shape in shapes}) > 1:
        raise AssertionError(f"{names} num_heads must match.")
    if len({shape[-3] for shape in shapes[1:]}) > 1:
        raise AssertionError("k, v lengths must match.")
    raise AssertionError("q, k depths must match.")


def _refuse_dot_general() -> None:
    raise NotImplementedError(
        "einsum_dot_general: is not supported; give qk_attn_weights_einsum and "
        "attn_weights_value_einsum instead"
    )
