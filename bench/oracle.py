# SPDX-License-Identifier: MIT
"""Check a result against attention in float64, on a sample of its rows.

Independent of cpuattn on purpose. Large cases are checked on a few heads and a few
dozen rows of each, chosen by the case name, always with the first and last ones.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cases import Case, FloatArray, Inputs

MAX_HEADS = 4
MAX_ROWS = 48


@dataclass(frozen=True)
class Oracle:
    """Hold the sampled positions of a case and their float64 results.

    Attributes
    ----------
    heads : list of (batch index, head index)
    rows : ndarray, shape (num_rows,), int64
    expected : ndarray, shape (len(heads), num_rows, head_dim), float64
    shape : tuple of int
        Shape of the whole result.
    """

    heads: list[tuple[int, int]]
    rows: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float64]
    shape: tuple[int, ...]

    def max_error(self, out: FloatArray) -> float:
        """Return the largest absolute error of `out` over the sample.

        Parameters
        ----------
        out : ndarray, shape (batch, num_heads, q_len, head_dim), any float dtype

        Returns
        -------
        float
            Infinity if the shape is wrong or any element of `out` is not finite.
        """
        if out.shape != self.shape or not np.isfinite(out).all():
            return float("inf")
        sample = np.stack([out[batch, head][self.rows] for batch, head in self.heads])
        return float(np.abs(sample.astype(np.float64) - self.expected).max())

    @property
    def scale(self) -> float:
        """The largest absolute value of the sample, what errors are relative to."""
        return float(np.abs(self.expected).max())


def spread(rng: np.random.Generator, size: int, limit: int) -> npt.NDArray[np.int64]:
    """Pick at most `limit` sorted indices below `size`, both ends included."""
    if size <= limit:
        return np.arange(size)
    middle = rng.choice(np.arange(1, size - 1), size=limit - 2, replace=False)
    return np.sort(np.concatenate([[0, size - 1], middle])).astype(np.int64)


def make_oracle(case: Case, inputs: Inputs) -> Oracle:
    """Compute the sampled rows of a case in float64.

    Parameters
    ----------
    case : Case
    inputs : Inputs

    Returns
    -------
    Oracle
    """
    rng = np.random.default_rng(zlib.crc32(case.name.encode()) + 1)
    flat = spread(rng, case.batch * case.num_heads, MAX_HEADS)
    heads = [(int(i) // case.num_heads, int(i) % case.num_heads) for i in flat]
    rows = spread(rng, case.q_len, MAX_ROWS)
    group = case.num_heads // case.num_kv_heads
    full_shape = (case.batch, case.num_heads, case.q_len, case.kv_len)

    expected = []
    for batch, head in heads:
        key = inputs.key[batch, head // group].astype(np.float64)
        value = inputs.value[batch, head // group].astype(np.float64)
        query = inputs.query[batch, head][rows].astype(np.float64)
        scores = query @ key.T / np.sqrt(case.head_dim)
        if inputs.bias is not None:
            scores += np.broadcast_to(inputs.bias, full_shape)[batch, head][rows]
        if inputs.mask is not None:
            visible = np.broadcast_to(inputs.mask, full_shape)[batch, head][rows]
            scores = np.where(visible, scores, -np.inf)
        if case.causal:
            visible = np.arange(case.kv_len)[None, :] <= rows[:, None]
            scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        expected.append(weights @ value)
    return Oracle(heads, rows, np.stack(expected), inputs.query.shape)
