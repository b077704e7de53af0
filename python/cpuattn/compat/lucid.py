# SPDX-License-Identifier: MIT
"""``lucid.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import is_boolean, is_native
from ._hidden_rows import attend

FloatArray = NDArray[Any]  # NumPy has no type for bfloat16

_DRAWS = 1 << 16  # numbers drawn at a time: 512 KB


def scaled_dot_product_attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    attn_mask: NDArray[Any] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: complex | None = None,
    output_weight: bool = False,
) -> Any:
    """Compute attention as ``lucid.nn.functional.scaled_dot_product_attention``.

    Parameters
    ----------
    query : ndarray, shape (..., q_len, head_dim)
        float32, float16, bfloat16 or float64; at least 2 axes. Leading axes, the heads
        included, broadcast as in ``numpy.matmul``.
    key : ndarray, shape (..., kv_len, head_dim)
        At least one key. Arrays are copied where NumPy promotes them; integers and
        booleans become float64.
    value : ndarray, shape (..., kv_len, head_dim_v)
    attn_mask : ndarray, optional
        bool: True = attend. Numbers of any real dtype are added to the scores. It
        broadcasts with (..., q_len, kv_len).
    dropout_p : float
        Share of the weights that become 0, at least 0 and less than 1; applied whenever
        it is greater than 0. Makes a boolean array of the weights' shape, from the
        numbers of ``numpy.random.rand``, NumPy's global generator, as lucid does.
    is_causal : bool
        Top-left causal mask: row i sees keys j <= i. Combines with `attn_mask`.
    scale : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default. A complex number must be
        real.
    output_weight : bool
        Return the weights after dropout too.

    Returns
    -------
    out : ndarray, shape (..., q_len, head_dim_v)
        Its dtype is the one that NumPy gives. A row whose scores are all -inf is NaN; a
        row hidden by a boolean mask is the mean of all value rows.
    weights : ndarray, shape (..., q_len, kv_len)
        Only with `output_weight`.

    Raises
    ------
    ValueError
        Shapes do not fit together, there is no key, or `dropout_p` is out of range.
        An array of less than 2 axes is NumPy's AxisError, which is an IndexError too.
    TypeError
        A dtype that attention does not have, or a `scale` that is not real.

    Notes
    -----
    This follows lucid 2.12, the last release that runs on NumPy; `scale` multiplies
    there as here, though its documentation says otherwise. A boolean mask has the
    meaning of lucid 3, which hides keys; lucid 2 adds it to the scores as 0 and 1.

    Differences from lucid: a hidden key reaches nothing even if it holds NaN; hidden
    keys count as -inf, not as -1e12 or -1e9, beside visible scores of that size and in
    float64; float16 and bfloat16 are computed in float32, so that causal float16 is not
    NaN, and integers in float64; head_dim may be 0; `output_weight` always works.
    Arrays replace lucid's tensors, which need ``.data``.

    References
    ----------
    lucid 2.12.8, ``lucid.nn.functional.scaled_dot_product_attention``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat import lucid
    >>> x = np.ones((2, 4, 8), np.float32)
    >>> lucid.scaled_dot_product_attention(x, x, x, is_causal=True).shape
    (2, 4, 8)
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError("dropout_p must be in [0, 1).")
    q, k, v = query.shape, key.shape, value.shape
    if not (len(q) == len(k) == len(v) > 1 and k[-2]):
        _check_axes(query=q, key=k, value=v)
    options: dict[str, Any] = {"fully_masked": "mean"}
    if scale is not None:
        scale = options["scale"] = _real(scale)
    if is_causal:
        options["causal"] = "top_left"
    dtype = query.dtype
    adds = attn_mask is not None and not is_boolean(attn_mask)
    added = getattr(attn_mask, "dtype", None) if adds else dtype
    if not (
        dtype == key.dtype == value.dtype == added
        and is_native(dtype)
        and not isinstance(scale, np.generic)
    ):
        query, key, value, attn_mask, dtype = _promoted(
            query, key, value, attn_mask, scale, adds
        )
    shape: Any = None
    if dropout_p or not (q[:-2] == k[:-2] == v[:-2] and _fits(attn_mask, q, k)):
        shape = _weights_shape(q, k, attn_mask)
        if shape[:-1] != q[:-1]:
            query = np.broadcast_to(query, (*shape[:-1], q[-1]))
    if attn_mask is not None:
        options["bias" if adds else "mask"] = attn_mask
    if dropout_p > 0.0:
        options |= {"dropout_p": dropout_p, "dropout_mask": _kept(shape, dropout_p)}
    if output_weight:
        options["return_weights"] = "after_dropout"
    if len(q) > 2 and query.shape[:-2] == k[:-2] == v[:-2]:
        result = attend(query, key, value, options, adds=True)
    else:
        result = _with_one_head(query, key, value, options)
    if not output_weight:
        return result
    out, weights = result
    if shape is not None and weights.shape != shape:
        weights = _first(weights, shape)
    return out, weights if weights.dtype == dtype else weights.astype(dtype)


