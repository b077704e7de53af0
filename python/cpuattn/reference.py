# SPDX-License-Identifier: MIT
"""The float64 oracle: docs/semantics.md in plain NumPy, one score matrix per call."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._draws import kept_weights


@np.errstate(all="ignore")
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, layout: str = "bhsd",
    mask: Any = None, bias: Any = None, causal: bool | str | ArrayLike = False,
    window: tuple[int | None, int | None] | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Any = None, sinks: Any = None,
    q_lengths: Any = None, kv_lengths: Any = None, q_segment_ids: Any = None,
    kv_segment_ids: Any = None, dropout_p: float = 0.0, dropout_seed: int | None = None,
    dropout_mask: Any = None, dropout_broadcast: tuple[str, ...] = (),
    dropout_generator: str = "philox", fully_masked: str = "zero",
    precision: str = "highest", return_lse: bool = False,
    return_weights: bool | str = False, out: Any = None,
    num_threads: int | None = None, dtype: DTypeLike = np.float64,
) -> Any:  # fmt: skip
    """Return `cpuattn.attention` in `dtype`; precision, out, num_threads do nothing."""
    swap = (-3, -2) if layout == "bshd" else (-3, -3)
    q, k, v = (np.asarray(x, dtype).swapaxes(*swap) for x in (query, key, value))
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    (heads, q_len, head_dim), kv_len = q.shape[-3:], k.shape[-2]
    k, v = (x.repeat(heads // max(x.shape[-3], 1), -3) for x in (k, v))
    i, j = np.ix_(range(q_len), range(kv_len))

    def given(x: Any, default: Any, axes: int = 0, kind: Any = None) -> Any:
        return np.asarray(default if x is None else x, kind)[(..., *[None] * axes)]

    q_end, kv_end = given(q_lengths, q_len, 3), given(kv_lengths, kv_len, 3)
    offset = kv_end - q_end if isinstance(causal, bool | str) else given(causal, 0, 3)
    past = i - j + (0 if isinstance(causal, str) and causal == "top_left" else offset)
    left, right = (np.inf if x in (None, -1) else x for x in window or (None, None))
    visible = np.ones((*batch, heads, q_len, kv_len), bool) & given(mask, True)
    visible &= (i < q_end) & (j < kv_end) & (past <= left) & (-past <= right)
    visible &= (causal is False) | (past >= 0)
    rows = given(q_segment_ids, [0] * q_len)[..., None, :, None]
    visible &= rows == given(kv_segment_ids, [0] * kv_len)[..., None, None, :]
    hidden = ~visible
    visible &= given(bias, 0) != -np.inf

    scale = max(head_dim, 1) ** -0.5 if scale is None else float(scale)
    score = q @ k.swapaxes(-1, -2) * scale
    score = score if softcap is None else np.tanh(score / softcap) * softcap
    score = score + given(bias, 0, 0, dtype)
    score = score - given(alibi_slopes, 0, 2, dtype) * abs(past).astype(dtype)
    score = np.where(visible, score, -np.inf)
    sink = given(sinks, -np.inf, 2, dtype)
    top = np.maximum(score.max(-1, keepdims=True, initial=-np.inf), sink)
    base = np.where(top == -np.inf, 0, top)
    total = np.exp(score - base).sum(-1, keepdims=True) + np.exp(sink - base)
    lse = np.where(i < q_end, base + np.log(total), -np.inf)[..., 0]
    weights = np.where(visible, np.exp(score - base) / total, 0)

    keep = given(dropout_mask, True) & (dropout_p < 1)
    if dropout_mask is None and 0 < dropout_p < 1:
        shape = (math.prod(batch), heads, q_len, kv_len)
        keep = kept_weights(
            shape, dropout_p, dropout_seed or 0, dropout_broadcast, dropout_generator
        ).reshape(*batch, *shape[1:])
    kept = np.where(keep, weights / (1 - dropout_p or 1), 0)

    empty = (score == -np.inf).all(-1, keepdims=True)
    by_bias = fully_masked == "mean" and bias is not None
    stand_in = hidden if by_bias else np.ones_like(visible)
    mean = 1 / stand_in.sum(-1, keepdims=True) if kv_len else 0
    stand_in = stand_in | (mean == np.inf)
    mean = np.where(mean == np.inf, np.nan, mean)
    fill: Any = {"zero": 0, "mean": mean, "nan": np.nan}[fully_masked]
    fill = np.where(empty & (i < q_end) & (sinks is None), fill, 0).astype(dtype)
    weights, kept = (np.where(empty, fill * stand_in, x) for x in (weights, kept))
    # 0 * NaN is NaN: a value row that is not finite is added only where it is visible.
    wild = np.flatnonzero(~np.isfinite(v).all((*range(v.ndim - 2), -1)))
    result = kept @ np.where(np.isin(j.T, wild), 0, v) + 0 * fill
    for n in wild:
        term = kept[..., n, None] * v[..., None, n, :]
        reached = visible[..., n, None] | ((fill != 0) & stand_in[..., n, None])
        result = result + np.where(reached, term, 0)
    shown = weights if return_weights in (True, "before_dropout") else kept
    extra = [lse] * return_lse + [shown] * bool(return_weights)
    return (result.swapaxes(*swap), *extra) if extra else result.swapaxes(*swap)
