# SPDX-License-Identifier: MIT
"""Flax's makers of masks, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


def make_attention_mask(
    query_input: ArrayLike,
    key_input: ArrayLike,
    pairwise_fn: Callable[..., Any] = np.multiply,
    extra_batch_dims: int = 0,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Compare every query token with every key token.

    Parameters
    ----------
    query_input : array_like, shape (..., q_len)
        Whatever `pairwise_fn` compares: padding flags, segment ids, positions.
    key_input : array_like, shape (..., kv_len)
        The same for the keys.
    pairwise_fn : callable
        A broadcasting function of two arrays.
    extra_batch_dims : int
        Number of axes of size 1 that come first.
    dtype : dtype
        Of the mask. bool is what attention needs least work for.

    Returns
    -------
    ndarray, shape (..., 1, q_len, kv_len), dtype `dtype`

    Raises
    ------
    ValueError
        The inputs do not broadcast.

    Examples
    --------
    >>> from cpuattn.compat import flax
    >>> flax.make_attention_mask([1, 1], [1, 0], dtype=bool)
    array([[[ True, False],
            [ True, False]]])
    """
    mask = pairwise_fn(
        np.expand_dims(query_input, axis=-1), np.expand_dims(key_input, axis=-2)
    )
    mask = np.expand_dims(np.asarray(mask), axis=-3)
    mask = np.expand_dims(mask, axis=tuple(range(extra_batch_dims)))
    return mask.astype(dtype)


def make_causal_mask(
    x: ArrayLike, extra_batch_dims: int = 0, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Make a causal mask for the tokens of an array.

    Parameters
    ----------
    x : array_like, shape (..., length)
        Only its shape counts.
    extra_batch_dims : int
        Number of axes of size 1 that come first.
    dtype : dtype
        Of the mask.

    Returns
    -------
    ndarray, shape (..., 1, length, length), dtype `dtype`
        Read-only: one matrix, repeated by stride.

    Raises
    ------
    IndexError
        `x` has no axis.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat import flax
    >>> flax.make_causal_mask(np.ones(3), dtype=bool)
    array([[[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]]])
    """
    shape = np.shape(x)
    matrix = np.tri(shape[-1], dtype=dtype)
    ones = (1,) * extra_batch_dims
    return np.broadcast_to(matrix, (*ones, *shape[:-1], 1, *matrix.shape))


def combine_masks(
    *masks: ArrayLike | None, dtype: DTypeLike = np.float32
) -> NDArray[Any] | None:
    """Combine masks by AND.

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
    AssertionError
        The masks differ in rank.
    ValueError
        The masks do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat import flax
    >>> flax.combine_masks(np.array([1, 1, 0]), None, np.array([1, 0, 0]), dtype=bool)
    array([ True, False, False])
    """
    ranks = tuple(np.ndim(mask) for mask in masks if mask is not None)
    if len({*ranks}) > 1:
        raise AssertionError(f"masks must have same rank: {ranks}")
    return all_of(masks, dtype)


def all_of(
    masks: tuple[ArrayLike | None, ...], dtype: DTypeLike
) -> NDArray[Any] | None:
    """AND masks; a single one keeps its numbers, as in Flax."""
    given: list[Any] = [mask for mask in masks if mask is not None]
    if not given:
        return None
    result, *others = given
    for other in others:
        result = np.logical_and(result, other)
    return np.asarray(result).astype(dtype)
