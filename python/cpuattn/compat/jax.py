# SPDX-License-Identifier: MIT
"""``jax.nn.dot_product_attention``."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core import attention
from ._arrays import additive, is_boolean, of_kind

FloatArray = NDArray[Any]  # NumPy has no type for bfloat16

# What JAX gives a hidden score; it is also the logarithm of a sum of such weights.
_HIDDEN = np.float32(-0.7 * float(np.finfo(np.float32).max))


def dot_product_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    bias: NDArray[Any] | None = None,
    mask: NDArray[np.bool_] | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: bool = False,
) -> Any:
    """Compute attention as ``jax.nn.dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (batch, q_len, num_heads, head_dim)
        float32, float16, bfloat16 or float64. The batch axis may be left out, here and
        below.
    key : ndarray, shape (batch, kv_len, num_kv_heads, head_dim), dtype of query
        num_kv_heads divides num_heads.
    value : ndarray, shape and dtype of key
    bias : ndarray, any real dtype, at most 4 axes, optional
        Added to the scores; broadcasts to (batch, num_heads, q_len, kv_len).
    mask : ndarray, bool, at most 4 axes, optional
        True = attend; broadcasts like bias.
    scale : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default.
    is_causal : bool
        Top-left causal mask: row i sees keys j <= i. All masks combine by AND.
    query_seq_lengths : array_like, shape (batch,), int32 or int64, optional
        Rows from there on are 0.
    key_value_seq_lengths : array_like, shape (batch,), int32 or int64, optional
        Keys from there on are hidden.
    local_window_size : int or tuple (left, right), optional
        Row i sees keys i - left <= j <= i + right; an int is both.
    implementation : None, "xla" or "cudnn"
        The first two run the same kernels.
    return_residual : bool
        Return the logarithm of the softmax's denominators too.

    Returns
    -------
    out : ndarray, shape and dtype of query
        A row with no visible key is the mean of all value rows, a row whose visible
        biases are all -inf NaN.
    residual : ndarray, shape (batch, q_len, num_heads), dtype of key
        Only with `return_residual`. A row with no visible key has -2.38e38, as JAX's
        finite stand-in for -inf gives it.

    Raises
    ------
    ValueError
        Query, key, value or lengths do not fit together, a mask is not boolean, or
        there is no such implementation.
    TypeError
        Wrong type or dtype; a bias or mask that does not broadcast.
    AssertionError
        A bias or mask has another number of heads than 1 or num_heads.
    RuntimeError
        `implementation` is "cudnn".

    Notes
    -----
    Differences from JAX: a masked key reaches nothing even if its value row holds NaN,
    and counts as -inf, not as -2.38e38, beside visible scores of that size; float64 is
    computed in float64, softmax included, whether ``jax_enable_x64`` is set or not;
    integers are refused instead of truncating the weights to 0; num_heads 0 works; no
    residual is beyond 2.36e38 in size but -inf.

    References
    ----------
    JAX 0.10, ``jax.nn.dot_product_attention``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat import jax
    >>> query = np.ones((2, 8, 4, 16), np.float32)
    >>> key = np.ones((2, 8, 2, 16), np.float32)
    >>> jax.dot_product_attention(query, key, key, is_causal=True).shape
    (2, 8, 4, 16)
    """
    shape = query.shape
    if not len(shape) == key.ndim == value.ndim == 4:
        query, key, value = _four_axes(query, key, value)
    if not (
        key.shape == value.shape
        and query.shape[::3] == key.shape[::3]
        and query.dtype == key.dtype == value.dtype
    ):
        _refuse(query, key, value)
    options: dict[str, Any] = {}
    if bias is not None:
        options["bias"] = bias = _at_most_4_axes("bias", additive(bias))
    if mask is not None:
        options["mask"] = _at_most_4_axes("mask", mask)
        if not is_boolean(mask):
            raise ValueError(f"mask dtype should be bool, but got {mask.dtype}")
    if scale is not None:
        options["scale"] = float(scale)
    if local_window_size is not None:
        _limit_to_window(options, local_window_size, is_causal)
    elif is_causal:
        options["causal"] = "top_left"
    if query_seq_lengths is not None:
        options["q_lengths"] = _lengths(
            "query_seq_lengths", query_seq_lengths, query.shape
        )
    if key_value_seq_lengths is not None:
        options["kv_lengths"] = _lengths(
            "key_value_seq_lengths", key_value_seq_lengths, key.shape
        )
    if implementation not in (None, "xla"):
        _refuse_implementation(implementation)
    if not return_residual:
        out = attend(query, key, value, options)
        return out if len(shape) == 4 else out.reshape(shape)
    out, lse = attend(query, key, value, options | {"return_lse": True})
    residual = _residual(out, lse, bias, key).reshape(shape[:-1])
    return out.reshape(shape), of_kind(residual, query)


def attend(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Any:
    """Call the native function and raise what JAX raises for bias and mask.

    Raises
    ------
    AssertionError
        A bias or mask has another number of heads than 1 or num_heads.
    TypeError
        It does not broadcast for another reason.
    ValueError
        Any other of the native function.
    """
    try:
        return attention(
            query, key, value, layout="bshd", fully_masked="mean", **options
        )
    except ValueError as error:
        text = str(error)
        if not text.startswith(("bias:", "mask:")):
            raise
    for name in ("bias", "mask"):
        array = options.get(name)
        heads = () if array is None else array.shape[-3:-2]
        if heads and heads[0] not in (1, query.shape[-2]):
            raise AssertionError(text)
    raise TypeError(text)


def _four_axes(*arrays: Any) -> tuple[Any, ...]:
    """Give arrays leading axes of size 1, as JAX does."""
    return tuple(array[(None,) * (4 - array.ndim)] for array in arrays)


def _at_most_4_axes(name: str, array: Any) -> Any:
    if array.ndim > 4:
        raise ValueError(f"{name} ndim should be 4, but got {array.ndim}")
    return array


def _limit_to_window(options: dict[str, Any], size: Any, is_causal: bool) -> None:
    """Turn a window around key i of row i into native options.

    The native window is around the diagonal, which lengths would move. A diagonal that
    is given stays, so the right end of the window becomes one.
    """
    left, right = (size, size) if isinstance(size, int) else size
    if is_causal:
        right = min(right, 0)
    if left + right >= 0:
        options |= {"causal": right, "window": (left + right, None)}
    else:  # no row sees anything
        nothing = np.zeros((1, 1), bool)
        options["mask"] = np.logical_and(options.get("mask", nothing), nothing)


def _lengths(name: str, lengths: Any, shape: tuple[int, ...]) -> Any:
    """Check lengths as JAX does; those beyond the array mean its end."""
    lengths = np.asarray(lengths)
    if lengths.ndim != 1:
        raise ValueError(f"{name} ndim should be 1, but got {lengths.ndim}")
    if lengths.dtype not in (np.int32, np.int64):  # JAX makes int32 of int64
        raise ValueError(f"{name} dtype should be int32, but got {lengths.dtype}")
    if lengths.shape != shape[:1]:
        raise ValueError(
            f"{name} shape should be [{shape[0]}]: but got {lengths.shape}"
        )
    return np.clip(lengths, 0, shape[1])


def _residual(out: Any, lse: Any, bias: Any, key: Any) -> Any:
    """Give lse JAX's axes and dtype, and its number where all keys are hidden."""
    lse = np.asarray(lse).swapaxes(-1, -2)
    empty = np.isneginf(lse)
    if key.shape[1] and empty.any():
        if bias is not None:  # biases of -inf alone give NaN, and stay -inf
            empty &= ~np.isnan(out).any(-1)
        lse = np.where(empty, _HIDDEN, lse)
    with np.errstate(over="ignore"):  # float16 has no such number
        return lse.astype(key.dtype, copy=False)


def _refuse(query: Any, key: Any, value: Any) -> None:
    """Say what does not fit, in JAX's words."""
    batch, _, _, head_dim = key.shape
    wanted = [batch, -1, -1, head_dim]
    checks = (("value", value, list(key.shape)), ("query", query, wanted))
    for name, array, shape in checks:
        if array.dtype != key.dtype:
            raise ValueError(
                f"{name} dtype should be {key.dtype}, but got {array.dtype}"
            )
        if any(size not in (-1, n) for size, n in zip(shape, array.shape, strict=True)):
            raise ValueError(
                f"{name} shape should be {shape}: but got {tuple(array.shape)}"
            )


def _refuse_implementation(implementation: Any) -> None:
    if implementation == "cudnn":
        raise RuntimeError("cuDNN is not detected.")
    raise ValueError(f"Unsupported implementation option: {implementation}")