def _check_axes(**shapes: tuple[int, ...]) -> None:
    """Raise NumPy's errors for too few axes and for a maximum of nothing."""
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise np.exceptions.AxisError(
                f"{name}: must have at least 2 axes; got shape {tuple(shape)}"
            )
    if shapes["key"][-2] == 0:
        raise ValueError(
            f"key: kv_len must be at least 1; got 0 (key shape {tuple(shapes['key'])})"
        )


def _real(scale: Any) -> Any:
    if not isinstance(scale, complex | np.complexfloating):
        return scale
    if scale.imag:
        raise TypeError(f"scale: must be a real number; got {scale}")
    return scale.real


def _promoted(
    query: Any, key: Any, value: Any, mask: Any, scale: Any, adds: bool
) -> tuple[Any, ...]:
    """Give arrays the dtype that NumPy gives the result.

    Returns
    -------
    query, key, value, mask, dtype of the weights
    """
    query, key, value = (np.asarray(array) for array in (query, key, value))
    scores = np.result_type(query.dtype, key.dtype)
    if scores.kind in "biu":
        scores = np.result_type(np.float64)
    if scale is not None:
        scores = np.result_type(scores, scale)
    if adds:
        mask = np.asarray(mask)
        scores = np.result_type(scores, mask.dtype)
        mask = mask.astype(np.float64) if mask.dtype.kind in "iu" else mask
    result = np.result_type(scores, value.dtype)
    query = query.astype(result, copy=False)
    mixes = result == np.float32 and key.dtype.itemsize == 2
    if not (mixes and key.dtype == value.dtype and is_native(key.dtype)):
        key, value = (array.astype(result, copy=False) for array in (key, value))
    return query, key, value, mask, scores


def _fits(mask: Any, q: tuple[int, ...], k: tuple[int, ...]) -> bool:
    """Whether a mask leaves scores of one batch shape as large as they are."""
    if mask is None:
        return True
    sizes = zip(mask.shape[::-1], (k[-2], *q[-2::-1]), strict=False)
    return mask.ndim <= len(q) and all(own in (1, size) for own, size in sizes)


def _weights_shape(
    q: tuple[int, ...], k: tuple[int, ...], mask: Any
) -> tuple[int, ...]:
    """Return the shape of the scores, which a mask may enlarge."""
    if q[-1] != k[-1]:
        raise ValueError(
            f"key: head_dim must equal query head_dim {q[-1]}; got {k[-1]} "
            f"(key shape {tuple(k)})"
        )
    scores = (*np.broadcast_shapes(q[:-2], k[:-2]), q[-2], k[-2])
    return scores if mask is None else np.broadcast_shapes(scores, mask.shape)


def _kept(shape: tuple[int, ...], p: float) -> NDArray[np.bool_]:
    """Draw which weights stay, without an array of all the numbers drawn."""
    kept = np.empty(shape, bool)
    flat = kept.reshape(-1)
    for begin in range(0, flat.size, _DRAWS):
        part = flat[begin : begin + _DRAWS]
        np.greater(np.random.rand(part.size), p, out=part)  # noqa: NPY002
    return kept


def _with_one_head(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Any:
    """Count the heads as batch, which broadcasts as in ``numpy.matmul``."""
    for name in ("bias", "mask", "dropout_mask"):
        array = options.get(name)
        if array is not None and array.ndim > 2:
            options[name] = array[..., None, :, :]
    query, key, value = (array[..., None, :, :] for array in (query, key, value))
    result = attend(query, key, value, options, adds=True)
    if isinstance(result, tuple):
        return tuple(array[..., 0, :, :] for array in result)
    return result[..., 0, :, :]


def _first(weights: Any, shape: tuple[int, ...]) -> Any:
    """Undo the broadcasting of weights over the batch of value."""
    weights = weights[(0,) * (weights.ndim - len(shape))]
    return weights[tuple(slice(size) for size in shape)]
