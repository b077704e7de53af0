# SPDX-License-Identifier: MIT
"""The ONNX operator ``Attention``, opsets 23 to 25."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core import attention as _attention
from . import _onnx_scores
from ._arrays import FLOATS, is_boolean, promoted

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[Any]  # NumPy has no type for bfloat16

__all__ = ["AttentionOutputs", "attention"]

_DOUBLE = 11
_PRECISIONS = (1, 10, _DOUBLE, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
_NAMES = {
    "query": "Q",
    "key": "K",
    "value": "V",
    "mask": "attn_mask",
    "bias": "attn_mask",
    "kv_lengths": "nonpad_kv_seqlen",
    "causal": "nonpad_kv_seqlen",  # of which its only array is made
}


class AttentionOutputs(NamedTuple):
    """The outputs of the operator, in its order; None where one was not asked for."""

    Y: FloatArray
    present_key: FloatArray | None = None
    present_value: FloatArray | None = None
    qk_matmul_output: FloatArray | None = None


def attention(
    Q: FloatArray,
    K: FloatArray,
    V: FloatArray,
    attn_mask: NDArray[Any] | None = None,
    past_key: FloatArray | None = None,
    past_value: FloatArray | None = None,
    nonpad_kv_seqlen: ArrayLike | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    opset: int = 24,
    outputs: Iterable[str] | None = None,
) -> FloatArray | AttentionOutputs:
    """Compute attention as the ONNX operator ``Attention``.

    Parameters
    ----------
    Q : ndarray, shape (batch, q_num_heads, q_len, head_dim)
        float32, float16, bfloat16 or float64. Or, as K and V then, with 3 axes:
        (batch, q_len, q_num_heads * head_dim).
    K : ndarray, shape (batch, kv_num_heads, kv_len, head_dim), dtype of Q
        Or (batch, kv_len, kv_num_heads * head_dim). kv_num_heads divides q_num_heads.
    V : ndarray, shape (batch, kv_num_heads, kv_len, head_dim_v)
        Or (batch, kv_len, kv_num_heads * head_dim_v). Where its dtype is not that of K,
        all three are copied to the wider one.
    attn_mask : ndarray, optional
        bool (True = attend), or numbers added to the scores; integers are copied.
        Broadcasts to (batch, q_num_heads, q_len, total_len), total_len = past_len +
        kv_len. From opset 24 on its last axis may be shorter; the keys beyond are
        hidden (so a last axis of 1 shows key 0 alone; opset 23 broadcasts it).
    past_key : ndarray, shape (batch, kv_num_heads, past_len, head_dim), optional
        Keys that precede K, in its dtype. Given together with `past_value`.
    past_value : ndarray, shape (batch, kv_num_heads, past_len, head_dim_v), optional
        Values that precede V, in its dtype.
    nonpad_kv_seqlen : ndarray, shape (batch,), integers, optional
        How many keys of each batch element count, where K and V are a whole cache.
        Opset 24 on; excludes `past_key` and `past_value`.
    is_causal : int
        1: row i sees keys j <= i + offset, where offset is past_len, or
        nonpad_kv_seqlen - q_len, or else 0.
    kv_num_heads : int, optional
        Number of heads of K and V; required with 3 axes.
    left_window_size : int
        Row i sees keys j >= i + offset - left_window_size; -1: all. Opset 25.
    q_num_heads : int, optional
        Number of heads of Q; required with 3 axes.
    qk_matmul_output_mode : int
        What `qk_matmul_output` is: 0 the scaled scores, 1 after `softcap`, 2 after the
        mask too (hidden: -inf), 3 the weights.
    right_window_size : int
        Row i sees keys j <= i + offset + right_window_size; -1: all. Opset 25.
    scale : float, optional
        Factor of the scores; 1 / sqrt(head_dim) by default.
    softcap : float
        Scores become softcap * tanh(score / softcap), before the mask; 0: they do not.
    softmax_precision : int, optional
        1 FLOAT, 10 FLOAT16, 16 BFLOAT16: no effect, as the softmax is float32 at least.
        11 DOUBLE: everything is computed in float64, from copies.
    opset : int
        23, 24 or 25.
    outputs : iterable of str, optional
        Which of "present_key", "present_value" and "qk_matmul_output" to return beside
        Y ("Y" may be named too); any of them together.

    Returns
    -------
    Y : ndarray, shape (batch, q_num_heads, q_len, head_dim_v), dtype of Q
        Or (batch, q_len, q_num_heads * head_dim_v). A row that sees no key is 0.
    outputs : AttentionOutputs
        Instead of Y, where `outputs` is given: a named tuple of Y; present_key and
        present_value, shape (batch, kv_num_heads, total_len, ...); qk_matmul_output,
        shape (batch, q_num_heads, q_len, total_len), dtype of Q. Without a past the
        present ones are K and V themselves, or views of them.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        Shapes do not fit together, or the opset does not allow the combination.

    Notes
    -----
    Nothing of shape (q_len, total_len) is made unless `qk_matmul_output` is asked for.
    Joining the past to K and V is the only copy of them.

    Differences from the reference implementation of ONNX: 16-bit inputs are computed
    in float32; a masked key reaches nothing even if it holds NaN or Inf; mode 0 is the
    scores before the softcap, as the operator says (the reference gives mode 1); a
    negative `scale` works; a negative `softcap` and numbers in `nonpad_kv_seqlen`
    beyond kv_len, or beyond a short mask, are errors; kv_len 0 gives 0; the mask cannot
    enlarge the batch.

    References
    ----------
    ONNX 1.23, operators ``Attention-23``, ``Attention-24``, ``Attention-25``.

    Examples
    --------
    >>> import numpy as np
    >>> from cpuattn.compat.onnx import attention
    >>> Q, K = np.ones((2, 5, 4 * 8), np.float32), np.ones((2, 5, 2 * 8), np.float32)
    >>> attention(Q, K, K, q_num_heads=4, kv_num_heads=2, is_causal=1).shape
    (2, 5, 32)
    >>> past = np.ones((2, 2, 3, 8), np.float32)
    >>> step = attention(Q, K, K, None, past, past, q_num_heads=4, kv_num_heads=2,
    ...                  outputs=["present_key", "present_value"])
    >>> step.Y.shape, step.present_key.shape
    ((2, 5, 32), (2, 2, 8, 8))
    """
    query, key, value = Q, K, V
    if not Q.ndim == K.ndim == V.ndim == 4:
        query, key, value = _split_heads(Q, K, V, q_num_heads, kv_num_heads)
    elif q_num_heads is not None or kv_num_heads is not None:
        _check_heads(Q, K, q_num_heads, kv_num_heads, opset)
    window = left_window_size, right_window_size
    if opset != 24 or window != (-1, -1) or qk_matmul_output_mode != 0:
        _check_opset(opset, window, nonpad_kv_seqlen, qk_matmul_output_mode)

    options: dict[str, Any] = {}
    offset: Any = 0
    if past_key is not None or past_value is not None:
        if past_key is None or past_value is None or nonpad_kv_seqlen is not None:
            raise _past_error(past_key, past_value, nonpad_kv_seqlen)
        key = _joined("past_key", past_key, key)
        value = _joined("past_value", past_value, value)
        offset = past_key.shape[2]
    elif nonpad_kv_seqlen is not None:
        options["kv_lengths"] = lengths = np.asarray(nonpad_kv_seqlen)
        offset = lengths - query.shape[2]
    present_key, present_value = key, value
    if is_causal or window != (-1, -1):
        longest = query.shape[2] + key.shape[2]
        options |= _band(offset, bool(is_causal), window, longest)
    if attn_mask is not None:
        options |= _mask_option(attn_mask, query)
        if opset > 23 and attn_mask.ndim:
            key, value = (x[:, :, : attn_mask.shape[-1]] for x in (key, value))
    if softcap:
        options["softcap"] = softcap
    if scale is not None:
        options["scale"] = scale
    if softmax_precision is not None or key.dtype != value.dtype:
        inputs = _widened(query, key, value, softmax_precision)
    else:
        inputs = query, key, value

    if outputs is None:
        return _run(inputs, Q, options)  # type: ignore[no-any-return]
    names = _checked_names(outputs)
    mode = qk_matmul_output_mode if "qk_matmul_output" in names else None
    Y, scores = _run(inputs, Q, options, mode), None
    if mode == 3:
        Y, scores = Y
        scores = _onnx_scores.padded(scores, present_key.shape[2])
    elif mode is not None:
        scores = _onnx_scores.scores(
            query, present_key, options, mode, width=key.shape[2]
        )
    return AttentionOutputs(
        Y,
        present_key if "present_key" in names else None,
        present_value if "present_value" in names else None,
        scores,
    )


def _split_heads(
    Q: Any, K: Any, V: Any, q_num_heads: int | None, kv_num_heads: int | None
) -> tuple[Any, Any, Any]:
    """View (batch, length, heads * width) as (batch, heads, length, width)."""
    if not Q.ndim == K.ndim == V.ndim == 3:
        raise ValueError(
            "Q: Q, K and V must have 4 axes each or 3 axes each; got shapes "
            f"{Q.shape}, {K.shape}, {V.shape}"
        )
    if not q_num_heads or not kv_num_heads:
        name, heads = "q_num_heads", q_num_heads
        if heads:
            name, heads = "kv_num_heads", kv_num_heads
        raise ValueError(f"{name}: must be given, at least 1, for 3 axes; got {heads}")
    return (
        _split("Q", Q, "q_num_heads", q_num_heads),
        _split("K", K, "kv_num_heads", kv_num_heads),
        _split("V", V, "kv_num_heads", kv_num_heads),
    )


def _split(name: str, array: Any, attribute: str, heads: int) -> Any:
    batch, length, width = array.shape
    if width % heads or heads < 0:
        raise ValueError(
            f"{name}: last axis must be a multiple of {attribute} {heads}; "
            f"got shape {array.shape}"
        )
    return array.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _check_heads(
    Q: Any, K: Any, q_num_heads: int | None, kv_num_heads: int | None, opset: int
) -> None:
    """Check the attributes that 4 axes make superfluous."""
    for name, array, heads in (
        ("q_num_heads", Q, q_num_heads),
        ("kv_num_heads", K, kv_num_heads),
    ):
        if heads is not None and opset >= 25:
            raise ValueError(
                f"{name}: must not be given for 4 axes from opset 25 on; got {heads}"
            )
        if heads is not None and heads != array.shape[1]:
            raise ValueError(f"{name}: must be {array.shape[1]}; got {heads}")


def _check_opset(
    opset: int, window: tuple[int, int], nonpad_kv_seqlen: Any, mode: int
) -> None:
    """Check what depends on the opset, and the window's and mode's range."""
    if opset not in (23, 24, 25):
        raise ValueError(f"opset: must be 23, 24 or 25; got {opset}")
    if nonpad_kv_seqlen is not None and opset < 24:
        raise ValueError(f"nonpad_kv_seqlen: needs opset 24; got opset {opset}")
    for name, size in zip(("left", "right"), window, strict=True):
        if size < -1:
            raise ValueError(f"{name}_window_size: must be at least -1; got {size}")
        if size > -1 and opset < 25:
            raise ValueError(f"{name}_window_size: needs opset 25; got opset {opset}")
    if mode not in (0, 1, 2, 3):
        raise ValueError(f"qk_matmul_output_mode: must be 0, 1, 2 or 3; got {mode}")


def _checked_names(outputs: Iterable[str]) -> frozenset[str]:
    names = frozenset((outputs,) if isinstance(outputs, str) else outputs)
    if not names <= {*AttentionOutputs._fields}:
        raise ValueError(
            f"outputs: must be out of {AttentionOutputs._fields}; got {outputs!r}"
        )
    return names


def _past_error(past_key: Any, past_value: Any, nonpad_kv_seqlen: Any) -> ValueError:
    if nonpad_kv_seqlen is not None:
        return ValueError(
            "nonpad_kv_seqlen: must not come with past_key or past_value; got both"
        )
    given, missing = "past_key", "past_value"
    if past_key is None:
        given, missing = missing, given
    return ValueError(f"{missing}: must come with {given}; got None")


def _joined(name: str, past: Any, new: Any) -> Any:
    """Append the new keys or values to those of the past."""
    batch, heads, _, width = new.shape
    if past.ndim != 4 or (*past.shape[:2], past.shape[3]) != (batch, heads, width):
        raise ValueError(
            f"{name}: must have shape (batch, kv_num_heads, past_len, width) = "
            f"({batch}, {heads}, past_len, {width}); got {past.shape}"
        )
    if past.dtype != new.dtype:
        raise TypeError(f"{name}: dtype must be {new.dtype}; got {past.dtype}")
    return np.concatenate((past, new), axis=2)


def _band(
    offset: Any, is_causal: bool, window: tuple[int, int], longest: int
) -> dict[str, Any]:
    """Express causality and window as `causal`, which sets the diagonal, and `window`.

    The diagonal of the native function is moved to the right edge of the window:
    `longest`, which is beyond every key, where that side is open.
    """
    left, right = (longest if size < 0 else min(size, longest) for size in window)
    if is_causal:
        right = 0
    options: dict[str, Any] = {"causal": offset + right}
    if left < longest:
        options["window"] = (left + right, None)
    return options


def _mask_option(attn_mask: Any, query: Any) -> dict[str, Any]:
    if is_boolean(attn_mask):
        return {"mask": attn_mask}
    if attn_mask.dtype.kind in "iu":
        wide = np.float64 if query.dtype == np.float64 else np.float32
        attn_mask = attn_mask.astype(wide)
    return {"bias": attn_mask}


def _widened(
    query: Any, key: Any, value: Any, softmax_precision: int | None
) -> tuple[Any, ...]:
    """Copy to one dtype: the wider of K and V, or float64 for a DOUBLE softmax."""
    if softmax_precision not in (None, *_PRECISIONS):
        raise ValueError(
            f"softmax_precision: must be out of {_PRECISIONS}; got {softmax_precision}"
        )
    arrays = query, key, value
    if query.dtype != key.dtype or not {str(x.dtype) for x in arrays} <= {*FLOATS}:
        return arrays  # which the native function refuses
    if softmax_precision == _DOUBLE:
        return tuple(x.astype(np.float64, copy=False) for x in arrays)
    return promoted(*arrays)


def _run(
    inputs: tuple[Any, ...], Q: Any, options: dict[str, Any], mode: int | None = None
) -> Any:
    """Return Y, and the weights in mode 3, with the axes and dtype of Q."""
    packed = Q.ndim == 3
    if packed:
        query, key, value = inputs
        inputs = query.swapaxes(1, 2), key.swapaxes(1, 2), value.swapaxes(1, 2)
        options = options | {"layout": "bshd"}
    if mode == 3:
        options = options | {"return_weights": True}
    try:
        result = _attention(*inputs, **options)
    except (TypeError, ValueError) as error:
        raise _renamed(error) from None
    Y, *weights = result if mode == 3 else (result,)
    if packed:
        batch, q_len, heads, width = Y.shape
        Y = Y.reshape(batch, q_len, heads * width)
    if Y.dtype != Q.dtype:
        with np.errstate(over="ignore"):
            Y, *weights = (x.astype(Q.dtype) for x in (Y, *weights))
    return (Y, *weights) if mode == 3 else Y


def _renamed(error: Exception) -> Exception:
    """Return an error of the native function in the operator's names."""
    name, colon, rule = str(error).partition(":")
    return type(error)(_NAMES.get(name, name) + colon + rule)
